"""AdaRound by blocks: Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization",
ICML 2020, arXiv:2004.10568, applied to the blocks of BRECQ (Li et al., ICLR 2021,
arXiv:2102.05426).

Departs from the papers: the activation steps are learned in the same loop as the roundings (as
QDrop does) instead of in a second phase, and a unit's input comes from the quantized prefix.
"""

from __future__ import annotations

from quant.reconstruction.engine import ReconstructionMethod
from quant.registry import register_method


@register_method
class AdaRound(ReconstructionMethod):
    """Learned weight rounding and learned activation steps, unit by unit."""

    name = "adaround"
    summary = "block reconstruction with learned rounding and learned activation steps"
