"""Time of recompute_logits.py for one expert, compared with a bare loop over a tensor in memory.

    python -m benchmarks.bench_recompute
        10,000 random images of 32 x 32, random weights, both cores

The time of recompute_logits.py is that of everything after the data set is open: it loads and
checks the checkpoint, normalises the images batch by batch, scores the logits and writes them.
"""

from __future__ import annotations

from common.start import run_main

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.cifar_runs import table_head, table_line
from common.console import EXIT_OK
from common.torch_setup import seed_all
from experts.checkpoints import Found
from experts.images import Choice, Sources
from experts.recompute import Images, Request, Source, compute_split, load_candidate
from experts.stored_splits import StoredSplits
from loaders.imageset import MemoryImages
from models.expert import BACKBONES, Expert

SIZE, CLASSES, BATCH = 32, 10, 128
HEADER = ("images", "bare loop, s", "ours, s", "ratio")


def made_up(count: int) -> MemoryImages:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    labels = np.arange(count) % CLASSES
    preprocess = BACKBONES["cifar_resnet32"].preprocess
    return MemoryImages(pixels, labels, [f"val/{i}" for i in range(count)], preprocess)


def request_for(count: int, folder: Path) -> Request:
    splits = StoredSplits(
        folder, "cifar10", "cifar10_lt_if100", None, [1] * CLASSES, [0.1] * CLASSES
    )
    return Request(
        choice=Choice("cifar10", None, "made up", splits),
        indices={"test": list(range(count))},
        output_dir=folder,
        device=torch.device("cpu"),
        batch_size=BATCH,
        dtype="float32",
        auto_batch=True,
        backbone=None,
        unsafe=False,
        skip_existing=False,
        csv=False,
        command="",
    )


@torch.inference_mode()
def bare_loop(expert: Expert, images: Tensor) -> Tensor:
    return torch.cat([expert(images[i : i + BATCH]) for i in range(0, len(images), BATCH)])


def ours(checkpoint: Path, images: MemoryImages, folder: Path) -> None:
    request = request_for(len(images), folder)
    source = Source("ce_baseline", Found(checkpoint, False), "best_", False)
    opened = Images(request.choice, download=False, workers=None)
    size = images.preprocess
    opened.sources[(size.resize, size.crop, size.interpolation)] = Sources(images, images, [])
    compute_split(load_candidate(source, request), "test", opened, request)


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.bench_recompute", description=__doc__)
    parser.add_argument(
        "--images", type=int, default=10_000, help="number of images (default 10000)"
    )
    parser.add_argument(
        "--repeats",
        type=int,
        default=5,
        help="measurements, of which medians are shown (default 5)",
    )
    options = parser.parse_args(argv)
    seed_all(0)
    images = made_up(options.images)
    preloaded = images.preprocess.normalise(images.pixels)
    expert = Expert(CLASSES).eval()
    pairs = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.save(expert.state_dict(), folder / "x.pth")
        for _ in range(options.repeats):
            bare = seconds(lambda: bare_loop(expert, preloaded))
            pairs.append((bare, seconds(lambda: ours(folder / "x.pth", images, folder))))
    ratio = statistics.median(mine / bare for bare, mine in pairs)
    bare, mine = (statistics.median(column) for column in zip(*pairs, strict=True))
    sys.stdout.write(table_head(HEADER))
    sys.stdout.write(
        table_line([str(options.images), f"{bare:.2f}", f"{mine:.2f}", f"{ratio:.2f}"])
    )
    return EXIT_OK


if __name__ == "__main__":
    raise SystemExit(run_main(main))
