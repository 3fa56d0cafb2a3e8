"""Transformers by name: captured exactly, every point of attention quantized, ranges moved.

    python -m benchmarks.transformers
    python -m benchmarks.transformers swin_t timm/deit_tiny_patch16_224

Weights are random. What a network has is counted while its own code runs; what is quantized is
counted in the quantized model. "n of m" with n below m is a gap.
"""

from __future__ import annotations

from common.start import run_main

import argparse
import gc
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.networks import random_network
from common.console import EXIT_OK
from quant import QuantizationManager, capture
from quant.arithmetic.spec import QuantSpec
from quant.network.difference import relative_difference
from quant.network.layernorms import find_moves, with_moves
from quant.network.layers import ActivationQuantizer, Log2Quantizer, QuantLayer
from quant.network.model import QuantModel, activation_quantizers, make_chain, quant_layers
from quant.network.operations import (
    PRODUCTS,
    called_module,
    is_average,
    is_pooling_or_shape,
    operation,
)

NETWORKS = (
    "vit_b_16 swin_t swin_v2_t maxvit_t timm/vit_small_patch16_224 timm/deit_tiny_patch16_224 "
    "timm/swin_tiny_patch4_window7_224 timm/mobilevit_xxs timm/beit_base_patch16_224"
).split()
BITS = 4
IMAGES = 4
CALLS = {
    "layers": ("addmm", "mm", "convolution"),
    "products": ("bmm", "baddbmm"),
    "softmaxes": ("_softmax", "_safe_softmax"),
    "norms": ("native_layer_norm",),
}
IMAGE = nn.Identity()
COLUMNS = (
    "network",
    "float chain",
    "LayerNorms moved",
    "float after it",
    "layers quantized",
    "inputs",
    "operands of products",
    "softmax log2",
    "most levels",
    "units",
    "biggest unit",
    "s",
)


class CallCounter(TorchDispatchMode):
    """Counts the operations that a network runs, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func._schema.name.partition("::")[2]] += 1
        return func(*args, **(kwargs or {}))


def census(network: nn.Module, images: Tensor) -> dict[str, int]:
    """How many operations of each kind of ``CALLS`` the network's own code runs."""
    torch.backends.mha.set_fastpath_enabled(False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), CallCounter() as counter:
        network(images)
    return {kind: sum(counter.counts[name] for name in names) for kind, names in CALLS.items()}


class Points(fx.Interpreter):
    """Counts the values that layers and products read, those on a grid, and their levels.

    Args:
        unit: of a quantized model.
        entry: the module that computes the input of the unit; ``IMAGE`` for the image.
    """

    def __init__(self, unit: fx.GraphModule, entry: nn.Module | None):
        super().__init__(unit)
        self.unit = unit
        self.entry = entry
        self.counts: Counter[str] = Counter()
        self.levels = 0

    def run_node(self, n: fx.Node) -> Any:
        layer = called_module(self.unit, n)
        is_layer = isinstance(layer, QuantLayer)
        if is_layer or operation(n) in PRODUCTS:
            kind = "inputs" if is_layer else "operands"
            for source in n.all_input_nodes:
                if source.op != "get_attr" and self.origin(source) is not IMAGE:
                    self._count(kind, source)
        return super().run_node(n)

    def origin(self, node: fx.Node) -> nn.Module | None:
        """The module that computes a value, before pooling and reshaping; None for operations."""
        while is_pooling_or_shape(node):
            node = node.all_input_nodes[0]
        return self.entry if node.op == "placeholder" else called_module(self.unit, node)

    def _count(self, kind: str, source: fx.Node) -> None:
        quantizer = self.origin(source)
        self.counts[kind] += 1
        if isinstance(quantizer, ActivationQuantizer) and quantizer.quantized:
            self.counts[f"quantized {kind}"] += 1
            if not quantizer.is_end and not _averages(source):
                self.levels = max(self.levels, len(self.env[source].unique()))


def _averages(node: fx.Node) -> bool:
    """Whether a value is an average of values on a grid, as in squeeze and excitation."""
    while is_pooling_or_shape(node):
        if is_average(node):
            return True
        node = node.all_input_nodes[0]
    return False


def walk(model: QuantModel, images: Tensor) -> tuple[Counter[str], int]:
    """The counts of ``Points`` over the units of a quantized model, and the most levels."""
    value, counts, levels = images, Counter[str](), 0
    entry: nn.Module | None = IMAGE
    with torch.no_grad():
        for unit in model.units:
            points = Points(cast(fx.GraphModule, unit), entry)
            value = points.run(value)
            entry = points.origin(points.unit.graph.output_node().all_input_nodes[0])
            counts += points.counts
            levels = max(levels, points.levels)
    return counts, levels


@dataclass(frozen=True)
class Row:
    """What became of one network, cell by cell."""

    cells: tuple[str, ...]

    def __str__(self) -> str:
        return f"| {' | '.join(self.cells)} |"


def measure(arch: str) -> Row:
    """Capture, move, cut and quantize one network with random weights."""
    network, images = random_network(arch, IMAGES)
    has = census(network, images)
    start = time.perf_counter()
    captured = capture(network, images)
    del network
    difference = relative_difference(_float_chain(captured, images), captured.logits)
    moves = find_moves(captured, images)
    moved = relative_difference(with_moves(captured, moves).graph(images), captured.logits)
    method = QuantizationManager().get_quantization_method(
        "rtn", n_bits_w=BITS, n_bits_a=BITS, softmax_quantizer="log2", num_samples=IMAGES
    )
    model = method.quantize_model(captured, None, [images])
    counts, levels = walk(model, images[:2])
    sizes = [len(quant_layers(unit)) for unit in model.units]
    powers = sum(isinstance(q, Log2Quantizer) for q in activation_quantizers(model).values())
    seconds = time.perf_counter() - start
    return Row(
        (
            arch,
            f"{difference:.1e}",
            f"{len(moves)} of {has['norms']}",
            f"{moved:.1e}",
            f"{sum(sizes)} of {has['layers']}",
            f"{counts['quantized inputs']} of {counts['inputs']}",
            f"{counts['quantized operands']} of {2 * has['products']}",
            f"{powers} of {has['softmaxes']}",
            str(levels),
            str(len(sizes)),
            str(max(sizes)),
            f"{seconds:.0f}",
        )
    )


@torch.no_grad()
def _float_chain(captured: Any, images: Tensor) -> Tensor:
    return make_chain(captured, QuantSpec(BITS, BITS, softmax_quantizer="log2"))(images)


def report(archs: Sequence[str]) -> None:
    """Print a row for each network."""
    sys.stdout.write(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}\n")
    for arch in archs:
        sys.stdout.write(f"{measure(arch)}\n")
        sys.stdout.flush()
        gc.collect()


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="benchmarks.transformers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("archs", nargs="*", default=NETWORKS, help="architectures")
    report(parser.parse_args().archs)
    return EXIT_OK


if __name__ == "__main__":
    raise SystemExit(run_main(main))
