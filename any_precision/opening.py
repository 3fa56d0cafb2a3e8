"""The start of a run: its configuration and folder, and what it goes on from."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from any_precision.checkpoints import (
    read_checkpoint,
    require_best,
    require_resumable,
    require_same,
    stored_config,
)
from any_precision.flags import resolve
from any_precision.ownership import (
    folder_to_resume,
    new_run_folder,
    open_folder,
    require_free,
    require_run_files,
)
from any_precision.run_folder import BEST_FILE, CONFIG_FILE, LAST_FILE
from any_precision.settings import Config
from any_precision.training import Trainer
from common.files import require_folder_or_new, require_writable, write_torch_file

logger = logging.getLogger(__name__)


def configuration(options: argparse.Namespace) -> Config:
    """The configuration of the flags and their file, or of the checkpoint of ``--eval_only``.

    Raises:
        InputError: one is unusable, or the run to resume has another.
    """
    if options.eval_only is not None:
        _, stored = read_checkpoint(options.eval_only)
        return replace(stored, data_root=options.data_root or stored.data_root)
    config = resolve(options)
    if options.resume is not None:
        _resumed(options, config)
    return config


def run_path(options: argparse.Namespace, config: Config) -> Path:
    """The folder of the run: that of the run to resume, or a new one.

    Raises:
        InputError: it is taken, is no folder of a run, or cannot be written.
    """
    if options.resume is not None:
        folder, _ = folder_to_resume(options.resume)
        require_writable(folder)
        return folder
    root = Path(options.experiments_dir or config.experiments_dir)
    suffix = "_eval" if options.eval_only is not None else ""
    model = f"{options.model}_{config.model_variant}{suffix}"
    return new_run_folder(root, options.run_name, model, options.force)


def _resumed(options: argparse.Namespace, config: Config) -> Mapping[str, Any] | None:
    """The checkpoint to resume from; None if the run was killed in its first epoch.

    Raises:
        InputError: the run cannot be resumed with this configuration.
    """
    folder, path = folder_to_resume(options.resume)
    require_run_files(folder, options.force)
    for place in (folder, path.parent):  # --force replaces a link, with which the checkpoint goes
        require_folder_or_new(place)
    if path.name == LAST_FILE and not path.exists() and not (path.parent / BEST_FILE).exists():
        stored = stored_config(folder / CONFIG_FILE)
        if stored is not None:
            require_same(config, stored, folder / CONFIG_FILE)
        return None
    content, stored = read_checkpoint(path)
    require_resumable(content, path)
    require_same(config, stored, path)
    require_best(path.parent / BEST_FILE, content)
    return content


def open_run(options: argparse.Namespace, trainer: Trainer) -> None:
    """Make the run's folder and bring the trainer to where it starts; only under the run's lock.

    Nothing is written before everything is checked.

    Raises:
        InputError: a run or a file of the user is in the way, or a checkpoint is unusable.
        RunError: the weights of a checkpoint do not fit.
    """
    run, content = trainer.run, None
    resumes = options.resume is not None
    if resumes:
        content = _resumed(options, trainer.config)
    else:
        require_free(run.path, options.force)
    if content is not None:
        trainer.restore(content, str(options.resume))
    elif resumes:
        logger.info("%s: no epoch is finished, training starts with the first", run.path)
    elif options.eval_only is not None:
        stored, _ = read_checkpoint(options.eval_only)
        trainer.load_weights(stored, str(options.eval_only))
        trainer.done = stored["epoch"]
    open_folder(run.path, resumes, options.force)
    if content is not None and require_best(run.model(BEST_FILE), content):
        write_torch_file(run.model(BEST_FILE), content)
    run.open(options.tensorboard, trainer.done if resumes else 0)
