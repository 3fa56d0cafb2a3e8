"""Strict loading of weights, without unpickling."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import InputError
from common.files import read_torch_file
from models.entries import ModelEntry

WRAPPERS = ("model_state_dict", "state_dict", "model", "net")
COMMON_PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and of torch.compile
STEP_COUNTER = "num_batches_tracked"
MAX_LISTED = 5
MAX_CLASSES = 1_000_000


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read the state dict in a checkpoint file.

    Raises:
        InputError: the file is damaged or would have to be unpickled, or as ``state_dict_of``.
    """
    return state_dict_of(read_torch_file(path), path)


def state_dict_of(content: Any, path: Path) -> dict[str, Tensor]:
    """The state dict in ``content`` itself or under a key of ``WRAPPERS``.

    A prefix of ``COMMON_PREFIXES`` that all names share is removed.

    Raises:
        InputError: there is none, or a value is NaN, infinite or not an ordinary real tensor.
    """
    for key in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if (
        not isinstance(content, dict)
        or not content
        or not all(isinstance(key, str) for key in content)
        or not all(isinstance(value, Tensor) for value in content.values())
    ):
        raise InputError(
            f"{path}: not a checkpoint: must hold a state_dict (names to tensors), "
            f"got {_describe(content)}"
        )
    for prefix in COMMON_PREFIXES:
        if all(key.startswith(prefix) for key in content):
            content = {key.removeprefix(prefix): value for key, value in content.items()}
    for key, value in content.items():
        if (
            value.layout != torch.strided
            or value.is_quantized
            or value.is_meta
            or value.is_complex()
        ):
            raise InputError(
                f"{path}: weights must be ordinary real tensors, got {value.type()} in {key!r}"
            )
        if not torch.isfinite(value).all():
            raise InputError(f"{path}: weights must be finite, got NaN or Inf in {key!r}")
    return content


def _describe(content: object) -> str:
    if isinstance(content, dict):
        return f"a dict with keys {sorted(map(str, content))[:MAX_LISTED]}"
    return f"a {type(content).__name__}"


def build_for(entry: ModelEntry, state: Mapping[str, Tensor]) -> tuple[nn.Module, int]:
    """Build the network with the number of classes of a checkpoint; return both.

    The number is read off the last layer; if the checkpoint has no such layer, it is the entry's.
    """
    network = entry.build(entry.num_classes)
    head = [key for key, value in network.state_dict().items() if value.dim() > 1][-1]
    fits = head in state and state[head].dim() > 1 and 0 < state[head].shape[0] <= MAX_CLASSES
    classes = state[head].shape[0] if fits else entry.num_classes
    return (network if classes == entry.num_classes else entry.build(classes)), classes


def load_strictly(
    model: nn.Module,
    state: Mapping[str, Tensor],
    source: str,
    spell: Callable[[str], str] = str,
) -> None:
    """Load ``state`` into ``model``; every name and shape must fit.

    Only the batch norms' counters of training steps may be missing: evaluation does not use them,
    and old versions of torch did not save them.

    Args:
        spell: maps a name of the model to its name in the file, for error texts.

    Raises:
        InputError: a name or shape does not fit; the text lists the missing, unexpected and
            misshapen names.
    """
    own = model.state_dict()
    shared = [key for key in own if key in state]
    problems = {
        "missing": [spell(k) for k in own if k not in state and not k.endswith(STEP_COUNTER)],
        "unexpected": [spell(key) for key in state if key not in own],
        "misshapen": [
            f"{spell(key)} (must be {tuple(own[key].shape)}, got {tuple(state[key].shape)})"
            for key in shared
            if own[key].shape != state[key].shape
        ],
    }
    texts = [f"{what}: {_listed(names)}" for what, names in problems.items() if names]
    if texts:
        raise InputError(
            f"{source}: weights must fit {type(model).__name__}, got {'; '.join(texts)}"
        )
    counters = {key: value for key, value in own.items() if key.endswith(STEP_COUNTER)}
    complete = OrderedDict({**counters, **state})
    complete._metadata = own._metadata  # type: ignore[attr-defined]  # MNASNet reads its version
    model.load_state_dict(complete, strict=True)


def _listed(names: list[str]) -> str:
    text = ", ".join(names[:MAX_LISTED])
    return text if len(names) <= MAX_LISTED else f"{text} and {len(names) - MAX_LISTED} more"


def state_digest(model: nn.Module) -> str:
    """SHA-256 over names and values of a network's state dict."""
    digest = hashlib.sha256()
    for key, value in model.state_dict().items():
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
