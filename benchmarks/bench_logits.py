"""Time to write and read logits at ImageNet's scale, compared with other libraries.

    python -m benchmarks.bench_logits
        three kinds of 50,000 x 1,000 float32 logits as CSV files of this suite; one kind by polars,
        samples by savetxt, pandas and loadtxt, extrapolated; then the time that saving adds to a
        run whose network takes 1 ms per image: about 3 minutes and 1.6 GB of disk
    python -m benchmarks.bench_logits --formats
        one kind in every format and compression: bytes and times, about 3 minutes

Times are CPU seconds of the process, with wall seconds in brackets. What is read back is compared
bit for bit.
"""

from __future__ import annotations

from common.start import run_main

import argparse
import io
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import polars
import torch
from torch import Tensor, nn

from benchmarks.cifar_runs import table_head, table_line
from common.console import EXIT_OK
from evaluation.inference import infer_logits
from logits_io import LogitsAnalyzer
from logits_io.formats import FORMATS

ROWS, CLASSES, KINDS = 50_000, 1000, ("quantized", "fullprecision", "corrected")
CHUNK = 1000
SAMPLE = 5_000  # rows on which the slow libraries are timed
READS = 3  # readings, of which the one with the median ratio is shown
NETWORK_ROWS, BATCH, MS_PER_IMAGE = 20_000, 64, 1.0


def made_up(rows: int) -> np.ndarray:
    """(rows, CLASSES) float32 logits with one large logit per row."""
    random = np.random.default_rng(0)
    logits = 2.5 * random.standard_normal((rows, CLASSES), dtype=np.float32)
    logits[np.arange(rows), random.integers(0, CLASSES, rows)] += 12
    return logits


def seconds(work: Callable[[], object], times: float = 1.0) -> tuple[float, float]:
    """CPU and wall seconds of ``work``, multiplied by ``times``."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return times * (time.process_time() - cpu), times * (time.perf_counter() - wall)


def bare_polars(logits: np.ndarray, folder: Path) -> None:
    """Write one CSV file per chunk with polars, without digests."""
    for start in range(0, len(logits), CHUNK):
        part = polars.DataFrame(logits[start : start + CHUNK])
        part.write_csv(folder / f"{start}.csv", include_header=False)


def compare_files(
    logits: np.ndarray, folder: Path
) -> Iterator[tuple[str, tuple[float, float], tuple[float, float]]]:
    """Name of the library, its seconds for three kinds, and those of this suite."""
    analyzer = LogitsAnalyzer(folder, CHUNK)
    kinds = {kind: logits for kind in KINDS}
    targets = np.zeros(len(logits), dtype=np.int64)
    (folder / "bare").mkdir()
    polars_one = seconds(lambda: bare_polars(logits, folder / "bare"), len(KINDS))
    ours = seconds(lambda: analyzer.save_logits_to_csv("ours", "logits_x", kinds, targets, {}))
    sample, share = logits[:SAMPLE], len(KINDS) * len(logits) / SAMPLE
    text = io.BytesIO()
    savetxt = seconds(lambda: np.savetxt(text, sample, fmt="%.9g", delimiter=","), share)
    frame = pd.DataFrame(sample)
    pandas_csv = seconds(lambda: frame.to_csv(io.StringIO(), header=False, index=False), share)
    yield "write: bare polars", polars_one, ours
    yield "write: numpy.savetxt %.9g", savetxt, ours
    yield "write: pandas.to_csv", pandas_csv, ours
    files = sorted((folder / "ours").glob("*_quantized_chunk*"))[: SAMPLE // CHUNK]
    saved: list[np.ndarray] = []
    pairs = []
    for _ in range(READS):  # measured in turns, since the machine's speed changes
        saved.clear()
        reading = seconds(lambda: saved.extend(analyzer.load("ours").logits.values()))
        loadtxt = seconds(
            lambda: [np.loadtxt(file, delimiter=",", dtype=np.float32) for file in files], share
        )
        pairs.append((loadtxt, reading))
    if any(array.tobytes() != logits.tobytes() for array in saved):
        raise SystemExit("what was read is not what was written")
    loadtxt, reading = sorted(pairs, key=lambda pair: pair[0][1] / pair[1][1])[READS // 2]
    yield "read: numpy.loadtxt", loadtxt, reading


def format_rows(logits: np.ndarray) -> Iterator[list[str]]:
    """Format, compression, bytes on disk in MB, and seconds to write and to read one kind."""
    targets = np.zeros(len(logits), dtype=np.int64)
    for name, found in FORMATS.items():
        for compression in found.endings:
            with tempfile.TemporaryDirectory() as folder:
                analyzer = LogitsAnalyzer(folder, CHUNK, (name,), compression)
                kinds = {KINDS[0]: logits}
                writing = seconds(
                    partial(analyzer.save_logits_to_csv, "x", "logits_x", kinds, targets, {})
                )
                size = sum(path.stat().st_size for path in Path(folder, "x").iterdir())
                saved: list[np.ndarray] = []
                reading = seconds(lambda: saved.extend(analyzer.load("x").logits.values()))  # noqa: B023
            if saved[0].tobytes() != logits.tobytes():
                raise SystemExit(f"{name}: what was read is not what was written")
            times = [f"{cpu:.1f} ({wall:.1f})" for cpu, wall in (writing, reading)]
            yield [name, compression, f"{size / 1e6:.0f}", *times]


class SleepingNetwork(nn.Module):
    """Stands for a network on an accelerator: the CPU waits ``MS_PER_IMAGE`` for every image."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = torch.from_numpy(made_up(BATCH))

    def forward(self, images: Tensor) -> Tensor:
        time.sleep(len(images) * MS_PER_IMAGE / 1000)
        return self.logits[: len(images)].clone()


