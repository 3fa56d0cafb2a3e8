"""GPFQ: greedy path following."""

from quant.methods.gpfq.method import Gpfq

__all__ = ["Gpfq"]
