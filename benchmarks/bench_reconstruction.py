"""CPU seconds of a QDrop run of ResNet-20, compared with a plain loop like the published code.

    python -m benchmarks.bench_reconstruction
        W4A4, batch 32, 1,024 random images, 250 steps per unit, one thread, medians of three runs
        in turns: about six minutes
    python -m benchmarks.bench_reconstruction --steps 1000 --repeats 1
        as many steps as in the accuracy table
    python -m benchmarks.bench_reconstruction --threads 2
        our run alone, seconds on the clock with two threads beside one

Both use the same network, ranges and quantizers. The plain loop differs from ours, and is like the
code of QDrop and PD-Quant, in these points:

* each unit's inputs and targets are found by running both networks from the images on, in batches
  of 32 that are kept in lists, then joined;
* fake quantization, mixing and rounding are ordinary autograd operations; masks are drawn as
  uniform floats inside the unit;
* floor(w / s) is computed in every step, and h(v) a second time for the penalty;
* ``backward`` retains the graph.

The column "convolutions" is the time that the convolutions of these steps take alone, forward and
backward. With torch's convolutions no code for the same steps is faster, so that the last column is
above every ratio that it can reach.
"""

from __future__ import annotations

from common.start import run_main

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.console import EXIT_OK
from common.flags import positive_int
from models.cifar_resnet import CifarResNet
from quant import QuantizationManager
from quant.arithmetic.primitives import quant_max
from quant.arithmetic.rounding import GAMMA, ZETA, SoftRounding
from quant.methods.qdrop import QDropSettings
from quant.network.capture import capture
from quant.network.chain import UnitData, nearest, reconstruction_loss
from quant.network.layers import ActivationQuantizer, QuantLayer
from quant.network.model import (
    FLOAT_SPEC,
    QuantModel,
    activation_quantizers,
    make_chain,
    quant_layers,
)
from quant.reconstruction.engine import penalty_exponent

BATCH = 32
TIMED = 20  # runs of each convolution that its time is taken from


def _round_through(x: Tensor) -> Tensor:
    return (x.round() - x).detach() + x


class PlainRounding(SoftRounding):
    """AdaRound's variables, with nothing cached between calls."""

    def __init__(self, layer: QuantLayer):
        self.float_weight = layer.full_precision_weight()
        super().__init__(self.float_weight, layer.scale, layer.zero_point, int(layer.bits))

    def _soft_targets(self) -> Tensor:
        return torch.clamp(torch.sigmoid(self.logits) * (ZETA - GAMMA) + GAMMA, 0, 1)

    def weight(self) -> Tensor:
        codes = torch.floor(self.float_weight / self.scale) + self._soft_targets()
        codes = torch.clamp(codes + self.zero_point, 0, quant_max(self.bits))
        return (codes - self.zero_point) * self.scale

    def penalty(self, exponent: float | Tensor) -> Tensor:
        return (1 - ((self._soft_targets() - 0.5).abs() * 2).pow(exponent)).sum()


def _plain_forward(quantizer: ActivationQuantizer, prob: float) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        codes = _round_through(x / quantizer.scale) + quantizer.zero_point
        codes = torch.clamp(codes, 0, quant_max(quantizer.num_bits))
        xhat = (codes - quantizer.zero_point) * quantizer.scale
        return torch.where(torch.rand_like(x) < prob, xhat, x)

    return forward


@torch.no_grad()
def _run_prefix(model: QuantModel, images: Tensor, count: int) -> Tensor:
    """Output of the first ``count`` units, from the images."""
    outputs = []
    for batch in images.split(BATCH):
        for unit in list(model.units)[:count]:
            batch = unit(batch)
        outputs.append(batch)
    return torch.cat(outputs)


def plain_run(network: nn.Module, images: Tensor, settings: QDropSettings) -> None:
    """The published loop over all units."""
    captured = capture(network, images)
    model, reference = make_chain(captured, settings.spec), make_chain(captured, FLOAT_SPEC)
    for index, (name, unit) in enumerate(model.named_units()):
        float_input = _run_prefix(reference, images, index)
        target = _run_prefix(reference, images, index + 1)
        quant_input = _run_prefix(model, images, index)
        data = UnitData(index, name, unit, float_input, quant_input, target, images.device)
        nearest(settings.init_wmode, settings.init_amode)(data)
        _plain_reconstruction(data, settings)


