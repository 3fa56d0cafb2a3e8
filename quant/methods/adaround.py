"""AdaRound by blocks.

Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", ICML 2020,
arXiv:2004.10568, applied to the blocks of BRECQ (Li et al., ICLR 2021, arXiv:2102.05426).

Differences from the papers: the activation step sizes are learned in the same loop as the rounding
(as in QDrop) instead of in a second phase, and a unit's input comes from the quantized prefix.
"""

from __future__ import annotations

from quant.reconstruction.engine import ReconstructionMethod
from quant.registry import register_method


@register_method
class AdaRound(ReconstructionMethod):
    """Learned weight rounding and learned activation step sizes, unit by unit."""

    name = "adaround"
    summary = "block reconstruction with learned rounding and learned activation step sizes"
