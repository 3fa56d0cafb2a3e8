"""Strict loading of weights, without unpickling."""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import InputError, first_line
from common.files import read_torch_file
from models.entries import ModelEntry

WRAPPERS = ("model_state_dict", "state_dict", "state_dict_ema", "model_ema", "model", "net")
# Of DataParallel, of torch.compile, and of Lightning and other networks around a network.
PREFIXES = ("module.", "_orig_mod.", "model.")
SAFETENSORS = ".safetensors"
STEP_COUNTER = "num_batches_tracked"
AVERAGE_COUNTER = "n_averaged"  # beside the weights in an AveragedModel of torch
MAX_LISTED = 5
MAX_CLASSES = 1_000_000

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Candidate:
    """A state dict of a checkpoint file: the key that holds it, and its tensors by name."""

    key: str
    state: dict[str, Tensor]


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read the first state dict in a checkpoint file, without common prefixes.

    Raises:
        InputError: as ``read_candidates``.
    """
    return state_dict_of(_read(path), path)


def state_dict_of(content: Any, path: Path) -> dict[str, Tensor]:
    """The first state dict of ``content``, without the prefixes that all names share.

    Raises:
        InputError: there is none, or a value is NaN, infinite or not an ordinary real tensor.
    """
    taken = _candidates(content, path, None)[0]
    _log_choice(path, content, taken.key)
    return list(_peeled(taken.state))[-1]


def fitting_state(path: Path, names: Iterable[str], key: str | None) -> dict[str, Tensor]:
    """Read the state dict of a checkpoint file that has the names of a network.

    Prefixes of ``PREFIXES`` that all its names share are removed where the rest fits. Where none
    fits, it is the part below a prefix that does, as in a Lightning module that holds the tensors
    of its loss as well; what is left out is logged. Without one, it is the first, without prefix.

    Args:
        names: of the network's tensors.
        key: where the state dict is in the file; None: at any of ``WRAPPERS``.

    Raises:
        InputError: as ``state_dict_of``, or ``key`` names nothing.
    """
    wanted = _weights(names)
    content = _read(path)
    candidates = _candidates(content, path, key)
    fitting: dict[str, dict[str, Tensor]] = {}
    for candidate in candidates:
        for state in _peeled(candidate.state):
            if _weights(state) == wanted:
                fitting.setdefault(candidate.key, state)
    if not fitting:
        parts = (_part(candidate.state, wanted, path) for candidate in candidates)
        found = next((part for part in parts if part is not None), None)
        return list(_peeled(candidates[0].state))[-1] if found is None else found
    taken = next(iter(fitting))
    if key is None:
        _log_choice(path, content, taken)
    return fitting[taken]


def _weights(names: Iterable[str]) -> set[str]:
    """The names without those of counters of training steps."""
    return {name for name in names if not name.endswith(STEP_COUNTER)}


def _part(state: dict[str, Tensor], wanted: set[str], path: Path) -> dict[str, Tensor] | None:
    """The part of a state dict below a prefix that has the wanted names; None if there is none.

    There is none either where the wanted names are there without a prefix as well.
    """
    for prefix in () if wanted <= set(state) else PREFIXES:
        below = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        for part in _peeled(below):
            if _weights(part) == wanted:
                others = [name for name in state if not name.startswith(prefix)]
                logger.info("%s: names below %r taken; left out: %s", path, prefix, _listed(others))
                return part
    return None


def _log_choice(path: Path, content: Any, taken: str) -> None:
    """Log which state dict of a file is taken, if it holds others as well."""
    others = [name for name, value in content.items() if name != taken and _is_state_dict(value)]
    if others:
        logger.info(
            "%s: weights of %r taken; the file also holds %s (--checkpoint_key)",
            path,
            taken,
            ", ".join(map(repr, others)),
        )


def _read(path: Path) -> Any:
    if path.suffix != SAFETENSORS:
        return read_torch_file(path)
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise InputError(
            f"{path}: needs safetensors (pip install -r requirements-timm.txt), got: {error}"
        ) from None
    if not path.is_file():
        raise InputError(f"{path}: must be an existing file")
    try:
        return load_file(path)
    except Exception as error:  # noqa: BLE001  (a damaged file fails in every possible way)
        reason = first_line(error)
        raise InputError(f"{path}: must be a whole safetensors file, got: {reason}") from None


def _candidates(content: Any, path: Path, key: str | None) -> list[Candidate]:
    if key is not None:
        if not isinstance(content, dict) or key not in content:
            raise InputError(
                f"{path}: checkpoint_key must be in the file, got {key!r}; the file "
                f"is {_describe(content)}"
            )
        return [Candidate(key, _checked(content[key], path))]
    keys = [k for k in WRAPPERS if isinstance(content, dict) and isinstance(content.get(k), dict)]
    if not keys:
        return [Candidate("", _checked(content, path))]
    usable = [k for k in keys if _is_state_dict(content[k])] or keys[:1]
    return [Candidate(k, _checked(content[k], path)) for k in usable]


def _peeled(state: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The state dict, then with one prefix less at a time."""
    yield state
    names = [key for key in state if key != AVERAGE_COUNTER]
    for prefix in PREFIXES:
        if names and all(key.startswith(prefix) for key in names):
            yield from _peeled({key.removeprefix(prefix): state[key] for key in names})
            return


