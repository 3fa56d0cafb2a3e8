"""The stage after any method: the quantized network learns the float network's outputs."""
