"""Conversion of a float network to a chain of units with quantizers."""
