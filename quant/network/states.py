"""Finished units on disk, so that an interrupted quantization resumes with the next unit."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from common.errors import InputError, first_line
from common.files import atomic_file, read_torch_file, write_torch_file
from common.marks import clear, is_marked, mark
from common.reading import regular_text
from common.sealed import distrust, read_record, seal_of, write_record
from quant.network.model import set_state

SETTINGS_FILE = "settings.json"
LOSSES_FILE = "losses.txt"
STAGE_FILE = "distillation.pt"
MADE_FROM = "made_from"  # entry of a unit's file: digest of the settings
FORM = "form"  # entry of the file of a stage: number of its form
SEPARATOR = "#"  # between the results of a line and its digest

logger = logging.getLogger(__name__)


def is_state_file(name: str) -> bool:
    """Whether a file of this name is one that an interrupted run leaves."""
    return (
        name in (SETTINGS_FILE, LOSSES_FILE, STAGE_FILE)
        or re.fullmatch(r"unit_\d{3}\.pt", name) is not None
    )


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
        self.origin = seal_of(self.settings)

    def require_same_settings(self) -> None:
        """Check that the stored units were made with the same settings.

        Damaged settings are not believed: one warning, and the units are made anew.

        Raises:
            InputError: a setting differs; the text names the first.
        """
        path = self.folder / SETTINGS_FILE
        stored = read_record(path)
        if stored is not None and self.settings and not stored.keys() & self.settings.keys():
            distrust(path, "it holds no settings")
            stored = None
        if stored is None:
            path.unlink(missing_ok=True)
        if stored is None or not (any(self.folder.glob("unit_*.pt")) or self._losses.exists()):
            logger.info("nothing to resume in %s: starting from the beginning", self.folder)
        if stored is None:
            return
        for key in [*self.settings, *stored]:
            before, now = stored.get(key), self.settings.get(key)
            if before != now:
                raise InputError(
                    f"{key} must be {before!r} as in the run to resume, got {now!r} "
                    "(without --resume the run starts from the beginning)"
                )

    def open(self, resume: bool) -> None:
        """Create the folder and write the settings.

        Stored units are deleted unless ``resume`` is set and their settings are known; files of the
        user stay.
        """
        if not is_marked(self.folder):
            self._adopt()
        if not (resume and (self.folder / SETTINGS_FILE).exists()):
            clear(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        mark(self.folder, (SETTINGS_FILE, LOSSES_FILE))
        write_record(self.folder / SETTINGS_FILE, self.settings)

    def _adopt(self) -> None:
        """List the files in a folder of an earlier version, which listed none."""
        if self.folder.is_dir():
            names = [path.name for path in self.folder.iterdir() if is_state_file(path.name)]
            mark(self.folder, names)

    def has(self, index: int) -> bool:
        """Whether a file of a unit is there, which ``restore`` may still not believe."""
        return self._path(index).exists()

    def restore(self, index: int, unit: nn.Module) -> UnitReport | None:
        """Load a finished unit into ``unit``; return None and change nothing if it is not stored.

        A file that is damaged, or was made with other settings, is not believed: one warning.
        """
        path = self._path(index)
        if not path.exists():
            return None
        before = {name: value.clone() for name, value in unit.state_dict().items()}
        try:
            content = read_torch_file(path)
            if content.get(MADE_FROM, self.origin) != self.origin:
                raise InputError("it was made with other settings")
            report = UnitReport(**content["report"])
            if report.index != index:
                raise InputError(f"it holds unit {report.index}")
            unit.load_state_dict(content["state"], strict=True)
        except (InputError, RuntimeError, KeyError, TypeError, AttributeError) as error:
            unit.load_state_dict(before, strict=False)
            distrust(path, first_line(error))
            return None
        set_state(unit, weights=True, activations=True)
        return report

    def save(self, report: UnitReport, unit: nn.Module) -> None:
        """Store a finished unit; a failure is logged, and ``--resume`` then redoes the unit."""
        content = {"report": dataclasses.asdict(report), "state": unit.state_dict()}
        path = self._path(report.index)
        try:
            mark(self.folder, [path.name])
            write_torch_file(path, {**content, MADE_FROM: self.origin})
        except OSError as error:
            logger.warning("unit %d is not stored, --resume will redo it: %s", report.index, error)

    def save_stage(self, form: int, content: dict[str, Any]) -> None:
        """Store a stage that trains all units; after a failure ``--resume`` redoes more of it.

        Args:
            form: number of the form and meaning of ``content``.
        """
        path = self.folder / STAGE_FILE
        try:
            mark(self.folder, [path.name])
            write_torch_file(path, {**content, FORM: form, MADE_FROM: self.origin})
        except OSError as error:
            logger.warning("distillation is not stored, --resume will redo it: %s", error)

    def restore_stage(self, form: int) -> dict[str, Any] | None:
        """The stored state of the stage; None if there is none that can be believed.

        Args:
            form: as ``save_stage`` is given now; an earlier version may have stored another one.
        """
        path = self.folder / STAGE_FILE
        if not path.exists():
            return None
        try:
            content = read_torch_file(path)
            if not isinstance(content, dict) or content.pop(MADE_FROM, None) != self.origin:
                raise InputError("it was made with other settings")
            if content.pop(FORM, None) != form:
                raise InputError("it was stored by another version")
        except InputError as error:
            distrust(path, str(error))
            return None
        return content

    @property
    def _losses(self) -> Path:
        return self.folder / LOSSES_FILE

    def losses(self) -> LossRecord:
        """The losses that a search has stored so far."""
        return LossRecord(self._losses, self.origin)

    def _path(self, index: int) -> Path:
        return self.folder / f"unit_{index:03d}.pt"


class LossRecord:
    """Results of a deterministic search, mostly losses, in the order in which it requests them.

    Stored results are not computed again, so that an interrupted search continues where it stopped.
    Each line ends with a digest of itself and all lines before it; from the first line whose digest
    does not hold, results are computed anew.

    Args:
        path: file with one line per result; None stores nothing.
        made_from: everything that determines the results.
    """

    def __init__(self, path: Path | None = None, made_from: str = ""):
        self.path = path
        self.chain = made_from
        self.known: list[list[float]] = []
        self.asked = 0
        if path is not None and path.exists():
            self._read(path)

    def _read(self, path: Path) -> None:
        """Take the results that can be believed, and cut the file after them."""
        text = regular_text(path, "ascii", "replace")
        lines = text[: text.rfind("\n") + 1].splitlines()  # a kill may have cut the last line
        is_old = SEPARATOR not in text  # an earlier version wrote no digests
        believed = []
        for line in lines:
            numbers, _, digest = line.partition(SEPARATOR)
            try:
                values = [float.fromhex(number) for number in numbers.split()]
            except (ValueError, OverflowError):
                break
            sealed = self._sealed(numbers)
            if not is_old and digest != sealed.partition(SEPARATOR)[2]:
                break
            self.known.append(values)
            self.chain = sealed
            believed.append(f"{sealed}\n")
        if len(believed) < len(lines):
            distrust(path, f"line {len(believed) + 1} is not as it was written")
        with atomic_file(path) as part:
            part.write_text("".join(believed), encoding="ascii")

    def _sealed(self, numbers: str) -> str:
        """A line with its digest."""
        digest = hashlib.blake2b(f"{self.chain}\n{numbers}".encode(), digest_size=8)
        return f"{numbers}{SEPARATOR}{digest.hexdigest()}"

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
        self.chain = self._sealed(" ".join(number.hex() for number in numbers))
        try:
            with self.path.open("a", encoding="ascii") as handle:
                handle.write(f"{self.chain}\n")
        except OSError as error:
            logger.warning("losses are no longer stored, --resume will redo them: %s", error)
            self.path = None
