"""What makes a run complete: its record, and every folder and file that the record promises."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from common.cells import cell_text
from common.files import sha256_file
from common.reading import require_regular
from common.sealed import read_record
from logits_io.naming import (
    RUN_FILE,
    SWEEP_FILE,
    SWEEP_RUNS,
    find_stems,
    grid_run,
    metadata_file,
    owner,
)

FOLDERS, FILES = "folders", "files"  # entries of a record: what it promises
FIGURES = ("fullprecision", "quantized", "corrected")
NUMBERS = ("top1_pct", "top5_pct", "agreement_pct")
INITIAL = "initial_logits_"
NO_RECORD = "must be the record of a run as it was written"
POINT = ("method", "n_bits_w", "n_bits_a", "seed")  # columns of the summary of a sweep


def promises(root: Path, stem: str, folders: Sequence[str], files: Sequence[Path]) -> dict:
    """The entries of a record that say what the run has written.

    Args:
        root: folder of the method.
        stem: beginning of the file names in folders of logits.
        folders: names of folders of logits below the root.
        files: further files below the root; those that do not exist are left out.

    Returns:
        folder -> number of files and SHA-256 of its metadata, which hold the digests of the rest;
        file -> SHA-256.
    """
    return {
        FOLDERS: {
            name: {
                "stem": stem,
                "files": _count(root / name, stem),
                "metadata_sha256": sha256_file(root / name / metadata_file(stem)),
            }
            for name in folders
        },
        FILES: {
            path.relative_to(root).as_posix(): sha256_file(path) for path in files if path.is_file()
        },
    }


def read_run(path: Path, says_so: bool = True) -> dict[str, Any] | None:
    """Read ``run.json``; None if there is none, or none that can be believed.

    Args:
        says_so: log a warning where it is not believed.
    """
    content = read_record(path, says_so)
    return content if content is not None and _is_record(content) else None


def _is_record(content: Mapping[str, Any]) -> bool:
    """Whether the entries that tables are made from have their types."""
    try:
        found = [content["figures"][name] for name in FIGURES]
        numbers = [row[name] for row in found if row is not None for name in NUMBERS]
        numbers += content["seconds"].values()
        if content.get("labels") is False:  # figures that need labels are None
            numbers = [number for number in numbers if number is not None]
        return (
            None not in found[:2]
            and isinstance(content["argv"], list)
            and all(isinstance(number, int | float) for number in numbers)
            and _are_promises(content.get(FOLDERS, {}), content.get(FILES, {}))
        )
    except (KeyError, TypeError, AttributeError):
        return False


def _are_promises(folders: Any, files: Any) -> bool:
    """Whether the entries of ``promises`` have their types."""
    types = {"stem": str, "files": int, "metadata_sha256": str}
    return all(isinstance(digest, str) for digest in files.values()) and all(
        isinstance(promised[name], kind)
        for promised in folders.values()
        for name, kind in types.items()
    )


def broken_promises(root: Path, record: Mapping[str, Any]) -> list[str]:
    """What a record promises and is not there or not whole, one text each.

    Records of earlier versions promise nothing.

    Args:
        root: folder of the method.
    """
    problems = []
    for name, promised in record.get(FOLDERS, {}).items():
        path = root / name / metadata_file(promised["stem"])
        if not path.is_file():
            problems.append(f"{path}: must be there as {RUN_FILE} says, got nothing")
        elif _digest(path) != promised["metadata_sha256"]:
            problems.append(f"{path}: must be as the run wrote it, got other bytes")
        elif _count(path.parent, promised["stem"]) < promised["files"]:
            problems.append(
                f"{path.parent}: must hold {promised['files']} files of {promised['stem']}, "
                f"got {_count(path.parent, promised['stem'])}"
            )
    for name, digest in record.get(FILES, {}).items():
        path = root / name
        if not path.is_file():
            problems.append(f"{path}: must be there as {RUN_FILE} says, got nothing")
        elif _digest(path) != digest:
            problems.append(f"{path}: must be as the run wrote it, got other bytes")
    return problems


def verify_runs(folder: Path) -> list[str]:
    """The broken promises of all runs below a folder, and logits of runs without a record."""
    problems = []
    paths = sorted(folder.rglob(f"run_*/{RUN_FILE}"))
    for path in paths:
        record = read_run(path, says_so=False)
        if record is None:
            problems.append(f"{path}: {NO_RECORD}")
        else:
            problems += broken_promises(path.parent.parent, record)
    for path in sorted({path.parent.parent / RUN_FILE for path in paths}):
        if path.exists() and read_run(path, says_so=False) is None:
            problems.append(f"{path}: {NO_RECORD}")
    for path in sorted(folder.rglob(f"{INITIAL}*")):
        record_path = path.parent / f"run_{path.name.removeprefix(INITIAL)}" / RUN_FILE
        if path.is_dir() and not record_path.is_file():
            problems.append(f"{record_path}: must be there, as {path.name} is, got nothing")
    for path in sorted(folder.rglob(SWEEP_FILE)):
        problems += _missing_of_sweep(path)
    return problems


def _missing_of_sweep(path: Path) -> list[str]:
    """The records that are not there though the summary of a sweep calls their runs finished."""
    problems = []
    try:
        with require_regular(path).open(encoding="utf-8", newline="") as handle:
            rows = [row for row in csv.DictReader(handle) if row["status"] == "finished"]
        for row in rows:
            name = grid_run(cell_text(row["arch"]), *(row[key] for key in POINT))
            record = path.parent / SWEEP_RUNS / name / row["method"] / RUN_FILE
            if not record.is_file():
                problems.append(f"{record}: must be there as {path.name} says, got nothing")
    except (OSError, KeyError, ValueError, TypeError, AttributeError, csv.Error) as error:
        problems.append(f"{path}: must be the summary of a sweep, got: {error}")
    return problems


def _count(folder: Path, stem: str) -> int:
    """The number of files of a stem in a folder."""
    stems = {*find_stems(folder), stem}
    return sum(owner(path.name, stems) == stem for path in folder.iterdir())


def _digest(path: Path) -> str:
    status = path.stat()
    return _known_digest(path, status.st_ino, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=4096)
def _known_digest(path: Path, inode: int, size: int, time: int) -> str:
    return sha256_file(path)
