"""The folders that a run writes: locked, and without touching a file that the suite did not write.

``--force`` lets files of the user be replaced.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from common.errors import InputError
from common.files import written_alone
from common.marks import (
    FORCED,
    clear,
    foreign_files,
    is_damaged,
    is_marked,
    mark,
    replace_link,
    require_replaceable,
)
from common.reading import regular_text
from export.own_files import EXPORT_FILES
from logits_io.naming import (
    CALIBRATION_FILE,
    CONFIG_FILE,
    CORRECTION_FILE,
    EVALUATION_FILE,
    LOG_FILE,
    MODEL_FILE,
    PAGE_FILE,
    RUN_FILE,
    STATE_FOLDER,
    TENSORBOARD_FOLDER,
)
from logits_io.writer import require_logits_folder
from pipeline.job import Job
from quant.bitwidth.report import require_own_sweep
from quant.network.states import is_state_file

RUN_FILES = (
    RUN_FILE,
    CONFIG_FILE,
    CALIBRATION_FILE,
    EVALUATION_FILE,
    LOG_FILE,
    MODEL_FILE,
    CORRECTION_FILE,
    PAGE_FILE,
)
SUMMARY_IMAGES = (
    "per_class_change.png",
    "logit_scatter.png",
    "reliability.png",
    "accuracy_grid.png",
    "cluster_map.png",
)
RECORD_KEYS = {"argv", "config", "figures"}  # in every run.json
RECORD_BEGINNING = b'{\n  "argv": '

logger = logging.getLogger(__name__)


def run_lock(job: Job) -> AbstractContextManager[None]:
    """Keep another process from writing the same run; wait for one that does."""
    return written_alone(job.folder)


def require_own_folders(job: Job) -> None:
    """Check, without writing, that the run replaces and deletes no file of the user.

    Raises:
        InputError: it would; the text names the file.
    """
    for folder in _logits_folders(job):
        if not (job.options.force and folder.is_symlink()):
            require_logits_folder(folder)
    folder, is_old = job.folder, _is_of_earlier_version(job.folder)
    whole = [folder / TENSORBOARD_FOLDER, job.root / job.name.summary_folder]
    if not job.options.resume:
        whole.append(folder / STATE_FOLDER)
    if job.options.force:
        _tell_of_deleted(
            [path for part in whole for path in foreign_files(part, _known(part, is_old))]
        )
        return
    _require_own_record(job.root)
    require_replaceable(folder, (*RUN_FILES, *EXPORT_FILES), RUN_FILES if is_old else ())
    require_replaceable(folder / STATE_FOLDER, ())
    for part in whole:
        require_replaceable(part, None, _known(part, is_old))
    if job.sweep_folder is not None:
        require_own_sweep(job.sweep_folder)


def _tell_of_deleted(paths: Sequence[Path]) -> None:
    """Log which files of the user ``--force`` deletes."""
    for path in paths:
        logger.warning("--force deletes %s, which this suite did not write", path)


def _require_own_record(root: Path) -> None:
    """Check that the record below a root is one of a run, or what damage has left of one.

    Raises:
        InputError: it is another file.
    """
    path = root / RUN_FILE
    if not os.path.lexists(path):
        return
    text = b"" if path.is_symlink() or not path.is_file() else path.read_bytes()
    try:
        content: Any = json.loads(text)
        is_own = isinstance(content, dict) and content.keys() >= RECORD_KEYS
    except (ValueError, RecursionError):
        traces = [f'"{key}":'.encode() in text for key in RECORD_KEYS]
        is_own = is_marked(root) and (any(traces) or RECORD_BEGINNING.startswith(text))
    if path.is_symlink() or not is_own:
        raise InputError(f"{path}: must be the record of a run, got another file {FORCED}")


def open_folder(job: Job) -> None:
    """Make the run's folder and remove records of an earlier run that would mark it as complete.

    Raises:
        OSError: a file cannot be written.
    """
    for folder in (job.folder, job.root / job.name.summary_folder, *_logits_folders(job)):
        replace_link(folder)
    is_old = _is_of_earlier_version(job.folder)
    job.folder.mkdir(parents=True, exist_ok=True)
    stale = (RUN_FILE, PAGE_FILE, EVALUATION_FILE, *EXPORT_FILES)
    for path in (job.root / RUN_FILE, *(job.folder / name for name in stale)):
        path.unlink(missing_ok=True)
    exported = EXPORT_FILES if job.options.export is not None else ()
    mark(job.root, (RUN_FILE,))
    mark(job.folder, (*RUN_FILES, *exported))
    replaced = [] if job.options.resume else [STATE_FOLDER]
    if job.options.output.log_dir is None:
        replaced.append(TENSORBOARD_FOLDER)
    for folder in (job.folder / name for name in replaced):
        replace_link(folder)
        clear(folder, _known(folder, is_old), job.options.force)


def _logits_folders(job: Job) -> list[Path]:
    """The folders of logits of the run that exist."""
    name = job.name
    ending = f"_{name.arch}_{name.bits}"
    results = [path for path in job.root.glob("results_alpha*") if path.name.endswith(ending)]
    return [path for path in (job.root / name.initial_folder, *results) if os.path.lexists(path)]


def _is_of_earlier_version(folder: Path) -> bool:
    """Whether the folder of a run is one of a version that listed no files, or lost its list."""
    if is_marked(folder) or folder.is_symlink():
        return False
    try:
        config = regular_text(folder / CONFIG_FILE)
    except (OSError, ValueError):
        return False
    return "\nquant_method: " in config and "\noutput_dir: " in config


def _known(folder: Path, is_old: bool) -> list[str]:
    """Names to take for the suite's own without a list: of an earlier version, or damaged."""
    return _old_names(folder) if is_old or is_damaged(folder) else []


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
