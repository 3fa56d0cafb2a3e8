"""Settings of the methods that reconstruct unit by unit."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from common.errors import InputError
from quant.reconstruction.distribution import CorrectionSchedule
from quant.reconstruction.prediction import PredictionSettings
from quant.settings import RangeSettings, setting

# Learning rate times iterations below which some rounding variables cannot reach 0 or 1.
MIN_TRAVEL = 3.0
LAMB_R, TEMPERATURE, LAMB_C = 0.1, 4.0, 0.02  # of PD-Quant, for terms that are on without them
FAST_CORRECTION, PUBLISHED_CORRECTION = (100, 5e-3), (500, 1e-3)  # steps and learning rate
ABOVE_ZERO: dict[str, Any] = {"low": 1e-9, "high": 1e9, "must": "above 0 (1e-9..1e9)"}
PROB_HELP = "probability that an activation inside the unit is quantized in a step"
INPUT_PROB_HELP = "probability that an element of the unit's input comes from the quantized network"
LAMB_R_HELP = "prediction difference: divisor of the KL divergence; giving it turns the term on"
TEMPERATURE_HELP = "prediction difference: temperature of the softmax; giving it turns the term on"
LAMB_C_HELP = "distribution correction: divisor of the anchor; giving it turns the correction on"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReconstructionSettings(RangeSettings):
    """Settings of the reconstruction; defaults as in QDrop's code except for the probabilities."""

    iters_w: int = setting(20000, "number of optimisation steps per unit", low=0, high=10**9)
    batch_size_recon: int = setting(32, "number of images per optimisation step", low=1, high=10**6)
    weight: float = setting(0.01, "weight of the rounding penalty in the loss", low=0, high=10**6)
    b_start: float = setting(
        20.0, "exponent of the rounding penalty right after the warm-up", low=0, high=1000
    )
    b_end: float = setting(
        2.0, "exponent of the rounding penalty at the last step", low=0, high=1000
    )
    warmup: float = setting(
        0.2, "fraction of the steps before the rounding penalty is added", low=0, high=1
    )
    lr: float = setting(
        4e-5,
        "initial learning rate of the activation step sizes; it falls to 0 along half a cosine",
        low=0,
        high=1000,
    )
    lr_round: float = setting(1e-3, "learning rate of the rounding variables", low=0, high=1000)
    prob: float = setting(1.0, PROB_HELP, low=0, high=1)
    input_prob: float = setting(1.0, INPUT_PROB_HELP, low=0, high=1)
    lamb_r: float | None = setting(None, LAMB_R_HELP, **ABOVE_ZERO)
    T: float | None = setting(None, TEMPERATURE_HELP, **ABOVE_ZERO)
    lamb_c: float | None = setting(None, LAMB_C_HELP, **ABOVE_ZERO)
    bn_lr: float | None = setting(
        None,
        "distribution correction: learning rate; giving it turns the correction on",
        **ABOVE_ZERO,
    )
    dc_steps: int | None = setting(
        None, "distribution correction: number of steps per batch", low=1, high=10**9
    )
    dc_fast: bool = setting(
        True,
        "distribution correction: use 100 steps at learning rate 5e-3 "
        "(off: 500 at 1e-3, as published)",
    )
    amp: str = setting(
        "off", "precision of the units during reconstruction", choices=("off", "bf16")
    )
    compile: bool = setting(False, "compile the optimisation step with torch.compile")
    cuda_graph: bool = setting(True, "replay the optimisation step as a CUDA graph (on a GPU)")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._refuse_unused("dc_steps", self.dc_steps)
        self._refuse_unused("dc_fast", None if self.dc_fast else False)
        travel = self.lr_round * self.iters_w
        if 0 < travel < MIN_TRAVEL:
            logger.warning(
                "lr_round * iters_w = %.3g is below %g: some rounding variables cannot reach 0 or "
                "1, and the final rounding changes the loss; raise lr_round to %.2g",
                travel,
                MIN_TRAVEL,
                MIN_TRAVEL / self.iters_w,
            )

    def _refuse_unused(self, name: str, value: Any) -> None:
        if value is not None and self.correction is None:
            raise InputError(
                f"{name} must be left out while the distribution correction is off, got {value} "
                "(lamb_c or bn_lr turns it on)"
            )

    @property
    def prediction(self) -> PredictionSettings | None:
        """Settings of the prediction difference; None if it is off."""
        if self.T is None and self.lamb_r is None:
            return None
        return PredictionSettings(self.T or TEMPERATURE, self.lamb_r or LAMB_R)

    @property
    def correction(self) -> CorrectionSchedule | None:
        """Schedule of the distribution correction; None if it is off.

        If only one of steps and learning rate is given, the other is that of the published
        schedule.
        """
        if self.lamb_c is None and self.bn_lr is None:
            return None
        is_fast = self.dc_fast and self.dc_steps is None and self.bn_lr is None
        steps, lr = FAST_CORRECTION if is_fast else PUBLISHED_CORRECTION
        return CorrectionSchedule(self.lamb_c or LAMB_C, self.dc_steps or steps, self.bn_lr or lr)
