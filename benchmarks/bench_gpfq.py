"""Time of GPFQ on one layer, compared with a plain loop over neurons and weights.

python -m benchmarks.bench_gpfq
    a 3 x 3 convolution from 64 to 64 channels on 8,192 random patches, 4 bits, one CPU thread;
    also counts the weights for which both choose different levels
"""

from __future__ import annotations

from common.start import run_main

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from benchmarks.cifar_runs import table_head, table_line
from common.console import EXIT_OK
from quant.methods.gpfq.alphabet import Alphabet, make_alphabet, radius
from quant.methods.gpfq.path_following import Grams, follow_path
from quant.network.layers import QuantLinear

HEADER = ("rows", "plain loop, s", "ours, s", "ratio", "levels that differ")


def plain_loop(weight: Tensor, x: Tensor, y: Tensor, alphabet: Alphabet) -> Tensor:
    """The recursion of the paper, neuron by neuron, on the residual vector."""
    codes = torch.zeros_like(weight)
    for neuron, row in enumerate(weight):
        residual = torch.zeros_like(x[:, 0])
        for t, value in enumerate(row):
            residual = residual + value * x[:, t]
            projected = (y[:, t] @ residual) / (y[:, t] @ y[:, t])
            codes[neuron, t] = alphabet.codes(projected.reshape(1, 1)).item()
            residual = residual - alphabet.levels(codes[neuron, t].reshape(1, 1)).item() * y[:, t]
    return codes


def ours(weight: Tensor, x: Tensor, y: Tensor, alphabet: Alphabet) -> Tensor:
    """GPFQ with Gram matrices, including the time to compute them."""
    layer = QuantLinear(nn.Linear(weight.shape[1], 1), 4, per_channel=False)
    grams = Grams.empty(layer)
    for some_x, some_y in zip(x.split(1024), y.split(1024), strict=True):
        grams.add(some_x, some_y, layer)
    return follow_path(weight, grams.cross[0], grams.own[0], alphabet)


def timed(run: Callable[[], Tensor]) -> tuple[Tensor, float]:
    start = time.process_time()
    result = run()
    return result, time.process_time() - start


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.bench_gpfq", description=__doc__)
    parser.add_argument("--rows", type=int, default=8192, help="number of patches (default 8192)")
    parser.add_argument(
        "--repeats",
        type=int,
        default=3,
        help="measurements, of which medians are shown (default 3)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    options = build_parser().parse_args(argv)
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(options.rows, 576, generator=generator, dtype=torch.float64).relu()
    y = (x + 0.05 * torch.randn(x.shape, generator=generator, dtype=torch.float64)).relu()
    weight = torch.randn(64, 576, generator=generator, dtype=torch.float64)
    alphabet = make_alphabet(1.16 * radius(weight, "mean_max", 1.0), 4, "published", None, None)
    columns = (x.T.contiguous().T, y.T.contiguous().T)  # contiguous columns for the plain loop
    pairs = []
    for _ in range(options.repeats):
        plain, plain_seconds = timed(lambda: plain_loop(weight, *columns, alphabet))
        mine, seconds = timed(lambda: ours(weight, x, y, alphabet))
        pairs.append((plain_seconds, seconds))
    ratio = statistics.median(a / b for a, b in pairs)
    medians = [statistics.median(column) for column in zip(*pairs, strict=True)]
    cells = [str(options.rows), *(f"{value:.2f}" for value in medians), f"{ratio:.1f}"]
    cells.append(str(int((plain != mine).sum())))
    sys.stdout.write(table_head(HEADER) + table_line(cells))
    return EXIT_OK


if __name__ == "__main__":
    raise SystemExit(run_main(main))
