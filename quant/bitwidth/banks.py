"""A post-training quantized model with variable bits: each layer has a bank of weights by bitwidth.

The bank ``rtn`` holds weights rounded to nearest at each option. For the bank ``uniform_runs`` the
chosen method is run once per option with all layers at that option. Mixing such layers is an
approximation, because each was tuned with the layers before it at the same bits.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from torch import Tensor, fx, nn

from common.errors import InputError
from quant.arithmetic.primitives import quantize
from quant.arithmetic.ranges import weight_qparams
from quant.base import BaseQuantizationMethod
from quant.bitwidth.assignments import (
    quantized_layers,
    require_option,
    require_options,
    weighted_average,
)
from quant.network.capture import CapturedNetwork
from quant.network.layers import ActivationQuantizer, QuantLayer
from quant.network.model import (
    QuantModel,
    activation_quantizers,
    quant_layers,
)

BANKS = ("rtn", "uniform_runs")
ACT_RULES = ("fixed", "tied", "fp")
FLOAT_BITS = 32
STATE = ("codes", "scale", "zero_point", "bits", "offset", "gap", "bias")

LayerState = Mapping[str, Tensor | None]
RunMethod = Callable[[int, int], QuantModel]  # weight and activation bits -> quantized model


class BankedLayer:
    """A quantized layer with its weights at every option.

    Attributes:
        module: the layer whose state is replaced.
        curr_act_bitwidth: current bits of the input of the layer.
    """

    def __init__(self, module: QuantLayer, bank: Mapping[int, LayerState], act: int | None):
        self.module, self.bank = module, bank
        self.bitwidth_options = tuple(sorted(bank))
        self.fixed_act = act
        self.macs: int | None = None
        self.on_change: Callable[[], None] = lambda: None
        self.set_bitwidth(self.bitwidth_options[-1])

    @property
    def num_weights(self) -> int:
        return self.module.codes.numel()

    def set_bitwidth(self, bitwidth: int, act: int | None = None) -> None:
        """Switch to the weights of an option; ``act`` is ignored, as the activation rule sets it.

        Raises:
            ValueError: ``bitwidth`` is not an option.
        """
        require_option(bitwidth, self.bitwidth_options)
        for name, value in self.bank[bitwidth].items():
            setattr(self.module, name, value)
        self.module.quantized = True
        self.curr_bitwidth = bitwidth
        self.curr_act_bitwidth = bitwidth if self.fixed_act is None else self.fixed_act
        self.on_change()


class SweepModel(nn.Module):
    """A copy of a quantized model whose layers have banks, except for those of fixed bits.

    Args:
        quantized: the model to copy; it does not change.
        banks: layer name -> option -> state.
        act_rule: ``fixed`` keeps the activations of ``quantized``; ``tied`` gives an activation the
            bits of the layer that reads it, the largest if there are several; ``fp`` leaves
            activations in float.
        act_states: option -> name of an activation quantizer -> (scale, zero point), for ``tied``.
    """

    def __init__(
        self,
        quantized: QuantModel,
        banks: Mapping[str, Mapping[int, LayerState]],
        act_rule: str = "fixed",
        act_states: Mapping[int, Mapping[str, tuple[Tensor, Tensor]]] | None = None,
    ):
        super().__init__()
        self.model = copy.deepcopy(quantized)
        self.act_states = act_states or {}
        layers = quant_layers(self.model)
        act = {"fixed": quantized.spec.n_bits_a, "tied": None, "fp": FLOAT_BITS}[act_rule]
        self.banked = {name: BankedLayer(layers[name], bank, act) for name, bank in banks.items()}
        self.quantizers = activation_quantizers(self.model)
        self.readers: dict[str, list[BankedLayer]] = {}
        if act_rule == "fp":
            for quantizer in self.quantizers.values():
                quantizer.quantized = False
        if act_rule == "tied":
            self._tie()
        for layer in self.banked.values():
            layer.on_change = self._set_activations
        self._set_activations()

    def _tie(self) -> None:
        for layer, quantizer in input_quantizers(self.model).items():
            if quantizer is not None and layer in self.banked:
                self.readers.setdefault(quantizer, []).append(self.banked[layer])

    def _set_activations(self) -> None:
        for name, layers in self.readers.items():
            bits = max(layer.curr_bitwidth for layer in layers)
            scale, zero_point = self.act_states[bits][name]
            quantizer = self.quantizers[name]
            quantizer.set_qparams(scale, zero_point, quantizer.bits.new_tensor(bits))

    def bitwidth_layers(self) -> list[tuple[str, BankedLayer]]:
        return list(self.banked.items())

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


def input_quantizers(model: QuantModel) -> dict[str, str | None]:
    """Map each layer to the activation quantizer of its input, both by their names in the model.

    The quantizer may be in an earlier unit, or followed by pooling. None if the layer reads the
    image.
    """
    names = {part: name for name, part in model.named_modules()}
    found: dict[str, str | None] = {}
    before: str | None = None  # quantizer of the input of the current unit
    for unit in model.units:
        origin: dict = {}
        for node in cast(fx.GraphModule, unit).graph.nodes:
            sources = [origin.get(source) for source in node.all_input_nodes]
            origin[node] = sources[0] if sources else before
            module = unit.get_submodule(node.target) if node.op == "call_module" else None
            if isinstance(module, QuantLayer):
                found[names[module]] = origin[node]
            if isinstance(module, ActivationQuantizer):
                origin[node] = names[module]
            if node.op == "output":
                before = origin[node]
    return found


@dataclass(frozen=True)
class BankRequest:
    """Request for a model with banks.

    Attributes:
        run: runs the method with other bits.
    """

    options: tuple[int, ...]
    bank: str
    act_rule: str
    range_mode: str
    run: RunMethod


def build_sweep(quantized: QuantModel, request: BankRequest) -> SweepModel:
    """Make the model with a bank for every layer without fixed bits.

    Raises:
        InputError: all layers have fixed bits.
    """
    fixed = fixed_layers(quantized)
    names = [name for name in quant_layers(quantized) if name not in fixed]
    if not names:
        raise InputError("bitwidth_sweep must have a layer whose bits may change, got none")
    tied = request.act_rule == "tied"
    runs: dict[int, QuantModel] = {}
    if request.bank == "uniform_runs" or tied:
        act = quantized.spec.n_bits_a
        runs = {bits: request.run(bits, bits if tied else act) for bits in request.options}
    if request.bank == "uniform_runs":
        banks = {
            name: {b: _state(quant_layers(run)[name]) for b, run in runs.items()} for name in names
        }
    else:
        banks = _nearest_banks(quantized, names, request)
    act_states = {
        bits: {
            name: (part.scale, part.zero_point) for name, part in activation_quantizers(run).items()
        }
        for bits, run in runs.items()
    }
    return SweepModel(quantized, banks, request.act_rule, act_states)


def fixed_layers(quantized: QuantModel) -> set[str]:
    """Names of the layers with fixed bits: stem and head if ``spec.head_stem_8bit`` is set."""
    layers = quant_layers(quantized)
    return {name for name, layer in layers.items() if quantized.spec.is_fixed(layer.is_end)}


def _state(layer: QuantLayer) -> LayerState:
    return {name: getattr(layer, name) for name in STATE}


def _nearest_banks(
    quantized: QuantModel, names: Sequence[str], request: BankRequest
) -> dict[str, dict[int, LayerState]]:
    """Banks of weights rounded to nearest, with the biases of the float network."""
    layers = quant_layers(quantized)
    banks: dict[str, dict[int, LayerState]] = {}
    for name in names:
        layer = layers[name]
        weight, bias = layer.full_precision_weight(), layer.float_bias
        banks[name] = {}
        for bits in request.options:
            scale, zero_point = weight_qparams(
                weight, bits, layer.per_channel, request.range_mode, layer.symmetric
            )
            codes = quantize(weight, scale, zero_point, bits)
            values = (codes, scale, zero_point, layer.bits.new_tensor(bits), None, None, bias)
            banks[name][bits] = dict(zip(STATE, values, strict=True))
    return banks


def method_runner(
    method: BaseQuantizationMethod, network: CapturedNetwork, calibration: Callable[[], Sequence]
) -> RunMethod:
    """Make a function that runs a method with other bits and otherwise the same settings.

    Args:
        calibration: returns the calibration batches.
    """

    def run(weight_bits: int, activation_bits: int) -> QuantModel:
        settings = method.get_quantization_params()
        settings |= {"n_bits_w": weight_bits, "n_bits_a": activation_bits}
        return type(method)(**settings).quantize_model(network, None, calibration())

    return run


def choose_assignment(
    costs: Sequence[Mapping[int, float]], sizes: Sequence[int], average: float
) -> list[int]:
    """The assignment with the smallest total cost for a largest average bitwidth.

    This is a multiple-choice knapsack problem, solved exactly as an integer program.

    Args:
        costs: for each layer, bits -> cost.
        sizes: weight of each layer in the average.
        average: largest average bitwidth.

    Raises:
        InputError: even the lowest bits exceed the average.
    """
    items = [(layer, bits) for layer, known in enumerate(costs) for bits in sorted(known)]
    price = np.array([costs[layer][bits] for layer, bits in items])
    total = sum(sizes)
    used = np.array([[sizes[layer] * bits / total for layer, bits in items]])
    once = np.array([[float(owner == layer) for owner, _ in items] for layer in range(len(costs))])
    from scipy.optimize import Bounds, LinearConstraint, milp

    result = milp(
        price,
        constraints=[LinearConstraint(once, 1, 1), LinearConstraint(used, -np.inf, average + 1e-9)],
        integrality=np.ones(len(items)),
        bounds=Bounds(0, 1),
    )
    if result.x is None:
        least = weighted_average([min(known) for known in costs], sizes)
        raise InputError(f"bw_target_average must be at least {least:g}, got {average:g}")
    chosen = dict(items[index] for index in np.flatnonzero(result.x > 0.5))
    return [chosen[layer] for layer in range(len(costs))]


def draw_with_average(
    options: Sequence[int], sizes: Sequence[int], average: float, rng: np.random.Generator
) -> list[int]:
    """Draw an assignment with at most the given average, in which no layer can be raised.

    Raises:
        InputError: even the lowest option exceeds the average.
    """
    if options[0] > average:
        raise InputError(f"bw_target_average must be at least {options[0]}, got {average:g}")
    bits = [int(b) for b in rng.choice(options, size=len(sizes))]
    while weighted_average(bits, sizes) > average + 1e-9:
        layer = int(rng.choice([i for i, b in enumerate(bits) if b > options[0]]))
        bits[layer] = options[options.index(bits[layer]) - 1]
    while True:
        higher = []
        for layer, b in enumerate(bits):
            if b < options[-1]:
                trial = [*bits]
                trial[layer] = options[options.index(b) + 1]
                if weighted_average(trial, sizes) <= average + 1e-9:
                    higher.append(trial)
        if not higher:
            return bits
        bits = higher[int(rng.integers(len(higher)))]


def sizes_of(model: SweepModel) -> list[int]:
    """Number of weights of each quantized layer."""
    return [layer.num_weights for _, layer in quantized_layers(model)]


def sweep_options(options: Sequence[int]) -> tuple[int, ...]:
    """Check the options of ``--bw_options`` and return them sorted.

    Raises:
        InputError: no options, repeated ones, or one that is not from 2 to 8.
    """
    if any(isinstance(bits, int) and bits > 8 for bits in options):
        raise InputError(f"bw_options must be 2..8, got {max(options)}")
    return require_options(options)
