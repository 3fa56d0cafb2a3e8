"""PD-Quant.

Liu et al., "PD-Quant: Post-Training Quantization based on Prediction Difference Metric", CVPR 2023,
arXiv:2212.07048.

QDrop with the prediction difference in the loss of each unit, and with float inputs that are
corrected towards the stored statistics of the batch norms (distribution correction).
"""

from __future__ import annotations

from dataclasses import dataclass

from quant.methods.qdrop import QDrop, QDropSettings
from quant.reconstruction.settings import (
    ABOVE_ZERO,
    LAMB_C,
    LAMB_C_HELP,
    LAMB_R,
    LAMB_R_HELP,
    TEMPERATURE,
    TEMPERATURE_HELP,
)
from quant.registry import register_method
from quant.settings import setting


@dataclass(frozen=True)
class PDQuantSettings(QDropSettings):
    """Settings of PD-Quant; defaults of the published command line for ResNets."""

    lr_round: float = setting(3e-3, "learning rate of the rounding variables", low=0, high=1000)
    lamb_r: float | None = setting(LAMB_R, LAMB_R_HELP, **ABOVE_ZERO)
    T: float | None = setting(TEMPERATURE, TEMPERATURE_HELP, **ABOVE_ZERO)
    lamb_c: float | None = setting(LAMB_C, LAMB_C_HELP, **ABOVE_ZERO)


@register_method
class PDQuant(QDrop):
    """QDrop with prediction difference and distribution correction."""

    name = "pd_quant"
    summary = "qdrop with prediction difference and distribution correction"
    settings_class = PDQuantSettings
