"""LAPQ: the steps of all tensors, searched jointly for the loss of the network."""

from quant.methods.lapq.method import Lapq

__all__ = ["Lapq"]
