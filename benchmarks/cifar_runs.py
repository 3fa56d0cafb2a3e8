"""Shared by the accuracy tables: runs of main_imagenet.py with ResNet-20 on the CIFAR images."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

SMALL_GRID = ("--correction_samples", "1000", "--alpha", "0.4", "--num_clusters", "16")
PROJECT = Path(__file__).resolve().parent.parent


def table_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """A parser with the flags for the paths of images and weights."""
    parser = argparse.ArgumentParser(prog=name, description=description)
    parser.add_argument(
        "--data_path", type=Path, required=True, help="unpacked folder cifar10_jpeg"
    )
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="weights of ResNet-20, cifar10_resnet20.pt"
    )
    return parser


def run_main_script(
    options: argparse.Namespace, flags: Sequence[str], environment: Mapping[str, str] | None = None
) -> None:
    """Run the main script quietly with the images and weights of ``options``.

    Raises:
        subprocess.CalledProcessError: it did not end in status 0.
    """
    command = [sys.executable, str(PROJECT / "main_imagenet.py"), "--quiet"]
    command += ["--data_path", str(options.data_path), "--arch", "cifar_resnet20"]
    command += [
        "--checkpoint",
        str(options.checkpoint),
        "--save_results",
        "selected",
        "--no-plots",
        *flags,
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)


def runs_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """A parser for scripts that keep their runs and start several at a time."""
    parser = table_parser(name, description)
    parser.add_argument(
        "--output_dir",
        type=Path,
        required=True,
        help="folder of the runs; finished ones are skipped",
    )
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time (default 2)")
    return parser


@dataclass(frozen=True)
class Case:
    """A run of the main script in one thread.

    Attributes:
        root: the ``--output_dir`` of the run.
        flags: its flags besides method, bits, seed and folder.
        grid: its flags for the correction; empty: the default grid.
    """

    method: str
    bits: tuple[int, int]
    seed: int
    root: Path
    flags: tuple[str, ...] = ()
    grid: tuple[str, ...] = SMALL_GRID

    @property
    def tag(self) -> str:
        return f"cifar_resnet20_w{self.bits[0]}bit_a{self.bits[1]}bit_seed{self.seed}"

    @property
    def summary(self) -> Path:
        """The folder of its tables and plots."""
        return self.root / self.method / f"logits_summary_{self.tag}"

    @property
    def folder(self) -> Path:
        """The run's own folder."""
        return self.root / self.method / f"run_{self.tag}"


def run_all(cases: Sequence[Case], options: argparse.Namespace) -> bool:
    """Run the unfinished cases, ``options.jobs`` at a time.

    Returns:
        False if one failed, after a message on stderr.
    """
    try:
        with ThreadPoolExecutor(options.jobs) as pool:
            list(pool.map(partial(_run_case, options=options), cases))
    except subprocess.CalledProcessError as error:
        sys.stderr.write(f"a run ended in status {error.returncode}\n")
        return False
    return True


def _run_case(case: Case, options: argparse.Namespace) -> None:
    if (case.folder / "run.json").exists():
        return
    flags = ["--resume", "--output_dir", str(case.root), "--quant_method", case.method]
    flags += ["--seed", str(case.seed), "--cache_dir", str(options.output_dir / "cache")]
    flags += ["--n_bits_w", str(case.bits[0]), "--n_bits_a", str(case.bits[1]), *case.flags]
    flags += case.grid
    run_main_script(options, flags, {**os.environ, "OMP_NUM_THREADS": "1"})


def read_record(folder: Path) -> dict[str, Any]:
    """The run.json of a finished run."""
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))


def table_line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |\n"


def table_head(names: Sequence[str]) -> str:
    return table_line(names) + "|---" * len(names) + "|\n"
