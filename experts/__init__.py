"""Long-tailed experts: splits, training, logits on new splits."""
