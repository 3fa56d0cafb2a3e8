"""Checkpoints of experts: writing, finding, and loading, which requires an exact fit."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.errors import InputError, first_line
from common.files import read_torch_file, sha256_file, write_torch_file
from common.marks import listed
from common.provenance import utc_now
from models.checkpoints import state_dict_of
from models.expert import (
    BACKBONES,
    EXPERT_FORMAT,
    EXPERT_VERSION,
    Expert,
    is_expert_file,
    require_expert_metadata,
    resolve_backbone,
)

PREFIXES = ("best_", "final_calibrated_", "stage1_")
CALIBRATED = "final_calibrated_"
MAX_LISTED = 10
TEMPERATURE = "temperature"
HEADS = ("fc.", "linear.", "classifier.")

logger = logging.getLogger(__name__)


def checkpoint_path(folder: Path, prefix: str, expert: str) -> Path:
    return folder / f"{prefix}{expert}.pth"


def save_expert(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write a checkpoint that holds tensors and plain values only.

    Args:
        state: state dict of an ``Expert``, on the CPU.
        metadata: further entries, plain values.

    Raises:
        OSError: the disk is full or not writable.
    """
    content = {
        "format": EXPERT_FORMAT,
        "format_version": EXPERT_VERSION,
        "model_state_dict": dict(state),
        **metadata,
        "temperature": float(state[TEMPERATURE]),
        "torch_version": str(torch.__version__),
        "created_utc": utc_now(),
    }
    with listed(path):
        write_torch_file(path, content)


@dataclass(frozen=True)
class Found:
    """Where a checkpoint is; ``fallback``: under a name without the requested prefix."""

    path: Path
    fallback: bool


def find_checkpoint(
    expert: str, prefix: str, root: Path, slug: str, fallback_names: bool = False
) -> Found:
    """The checkpoint of an expert below ``root/slug`` or ``root``.

    Args:
        fallback_names: also accept ``{expert}.pth`` and ``expert_{expert}.pth``.

    Raises:
        InputError: there is none; the error names the paths tried and the files that are there.
    """
    folders = (root / slug, root)
    tried = [checkpoint_path(folder, prefix, expert) for folder in folders]
    others = [
        folder / name for folder in folders for name in (f"{expert}.pth", f"expert_{expert}.pth")
    ]
    for path in tried + others * fallback_names:
        if path.is_file():
            return Found(path, path in others)
    there = sorted(path.name for folder in folders for path in folder.glob("*.pth"))
    text = (
        f"expert {expert!r}: no checkpoint found; tried {', '.join(map(str, tried))}; there: "
        f"{', '.join(there) or 'no .pth file'}"
    )
    working = [
        p
        for p in PREFIXES
        if any(checkpoint_path(folder, p, expert).is_file() for folder in folders)
    ]
    if working:
        text += f"; --checkpoint-prefix {working[0]} would work"
    elif any(path.is_file() for path in others):
        text += "; --allow-fallback-names would work"
    raise InputError(text)


@dataclass(frozen=True)
class LoadedExpert:
    """An expert in evaluation mode and the metadata of its file, empty where it has none."""

    expert: Expert
    metadata: dict[str, Any]
    sha256: str
    tensors: int


def read_content(path: Path, unsafe: bool = False) -> Any:
    """The content of a checkpoint.

    Args:
        unsafe: unpickle it, which runs any code in it.

    Raises:
        InputError: it is missing, damaged, or would have to be unpickled.
    """
    if not unsafe:
        return read_torch_file(path, remedy=" (--unsafe-load reads it, and runs the code in it)")
    try:
        return torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # noqa: BLE001  (a damaged file fails in every possible way)
        reason = first_line(error)
        raise InputError(f"{path}: must be a torch.save file, got: {reason}") from None


def load_expert(
    path: Path, num_classes: int, backbone: str | None = None, unsafe: bool = False
) -> LoadedExpert:
    """Load a checkpoint of this suite or a foreign state dict; every name and shape must fit.

    Args:
        num_classes: number of classes of the data set.
        backbone: None: the one that the checkpoint names, else ``cifar_resnet32``.

    Raises:
        InputError: it is unusable or does not fit; the error names what does not fit.
    """
    content = read_content(path, unsafe)
    metadata = metadata_of(content)
    if metadata:
        require_expert_metadata(metadata, path)
    name = _backbone(path, metadata, backbone)
    expert = Expert(num_classes, name)
    state = fitted_state(state_dict_of(content, path), expert, path)
    expert.load_state_dict(state, strict=True)
    if float(expert.temperature) <= 0:
        raise InputError(f"{path}: temperature must be positive, got {float(expert.temperature)}")
    return LoadedExpert(expert.eval(), metadata, sha256_file(path), len(state))


