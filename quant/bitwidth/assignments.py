"""Assignments of bitwidths to layers: their averages, costs and random draws.

An assignment is one bitwidth per quantized layer, in the order of ``quantized_layers``; names and
outputs also call it a configuration.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from common.errors import InputError, require_known
from quant.network.observe import watch

WEIGHTINGS = ("layers", "params", "macs")
SAMPLINGS = ("uniform", "spread")
SPREAD = 4.0  # largest tilt t of ``spread``
TRAINING, VALIDATION, TEST, PTQ = 1, 2, 3, 4  # streams of random numbers

logger = logging.getLogger(__name__)


@runtime_checkable
class BitwidthControlled(Protocol):
    """Interface of a layer whose bitwidth can be changed.

    Attributes:
        bitwidth_options: allowed bits, sorted.
        curr_bitwidth, curr_act_bitwidth: current bits of the weight and of the input.
        num_weights: number of elements of the weight.
        macs: multiply-adds per sample; None until measured.
    """

    bitwidth_options: tuple[int, ...]
    curr_bitwidth: int
    curr_act_bitwidth: int
    macs: int | None

    @property
    def num_weights(self) -> int: ...

    def set_bitwidth(self, bitwidth: int, act: int | None = None) -> None: ...


def quantized_layers(model: nn.Module) -> list[tuple[str, Any]]:
    """Name and layer of every quantized layer.

    They are those of the model's own ``bitwidth_layers()``, else all modules that have
    ``set_bitwidth``, in the order of ``named_modules``.
    """
    own = getattr(model, "bitwidth_layers", None)
    if own is not None:
        return own()
    return [(name, part) for name, part in model.named_modules() if hasattr(part, "set_bitwidth")]


def _tracked(model: nn.Module, strict: bool) -> list[tuple[str, Any]]:
    layers = quantized_layers(model)
    missing = [name for name, layer in layers if not hasattr(layer, "curr_bitwidth")]
    if missing and strict:
        raise ValueError(f"layers must have curr_bitwidth, got none in {', '.join(missing)}")
    if missing:
        logger.warning("left out of the average: %s (no curr_bitwidth)", ", ".join(missing))
    return [(name, layer) for name, layer in layers if hasattr(layer, "curr_bitwidth")]


def get_average_bitwidth(
    model: nn.Module, weighting: str = "layers", which: str = "weight", strict: bool = False
) -> float | None:
    """Average bits of the quantized layers; None for a model without quantized layers.

    Args:
        weighting: ``layers`` weights every layer equally, ``params`` by its number of weights,
            ``macs`` by its multiply-adds per sample (see ``measure_macs``).
        which: ``weight`` or ``act``.
        strict: raise an error instead of a warning for a layer without ``curr_bitwidth``.

    Raises:
        InputError: unknown ``weighting`` or ``which``.
        ValueError: macs were not measured, or ``strict`` and a layer without ``curr_bitwidth``.
    """
    require_known("weighting", weighting, WEIGHTINGS)
    require_known("which", which, ("weight", "act"))
    layers = [layer for _, layer in _tracked(model, strict)]
    if not layers:
        return None
    bits = [
        layer.curr_bitwidth if which == "weight" else layer.curr_act_bitwidth for layer in layers
    ]
    return weighted_average(bits, layer_weights(layers, weighting))


def layer_weights(layers: Sequence[Any], weighting: str) -> list[int]:
    """The weight of each layer in an average.

    Raises:
        ValueError: macs were not measured.
    """
    if weighting == "layers":
        return [1] * len(layers)
    if weighting == "params":
        return [layer.num_weights for layer in layers]
    if any(layer.macs is None for layer in layers):
        raise ValueError("macs must be measured first (measure_macs), got a layer without")
    return [layer.macs for layer in layers]


def weighted_average(bits: Sequence[int], weights: Sequence[int]) -> float:
    return sum(b * w for b, w in zip(bits, weights, strict=True)) / sum(weights)


def cost_of_configuration(model: nn.Module) -> dict[str, float | None]:
    """Average bits by layers, params and macs, and the relative cost of the current assignment.

    ``relative_weight_memory`` is sum(n b_w) / (b_max sum(n)) and ``relative_bitops`` is
    sum(m b_w b_a) / (b_max^2 sum(m)), for layers of n weights, m multiply-adds, b_w bits of the
    weight, b_a bits of the input, and b_max the largest option. Values that need macs are None if
    these were not measured.
    """
    layers = [layer for _, layer in _tracked(model, strict=True)]
    if not layers:
        return dict.fromkeys((*WEIGHTINGS, "relative_weight_memory", "relative_bitops"))
    bits = [layer.curr_bitwidth for layer in layers]
    most = max(max(layer.bitwidth_options) for layer in layers)
    params = weighted_average(bits, layer_weights(layers, "params"))
    macs = bitops = None
    if all(layer.macs is not None for layer in layers):
        counts = layer_weights(layers, "macs")
        macs = weighted_average(bits, counts)
        products = [layer.curr_bitwidth * layer.curr_act_bitwidth for layer in layers]
        bitops = weighted_average(products, counts) / most**2
    return {
        "layers": weighted_average(bits, layer_weights(layers, "layers")),
        "params": params,
        "macs": macs,
        "relative_weight_memory": params / most,
        "relative_bitops": bitops,
    }


def measure_macs(model: nn.Module, sample: Tensor) -> None:
    """Count the multiply-adds per sample of every quantized layer in one forward pass.

    The training state of the model does not change.

    Args:
        sample: (1, channels, H, W) input.
    """
    owners = {_module_of(layer): layer for _, layer in quantized_layers(model)}

    def count(module: nn.Module, output: Tensor) -> None:
        positions = output[0].numel() // output.shape[1] if output.dim() == 4 else 1
        owners[module].macs = owners[module].num_weights * positions

    training = model.training
    try:
        model.eval()
        with torch.no_grad(), watch(owners, count, outputs=True):
            model(sample)
    finally:
        model.train(training)


def _module_of(layer: Any) -> nn.Module:
    return layer if isinstance(layer, nn.Module) else layer.module


def get_configuration(model: nn.Module) -> dict[str, int]:
    """The current bits of every quantized layer by its name."""
    return {name: layer.curr_bitwidth for name, layer in quantized_layers(model)}


def set_configuration(model: nn.Module, bits: Sequence[int] | int) -> None:
    """Set the bits of every layer, or one number of bits for all layers.

    Raises:
        ValueError: the numbers of bits and of layers differ, or bits are not an option.
    """
    layers = quantized_layers(model)
    each = [bits] * len(layers) if isinstance(bits, int) else list(bits)
    if len(each) != len(layers):
        raise ValueError(f"a configuration must have {len(layers)} bitwidths, got {len(each)}")
    for (_, layer), number in zip(layers, each, strict=True):
        layer.set_bitwidth(number)


@contextmanager
def kept_bitwidths(model: nn.Module) -> Iterator[None]:
    """Restore bitwidths and training state after the block, also after an error."""
    before = [
        (layer, layer.curr_bitwidth, layer.curr_act_bitwidth)
        for _, layer in quantized_layers(model)
    ]
    training = [(part, part.training) for part in model.modules()]
    try:
        yield
    finally:
        for layer, bits, act in before:
            layer.set_bitwidth(bits, act)
        for part, state in training:
            part.training = state


def require_option(bitwidth: int, options: Sequence[int]) -> None:
    """Check that a bitwidth is an option.

    Raises:
        ValueError: it is not.
    """
    if bitwidth not in options:
        raise ValueError(f"bitwidth must be one of {list(options)}, got {bitwidth}")


def require_options(options: Sequence[int], lowest: int = 2) -> tuple[int, ...]:
    """Check the options and return them sorted.

    Raises:
        InputError: no options, repeated ones, or one that is neither ``lowest`` to 16 nor 32.
    """
    if not options:
        raise InputError("bitwidth_options must hold at least one bitwidth, got none")
    for bits in options:
        whole = isinstance(bits, int) and not isinstance(bits, bool)
        if not whole or not (lowest <= bits <= 16 or bits == 32):
            raise InputError(f"bitwidth_options must be {lowest}..16 or 32, got {bits!r}")
    if len(set(options)) < len(options):
        raise InputError(f"bitwidth_options must differ, got {list(options)}")
    return tuple(sorted(options))


def stream(seed: int, number: int, epoch: int = 0) -> np.random.Generator:
    """The random generator of one purpose and epoch; global generators are not used."""
    sequence = np.random.SeedSequence([seed, number, epoch])
    return np.random.Generator(np.random.PCG64(sequence))


def draw_configuration(
    options: Sequence[int],
    n_layers: int,
    rng: np.random.Generator,
    sampling: str = "uniform",
    position: float | None = None,
) -> list[int]:
    """Bits of each layer, drawn independently.

    Args:
        options: sorted.
        sampling: ``uniform`` draws every option with equal probability; ``spread`` draws option j
            of m (from 0) with weight exp(t j / (m - 1)), t from -4 to 4, so that averages reach the
            ends of the range.
        position: position of t for ``spread``, from 0 (t = -4) to 1 (t = 4); None means 0.5.

    Raises:
        InputError: unknown sampling.
    """
    require_known("sampling", sampling, SAMPLINGS)
    if sampling == "uniform" or len(options) == 1:
        places = rng.integers(len(options), size=n_layers)
    else:
        tilt = SPREAD * (2 * (0.5 if position is None else position) - 1)
        weight = np.exp(tilt * np.arange(len(options)) / (len(options) - 1))
        places = rng.choice(len(options), size=n_layers, p=weight / weight.sum())
    return [options[place] for place in places]


def draw_configurations(
    options: Sequence[int], n_layers: int, count: int, rng: np.random.Generator, sampling: str
) -> list[list[int]]:
    """Draw ``count`` assignments; those of ``spread`` go from the low end to the high end."""
    positions = np.linspace(0, 1, count) if count > 1 else [0.5]
    return [draw_configuration(options, n_layers, rng, sampling, float(p)) for p in positions]
