"""The main job on the shared CIFAR-10 JPEG images: Top-1 before and after correction, beside the
reference.

    python -m benchmarks.accuracy_cifar10 --data_path CIFAR --checkpoint cifar10_resnet20.pt
        a run of main_imagenet.py per row, about 5 minutes on two cores; the table goes to stdout

CIFAR is the unpacked folder cifar10_jpeg. The reference is the published code for round to nearest,
and the prototype of the specification for AdaRound. Three seeds and more bits of the reconstruction
methods: benchmarks.reconstruction_cifar10.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common import EXIT_FAILED, EXIT_OK

PROJECT = Path(__file__).resolve().parent.parent
HEADER = (
    "| method | W/A | seed | quantized | reference | agreement | corrected | KL before, after | s |"
)


@dataclass(frozen=True)
class Setting:
    """One row of the table; ``reference`` as it is printed."""

    method: str
    bits: tuple[int, int]
    seed: int
    reference: str

    def flags(self) -> list[str]:
        flags = [
            "--quant_method",
            self.method,
            "--seed",
            str(self.seed),
            "--save_results",
            "selected",
        ]
        flags += ["--n_bits_w", str(self.bits[0]), "--n_bits_a", str(self.bits[1])]
        if self.method == "adaround":
            flags += ["--iters_w", "1000", "--lr_round", "3e-3"]
        return flags


SETTINGS = (
    Setting("rtn", (8, 8), 1005, "-"),
    Setting("rtn", (4, 4), 1005, "84.69"),
    Setting("rtn", (3, 3), 1005, "70.07"),
    Setting("rtn", (2, 4), 1005, "26.30"),
    Setting("adaround", (8, 8), 1005, "-"),
    Setting("adaround", (4, 4), 1005, "87.28"),
)


def run(setting: Setting, options: argparse.Namespace, output: Path) -> str:
    """Run the main script and return the table's row."""
    command = [sys.executable, str(PROJECT / "main_imagenet.py"), "--quiet", *setting.flags()]
    command += ["--data_path", str(options.data_path), "--arch", "cifar_resnet20"]
    command += ["--checkpoint", str(options.checkpoint), "--output_dir", str(output)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    record = json.loads((output / setting.method / "run.json").read_text(encoding="utf-8"))
    quantized, corrected = record["figures"]["quantized"], record["figures"]["corrected"]
    cells = [
        *(setting.method, f"{setting.bits[0]}/{setting.bits[1]}", str(setting.seed)),
        *(f"{quantized['top1_pct']:.2f}", setting.reference, f"{quantized['agreement_pct']:.2f}"),
        f"{corrected['top1_pct']:.2f}",
        f"{quantized['kl_to_fp']:.4f}, {corrected['kl_to_fp']:.4f}",
        f"{record['seconds']['quantize']:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.accuracy_cifar10", description=__doc__)
    parser.add_argument("--data_path", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    options = build_parser().parse_args(argv)
    sys.stdout.write(f"{HEADER}\n{'|---' * HEADER.count(' | ')}|---|\n")
    with tempfile.TemporaryDirectory() as folder:
        for setting in SETTINGS:
            try:
                sys.stdout.write(run(setting, options, Path(folder)) + "\n")
            except subprocess.CalledProcessError as error:
                sys.stderr.write(f"{setting} ended in status {error.returncode}\n")
                return EXIT_FAILED
            sys.stdout.flush()
    return EXIT_OK


if __name__ == "__main__":
    raise SystemExit(main())