def metadata_of(content: Any) -> dict[str, Any]:
    """The metadata of a checkpoint of this suite; empty for a foreign one."""
    if not is_expert_file(content):
        return {}
    return {key: value for key, value in content.items() if key != "model_state_dict"}


def _backbone(path: Path, metadata: Mapping[str, Any], asked: str | None) -> str:
    stored = metadata.get("arch", {}).get("backbone")
    wanted = None if asked is None else resolve_backbone(asked)
    if stored is not None and wanted is not None and resolve_backbone(stored) != wanted:
        raise InputError(f"{path}: backbone must be that of the checkpoint, {stored}, got {asked}")
    return wanted or (resolve_backbone(stored) if stored else "cifar_resnet32")


def fitted_state(state: Mapping[str, Tensor], expert: Expert, path: Path) -> dict[str, Tensor]:
    """The state dict with the names of ``expert`` and a temperature of shape [1].

    Raises:
        InputError: a name or a shape does not fit.
    """
    own = expert.state_dict()
    named = rename(state, own)
    if named is None:
        missing = [key for key in own if key not in state]
        unexpected = [key for key in state if key not in own]
        raise InputError(
            f"{path}: checkpoint does not fit {expert.backbone_name}: {len(own) - len(missing)} of "
            f"{len(own)} tensors found; missing ({len(missing)}): {_listed(missing)}; unexpected "
            f"({len(unexpected)}): {_listed(unexpected)}"
        )
    temperature = named[TEMPERATURE]
    if temperature.numel() == 1:
        named[TEMPERATURE] = temperature.reshape(1)
    wrong = [key for key, value in own.items() if named[key].shape != value.shape]
    if wrong:
        raise InputError(f"{path}: {_explain_shapes(wrong, named, own, expert)}")
    return named


def rename(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """``state`` renamed by the first rule that gives exactly the names of ``own``; None if none."""
    with_temperature = {TEMPERATURE: torch.ones(1), **state}
    for rule in RULES:
        named = {rule(key): value for key, value in with_temperature.items()}
        if len(named) == len(with_temperature) and set(named) == set(own):
            return {key: named[key] for key in own}
    return None


def _head(key: str) -> str:
    for head in HEADS:
        if key.startswith(head):
            return f"fc.{key.removeprefix(head)}"
    return key


def _backboned(key: str) -> str:
    return key if key == TEMPERATURE or key.startswith(HEADS) else f"backbone.{key}"


RULES: tuple[Callable[[str], str], ...] = (
    lambda key: key,
    _head,
    _backboned,
    lambda key: _head(_backboned(key)),
)


def _explain_shapes(
    wrong: list[str], state: Mapping[str, Tensor], own: Mapping[str, Tensor], expert: Expert
) -> str:
    found, needed = list(state["fc.weight"].shape), list(own["fc.weight"].shape)
    texts = [f"{key} {list(state[key].shape)} vs {list(own[key].shape)}" for key in wrong]
    text = f"shapes must fit {expert.backbone_name}, got {_listed(texts)}"
    if len(found) == 2 and found[0] != needed[0]:
        text += f"; checkpoint has {found[0]} classes, dataset has {needed[0]}"
    if len(found) == 2 and found[1] != needed[1]:
        likely = [name for name, known in BACKBONES.items() if known.features == found[1]]
        guess = f" suggest {likely[0]}" if likely else " are of no known backbone"
        text += (
            f"; features of {found[1]}{guess}, this run uses {expert.backbone_name} ({needed[1]})"
        )
    return text


def _listed(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - MAX_LISTED} more" if len(listed) > MAX_LISTED else ""
    return ", ".join(listed[:MAX_LISTED]) + more or "none"


def describe_checkpoint(path: Path, unsafe: bool = False) -> list[str]:
    """The content of a checkpoint, in lines: keys, metadata, the first tensors.

    Raises:
        InputError: it cannot be read, or holds no state dict.
    """
    content = read_content(path, unsafe)
    state = state_dict_of(content, path)
    bare = all(isinstance(value, Tensor) for value in content.values())
    lines = [f"file: {path}"]
    lines.append(f"top-level keys: {'a bare state dict' if bare else ', '.join(map(str, content))}")
    lines += [f"{key}: {value}" for key, value in metadata_of(content).items()]
    lines.append(f"tensors: {len(state)}")
    lines += [f"  {key} {list(value.shape)}" for key, value in list(state.items())[:MAX_LISTED]]
    return lines


def head_classes(path: Path, unsafe: bool = False) -> int:
    """Number of classes of a checkpoint, read from its head.

    Raises:
        InputError: it is unusable, or its head has no known name.
    """
    state = state_dict_of(read_content(path, unsafe), path)
    for key, value in state.items():
        if key.endswith(tuple(f"{head}weight" for head in HEADS)) and value.dim() == 2:
            return value.shape[0]
    raise InputError(f"{path}: must have a head named fc, linear or classifier, got none")
