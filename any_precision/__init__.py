"""Training of one network for several bitwidths, and its accuracy at each."""
