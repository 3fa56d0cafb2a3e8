"""Write a quantized model as an ONNX file of real integers, and check that file in onnxruntime.

    python export_onnx.py outputs/rtn/run_digits_resnet_w4bit_a4bit_seed1005/quantized_model.pt
        the embedded digits: the check needs no data of yours
    python export_onnx.py RUN/quantized_model.pt --data_path IMAGES --with_correction --int2
        with the correction.npz beside the model in the graph, and 2 bits stored as INT2

Writes quantized_model.onnx and export_report.json beside the model, or into --output_dir. Exit status: 0
the file says what the model says, 1 it does not, 2 wrong usage or unusable input.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.console import EXIT_FAILED, EXIT_OK, run_main, setup_logging, write_stdout
from common.errors import InputError
from common.files import require_writable
from common.flags import FlagParser
from correction import ClusterAffineCorrection
from export import export_and_verify
from export.reporting import NOTES, ONNX_FILE, ExportJob
from export.settings import ExportSettings, add_export_flags, export_settings
from loaders import load_dataset, resolve_dataset
from loaders.transforms import Preprocess
from models import load_quantized

CORRECTION_FILE = "correction.npz"
NOISE_SEED = 0
MAX_SIDE = 10_000  # pixels

logger = logging.getLogger(__name__)

Batches = Iterable[tuple[Tensor, Tensor]]


def build_parser() -> FlagParser:
    parser = FlagParser(prog="export_onnx.py", description=__doc__)
    parser.add_argument("model", type=Path, help="quantized_model.pt of a run")
    parser.add_argument("--output_dir", type=Path, help="folder (default: that of the model)")
    parser.add_argument(
        "--correction", type=Path, help="with --with_correction (default: beside the model)"
    )
    parser.add_argument("--dataset", type=str.lower, help="default: that of the run")
    parser.add_argument("--data_path", type=Path, help="folder of the images to check on")
    parser.add_argument("--val_labels", type=Path, help="labels of a flat val folder")
    parser.add_argument(
        "--noise", action="store_true", help="check on random images instead of a data set"
    )
    parser.add_argument("--batch_size", type=int, default=64, help="default 64")
    parser.add_argument("--verbose", action="store_true", help="log more")
    add_export_flags(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: that of the process); returns the exit status."""
    return run_main(lambda: _main(sys.argv[1:] if argv is None else argv))


def _main(argv: Sequence[str]) -> int:
    parser = build_parser()
    options = parser.parse(argv)
    if options.noise:
        parser.refuse(options, ("dataset", "data_path", "val_labels"), "with --noise")
    if not options.with_correction:
        parser.refuse(options, ("correction",), "without --with_correction")
    if options.batch_size < 1:
        raise InputError(f"batch_size must be at least 1, got {options.batch_size}")
    setup_logging(options.verbose)
    settings = export_settings(options)
    folder = options.output_dir or options.model.parent
    require_writable(folder)
    quantized, metadata = load_quantized(options.model)
    images = _images(options, settings, metadata)
    job = ExportJob(
        quantized=quantized,
        correction=_correction(options, metadata["num_classes"]),
        image_shape=images.shape,
        batches=images.batches,
        notes={key: metadata[key] for key in NOTES if key in metadata}
        | {"checked_on": images.origin},
    )
    folder.mkdir(parents=True, exist_ok=True)
    problems = export_and_verify(job, settings, folder)
    write_stdout("\n".join(problems) or str(folder / ONNX_FILE))
    return EXIT_FAILED if problems else EXIT_OK


def _correction(options: argparse.Namespace, num_classes: int) -> ClusterAffineCorrection | None:
    if not options.with_correction:
        return None
    path = options.correction or options.model.parent / CORRECTION_FILE
    return ClusterAffineCorrection.load(path, num_classes)


@dataclass(frozen=True)
class CheckImages:
    """The images to check on.

    Attributes:
        shape: of one, (3, H, W).
        origin: in words.
    """

    batches: Batches
    shape: tuple[int, ...]
    origin: str


def _images(
    options: argparse.Namespace, settings: ExportSettings, metadata: dict[str, Any]
) -> CheckImages:
    try:
        if options.noise:
            return _noise(settings.export_images, options.batch_size, metadata)
        preprocess = Preprocess.from_values(metadata["preprocess"])
        preprocess.normalise(torch.zeros(1, 3, 1, 1, dtype=torch.uint8))
        name = str(options.dataset or metadata["dataset"])
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        if isinstance(error, InputError):
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{options.model}: must be a whole quantized model, got: {reason}"
        ) from None
    if name == "imagenet" and options.data_path is None:
        raise InputError(
            "data_path must be given, the folder of images that the file is checked on "
            "(or --noise), got none"
        )
    name, path, _ = resolve_dataset(name, options.data_path)
    dataset = load_dataset(name, path, preprocess, val_labels=options.val_labels)
    chosen = dataset.val.subset(settings.choose(len(dataset.val))).loaded()
    first = next(chosen.batches(1))[0]
    return CheckImages(chosen.batches(options.batch_size), tuple(first.shape[1:]), name)


def _noise(count: int, batch_size: int, metadata: dict[str, Any]) -> CheckImages:
    """Normally distributed images."""
    shape = metadata.get("image_shape")
    if shape is None:
        raise InputError(
            "noise must be of a model file that holds the shape of its images, got an older one "
            "(--data_path gives images)"
        )
    is_shape = isinstance(shape, list) and len(shape) == 3 and shape[0] == 3
    if not is_shape or not all(isinstance(n, int) and 0 < n <= MAX_SIDE for n in shape):
        raise ValueError(f"image_shape {shape!r}")
    generator = torch.Generator().manual_seed(NOISE_SEED)
    sizes = [min(batch_size, count - start) for start in range(0, count, batch_size)]
    batches = (
        (torch.randn(size, *shape, generator=generator), torch.zeros(size, dtype=torch.int64))
        for size in sizes
    )
    return CheckImages(batches, tuple(shape), "noise")


if __name__ == "__main__":
    raise SystemExit(main())
