"""LAPQ: joint search of the step sizes of all tensors for the lowest loss of the network."""

from quant.methods.lapq.method import Lapq

__all__ = ["Lapq"]
