"""ACIQ-Mix: analytic clipping, bit allocation among channels, bias correction."""

from quant.methods.aciq.method import AciqMix

__all__ = ["AciqMix"]
