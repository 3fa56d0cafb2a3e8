"""GPFQ: greedy path following.

Lybrand & Saab, JMLR 22, 2021, arXiv:2010.15979; Zhang, Zhou & Saab, SIAM J. Math. Data Sci. 5(2),
2023, arXiv:2201.11113; stochastic rounding as in SPFQ, Zhang & Saab, 2023, arXiv:2309.10975.

Layer by layer, each weight is rounded so that it compensates, along its own input column, the error
of the layers before it and of the earlier weights of its neuron.

Differences from the published code: all patches of one calibration set are used, at the stride of
the layer; the published code draws a new batch for each layer, cuts patches at the stride of the
kernel and uses a quarter of them. By default there are as many levels as the bits allow, batch
norms are folded first, and stem and head have 8 bits.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import InputError
from quant.arithmetic.primitives import code_dtype
from quant.arithmetic.ranges import RANGE_MODES
from quant.arithmetic.spec import NOT_QUANTIZED, QuantSpec
from quant.base import BaseQuantizationMethod
from quant.methods.gpfq.alphabet import (
    ALPHABETS,
    RADII,
    REGULARIZERS,
    Alphabet,
    Sparsity,
    make_alphabet,
    radius,
)
from quant.methods.gpfq.path_following import Grams, follow_path
from quant.network.chain import (
    Task,
    UnitData,
    choose_ranges,
    generator_for,
    walk_chain,
)
from quant.network.layers import QuantConv2d, QuantLayer
from quant.network.model import quant_layers
from quant.network.observe import input_of
from quant.network.output_moments import match_output_moments
from quant.registry import register_method
from quant.settings import (
    ACTIVATION_BITS_HELP,
    BITS,
    FOLD_HELP,
    OUTPUT_MOMENTS_HELP,
    MethodSettings,
    ShortForms,
    setting,
)

GRAM_BATCH = 16  # images whose patches are in memory at the same time
LARGEST = 1e6
ABOVE_ZERO: dict[str, Any] = {"low": 1e-9, "high": LARGEST, "must": "above 0 (1e-9..1e6)"}
SHARE: dict[str, Any] = {"low": 1e-9, "high": 1, "must": "above 0 and at most 1"}
SHORT_FORMS: ShortForms = {
    "radius": lambda kind: {} if kind is None else {"channel_wise": kind == "per_channel"}
}


@dataclass(frozen=True)
class GpfqSettings(MethodSettings):
    """Settings of GPFQ."""

    n_bits_a: int = setting(NOT_QUANTIZED, ACTIVATION_BITS_HELP, **BITS)
    alphabet: str = setting(
        "bits", "levels of a weight: 2^bits, or 2^bits + 1 (published)", choices=ALPHABETS
    )
    scalar: float = setting(1.16, "reach of the alphabet in multiples of its radius", **ABOVE_ZERO)
    mlp_scalar: float | None = setting(
        None, "scalar of the linear layers (default: as scalar)", **ABOVE_ZERO
    )
    cnn_scalar: float | None = setting(
        None, "scalar of the convolutions (default: as scalar)", **ABOVE_ZERO
    )
    mlp_percentile: float = setting(1.0, "quantile of |w| for the radius of linear layers", **SHARE)
    cnn_percentile: float = setting(1.0, "quantile of |w| for the radius of convolutions", **SHARE)
    radius: str | None = setting(
        None,
        "radius of the alphabet: mean or median of the maxima of all neurons, or each neuron's own "
        "maximum (default: its own, or with no-channel_wise the mean)",
        choices=RADII,
    )
    regularizer: str | None = setting(
        None, "regularizer that sets small weights to zero", choices=REGULARIZERS
    )
    lambda_: float | None = setting(
        None, "threshold of the regularizer, in units of the weights", low=0, high=LARGEST
    )
    stochastic_rounding: bool = setting(False, "use unbiased stochastic rounding (SPFQ)")
    act_order: bool = setting(False, "quantize the input columns with the largest norm first")
    gpfq_bias_correction: bool = setting(
        False, "correct each bias by the mean of the remaining error"
    )
    output_moments: bool = setting(False, OUTPUT_MOMENTS_HELP)
    fold_bn: bool = setting(True, FOLD_HELP)
    init_amode: str = setting(
        "mse", "rule for choosing the ranges of the activations", choices=RANGE_MODES
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_quantized_weights("output_moments")
        if (self.regularizer is None) != (self.lambda_ is None):
            given = "regularizer" if self.lambda_ is None else "lambda"
            raise InputError(f"regularizer and lambda must be given together, got only {given}")
        if self.regularizer == "L0" and self.has_target:
            raise InputError("regularizer must not be L0 with quant_target, got L0")
        if self.regularizer == "L0" and self.alphabet == "bits" and self.n_bits_w == 1:
            raise InputError("n_bits_w must be at least 2 with regularizer L0, got 1")

    @property
    def spec(self) -> QuantSpec:
        return dataclasses.replace(super().spec, fold=self.fold_bn)

    def reach(self, layer: QuantLayer, weight: Tensor) -> Tensor:
        """Scalar times radius of the (N, d) weight, (N, 1) or (1, 1)."""
        is_conv = isinstance(layer, QuantConv2d)
        scalar = self.cnn_scalar if is_conv else self.mlp_scalar
        percentile = self.cnn_percentile if is_conv else self.mlp_percentile
        kind = self.radius or ("per_channel" if self.channel_wise else "mean_max")
        return (scalar or self.scalar) * radius(weight, kind, percentile)


@register_method
class Gpfq(BaseQuantizationMethod):
    """Greedy path following, layer by layer."""

    name = "gpfq"
    summary = "greedy path following: each weight rounded to compensate the error so far"
    settings_class = GpfqSettings
    short_forms = SHORT_FORMS
    beats_rtn = True

    def _quantize(self, task: Task) -> None:
        refine = match_output_moments if self.settings.output_moments else None
        walk_chain(task, _Unit(task, self.settings), refine)


class _Unit:
    """Quantizes the units of a task, one per call."""

    def __init__(self, task: Task, settings: GpfqSettings):
        self.floats = list(task.reference.units)
        self.settings = settings

    def __call__(self, data: UnitData) -> None:
        choose_ranges(data, self.settings.init_amode)
        generator = None
        if self.settings.stochastic_rounding:
            generator = generator_for(self.settings.seed, data.index, data.device)
        for name, layer in quant_layers(data.unit).items():
            partner = self.floats[data.index].get_submodule(name)
            grams = _measure(data, self.floats[data.index], partner, layer)
            _quantize_layer(name, layer, grams, self.settings, generator)


def _measure(data: UnitData, float_unit: nn.Module, partner: nn.Module, layer: QuantLayer) -> Grams:
    """Inner products of the layer's inputs in the float and in the quantized network."""
    grams = Grams.empty(layer)
    for analog, quantized in zip(
        data.float_input.split(GRAM_BATCH), data.quant_input.split(GRAM_BATCH), strict=True
    ):
        grams.add(
            input_of(partner, float_unit, analog.to(data.device)),
            input_of(layer, data.unit, quantized.to(data.device)),
            layer,
        )
    return grams


