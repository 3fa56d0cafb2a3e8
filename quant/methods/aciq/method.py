"""ACIQ with bit allocation ("ACIQ-Mix").

Banner et al., "Post training 4-bit quantization of convolutional networks for rapid-deployment",
NeurIPS 2019, arXiv:1810.05723.

Activation ranges are clipped where a Laplace or Gauss density, fitted to the activations of the
float network, has the smallest quantization error (section 2). Channels share the bits of their
layer according to their spread (section 3). The moments of the weights are corrected (section 4).
Nothing is trained.

Differences from the published code: moments are taken over all calibration images together instead
of averaged over images; a channel with 0 bits takes its mean instead of its minimum; the average
number of bits is never exceeded; the output of the head is not quantized; by default biases are
corrected by the shift of the mean outputs on the calibration images.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, fx

from common.errors import InputError
from quant.arithmetic.primitives import choose_qparams, constant_qparams, fake_quantize
from quant.arithmetic.ranges import RANGE_MODES, weight_qparams
from quant.arithmetic.spec import ACT_POINTS, QuantSpec
from quant.base import BaseQuantizationMethod
from quant.methods.aciq.allocation import MAX_BITS, allocate_bits
from quant.methods.aciq.clipping import PRIORS, TABLES, clip_factor
from quant.methods.aciq.density import (
    Density,
    find_sources,
    measure_densities,
    reduced,
    require_channels_first,
    watch,
)
from quant.network.chain import Task, UnitData, walk_chain
from quant.network.forward import RANGE_SAMPLES, run_front_to_back
from quant.network.layernorms import layer_norms
from quant.network.layers import ActivationQuantizer, QuantLayer, is_depthwise, is_uniform
from quant.network.model import activation_quantizers, quant_layers, set_state
from quant.network.operations import has_attention
from quant.network.output_moments import match_output_means
from quant.registry import register_method
from quant.settings import (
    BIAS_CORRECTION_HELP,
    BITS,
    NUM_BITS_HELP,
    MethodSettings,
    ShortForms,
    same_bits,
    setting,
)

logger = logging.getLogger(__name__)

MIXED_BITS = 4  # most bits with allocation among channels, as in the published code
ALL_BITS = range(1, 17)

QParams = tuple[Tensor, Tensor]

SHORT_FORMS: ShortForms = {"num_bits": same_bits}


@dataclass(frozen=True)
class AciqSettings(MethodSettings):
    """Settings of ACIQ-Mix."""

    num_bits: int | None = setting(None, NUM_BITS_HELP, **BITS)
    aciq_method: str | None = setting(
        None,
        "density for clipping the activation ranges; none: no clipping, auto: whatever has the "
        "least error (default: laplace, in networks with attention or LayerNorms auto)",
        choices=(*PRIORS, "auto", "none"),
    )
    clip_table: str = setting(
        "exact",
        "use clipping values for the actual quantizer, or those of the paper's model",
        choices=TABLES,
    )
    mix_ratio: float = setting(
        1.0,
        "strength of the bit allocation among channels (0: equal bits, 1: as published)",
        low=0,
        high=1,
    )
    mix_weights: bool | None = setting(
        None, "allocate the bits of a layer among its weight channels (default: up to 4 bits)"
    )
    mix_acts: bool | None = setting(
        None, "allocate bits among activation channels (default: up to 4 bits with per_channel_act)"
    )
    per_channel_act: bool = setting(
        False,
        "use one scale per activation channel (published; not possible in integer matrix products)",
    )
    act_points: str = setting(
        "inputs",
        "quantize the inputs of layers, or the outputs of convolutions (published)",
        choices=ACT_POINTS,
    )
    init_wmode: str = setting(
        "minmax", "rule for choosing the ranges of the weights", choices=RANGE_MODES
    )
    bias_correction: bool | None = setting(None, BIAS_CORRECTION_HELP)
    output_correction: bool = setting(
        True, "correct each bias by the shift of its layer's mean output (not published)"
    )
    variance_correction: bool = setting(
        False,
        "correct the standard deviation of each quantized weight channel to that of the float one",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, needed in (
            ("mix_weights", "channel_wise"),
            ("mix_acts", "per_channel_act"),
            ("variance_correction", "channel_wise"),
        ):
            if getattr(self, name) and not getattr(self, needed):
                raise InputError(f"{needed} must be on for {name}, got {needed} off")
        for name, bits in (("mix_weights", self.n_bits_w), ("mix_acts", self.n_bits_a)):
            if getattr(self, name) and bits > MIXED_BITS:
                raise InputError(f"bits must be at most {MIXED_BITS} for {name}, got {bits}")
        self.shifts_weights(self.bias_correction)
        if self.has_target and self.per_channel_act:
            raise InputError("per_channel_act must be off with quant_target, got on")
        if self.has_target and self.act_points != "inputs":
            raise InputError(f"act_points must be inputs with quant_target, got {self.act_points}")

    @property
    def spec(self) -> QuantSpec:
        return dataclasses.replace(super().spec, act_points=self.act_points)

    def mixes_weights(self, bits: int) -> bool:
        wanted = self.channel_wise if self.mix_weights is None else self.mix_weights
        return wanted and bits <= MIXED_BITS

    def mixes_acts(self, bits: int) -> bool:
        wanted = self.per_channel_act if self.mix_acts is None else self.mix_acts
        return wanted and bits <= MIXED_BITS


@register_method
class AciqMix(BaseQuantizationMethod):
    """Analytic clipping, bit allocation and bias correction; no training."""

    name = "aciq_mix"
    summary = "analytic clipping, bit allocation among channels, bias correction; no training"
    settings_class = AciqSettings
    short_forms = SHORT_FORMS
    beats_rtn = True

    def _quantize(self, task: Task) -> None:
        if self.settings.per_channel_act:
            require_channels_first(task.model.units)
        methods = _clipping_methods(self.settings, task.network.graph)
        walk_chain(task, partial(self._initialise, methods))

    def _initialise(self, methods: Sequence[str], data: UnitData) -> None:
        unit = data.unit
        assert isinstance(unit, fx.GraphModule)
        set_state(unit, weights=False, activations=False)
        _clip_activations(unit, data.float_input, data.device, self.settings, methods)
        for layer in quant_layers(unit).values():
            _quantize_weight(layer, self.settings)
        if self.settings.output_correction:
            match_output_means(data)


def _quantize_weight(layer: QuantLayer, settings: AciqSettings) -> None:
    bits = int(layer.bits.max())
    if settings.mixes_weights(bits):
        _round_mixed(layer, bits, settings)
    else:
        layer.quantize_to_nearest(settings.init_wmode)
    corrects_mean = settings.shifts_weights(settings.bias_correction)
    if corrects_mean or settings.variance_correction:
        layer.match_moments(mean=corrects_mean, variance=settings.variance_correction)


def _round_mixed(layer: QuantLayer, bits: int, settings: AciqSettings) -> None:
    """Round each output channel to bits allocated by its standard deviation."""
    weight = layer.full_precision_weight()
    rows = weight.flatten(1)
    given = allocate_bits(rows.std(1, correction=0), bits, settings.mix_ratio)
    spec = settings.spec
    depthwise = is_depthwise(layer)
    if settings.has_target:
        given = given.clamp(max=spec.most_weight_bits(depthwise))
    scale, zero_point = constant_qparams(rows.mean(1, keepdim=True))
    for number in range(1, MAX_BITS + 1):
        chosen = (given == number).nonzero().flatten()
        if len(chosen) > 0:
            scale[chosen], zero_point[chosen] = weight_qparams(
                rows[chosen],
                number,
                True,
                settings.init_wmode,
                spec.is_symmetric(number, depthwise),
            )
    shape = (-1,) + (1,) * (weight.dim() - 1)
    layer.round_to(scale.reshape(shape), zero_point.reshape(shape), given.reshape(shape))


def _clipping_methods(settings: AciqSettings, network: fx.GraphModule) -> Sequence[str]:
    """The clipping methods of which each quantizer takes that of least error.

    The paper's densities are those of convolutional networks. Behind LayerNorm, GELU and softmax
    tails are so much heavier that 8 bits clipped by them are worse than 6 bits that are not.
    """
    wanted = settings.aciq_method
    if wanted is None:
        wanted = "auto" if has_attention(network) or layer_norms(network) else "laplace"
        logger.info("clipping of activations: %s (aciq_method is not given)", wanted)
    return (*PRIORS, "none") if wanted == "auto" else (wanted,)


def _clip_activations(
    unit: fx.GraphModule,
    inputs: Tensor,
    device: torch.device,
    settings: AciqSettings,
    methods: Sequence[str],
) -> None:
    """Choose bits and ranges of all quantizers of a unit in float state, and enable them."""
    _choose_powers(unit, inputs, device)
    densities = measure_densities(unit, inputs, device, settings.per_channel_act)
    bits = {quantizer: _bits(quantizer, found, settings) for quantizer, found in densities.items()}
    candidates = {
        quantizer: [
            clipped_qparams(found, bits[quantizer], method, settings.clip_table)
            for method in methods
        ]
        for quantizer, found in densities.items()
    }
    chosen = {quantizer: pairs[0] for quantizer, pairs in candidates.items()}
    if len(methods) > 1:
        chosen = _least_error(unit, inputs, device, candidates, bits)
    for quantizer, (scale, zero_point) in chosen.items():
        given = bits[quantizer]
        quantizer.set_qparams(scale, zero_point, given if given.dim() else None)


def _choose_powers(unit: fx.GraphModule, inputs: Tensor, device: torch.device) -> None:
    """Choose the largest power of each quantizer of powers of two by its error, in float state."""

    def choose(quantizer: ActivationQuantizer, batches: list[Tensor]) -> None:
        if not is_uniform(quantizer):
            quantizer.set_qparams(*quantizer.best_qparams(batches, "mse"))
            quantizer.quantized = False

    if not all(map(is_uniform, activation_quantizers(unit).values())):
        run_front_to_back(unit, inputs[:RANGE_SAMPLES], device, choose)


def _bits(quantizer: ActivationQuantizer, density: Density, settings: AciqSettings) -> Tensor:
    """Bits of the tensor, (), or of its channels, (1, C, 1, ...), int64."""
    spread = density.deviation
    if not settings.mixes_acts(quantizer.num_bits):
        return torch.tensor(quantizer.num_bits, device=spread.device)
    given = allocate_bits(spread.flatten(), quantizer.num_bits, settings.mix_ratio)
    return given.reshape(spread.shape)


def clipped_qparams(density: Density, bits: Tensor, method: str, table: str) -> QParams:
    """Scale and zero point of the clipped range, float32 in the shape of the density.

    The range is centre - clip to centre + clip, or 0 to max(centre, 0) + clip if one-sided, within
    the minimum and maximum (published code); the method ``none`` does not clip. With 0 bits the
    only level is the mean.
    """
    low, high = density.low.clamp(max=0.0), density.high
    if method != "none":
        factors = [clip_factor(method, number, density.one_sided, table) for number in ALL_BITS]
        clip = density.scale(method) * density.scale(method).new_tensor(factors)[bits - 1]
        if density.one_sided:
            high = torch.minimum(high, density.centre.clamp(min=0.0) + clip)
        else:
            low = torch.maximum(density.low, density.centre - clip)
            high = torch.minimum(high, low + 2 * clip)
    scale, zero_point = choose_qparams(low.float(), high.float(), bits.clamp(min=1))
    lone_scale, lone_zero = constant_qparams(density.mean.float())
    return torch.where(bits > 0, scale, lone_scale), torch.where(bits > 0, zero_point, lone_zero)


def _least_error(
    unit: fx.GraphModule,
    inputs: Tensor,
    device: torch.device,
    candidates: dict[ActivationQuantizer, list[QParams]],
    bits: dict[ActivationQuantizer, Tensor],
) -> dict[ActivationQuantizer, QParams]:
    """For each quantizer, or each of its channels, the candidate of smallest squared error."""
    sources = find_sources(unit)
    errors: dict[ActivationQuantizer, Tensor] = {}
    for values in watch(unit, sources, inputs, device):
        for source in sources:
            x, key = values[source.output], source.quantizer
            where = reduced(x, per_channel=candidates[key][0][0].dim() > 0)
            error = torch.stack(
                [
                    (fake_quantize(x, *pair, bits[key]) - x).square().sum(**where)
                    for pair in candidates[key]
                ]
            )
            errors[key] = errors.get(key, 0.0) + error.double()
    return {key: _pick(pairs, errors[key].argmin(0)) for key, pairs in candidates.items()}


def _pick(pairs: list[QParams], best: Tensor) -> QParams:
    """For each element, the scale and zero point of the pair with the index in ``best``."""
    scales, zero_points = (torch.stack(parts) for parts in zip(*pairs, strict=True))
    index = best.unsqueeze(0)
    return scales.gather(0, index)[0], zero_points.gather(0, index)[0]
