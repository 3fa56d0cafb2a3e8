"""Start-up time that the cache saves in the second of two runs that share network and images.

    python -m benchmarks.bench_sweep --data_path cifar10_jpeg --checkpoint cifar10_resnet20.pt

The times are wall seconds from the start of the process to the end of the first unit, with one
optimisation step: first with an empty cache, then at other bits with the cache of the first run.
"""

from __future__ import annotations

from common.start import run_main

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.cifar_runs import PROJECT, table_head, table_line, table_parser
from common.console import EXIT_OK

METHODS = ("pd_quant", "adaround")
FIRST_UNIT = "reconstruction loss"
HEADER = ("method", "empty cache, s", "filled, s", "ratio")


def seconds_to_first_step(options: argparse.Namespace, flags: Sequence[str]) -> float:
    """Start a run, and kill it when its first unit is done; returns the wall seconds until then.

    Raises:
        RuntimeError: the run ended before.
    """
    command = [sys.executable, str(PROJECT / "main_imagenet.py"), "--arch", "cifar_resnet20"]
    command += ["--data_path", str(options.data_path), "--checkpoint", str(options.checkpoint)]
    command += ["--iters_w", "1", *flags]
    start = time.perf_counter()
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if FIRST_UNIT in line:
                elapsed = time.perf_counter() - start
                process.kill()
                return elapsed
    raise RuntimeError(f"a run ended before its first unit: {' '.join(command)}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = table_parser("benchmarks.bench_sweep", __doc__)
    parser.add_argument(
        "--repeats",
        type=int,
        default=3,
        help="measurements, of which medians are shown (default 3)",
    )
    options = parser.parse_args(argv)
    sys.stdout.write(table_head(HEADER))
    for method in METHODS:
        pairs = []
        for _ in range(options.repeats):
            with tempfile.TemporaryDirectory() as folder:
                flags = ["--quant_method", method, "--cache_dir", str(Path(folder) / "cache")]
                flags += ["--output_dir", str(Path(folder) / "out")]
                cold = seconds_to_first_step(options, [*flags, "--n_bits_w", "4"])
                pairs.append((cold, seconds_to_first_step(options, [*flags, "--n_bits_w", "2"])))
        ratio = statistics.median(cold / warm for cold, warm in pairs)
        cold, warm = (statistics.median(column) for column in zip(*pairs, strict=True))
        sys.stdout.write(table_line([method, f"{cold:.1f}", f"{warm:.1f}", f"{ratio:.1f}"]))
        sys.stdout.flush()
    return EXIT_OK


if __name__ == "__main__":
    raise SystemExit(run_main(main))
