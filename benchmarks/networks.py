"""Which networks are captured, how exactly, and into which units they are cut.

    python -m benchmarks.networks > benchmarks/results/networks.md
    python -m benchmarks.networks resnet18 timm/convnext_atto

Weights and statistics of batch norms are random, also those that start as zeros. "difference" is
that of the float chain to the network, relative to the largest logit, on two images of the
network's own size.
"""

from __future__ import annotations

from common.start import run_main

import argparse
import gc
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.console import EXIT_OK
from common.errors import InputError
from models import get_entry
from models.zoo import list_zoo
from quant import capture
from quant.arithmetic.spec import QuantSpec
from quant.network.difference import relative_difference
from quant.network.model import make_chain, quant_layers
from quant.network.passes import NORMS

TIMM = (
    "resnet18 resnet50d resnext26ts wide_resnet50_2 resnetv2_50 nf_resnet26 ecaresnet26t "
    "seresnext26d_32x4d res2net50_26w_4s resnest14d skresnet18 bat_resnext26ts gcresnext26ts "
    "vgg11_bn densenet121 dla34 hrnet_w18_small inception_v3 inception_v4 inception_resnet_v2 "
    "xception41 mobilenetv2_100 mobilenetv3_large_100 mobilenetv3_small_050 "
    "mobilenetv4_conv_small hardcorenas_a lcnet_050 mnasnet_100 mixnet_s fbnetc_100 spnasnet_100 "
    "ghostnet_100 efficientnet_b0 tf_efficientnet_lite0 tf_efficientnetv2_b0 rexnet_100 "
    "regnetx_002 regnety_004 regnetz_b16 repvgg_a0 mobileone_s0 cspresnet50 darknet53 selecsls42b "
    "tresnet_m convnext_atto convnextv2_atto convmixer_768_32 poolformer_s12 edgenext_xx_small "
    "fastvit_t8 repvit_m0_9 mobilevit_xxs mobilevitv2_050 coat_tiny coatnet_nano_rw_224 "
    "crossvit_tiny_240 levit_128s efficientformer_l1 gmlp_s16_224 mixer_s32_224 resmlp_12_224 "
    "vit_tiny_patch16_224 deit_tiny_patch16_224 beit_base_patch16_224 cait_xxs24_224 "
    "xcit_nano_12_p16_224 swin_tiny_patch4_window7_224 pit_ti_224 twins_svt_small "
    "maxvit_rmlp_pico_rw_256"
).split()
SMALL = 0.1  # constant parameters below it become random
HEADER = (
    "| network | captured | difference | layers | norms | folded | units | biggest unit | s |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


@dataclass(frozen=True)
class Row:
    """What became of one network."""

    arch: str
    difference: float
    layers: int
    norms: int
    folded: int
    unit_sizes: tuple[int, ...]
    seconds: float

    def __str__(self) -> str:
        cells = (
            self.arch,
            "yes",
            f"{self.difference:.1e}",
            self.layers,
            self.norms,
            self.folded,
            len(self.unit_sizes),
            max(self.unit_sizes),
            f"{self.seconds:.1f}",
        )
        return f"| {' | '.join(map(str, cells))} |"


def measure(arch: str) -> Row:
    """Capture and cut one network with random weights.

    Raises:
        InputError: it is refused.
    """
    network, images = random_network(arch, 2)
    start = time.perf_counter()
    captured = capture(network, images)
    chain = make_chain(captured, QuantSpec(4, 4))
    seconds = time.perf_counter() - start
    with torch.no_grad():
        value = chain(captured.images)
    difference = relative_difference(value, captured.logits)
    norms = _norms(captured.graph)
    return Row(
        arch,
        difference,
        layers=len(quant_layers(chain)),
        norms=norms,
        folded=norms - _norms(chain),
        unit_sizes=tuple(len(quant_layers(unit)) for unit in chain.units),
        seconds=seconds,
    )


def random_network(arch: str, count: int) -> tuple[nn.Module, Tensor]:
    """A network with random weights, and images (count, 3, size, size) of its own size.

    Nothing is left at a value that hides an operation: a head of zeros, a layer scale of 1e-5.
    """
    torch.manual_seed(0)
    entry = get_entry(arch)
    network = entry.build(entry.num_classes or 1000).eval()
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
        if isinstance(module, nn.LayerNorm) and module.elementwise_affine:
            nn.init.uniform_(module.weight, 0.2, 5)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.abs().max() < SMALL and parameter.max() == parameter.min():
                parameter.normal_(0, SMALL)
    size = getattr(network, "image_size", None) or entry.preprocess.crop or 32  # ViTs know theirs
    return network, torch.randn(count, 3, size, size)


def _norms(network: nn.Module) -> int:
    return sum(isinstance(module, NORMS) for module in network.modules())


def report(archs: Sequence[str]) -> int:
    """Print a row for each network and the counts; returns the number of refused networks."""
    sys.stdout.write(f"{HEADER}\n")
    refused = 0
    for arch in archs:
        try:
            text = str(measure(arch))
        except InputError as error:
            refused += 1
            text = f"| {arch} | no: {str(error).replace('|', '/')} |" + " |" * 7
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
        gc.collect()
    captured = len(archs) - refused
    share = 100 * captured / max(1, len(archs))
    sys.stdout.write(f"\n{captured} of {len(archs)} networks captured ({share:.1f} %).\n")
    return refused


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="benchmarks.networks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "archs", nargs="*", help="architectures (default: torchvision's and a list of timm's)"
    )
    archs = parser.parse_args().archs
    report(archs or [*list_zoo(), *(f"timm/{name}" for name in TIMM)])
    return EXIT_OK


if __name__ == "__main__":
    raise SystemExit(run_main(main))
