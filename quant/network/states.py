"""Finished units on disk, so that an interrupted quantization resumes with the next unit."""

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
    """Report on the quantization of a unit.

    Losses are ``reconstruction_loss`` over the calibration images.
    """

    index: int
    name: str
    loss_nearest: float  # with round-to-nearest weights
    loss: float  # of the finished unit
    flipped: float  # share of weights not rounded to nearest
    seconds: float


class UnitStates:
    """One file per finished unit in a folder, and the settings that produced them.

    Args:
        folder: folder of the files.
        settings: everything that determines the result, as JSON values.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]):
        self.folder = folder
        self.settings = json.loads(json.dumps(settings))

    def require_same_settings(self) -> None:
        """Check, without writing, that the stored units were made with the same settings.

        Raises:
            InputError: a setting differs (the text names the first), or its file is damaged.
        """
        path = self.folder / SETTINGS_FILE
        if not path.exists() or len(list(self.folder.iterdir())) == 1:
            logger.info("nothing to resume in %s: starting from the beginning", self.folder)
        if not path.exists():
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
                    "(without --resume the run starts from the beginning)"
                )

    def open(self, resume: bool) -> None:
        """Create the folder and write the settings.

        Stored units are deleted unless ``resume`` is set and their settings are known.
        """
        if self.folder.exists() and not (resume and (self.folder / SETTINGS_FILE).exists()):
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / SETTINGS_FILE, self.settings)

    def restore(self, index: int, unit: nn.Module) -> UnitReport | None:
        """Load a finished unit into ``unit``; return None and change nothing if it is not stored.

        Raises:
            InputError: the file is damaged or does not fit the unit.
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
        """Store a finished unit; a failure is logged, and ``--resume`` then redoes the unit."""
        content = {"report": dataclasses.asdict(report), "state": unit.state_dict()}
        try:
            write_torch_file(self._path(report.index), content)
        except OSError as error:
            logger.warning("unit %d is not stored, --resume will redo it: %s", report.index, error)

    def losses(self) -> LossRecord:
        """The losses that a search has stored so far."""
        return LossRecord(self.folder / LOSSES_FILE)

    def _path(self, index: int) -> Path:
        return self.folder / f"unit_{index:03d}.pt"


class LossRecord:
    """Results of a deterministic search, mostly losses, in the order in which it requests them.

    Stored results are not computed again, so that an interrupted search continues where it stopped.

    Args:
        path: file with one line per result; None stores nothing.

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
                raise InputError(f"{path}: must hold only numbers, got: {error}") from None
            path.write_text(whole, encoding="ascii")

    def next(self, compute: Callable[[], float]) -> float:
        """The next result, one number, stored or computed."""
        return self.next_list(lambda: [compute()])[0]

    def next_list(self, compute: Callable[[], list[float]]) -> list[float]:
        """The next result, several numbers, stored or computed."""
        if self.asked == len(self.known):
            self.known.append(compute())
            self._store(self.known[-1])
        self.asked += 1
        return self.known[self.asked - 1]

    def _store(self, numbers: list[float]) -> None:
        """Append a result to the file; if that fails, log it and store no more."""
        if self.path is None:
            return
        try:
            with self.path.open("a", encoding="ascii") as handle:
                handle.write(" ".join(number.hex() for number in numbers) + "\n")
        except OSError as error:
            logger.warning("losses are no longer stored, --resume will redo them: %s", error)
            self.path = None
