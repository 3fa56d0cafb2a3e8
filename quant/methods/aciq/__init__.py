"""ACIQ-Mix: analytic clipping, bits shared among channels, corrected weights."""

from quant.methods.aciq.method import AciqMix

__all__ = ["AciqMix"]
