"""Write a quantized model as an ONNX file with integer weights, and check it in its runtime.

    python export_onnx.py outputs/rtn/run_digits_resnet_w4bit_a4bit_seed1005/quantized_model.pt
        a model of the embedded digits, which are also the images of the check
    python export_onnx.py RUN/quantized_model.pt --data_path IMAGES --with_correction --int2
        with RUN/correction.npz as part of the graph, and 2-bit tensors stored as INT2
    python export_onnx.py RUN/quantized_model.pt --noise --benchmark
        the time of the file beside that of the float network; fast if the model was quantized with
        --quant_target

Writes quantized_model.onnx and export_report.json next to the model, or into --output_dir. Exit
status: 0 file and model agree, 1 they do not, 2 wrong usage or unusable input.
"""

from __future__ import annotations

from common.start import run_main

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.console import EXIT_FAILED, EXIT_OK, setup_logging, write_stdout
from common.errors import InputError
from common.files import require_writable, written_alone
from common.flags import CLASS_ORDER_HELP, FlagParser
from common.marks import mark, replace_link, require_own_folder
from correction import ClusterAffineCorrection
from export import export_and_verify
from export.check_images import check_images
from export.own_files import EXPORT_FILES, require_own_export
from export.report_table import report_table
from export.reporting import NOTES, ExportJob
from export.settings import add_export_flags, export_settings
from logits_io.naming import CORRECTION_FILE
from models import load_quantized

OF_IMAGES = ("dataset", "data_path", "val_labels", "class_order")

logger = logging.getLogger(__name__)


def build_parser() -> FlagParser:
    parser = FlagParser(prog="export_onnx.py", usage="%(prog)s MODEL [flags]", description=__doc__)
    parser.add_argument("model", type=Path, help="quantized_model.pt of a run")
    add_export_flags(parser)
    images = parser.add_argument_group("images of the check").add_argument
    images("--dataset", type=str.lower, help="data set (default: that of the run)")
    images("--data_path", type=Path, help="folder of the images, as for main_imagenet.py")
    images(
        "--val_labels",
        type=Path,
        help="file with the labels of a val folder without class folders",
    )
    images("--class_order", metavar="ORDER", help=CLASS_ORDER_HELP)
    images("--noise", action="store_true", help="check on random images instead of a data set")
    images("--batch_size", type=int, default=64, help="images per forward pass (default 64)")
    files = parser.add_argument_group("files and log").add_argument
    files("--output_dir", type=Path, help="output folder (default: that of the model)")
    files(
        "--correction",
        type=Path,
        help="file for --with_correction (default: correction.npz next to the model)",
    )
    files(
        "--force",
        action="store_true",
        help="replace files of the same names that this suite did not write",
    )
    files("--verbose", action="store_true", help="log more")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: that of the process); returns the exit status."""
    return run_main(lambda: _main(sys.argv[1:] if argv is None else argv))


def _main(argv: Sequence[str]) -> int:
    parser = build_parser()
    options = parser.parse(argv)
    if options.noise:
        parser.refuse(options, OF_IMAGES, "with --noise")
    if not options.with_correction:
        parser.refuse(options, ("correction",), "without --with_correction")
    if options.batch_size < 1:
        raise InputError(f"batch_size must be at least 1, got {options.batch_size}")
    setup_logging(options.verbose)
    settings = export_settings(options)
    folder = options.output_dir or options.model.parent
    require_writable(folder)
    if options.output_dir is not None:
        require_own_folder(folder, options.force)
    require_own_export(folder, options.force)
    quantized, metadata = load_quantized(options.model)
    settings.target_for(quantized.spec.target)
    images = check_images(options, settings, metadata)
    job = ExportJob(
        quantized=quantized,
        correction=_correction(options, metadata),
        image_shape=images.shape,
        batches=images.batches,
        notes={key: metadata[key] for key in NOTES if key in metadata}
        | {"checked_on": images.origin},
    )
    if options.output_dir is not None:
        replace_link(folder)
    with written_alone(folder):
        folder.mkdir(parents=True, exist_ok=True)
        mark(folder, EXPORT_FILES)
        problems = export_and_verify(job, settings, folder)
    write_stdout("\n".join(problems) or report_table(folder))
    return EXIT_FAILED if problems else EXIT_OK


def _correction(
    options: argparse.Namespace, metadata: dict[str, Any]
) -> ClusterAffineCorrection | None:
    if not options.with_correction:
        return None
    if not isinstance(metadata.get("num_classes"), int):
        raise InputError(
            f"{options.model}: must be saved with num_classes in its metadata, got none"
        )
    path = options.correction or options.model.parent / CORRECTION_FILE
    return ClusterAffineCorrection.load(path, metadata["num_classes"])


if __name__ == "__main__":
    raise SystemExit(main())
