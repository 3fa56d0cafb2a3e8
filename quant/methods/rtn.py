"""Round to nearest: the baseline of the other methods."""

from __future__ import annotations

from dataclasses import dataclass

from quant.arithmetic.spec import NOT_QUANTIZED
from quant.base import BaseQuantizationMethod
from quant.network.chain import Task, nearest, walk_chain
from quant.network.output_moments import match_output_moments
from quant.registry import register_method
from quant.settings import OUTPUT_MOMENTS_HELP, RangeSettings, setting


@dataclass(frozen=True)
class RtnSettings(RangeSettings):
    """Settings of round to nearest."""

    output_moments: bool | None = setting(False, OUTPUT_MOMENTS_HELP)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_quantized_weights("output_moments")

    @property
    def matches_moments(self) -> bool:
        """Whether moments of outputs are matched; None means: where weights are quantized."""
        if self.output_moments is None:
            return self.n_bits_w != NOT_QUANTIZED
        return self.output_moments


@register_method
class RoundToNearest(BaseQuantizationMethod):
    """Weights and activations rounded to nearest, by default with ranges of least |error|^2.4.

    Activation ranges are chosen unit by unit, with everything before them quantized.
    """

    name = "rtn"
    summary = "round to nearest with searched ranges: the baseline"
    settings_class = RtnSettings

    def _quantize(self, task: Task) -> None:
        initialise = nearest(self.settings.init_wmode, self.settings.init_amode)
        walk_chain(
            task, initialise, match_output_moments if self.settings.matches_moments else None
        )