def _quantize_layer(
    name: str,
    layer: QuantLayer,
    grams: Grams,
    settings: GpfqSettings,
    generator: torch.Generator | None,
) -> None:
    weight = layer.full_precision_weight()
    rows = weight.flatten(1).double()  # (O, d)
    reach = settings.reach(layer, rows)
    sparsity = None
    if settings.regularizer is not None and settings.lambda_ is not None:
        sparsity = Sparsity(settings.regularizer, settings.lambda_)
        if settings.regularizer == "L0" and settings.lambda_ >= float(reach.min()):
            raise InputError(
                f"lambda must be below the reach of every alphabet, got {settings.lambda_:g} "
                f"and {float(reach.min()):.3g} in {name}"
            )
    alphabet = make_alphabet(reach, int(layer.bits), settings.alphabet, sparsity, generator)
    codes = torch.cat(
        [
            follow_path(part, grams.cross[group], grams.own[group], some, settings.act_order)
            for group, (part, some) in enumerate(_groups(rows, alphabet, len(grams.own)))
        ]
    )
    levels = alphabet.levels(codes)
    _store(layer, codes, alphabet)
    if settings.gpfq_bias_correction:
        layer.shift_bias(grams.residual_mean(rows, levels).float())


def _groups(rows: Tensor, alphabet: Alphabet, groups: int) -> list[tuple[Tensor, Alphabet]]:
    """The weights of each group with their alphabet."""
    per_neuron = alphabet.step.shape[0] > 1
    steps = alphabet.step.chunk(groups) if per_neuron else [alphabet.step] * groups
    gaps = alphabet.gap.chunk(groups) if per_neuron else [alphabet.gap] * groups
    parts = rows.chunk(groups)
    return [
        (part, alphabet.with_steps(step, gap))
        for part, step, gap in zip(parts, steps, gaps, strict=True)
    ]


def _store(layer: QuantLayer, codes: Tensor, alphabet: Alphabet) -> None:
    """Store the codes in the layer, shifted to unsigned codes."""
    bits = torch.tensor((alphabet.high - alphabet.low).bit_length(), device=codes.device)
    shape = (-1,) + (1,) * (layer.codes.dim() - 1)
    scale = alphabet.step.float().reshape(shape)
    gap = alphabet.gap.float().reshape(shape) if bool(alphabet.gap.any()) else None
    unsigned = (codes - alphabet.low).to(code_dtype(bits)).reshape(layer.codes.shape)
    layer.set_codes(unsigned, scale, torch.full_like(scale, -alphabet.low), bits, gap)
