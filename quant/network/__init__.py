"""From a float network to a chain of units with quantizers in place."""
