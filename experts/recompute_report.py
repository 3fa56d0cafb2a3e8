"""What ``recompute_logits.py`` prints."""

from __future__ import annotations

import argparse
import logging
import shlex
from collections.abc import Sequence
from pathlib import Path

from common.console import EXIT_FAILED, EXIT_OK, write_stdout
from common.errors import InputError
from experts.checkpoints import describe_checkpoint, head_classes, load_expert
from experts.console import Console
from experts.recompute import Candidate, Request, Source, Written
from logits_io.npz import npz_path

DEFAULT_OUTPUT = Path("outputs") / "logits_fixed"

logger = logging.getLogger(__name__)


class Report:
    """Prints results and failures, and collects them for the table at the end."""

    def __init__(self, console: Console, traceback: bool):
        self.console, self.traceback = console, traceback
        self.written: list[Written] = []
        self.failed: list[tuple[str, str | None]] = []

    def loaded(self, candidate: Candidate) -> None:
        source, metadata = candidate.source, candidate.metadata
        known = ""
        if "val_accuracy" in metadata:
            known = f" (epoch {metadata['epoch']}, val acc {metadata['val_accuracy']:.4f})"
        self.console.line(f"EXPERT: {source.name.upper()}")
        self.console.line(f"  checkpoint: {source.found.path}{known}")
        tensors = f"{candidate.tensors}/{candidate.tensors} tensors"
        self.console.line(f"  {self.console.marks['pass']} model loaded: {tensors}")

    def wrote(self, result: Written) -> None:
        self.written.append(result)
        note = " (up to date)" if result.kept else ""
        self.console.line(
            f"  {result.split:<6} {result.samples:>6} samples   accuracy {result.accuracy:.4f}   "
            f"-> {result.path}{note}"
        )

    def failure(self, name: str, split: str | None, error: Exception) -> None:
        self.failed.append((name, split))
        where = f"expert {name!r}" + (f", {split}" if split else "")
        logger.error("%s: %s", where, error, exc_info=self.traceback)

    def conclude(self, failed: int, seconds: float) -> None:
        """Print one line with the numbers of files and failures."""
        kept = sum(result.kept for result in self.written)
        note = f", {kept} up to date" if kept else ""
        written = len(self.written) - kept
        self.console.always(f"{written} files written{note}, {failed} failed, {seconds:.1f} s")

    def table(self, names: Sequence[str], splits: Sequence[str]) -> None:
        """Print the accuracy of every expert and split."""
        found = {(r.expert, r.split): f"{r.accuracy:.4f}" for r in self.written}
        width = max([len("Expert"), *map(len, names)])
        self.console.line()
        self.console.line(" | ".join([f"{'Expert':<{width}}", *(f"{s:>8}" for s in splits)]))
        for name in names:
            cells = [f"{found.get((name, split), 'FAILED'):>8}" for split in splits]
            self.console.line(" | ".join([f"{name:<{width}}", *cells]))


def header(
    console: Console, options: argparse.Namespace, request: Request, names: Sequence[str]
) -> None:
    lines = {
        "device": request.device,
        "splits": f"{', '.join(request.indices)} of {request.choice.splits.folder}",
        "experts": f"{', '.join(names)} ({options.checkpoint_prefix} below {options.experts_dir})",
        "output": request.output_dir,
    }
    for key, value in lines.items():
        console.line(f"{key + ':':<9}{value}")


def plan(console: Console, sources: Sequence[Source], request: Request) -> None:
    for source in sources:
        for split in request.indices:
            path = npz_path(request.output_dir, source.name, split)
            console.line(f"{source.name}: {source.found.path} -> {split} -> {path}")


def further_flags(options: argparse.Namespace) -> str:
    """The flags of this command that ``verify_logits.py`` needs as well, as text."""
    given = {
        "dataset": None if options.dataset == "auto" else options.dataset,
        "data-root": options.data_root,
        "splits-dir": options.splits_dir,
        "logits-dir": None if options.output_dir == DEFAULT_OUTPUT else options.output_dir,
    }
    parts = [f"--{flag} {shlex.quote(str(value))}" for flag, value in given.items() if value]
    return "".join(f" {part}" for part in parts)


def inspect(path: Path, unsafe: bool) -> int:
    """Print the content of a checkpoint and whether it can be loaded; returns the exit status."""
    try:
        for line in describe_checkpoint(path, unsafe):
            write_stdout(line)
        loaded = load_expert(path, head_classes(path, unsafe), unsafe=unsafe)
    except InputError as error:
        write_stdout(f"verdict: not accepted: {error}")
        return EXIT_FAILED
    write_stdout(
        f"verdict: accepted as {loaded.expert.backbone_name}, "
        f"{loaded.tensors}/{loaded.tensors} tensors"
    )
    return EXIT_OK
