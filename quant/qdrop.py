"""QDrop: Wei et al., "QDrop: Randomly Dropping Quantization for Extremely Low-bit Post-Training
Quantization", ICLR 2022, arXiv:2203.05740.

The reconstruction of ``adaround`` with two independent element-wise mixings, drawn anew in every
step: the unit's input mixes quantized and float prefix, and each activation quantizer inside lets
elements pass unquantized. Both are off in the finished model.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from common import InputError
from quant.reconstruction import ReconstructionMethod
from quant.reconstruction_settings import ReconstructionSettings
from quant.registry import register_method
from quant.settings import BITS, check_setting, setting

SHORT_FORMS = ("num_bits", "dropout_rate", "stochastic")


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
    num_bits: int | None = setting(None, "n_bits_w and n_bits_a in one", **BITS)
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
        InputError: one of the three is unusable or contradicts another setting.
    """
    fields = {field.name: field for field in dataclasses.fields(QDropSettings)}
    short = {
        name: check_setting(fields[name], given.get(name)) for name in SHORT_FORMS if name in given
    }
    result, origin = dict(given), {key: key for key in given}
    for name, value in short.items():
        for key, meant in _meaning(name, value).items():
            if not math.isclose(
                check_setting(fields[key], result.get(key, meant)), meant, abs_tol=1e-9
            ):
                raise InputError(
                    f"{origin[key]} must be left out or agree with {name} = {value}, got {given[origin[key]]}"
                )
            result[key], origin[key] = result.get(key, meant), origin.get(key, name)
    return result


def _meaning(name: str, value: Any) -> dict[str, Any]:
    """What a short form sets; nothing where it is left at its default."""
    if name == "num_bits" and value is not None:
        return {"n_bits_w": value, "n_bits_a": value}
    if name == "dropout_rate" and value is not None:
        return {"prob": 1.0 - value, "input_prob": 1.0 - value}
    if name == "stochastic" and not value:
        return {"prob": 1.0, "input_prob": 1.0}
    return {}
