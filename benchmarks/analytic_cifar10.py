"""Top-1 of LAPQ and ACIQ-Mix on the shared CIFAR-10 JPEG images, in published and default settings.

    python -m benchmarks.analytic_cifar10 --data_path CIFAR --checkpoint cifar10_resnet20.pt \\
            --output_dir RUNS
        runs of main_imagenet.py, two at a time with one thread each: about 75 minutes on two cores;
        finished runs in RUNS are skipped; prints two tables

CIFAR is the unpacked folder cifar10_jpeg. The reference accuracies are those of the published code,
measured on the same network and images.
"""

from __future__ import annotations

from common.start import run_main

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from statistics import fmean

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
# Seeds for results that vary by 0.3 points with the calibration images.
SUBSETS = (1005, 1006, 1007)
LAPQ = ("--first_last", "fp32", "--no-channel_wise", "--no-fold_bn", "--no-asymmetric")
ACIQ = (
    "--per_channel_act",
    "--act_points",
    "outputs",
    "--num_samples",
    "32",
    "--no-output_correction",
)
EQUAL = ("--mix_ratio", "0")
UNCORRECTED = ("--no-bias_correction",)
NO_CLIP = ("--aciq_method", "none", *EQUAL, *UNCORRECTED)
LAPLACE = ("--aciq_method", "laplace")
PER_TENSOR = (*LAPLACE, "--no-per_channel_act", *EQUAL)


@dataclass(frozen=True)
class Setting:
    """Runs of one setting, one per seed.

    Attributes:
        note: description of ``flags``.
        reference: Top-1 of the published code, percent.
    """

    method: str
    bits: tuple[int, int]
    note: str = ""
    flags: tuple[str, ...] = ()
    reference: float | None = None
    seeds: tuple[int, ...] = (SEED,)

    def cases(self, root: Path) -> list[Case]:
        """Its runs, in a folder per kind of setting, since the names of runs hold only the bits."""
        kind = self.note.replace(" ", "_").replace(",", "") or "suite"
        return [Case(self.method, self.bits, seed, root / kind, self.flags) for seed in self.seeds]


def _lapq(bits: tuple[int, int], images: int, corrected: bool, reference: float) -> list[Setting]:
    """The settings of one published row: with labels, as published, and without."""
    correction = "--bias_correction" if corrected else "--no-bias_correction"
    flags = (*LAPQ, "--num_samples", str(images), correction)
    note = f"{images} images, {'' if corrected else 'no '}bias correction"
    labels = ("--lapq_loss", "ce_labels")
    settings = [
        Setting("lapq", bits, f"{note}, labels", (*flags, *labels), reference, SUBSETS),
        Setting("lapq", bits, note, flags, reference, SUBSETS),
    ]
    if bits[1] == 2:  # here the joint search alone fits the calibration images most closely
        alone = (*flags, "--gradient_steps", "0")
        settings.append(
            Setting("lapq", bits, f"{note}, no gradient descent", alone, reference, SUBSETS)
        )
    return settings


def _aciq(bits: tuple[int, int], rows: dict[str, tuple[tuple[str, ...], float]]) -> list[Setting]:
    return [
        Setting("aciq_mix", bits, note, (*ACIQ, *flags), reference)
        for note, (flags, reference) in rows.items()
    ]


