"""Which folder a training run writes, and that it touches no file that the suite did not write.

A run's folder is taken when a checkpoint or a completed summary is in it; one that was killed in
its first epoch can be used again. ``--force`` lets files of the user, and runs, be replaced.
"""

from __future__ import annotations

import json
import re
import shutil
from datetime import datetime
from pathlib import Path

from any_precision.run_folder import (
    BEST_FILE,
    CONFIG_FILE,
    CONFIG_YAML_FILE,
    CONFIGS_FILE,
    HISTORY_FILE,
    LAST_FILE,
    LOG_FILE,
    SUMMARY_FILE,
)
from any_precision.settings import from_dict
from common.errors import InputError
from common.files import is_temporary, require_writable
from common.marks import (
    MARK,
    clear,
    foreign_files,
    is_marked,
    mark,
    replace_link,
    require_replaceable,
)
from common.reading import regular_text

NAMES: dict[str, tuple[str, ...]] = {  # folder below that of the run -> files with fixed names
    "": (CONFIG_FILE, CONFIG_YAML_FILE, HISTORY_FILE, CONFIGS_FILE, SUMMARY_FILE),
    "logs": (LOG_FILE,),
    "models": (BEST_FILE, LAST_FILE),
    "plots": (),
}
PLOT = re.compile(r"bitwidth_vs_accuracy_(epoch\d{3,}|test)\.png")
BOARD = "tensorboard"
EVENTS = "events.out.tfevents."


def new_run_folder(root: Path, name: str | None, model: str, force: bool = False) -> Path:
    """The path of a new run's folder.

    The default name holds the time; that folder is made at once, so that no other run takes it.

    Raises:
        InputError: the name is taken, or is no name of a folder, or ``root`` cannot be written.
    """
    require_writable(root)
    if name is not None:
        if not name or Path(name).name != name or name.startswith("."):
            raise InputError(f"run_name must be the name of a folder, got {name!r}")
        require_free(root / name, force)
        return root / name
    stem = f"{datetime.now():%Y%m%d_%H%M%S}_{model}"
    folder, number = root / stem, 0
    root.mkdir(parents=True, exist_ok=True)
    while not _is_made(folder):
        number += 1
        folder = root / f"{stem}_{number}"
    return folder


def _is_made(folder: Path) -> bool:
    try:
        folder.mkdir()
    except FileExistsError:
        return False
    return True


def require_free(folder: Path, force: bool) -> None:
    """Check that no run and no file of the user is in the way of a new run.

    Raises:
        InputError: one is.
    """
    if force:
        return
    require_run_files(folder, force)
    if folder.is_dir() and _is_taken(folder):
        raise InputError(
            f"run_name must be new below {folder.parent}, got {folder.name!r}, which exists "
            "(--resume continues a run, --force replaces it)"
        )


def _is_taken(folder: Path) -> bool:
    if not is_marked(folder) and not _is_of_earlier_version(folder):
        return any(not is_temporary(path.name) for path in folder.iterdir())
    return (folder / "models" / LAST_FILE).exists() or _is_completed(folder / SUMMARY_FILE)


def _is_completed(summary: Path) -> bool:
    """Whether a summary is that of a completed run; one that cannot be read counts as such."""
    try:
        content = json.loads(regular_text(summary))
        return content["status"] == "completed"
    except FileNotFoundError:
        return False
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return True


def folder_to_resume(path: Path) -> tuple[Path, Path]:
    """The folder of the run to resume, and its checkpoint, which may be missing.

    Args:
        path: the folder, or a checkpoint in it.

    Raises:
        InputError: it is no folder of a run.
    """
    path = path.absolute()
    checkpoint = path / "models" / LAST_FILE if path.is_dir() else path
    folder = checkpoint.parent.parent
    is_run = folder.is_symlink() or is_marked(folder) or _is_of_earlier_version(folder)
    if checkpoint.parent.name != "models" or not is_run:
        raise InputError(
            f"resume must be the folder of a run, or models/{LAST_FILE} in it, got {path}"
        )
    return folder, checkpoint


def require_run_files(folder: Path, force: bool) -> None:
    """Check, without writing, that a run in this folder replaces no file of the user.

    Raises:
        InputError: it would; the text names the file.
    """
    is_old = _is_of_earlier_version(folder)
    for part in (*NAMES, BOARD):
        place = folder / part
        known = _present(place, part) if is_old else ()
        replaced = () if part == BOARD else _present(place, part)
        require_replaceable(place, replaced, known, force)


def open_folder(folder: Path, resume: bool, force: bool) -> None:
    """Make the run's folder and list its files; a new run removes those of an earlier one.

    Raises:
        OSError: a file cannot be written.
    """
    is_old = _is_of_earlier_version(folder)
    for part in (*NAMES, BOARD):
        place = folder / part
        replace_link(place)
        known = _present(place, part) if is_old else []
        if not resume and (known or is_marked(place)):
            clear(place, known)
        if force:
            _remove_foreign(place, part, known)
    for part in reversed(NAMES) if is_old else NAMES:  # a folder is of an earlier version until the
        place = folder / part  # list of its files is there
        place.mkdir(parents=True, exist_ok=True)
        known = _present(place, part) if is_old else []
        mark(place, (*NAMES[part], *known))
    (folder / SUMMARY_FILE).unlink(missing_ok=True)


def _remove_foreign(place: Path, part: str, known: list[str]) -> None:
    """Delete what is not the suite's and has the name of a file that a run writes."""
    names = _present(place, part) if part != BOARD else []
    for path in foreign_files(place, known):
        if path.name not in names:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _present(place: Path, part: str) -> list[str]:
    """The names in a part of a run's folder that are those of files that a run writes."""
    if place.is_symlink() or not place.is_dir():
        return []
    names = [path.name for path in place.iterdir() if path.name != MARK]
    if part == BOARD:
        return [name for name in names if name.startswith(EVENTS)]
    return [name for name in names if name in NAMES[part] or (part == "plots" and PLOT.match(name))]


def _is_of_earlier_version(folder: Path) -> bool:
    """Whether a version of the suite that listed no files wrote the folder of a run."""
    if is_marked(folder) or folder.is_symlink():
        return False
    try:
        from_dict(json.loads(regular_text(folder / CONFIG_FILE)))
    except (OSError, ValueError, RecursionError):
        return False
    return True