def _is_state_dict(content: Any) -> bool:
    return (
        isinstance(content, dict)
        and bool(content)
        and all(isinstance(key, str) for key in content)
        and all(isinstance(value, Tensor) for value in content.values())
    )


def _checked(content: Any, path: Path) -> dict[str, Tensor]:
    if not _is_state_dict(content):
        raise InputError(
            f"{path}: not a checkpoint: must hold a state_dict (names to tensors), "
            f"got {_describe(content)}"
        )
    for key, value in content.items():
        numbers = _as_float32(value)
        if numbers is None:
            raise InputError(
                f"{path}: weights must be ordinary real tensors, got {value.type()} in {key!r}"
            )
        if not torch.isfinite(numbers).all():
            raise InputError(f"{path}: weights must be finite, got NaN or Inf in {key!r}")
    return content


def _as_float32(value: Tensor) -> Tensor | None:
    """The values of a tensor in float32; None if they are not ordinary real numbers."""
    is_dense = value.layout == torch.strided and not value.is_quantized
    if not is_dense or value.is_meta or value.is_complex():
        return None
    try:
        return value.float()
    except NotImplementedError:  # packed numbers, of 4 bits and less
        return None


def _describe(content: object) -> str:
    if isinstance(content, dict):
        return f"a dict with the keys {_listed([repr(str(key)) for key in content])}"
    return f"a {type(content).__name__}"


def build_for(
    entry: ModelEntry,
    path: Path,
    key: str | None,
    default: int,
    rename: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] = dict,
) -> tuple[nn.Module, int, dict[str, Tensor]]:
    """Build the network with the number of classes of a checkpoint, and read its state dict.

    The number is read off the last layer; if the checkpoint has no such layer, or the network is
    the user's own, it is ``default``.

    Args:
        rename: gives the tensors of the file the names of the network.
    """
    network = entry.build(default)
    own = network.state_dict()
    state = rename(fitting_state(path, own, key))
    if entry.num_classes is None:
        return network, default, state
    head = [key for key, value in own.items() if value.dim() > 1][-1]
    fits = head in state and state[head].dim() > 1 and 0 < state[head].shape[0] <= MAX_CLASSES
    classes = state[head].shape[0] if fits else default
    return (network if classes == default else entry.build(classes)), classes, state


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
    problems["of another type"] = [
        f"{spell(key)} (must be {own[key].dtype}, got {state[key].dtype})"
        for key in shared
        if own[key].is_floating_point() != state[key].is_floating_point()
    ]
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