@torch.enable_grad()
def _plain_reconstruction(data: UnitData, settings: QDropSettings) -> None:
    layers = list(quant_layers(data.unit).values())
    quantizers = list(activation_quantizers(data.unit).values())
    roundings = [PlainRounding(layer) for layer in layers]
    for layer, rounding in zip(layers, roundings, strict=True):
        layer.rounding = rounding
    for quantizer in quantizers:
        quantizer.scale.requires_grad_(True)
        quantizer.forward = _plain_forward(quantizer, settings.prob)  # type: ignore[method-assign, assignment]
    weights = torch.optim.Adam([rounding.logits for rounding in roundings], lr=settings.lr_round)
    steps = [quantizer.scale for quantizer in quantizers]
    scales = torch.optim.Adam(steps or [torch.zeros(1, requires_grad=True)], lr=settings.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(scales, T_max=settings.iters_w)
    for step in range(1, settings.iters_w + 1):
        pick = torch.randint(0, len(data.target), (BATCH,))
        quantized, full = data.quant_input[pick], data.float_input[pick]
        mixed = torch.where(torch.rand_like(quantized) < settings.input_prob, quantized, full)
        weights.zero_grad()
        scales.zero_grad()
        loss = reconstruction_loss(data.unit(mixed), data.target[pick])
        if step >= settings.warmup * settings.iters_w:
            exponent = penalty_exponent(step, settings)
            for rounding in roundings:
                loss = loss + settings.weight * rounding.penalty(exponent)
        loss.backward(retain_graph=True)
        weights.step()
        scales.step()
        schedule.step()
    for layer, rounding in zip(layers, roundings, strict=True):
        layer.codes, layer.rounding = rounding.hard_codes(), None
    for quantizer in quantizers:
        quantizer.scale = quantizer.scale.detach()
        del quantizer.forward


def our_run(network: nn.Module, images: Tensor, settings: QDropSettings) -> None:
    """The method of this suite, as users run it."""
    options = {"iters_w": settings.iters_w, "lr_round": settings.lr_round}
    options |= {"num_samples": len(images), "compile": settings.compile}
    QuantizationManager().get_quantization_method("qdrop", **options).quantize_model(
        network, None, [images]
    )


def convolutions(count: int) -> float:
    """CPU seconds of all convolutions of the network in one step of their units."""
    seconds: list[float] = []

    def measure(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        assert isinstance(layer, nn.Conv2d)
        x, weight = inputs[0].detach().requires_grad_(), layer.weight.detach().requires_grad_()
        gradient = torch.randn_like(output)
        with torch.enable_grad():
            for repeat in range(TIMED + 1):
                if repeat == 1:
                    start = time.process_time()
                result = F.conv2d(x, weight, None, layer.stride, layer.padding)
                torch.autograd.grad(result, (x, weight), gradient)
        seconds.append((time.process_time() - start) / TIMED)

    network = CifarResNet(20).eval()
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(measure)
    with torch.no_grad():
        network(torch.randn(count, 3, 32, 32))
    return sum(seconds)


def timed(
    run: Callable[[nn.Module, Tensor, QDropSettings], None],
    settings: QDropSettings,
    count: int,
    clock: Callable[[], float] = time.process_time,
) -> float:
    """Seconds of a whole run, of the CPU unless another clock is given."""
    torch.manual_seed(0)
    network, images = CifarResNet(20).eval(), torch.randn(count, 3, 32, 32)
    start = clock()
    run(network, images, settings)
    return clock() - start


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.bench_reconstruction", description=__doc__)
    parser.add_argument("--steps", type=int, default=250, help="steps per unit (default 250)")
    parser.add_argument("--images", type=int, default=1024, help="number of images (default 1024)")
    parser.add_argument(
        "--repeats",
        type=int,
        default=3,
        help="measurements, of which medians are shown (default 3)",
    )
    parser.add_argument(
        "--compile", action="store_true", help="run this suite's method with torch.compile"
    )
    parser.add_argument(
        "--threads", type=positive_int, help="time our run alone, with these threads beside one"
    )
    return parser


def _rows_of_threads(settings: QDropSettings, options: argparse.Namespace) -> Iterator[str]:
    one: list[float] = []
    several: list[float] = []
    for _ in range(options.repeats):
        for seconds, threads in ((one, 1), (several, options.threads)):
            torch.set_num_threads(threads)
            seconds.append(timed(our_run, settings, options.images, time.perf_counter))
    yield f"| steps | images | one thread, s | {options.threads} threads, s | ratio |"
    yield "|---" * 5 + "|"
    cells = [str(options.steps), str(options.images)]
    cells += [f"{statistics.median(seconds):.1f}" for seconds in (one, several)]
    yield "| " + " | ".join([*cells, _ratio(one, several)]) + " |"


def _rows(settings: QDropSettings, options: argparse.Namespace) -> Iterator[str]:
    plain, ours, alone = [], [], []
    for _ in range(options.repeats):
        plain.append(timed(plain_run, settings, options.images))
        ours.append(timed(our_run, settings, options.images))
        alone.append(options.steps * convolutions(BATCH))
    ours_name = "ours, compiled" if options.compile else "ours"
    yield (
        f"| steps | images | plain loop, s | {ours_name}, s | ratio | convolutions, s | "
        "plain loop / convolutions |"
    )
    yield "|---" * 7 + "|"
    cells = [str(options.steps), str(options.images)]
    cells += [f"{statistics.median(seconds):.1f}" for seconds in (plain, ours)]
    cells += [_ratio(plain, ours), f"{statistics.median(alone):.1f}", _ratio(plain, alone)]
    yield "| " + " | ".join(cells) + " |"


def _ratio(above: Sequence[float], below: Sequence[float]) -> str:
    return f"{statistics.median(a / b for a, b in zip(above, below, strict=True)):.2f}"


def main(argv: Sequence[str] | None = None) -> int:
    options = build_parser().parse_args(argv)
    torch.set_num_threads(1)
    settings = QDropSettings(
        iters_w=options.steps, lr_round=3.0 / options.steps, compile=options.compile
    )
    rows = _rows if options.threads is None else _rows_of_threads
    for row in rows(settings, options):
        sys.stdout.write(row + "\n")
    return EXIT_OK


if __name__ == "__main__":
    raise SystemExit(run_main(main))