PUBLISHED = [
    *_lapq((4, 4), 512, True, 86.40),
    *_lapq((4, 4), 512, False, 86.37),
    *_lapq((3, 3), 256, True, 78.00),
    *_lapq((4, 2), 256, True, 73.36),
    *_aciq(
        (8, 8),
        {"min-max": (NO_CLIP, 86.01), "Laplace": ((*LAPLACE, *EQUAL, *UNCORRECTED), 88.33)},
    ),
    *_aciq(
        (8, 4),
        {
            "min-max": (NO_CLIP, 85.92),
            "Laplace": ((*LAPLACE, *EQUAL, *UNCORRECTED), 87.94),
            "Laplace, allocation": ((*LAPLACE, *UNCORRECTED), 87.82),
        },
    ),
    *_aciq(
        (4, 8),
        {
            "min-max": (NO_CLIP, 84.57),
            "Laplace": ((*LAPLACE, *EQUAL, *UNCORRECTED), 86.62),
            "Laplace, bias correction": ((*LAPLACE, *EQUAL), 87.81),
            "Laplace, bias correction, allocation": (LAPLACE, 87.83),
        },
    ),
    *_aciq(
        (4, 4),
        {
            "min-max": (NO_CLIP, 84.14),
            "Laplace": ((*LAPLACE, *EQUAL, *UNCORRECTED), 86.28),
            "Laplace, bias correction": ((*LAPLACE, *EQUAL), 87.38),
            "Laplace, bias correction, activations per tensor": (PER_TENSOR, 87.11),
            "Laplace, bias correction, allocation": (LAPLACE, 87.42),
            "Gauss, bias correction": (("--aciq_method", "gauss", *EQUAL), 86.30),
        },
    ),
    *_aciq(
        (3, 3),
        {
            "min-max": (NO_CLIP, 66.44),
            "Laplace, bias correction": ((*LAPLACE, *EQUAL), 80.89),
            "Laplace, bias correction, allocation": (LAPLACE, 82.77),
        },
    ),
    *_aciq((2, 4), {"Laplace, bias correction, allocation": (LAPLACE, 66.52)}),
]
SUITE_BITS = ((4, 4), (3, 3), (2, 4), (4, 2), (8, 8), (8, 4), (4, 8))
SLOW_BITS = SUITE_BITS[:4]  # LAPQ takes minutes where the others take seconds
SUITE = {
    "lapq": [Setting("lapq", bits) for bits in SLOW_BITS],
    "rtn": [Setting("rtn", bits) for bits in SUITE_BITS],
    "aciq_mix": [Setting("aciq_mix", bits) for bits in SUITE_BITS],
}


def figures(setting: Setting, root: Path) -> tuple[list[float], float]:
    """Top-1 (percent) of the quantized network for every seed, and mean seconds to quantize."""
    records = [read_record(case.folder) for case in setting.cases(root)]
    accuracies = [record["figures"]["quantized"]["top1_pct"] for record in records]
    return accuracies, fmean(record["seconds"]["quantize"] for record in records)


def _shown(accuracies: list[float]) -> str:
    """Text of the mean, followed by its values in brackets."""
    if len(accuracies) == 1:
        return f"{accuracies[0]:.2f}"
    return f"{fmean(accuracies):.2f} ({' '.join(f'{value:.2f}' for value in accuracies)})"


def published_table(root: Path) -> str:
    names = ("method", "W/A", "setting", "Top-1", "published code", "difference", "s")
    lines = [table_head(names)]
    for setting in PUBLISHED:
        accuracies, seconds = figures(setting, root)
        assert setting.reference is not None
        cells = [setting.method, f"{setting.bits[0]}/{setting.bits[1]}", setting.note]
        difference = fmean(accuracies) - setting.reference
        cells += [_shown(accuracies), f"{setting.reference:.2f}", f"{difference:+.2f}"]
        lines.append(table_line([*cells, f"{seconds:.0f}"]))
    return "".join(lines)


def suite_table(root: Path) -> str:
    lines = [table_head(("W/A", *SUITE, "s of each"))]
    for bits in SUITE_BITS:
        found = [
            [figures(setting, root) for setting in settings if setting.bits == bits]
            for settings in SUITE.values()
        ]
        cells = [_shown(pair[0][0]) if pair else "-" for pair in found]
        seconds = [f"{pair[0][1]:.0f}" if pair else "-" for pair in found]
        lines.append(table_line([f"{bits[0]}/{bits[1]}", *cells, ", ".join(seconds)]))
    return "".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    options = runs_parser("benchmarks.analytic_cifar10", __doc__).parse_args(argv)
    settings = (*PUBLISHED, *chain(*SUITE.values()))
    cases = [case for setting in settings for case in setting.cases(options.output_dir)]
    if not run_all(cases, options):
        return EXIT_FAILED
    sys.stdout.write(f"{published_table(options.output_dir)}\n{suite_table(options.output_dir)}")
    return EXIT_OK


if __name__ == "__main__":
    raise SystemExit(run_main(main))
