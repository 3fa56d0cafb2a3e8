"""Finished units on disk, so that an interrupted quantization goes on with the next unit."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from common.errors import InputError
from common.files import read_torch_file, write_json, write_torch_file
from quant.network.model import set_state

SETTINGS_FILE = "settings.json"
LOSSES_FILE = "losses.txt"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class UnitReport:
    """What the quantization of a unit came to; losses are ``reconstruction_loss`` over the
    calibration images.
    """

    index: int
    name: str
    loss_nearest: float  # with round-to-nearest weights
    loss: float  # at the end
    flipped: float  # share of weights not rounded to nearest
    seconds: float


class UnitStates:
    """One file per finished unit in a folder, and the settings under which they were made.

    Args:
        folder: of the files.
        settings: everything that decides the outcome; values as JSON holds them.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]):
        self.folder = folder
        self.settings = json.loads(json.dumps(settings))

    def require_same_settings(self) -> None:
        """Check, without writing, that stored units were made under the same settings.

        Raises:
            InputError: they were not; the text names the first setting that differs.
        """
        path = self.folder / SETTINGS_FILE
        if not path.exists():
            logger.info("nothing to resume: no finished unit is stored; starting with the first")
            return
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: must be readable JSON, got: {error}") from None
        for key in [*self.settings, *stored]:
            before, now = stored.get(key), self.settings.get(key)
            if before != now:
                raise InputError(
                    f"{key} must be {before!r} as in the run to resume, got {now!r} "
                    "(without --resume the run starts anew)"
                )

    def open(self, resume: bool) -> None:
        """Make the folder; unless the run is resumed, or it is not known under which settings, forget
        what was stored.
        """
        if self.folder.exists() and not (resume and (self.folder / SETTINGS_FILE).exists()):
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / SETTINGS_FILE, self.settings)

    def restore(self, index: int, unit: nn.Module) -> UnitReport | None:
        """Put a finished unit back into ``unit``; None, and nothing changes, where none is stored.

        Raises:
            InputError: the file is damaged or does not fit.
        """
        path = self._path(index)
        if not path.exists():
            return None
        content = read_torch_file(path)
        try:
            unit.load_state_dict(content["state"], strict=True)
            report = UnitReport(**content["report"])
        except (RuntimeError, KeyError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"{path}: must fit unit {index}, got: {reason}") from None
        set_state(unit, weights=True, activations=True)
        return report

    def save(self, report: UnitReport, unit: nn.Module) -> None:
        """Store a finished unit; a full disk is logged and costs the resumption only."""
        content = {"report": dataclasses.asdict(report), "state": unit.state_dict()}
        try:
            write_torch_file(self._path(report.index), content)
        except OSError as error:
            logger.warning("unit %d is not stored, --resume will redo it: %s", report.index, error)

    def losses(self) -> LossRecord:
        """The losses that a search has computed so far."""
        return LossRecord(self.folder / LOSSES_FILE)

    def _path(self, index: int) -> Path:
        return self.folder / f"unit_{index:03d}.pt"


class LossRecord:
    """What a search without chance asks for, in order, losses mostly: what is known is not computed
    again, so that an interrupted search goes on where it was.

    Args:
        path: a line per answer; None keeps nothing.

    Raises:
        InputError: the file is damaged.
    """

    def __init__(self, path: Path | None = None):
        self.path = path
        self.known: list[list[float]] = []
        self.asked = 0
        if path is not None and path.exists():
            text = path.read_text(encoding="ascii", errors="replace")
            whole = text[: text.rfind("\n") + 1]  # a kill may have cut the last line
            try:
                self.known = [
                    [float.fromhex(number) for number in line.split()]
                    for line in whole.splitlines()
                ]
            except ValueError as error:
                raise InputError(f"{path}: must hold numbers alone, got: {error}") from None
            path.write_text(whole, encoding="ascii")

    def next(self, compute: Callable[[], float]) -> float:
        """The next answer, one number, known or computed."""
        return self.next_list(lambda: [compute()])[0]

    def next_list(self, compute: Callable[[], list[float]]) -> list[float]:
        """The next answer, several numbers, known or computed."""
        if self.asked == len(self.known):
            self.known.append(compute())
            self._store(self.known[-1])
        self.asked += 1
        return self.known[self.asked - 1]

    def _store(self, numbers: list[float]) -> None:
        """Add an answer to the file; a full disk costs the resumption only."""
        if self.path is None:
            return
        try:
            with self.path.open("a", encoding="ascii") as handle:
                handle.write(" ".join(number.hex() for number in numbers) + "\n")
        except OSError as error:
            logger.warning("losses are no longer stored, --resume will redo them: %s", error)
            self.path = None
