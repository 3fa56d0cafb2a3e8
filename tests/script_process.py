"""Processes of a server that has imported the scripts, so that each starts without importing."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from common import start

SCRIPTS = [
    "create_splits_fixed",
    "main_imagenet",
    "recompute_logits",
    "train_any_precision",
    "train_experts",
]
LOADED_LATE = [
    "pipeline.stages",
    "experts.training",
    "experts.recompute_job",
    "any_precision.session",
]
SERVER = multiprocessing.get_context("forkserver")


class ScriptProcess:
    """A script in a process of its own, whose output grows in two files.

    Args:
        script: one of ``SCRIPTS``.
        folder: folder for the output.
        without: packages that the process does not have; none of ``SCRIPTS`` imports them early.
    """

    def __init__(
        self, script: str, argv: Sequence[object], folder: Path, without: Sequence[str] = ()
    ):
        SERVER.set_forkserver_preload([*SCRIPTS, *LOADED_LATE])
        folder.mkdir(parents=True, exist_ok=True)
        number = len(list(folder.iterdir()))
        self.out, self.err = (folder / f"{number}.{name}" for name in ("out", "err"))
        for path in (self.out, self.err):
            path.touch()
        words = [str(part) for part in argv]
        own = script, words, self.out, self.err, without
        self.process = SERVER.Process(target=_run, args=own)
        self.process.start()

    def wait_for(self, text: str, seconds: float = 120) -> None:
        """Wait until stderr holds a text."""
        end = time.monotonic() + seconds
        while text not in self.err.read_text():
            assert time.monotonic() < end, f"{text!r} must come, got {self.err.read_text()!r}"
            time.sleep(0.01)

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)

    def wait(self, seconds: float = 120) -> int | None:
        """The exit status, negative for a signal; None if it does not end."""
        self.process.join(seconds)
        return self.process.exitcode


def _run(script: str, argv: list[str], out: Path, err: Path, without: Sequence[str]) -> None:
    assert not set(without) & set(sys.modules)
    sys.modules.update(dict.fromkeys(without))  # type: ignore[arg-type]  # None: an ImportError
    for number in start.SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    torch.set_num_threads(1)
    with out.open("w") as sys.stdout, err.open("w", buffering=1) as sys.stderr:
        status = importlib.import_module(script).main(argv)
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
    sys.exit(status)