def network_seconds(folder: Path, saving: bool) -> float:
    """Wall seconds to run the sleeping network, with or without saving its logits."""
    network = {"quantized": SleepingNetwork()}
    images, labels = torch.zeros(BATCH, 1), torch.zeros(BATCH, dtype=torch.int64)
    batches = [(images, labels)] * (NETWORK_ROWS // BATCH)
    device = torch.device("cpu")
    start = time.perf_counter()
    if saving:
        with LogitsAnalyzer(folder, CHUNK).writer("run", "logits_x", {}) as writer:
            infer_logits(network, batches, device, on_batch=writer.add)
    else:
        infer_logits(network, batches, device)
    return time.perf_counter() - start


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.bench_logits", description=__doc__)
    parser.add_argument("--formats", action="store_true", help="compare the formats instead")
    write = sys.stdout.write
    if parser.parse_args(argv).formats:
        write(table_head(("format", "compression", "MB", "write, s", "read, s")))
        for row in format_rows(made_up(ROWS)):
            write(table_line(row))
            sys.stdout.flush()
        return EXIT_OK
    write(
        table_head(("three kinds of 50,000 x 1,000", "s", "ours, s", "ratio, CPU", "ratio, wall"))
    )
    with tempfile.TemporaryDirectory() as folder:
        for name, theirs, ours in compare_files(made_up(ROWS), Path(folder)):
            ratios = [f"{a / b:.2f}" for a, b in zip(theirs, ours, strict=True)]
            both = [f"{cpu:.1f} ({wall:.1f})" for cpu, wall in (theirs, ours)]
            write(table_line([name, *both, *ratios]))
            sys.stdout.flush()
    with tempfile.TemporaryDirectory() as folder:
        alone, saving = (
            network_seconds(Path(folder), with_saving) for with_saving in (False, True)
        )
    write(
        f"\na network of {MS_PER_IMAGE:g} ms an image, {NETWORK_ROWS} images: {alone:.2f} s alone, "
        f"{saving:.2f} s with saving (+{100 * (saving / alone - 1):.2f} %)\n"
    )
    return EXIT_OK


if __name__ == "__main__":
    raise SystemExit(run_main(main))
