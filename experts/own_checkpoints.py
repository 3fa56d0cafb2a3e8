"""Which checkpoints a training would replace or delete, and whether this suite wrote them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.errors import InputError
from common.files import read_torch_file
from common.marks import require_own_file, require_own_folder
from experts.checkpoints import CALIBRATED, checkpoint_path
from experts.schedules import EXPERTS, TWO_STAGES
from experts.training import BEST, LAST, STAGE1, TrainingOptions, finished
from models.expert import is_expert_file

PROGRESS_KEYS = {"hparams", "splits_sha256", "best_metadata", "rng_state"}  # of every LAST file


def require_own_checkpoints(names: Sequence[str], options: TrainingOptions) -> None:
    """Check, without writing, that the training of experts touches no file of the user.

    Checkpoints that the published scripts wrote have the same names.

    Raises:
        InputError: it would replace or delete one; the text names the file.
    """
    require_own_folder(options.folder, options.force)
    for name in names:
        if options.force or not finished(options, name):
            for prefix in _written(name, options):
                path = checkpoint_path(options.folder, prefix, name)
                is_known = is_progress if prefix == LAST else is_checkpoint
                require_own_file(path, options.force, is_known)


def _written(name: str, options: TrainingOptions) -> list[str]:
    """The prefixes of the checkpoints that the training of an expert replaces or deletes."""
    trains_backbone = EXPERTS[name] == TWO_STAGES and options.stage1_from is None
    return [BEST, CALIBRATED, LAST, *([STAGE1] if trains_backbone else [])]


def is_checkpoint(path: Path) -> bool:
    """Whether the content of a file is that of an expert of this suite."""
    return is_expert_file(_content(path))


def is_progress(path: Path) -> bool:
    """Whether the content of a file is that of an interrupted training."""
    content = _content(path)
    return isinstance(content, dict) and content.keys() >= PROGRESS_KEYS


def _content(path: Path) -> Any:
    try:
        return read_torch_file(path)
    except (InputError, OSError):
        return None
