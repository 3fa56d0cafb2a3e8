"""Top-1 of GPFQ on the shared CIFAR-10 JPEG images, in the published and in the default setting.

    python -m benchmarks.gpfq_cifar10 --data_path CIFAR --checkpoint cifar10_resnet20.pt \\
            --output_dir RUNS
        runs of main_imagenet.py, two at a time with one thread each: about 10 minutes on two cores;
        finished runs in RUNS are skipped; prints two tables

Only weights are quantized, with 1,024 calibration images. Published setting: all layers at the same
bits, one alphabet of 2^bits + 1 levels per layer, scalar 1.16, batch norms not folded; the
differences are from the mean of the published code's accuracies. The second table compares GPFQ
with rtn in the default setting: 2^bits levels, 8 bits for stem and head, a scale per channel.
"""

from __future__ import annotations

from common.start import run_main

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.cifar_runs import (
    Case,
    read_record,
    run_all,
    runs_parser,
    table_head,
    table_line,
)
from common.console import EXIT_FAILED, EXIT_OK

SEED = 1005
FLOAT = 32
REFERENCE = {
    2: (81.55,),
    3: (86.94,),
    4: (87.85, 88.04, 87.68),
    5: (88.05,),
    6: (88.16,),
    8: (88.09,),
}
PUBLISHED = ("--alphabet", "published", "--radius", "mean_max", "--no-fold_bn")
SAME_BITS = ("--disable_8bit_head_stem",)
OWN_BITS = (2, 3)
OWN = {
    "rtn": Case("rtn", (0, FLOAT), SEED, Path("own")),
    "gpfq": Case("gpfq", (0, FLOAT), SEED, Path("own")),
    "gpfq, bias correction": Case(
        "gpfq", (0, FLOAT), SEED, Path("corrected"), ("--gpfq_bias_correction",)
    ),
    "gpfq, scalar 1.0, act_order": Case(
        "gpfq", (0, FLOAT), SEED, Path("ordered"), ("--scalar", "1.0", "--act_order")
    ),
}


def published_case(root: Path, bits: int) -> Case:
    return Case("gpfq", (bits, FLOAT), SEED, root / "published", (*PUBLISHED, *SAME_BITS))


def own_case(root: Path, name: str, bits: int) -> Case:
    case = OWN[name]
    return Case(case.method, (bits, FLOAT), SEED, root / case.root, case.flags)


def top1(case: Case) -> float:
    return read_record(case.folder)["figures"]["quantized"]["top1_pct"]


def tables(root: Path) -> str:
    lines = [table_head(("bits (levels)", "Top-1", "published code", "difference", "s"))]
    for bits, known in REFERENCE.items():
        case = published_case(root, bits)
        seconds = read_record(case.folder)["seconds"]["quantize"]
        cells = [f"{bits} ({2**bits + 1})", f"{top1(case):.2f}"]
        cells += [" ".join(f"{value:.2f}" for value in known)]
        cells += [f"{top1(case) - statistics.mean(known):+.2f}", f"{seconds:.0f}"]
        lines.append(table_line(cells))
    lines += ["\n", table_head(("bits (levels)", *OWN))]
    for bits in OWN_BITS:
        figures = [f"{top1(own_case(root, name, bits)):.2f}" for name in OWN]
        lines.append(table_line([f"{bits} ({2**bits})", *figures]))
    return "".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    options = runs_parser("benchmarks.gpfq_cifar10", __doc__).parse_args(argv)
    root = options.output_dir
    cases = [published_case(root, bits) for bits in REFERENCE]
    cases += [own_case(root, name, bits) for name in OWN for bits in OWN_BITS]
    if not run_all(cases, options):
        return EXIT_FAILED
    sys.stdout.write(tables(root))
    return EXIT_OK


if __name__ == "__main__":
    raise SystemExit(run_main(main))
