"""QDrop: Wei et al., "QDrop: Randomly Dropping Quantization for Extremely Low-bit Post-Training
Quantization", ICLR 2022, arXiv:2203.05740.

The reconstruction of ``adaround`` with two independent element-wise mixings, drawn anew in every
step: the unit's input mixes quantized and float prefix, and each activation quantizer inside lets
elements pass unquantized. Both are off in the finished model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from common import InputError
from quant.reconstruction import ReconstructionMethod
from quant.reconstruction_settings import ReconstructionSettings
from quant.registry import register_method
from quant.settings import setting


@dataclass(frozen=True)
class QDropSettings(ReconstructionSettings):
    """Settings of QDrop.

    ``dropout_rate`` is the probability that quantization is *dropped*; ``prob`` and ``input_prob``
    of the published code are the probabilities that it is kept, one minus ``dropout_rate``.
    """

    prob: float = setting(
        0.5, "probability that an element keeps its quantized value inside the unit", low=0, high=1
    )
    input_prob: float = setting(
        0.5, "probability that an element of the unit's input is the quantized one", low=0, high=1
    )
    num_bits: int | None = setting(None, "n_bits_w and n_bits_a in one", low=1)
    dropout_rate: float | None = setting(
        None,
        "probability that quantization is dropped: one minus prob and input_prob",
        low=0,
        high=1,
    )
    stochastic: bool = setting(True, "mix at all; off means prob and input_prob 1")


@register_method
class QDrop(ReconstructionMethod):
    """AdaRound with randomly dropped activation quantization."""

    name = "qdrop"
    summary = "adaround with randomly dropped activation quantization"
    settings_class = QDropSettings

    def __init__(self, **settings: Any):
        super().__init__(**_spelled_out(settings))


def _spelled_out(given: dict[str, Any]) -> dict[str, Any]:
    """The settings with what ``num_bits``, ``dropout_rate`` and ``stochastic`` stand for.

    Raises:
        InputError: a setting contradicts what it is a short form of.
    """
    short: dict[str, dict[str, Any]] = {}
    if given.get("num_bits") is not None:
        short["num_bits"] = dict.fromkeys(("n_bits_w", "n_bits_a"), given["num_bits"])
    if isinstance(given.get("dropout_rate"), (int, float)):
        kept = 1.0 - given["dropout_rate"]
        short["dropout_rate"] = dict.fromkeys(("prob", "input_prob"), kept)
    if given.get("stochastic") is False:
        short["stochastic"] = {"prob": 1.0, "input_prob": 1.0}
    result = dict(given)
    for name, meaning in short.items():
        for key, value in meaning.items():
            if result.setdefault(key, value) != value:
                raise InputError(
                    f"{key} must be left out or be {value} beside {name} = {given[name]}, got {result[key]}"
                )
    return result
