"""Experts for long-tailed data sets: splits, training, logits on new splits, their verification."""
