"""The search for the best method and settings at given bits, with Optuna, without labels."""
