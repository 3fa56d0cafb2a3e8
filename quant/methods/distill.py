"""Distillation of the whole network from round to nearest: a method of this suite.

``quant.distillation.stage`` says what is trained. The start costs little: the outputs of its layers
have the mean and standard deviation of the float ones. A step trains every layer at once, where the
reconstruction methods train one block. The relative that is published is AE-QDrop (Li et al.,
Electronics 2024, 13, 644), which trains blocks first.
"""

from __future__ import annotations

from dataclasses import dataclass

from quant.methods.rtn import RoundToNearest, RtnSettings
from quant.registry import register_method
from quant.settings import DISTILL_STEPS_HELP, OUTPUT_MOMENTS_HELP, setting

STEPS = 1600


@dataclass(frozen=True)
class DistillMethodSettings(RtnSettings):
    """Settings of the method, whose defaults differ from those of ``rtn``."""

    output_moments: bool | None = setting(None, OUTPUT_MOMENTS_HELP)
    distill_steps: int = setting(STEPS, DISTILL_STEPS_HELP, low=0, high=10**9)


@register_method
class Distill(RoundToNearest):
    """``rtn``, followed by the distillation."""

    name = "distill"
    summary = "rtn, then the whole network learns the float network's outputs"
    settings_class = DistillMethodSettings
    beats_rtn = True
