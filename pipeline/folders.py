"""The folders that a run writes: locked, and without touching a file that the suite did not write.

``--force`` lets files of the user be replaced.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.errors import InputError
from common.files import lock_of, locked
from common.marks import (
    FORCED,
    clear,
    is_marked,
    mark,
    replace_link,
    require_replaceable,
)
from logits_io.naming import (
    CALIBRATION_FILE,
    CONFIG_FILE,
    CORRECTION_FILE,
    EXPORT_REPORT_FILE,
    LOG_FILE,
    MODEL_FILE,
    ONNX_FILE,
    RUN_FILE,
    STATE_FOLDER,
    TENSORBOARD_FOLDER,
)
from logits_io.writer import require_logits_folder
from pipeline.job import Job
from quant.network.states import is_state_file

EXPORT_FILES = (ONNX_FILE, EXPORT_REPORT_FILE)
RUN_FILES = (RUN_FILE, CONFIG_FILE, CALIBRATION_FILE, LOG_FILE, MODEL_FILE, CORRECTION_FILE)
SUMMARY_IMAGES = (
    "per_class_change.png",
    "logit_scatter.png",
    "reliability.png",
    "accuracy_grid.png",
    "cluster_map.png",
)
RECORD_KEYS = {"argv", "config", "figures"}  # in every run.json

logger = logging.getLogger(__name__)


@contextmanager
def run_lock(job: Job) -> Iterator[None]:
    """Keep another process from writing the same run; wait for one that does."""

    def tell() -> None:
        logger.warning("another process writes %s: waiting until it ends", job.folder)

    with locked(lock_of(job.folder), tell):
        yield


def require_own_folders(job: Job) -> None:
    """Check, without writing, that the run replaces and deletes no file of the user.

    Raises:
        InputError: it would; the text names the file.
    """
    for folder in _logits_folders(job):
        if not (job.options.force and folder.is_symlink()):
            require_logits_folder(folder)
    if job.options.force:
        return
    record = job.root / RUN_FILE
    if record.is_symlink() or (record.exists() and not _is_record(record)):
        raise InputError(f"{record}: must be the record of a run, got another file {FORCED}")
    folder, is_old = job.folder, _is_of_earlier_version(job.folder)
    require_replaceable(folder, (*RUN_FILES, *EXPORT_FILES), RUN_FILES if is_old else ())
    for part in (folder / STATE_FOLDER, folder / TENSORBOARD_FOLDER):
        replaced = () if part.name == STATE_FOLDER and job.options.resume else None
        require_replaceable(part, replaced, _old_names(part) if is_old else ())
    summary = job.root / job.name.summary_folder
    require_replaceable(summary, None, _old_names(summary) if is_old else ())


def open_folder(job: Job) -> None:
    """Make the run's folder and remove records of an earlier run that would mark it as complete.

    Raises:
        OSError: a file cannot be written.
    """
    for folder in (job.folder, job.root / job.name.summary_folder, *_logits_folders(job)):
        replace_link(folder)
    is_old = _is_of_earlier_version(job.folder)
    job.folder.mkdir(parents=True, exist_ok=True)
    for path in (job.root / RUN_FILE, *(job.folder / name for name in (RUN_FILE, *EXPORT_FILES))):
        path.unlink(missing_ok=True)
    exported = EXPORT_FILES if job.options.export is not None else ()
    mark(job.folder, (*RUN_FILES, *exported))
    replaced = [] if job.options.resume else [STATE_FOLDER]
    if job.options.output.log_dir is None:
        replaced.append(TENSORBOARD_FOLDER)
    for folder in (job.folder / name for name in replaced):
        replace_link(folder)
        clear(folder, _old_names(folder) if is_old else (), job.options.force)


def _logits_folders(job: Job) -> list[Path]:
    """The folders of logits of the run that exist."""
    name = job.name
    ending = f"_{name.arch}_{name.bits}"
    results = [path for path in job.root.glob("results_alpha*") if path.name.endswith(ending)]
    return [path for path in (job.root / name.initial_folder, *results) if os.path.lexists(path)]


def _is_record(path: Path) -> bool:
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and content.keys() >= RECORD_KEYS


def _is_of_earlier_version(folder: Path) -> bool:
    """Whether a version of the suite that listed no files wrote the folder of a run."""
    if is_marked(folder) or folder.is_symlink():
        return False
    try:
        config = (folder / CONFIG_FILE).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False
    return "\nquant_method: " in config and "\noutput_dir: " in config


def _old_names(folder: Path) -> list[str]:
    """The names of files in a part of a run's folder that look like those of the suite."""
    if folder.is_symlink() or not folder.is_dir():
        return []
    names = [path.name for path in folder.iterdir()]
    if folder.name == STATE_FOLDER:
        return [name for name in names if is_state_file(name)]
    if folder.name == TENSORBOARD_FOLDER:
        return [name for name in names if name.startswith("events.out.tfevents.")]
    return [name for name in names if name in SUMMARY_IMAGES or name.startswith(folder.name)]
