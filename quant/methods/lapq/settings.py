"""The settings of LAPQ."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from common.errors import InputError
from quant.arithmetic.spec import QuantSpec
from quant.methods.lapq.loss import LOSSES
from quant.settings import (
    BIAS_CORRECTION_HELP,
    BITS,
    FOLD_HELP,
    NUM_BITS_HELP,
    MethodSettings,
    ShortForms,
    same_bits,
    setting,
)

FIRST_LAST = ("8bit", "fp32")

SHORT_FORMS: ShortForms = {
    "num_bits": same_bits,
    "per_channel": lambda value: {} if value is None else {"channel_wise": value},
    "calib_size": lambda value: {} if value is None else {"num_samples": value},
}


@dataclass(frozen=True)
class LapqSettings(MethodSettings):
    """Settings of LAPQ."""

    num_samples: int = setting(512, "number of calibration images", low=1, high=10**9)
    num_bits: int | None = setting(None, NUM_BITS_HELP, **BITS)
    per_channel: bool | None = setting(None, "alias of channel_wise")
    calib_size: int | None = setting(None, "alias of num_samples", low=1, high=10**9)
    asymmetric: bool = setting(
        True, "search the zero point of two-sided tensors (off: use the middle code, as published)"
    )
    p_min: float = setting(
        2.0, "smallest power p of the |error|^p that the starting points minimise", low=0.5, high=50
    )
    p_max: float = setting(
        4.0, "largest power p of the |error|^p that the starting points minimise", low=0.5, high=50
    )
    p_steps: int = setting(10, "number of powers between p_min and p_max", low=1, high=1000)
    powell_maxiter: int = setting(
        1, "rounds of the joint search by Powell's method (0: none)", low=0, high=1000
    )
    powell_maxfev: int | None = setting(
        None, "largest number of loss evaluations in the joint search", low=1, high=10**9
    )
    lapq_loss: str = setting(
        "ce",
        "loss of the search: cross-entropy or squared error to the float network, or "
        "cross-entropy to the labels (published)",
        choices=tuple(LOSSES),
    )
    bias_correction: bool | None = setting(None, BIAS_CORRECTION_HELP)
    first_last: str = setting(
        "8bit",
        "keep the first and the last layer at 8 bits, or in float together with all linear "
        "layers (published)",
        choices=FIRST_LAST,
    )
    gradient_steps: int = setting(
        200,
        "steps of gradient descent before the joint search (0: none, as published)",
        low=0,
        high=10**6,
    )
    gradient_lr: float = setting(
        0.02, "learning rate of the gradient descent on log step sizes", low=0, high=10
    )
    fold_bn: bool = setting(True, FOLD_HELP)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.shifts_weights(self.bias_correction)
        if self.p_max < self.p_min:
            raise InputError(f"p_max must be at least p_min = {self.p_min:g}, got {self.p_max:g}")
        if self.first_last == "fp32" and self.disable_8bit_head_stem:
            raise InputError("disable_8bit_head_stem must be off with first_last fp32, got on")

    @property
    def uses_labels(self) -> bool:
        return self.lapq_loss == "ce_labels"

    @property
    def spec(self) -> QuantSpec:
        float_ends = self.first_last == "fp32"
        return dataclasses.replace(super().spec, float_ends=float_ends, fold=self.fold_bn)
