"""Round to nearest: the baseline of the other methods."""

from __future__ import annotations

from quant.base import BaseQuantizationMethod
from quant.network.chain import Task, nearest, walk_chain
from quant.registry import register_method
from quant.settings import RangeSettings


@register_method
class RoundToNearest(BaseQuantizationMethod):
    """Weights and activations rounded to nearest, by default with ranges of least |error|^2.4.

    Activation ranges are chosen unit by unit, with everything before them quantized.
    """

    name = "rtn"
    summary = "round to nearest with searched ranges: the baseline"
    settings_class = RangeSettings

    def _quantize(self, task: Task) -> None:
        walk_chain(task, nearest(self.settings.init_wmode, self.settings.init_amode))
