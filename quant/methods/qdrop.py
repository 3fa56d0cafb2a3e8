"""QDrop.

Wei et al., "QDrop: Randomly Dropping Quantization for Extremely Low-bit Post-Training
Quantization", ICLR 2022, arXiv:2203.05740.

The reconstruction of ``adaround`` with two independent element-wise random mixings, drawn in every
step: the unit's input mixes the quantized and the float input, and each activation quantizer in the
unit lets elements pass unquantized. Both are off in the finished model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from quant.reconstruction.engine import ReconstructionMethod
from quant.reconstruction.settings import INPUT_PROB_HELP, PROB_HELP, ReconstructionSettings
from quant.registry import register_method
from quant.settings import BITS, NUM_BITS_HELP, ShortForms, same_bits, setting

SHORT_FORMS: ShortForms = {
    "num_bits": same_bits,
    "dropout_rate": lambda rate: _keeping(None if rate is None else 1.0 - rate),
    "stochastic": lambda mixing: _keeping(None if mixing else 1.0),
}


def _keeping(probability: float | None) -> dict[str, Any]:
    return {} if probability is None else {"prob": probability, "input_prob": probability}


@dataclass(frozen=True)
class QDropSettings(ReconstructionSettings):
    """Settings of QDrop.

    ``dropout_rate`` is the probability that quantization is *dropped*; ``prob`` and ``input_prob``
    of the published code are the probabilities that it is kept, 1 - ``dropout_rate``.
    """

    prob: float = setting(0.5, PROB_HELP, low=0, high=1)
    input_prob: float = setting(0.5, INPUT_PROB_HELP, low=0, high=1)
    num_bits: int | None = setting(None, NUM_BITS_HELP, **BITS)
    dropout_rate: float | None = setting(
        None,
        "probability that quantization is dropped; sets prob and input_prob to 1 - dropout_rate",
        low=0,
        high=1,
    )
    stochastic: bool = setting(True, "drop quantization at random (off: prob and input_prob are 1)")


@register_method
class QDrop(ReconstructionMethod):
    """AdaRound with randomly dropped activation quantization."""

    name = "qdrop"
    summary = "adaround with randomly dropped activation quantization"
    settings_class = QDropSettings
    short_forms = SHORT_FORMS
