"""Quantization as pure functions of tensors: no network, no method."""
