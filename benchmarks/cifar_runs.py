"""What the accuracy tables share: runs of main_imagenet.py with ResNet-20 on the CIFAR images."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent


def table_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """A parser with the flags that say where images and weights are."""
    parser = argparse.ArgumentParser(prog=name, description=description)
    parser.add_argument("--data_path", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
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
    command += ["--checkpoint", str(options.checkpoint), "--save_results", "selected", *flags]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)


def read_record(folder: Path) -> dict[str, Any]:
    """The run.json of a finished run."""
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))


def table_line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |\n"


def table_head(names: Sequence[str]) -> str:
    return table_line(names) + "|---" * len(names) + "|\n"
