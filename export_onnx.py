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
from collections.abc import Sequence
from pathlib import Path

from common.console import EXIT_FAILED, EXIT_OK, run_main, setup_logging, write_stdout
from common.errors import InputError
from common.files import require_writable
from common.flags import FlagParser
from correction import ClusterAffineCorrection
from export import export_and_verify
from export.check_images import check_images
from export.reporting import NOTES, ExportJob
from export.settings import add_export_flags, export_settings
from logits_io.naming import CORRECTION_FILE, ONNX_FILE
from models import load_quantized

logger = logging.getLogger(__name__)


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
    images = check_images(options, settings, metadata)
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


if __name__ == "__main__":
    raise SystemExit(main())
