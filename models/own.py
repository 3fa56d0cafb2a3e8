"""Networks that the user's own code makes: ``package.module:callable``, ``file.py:callable``."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from common.configs import parse_yaml
from common.errors import InputError, first_line, require_known
from loaders.transforms import Preprocess
from models.entries import IMAGENET_MEAN, IMAGENET_STD, ModelEntry

SEPARATOR = ":"


def is_own(arch: str) -> bool:
    """Whether an architecture names code of the user."""
    return SEPARATOR in arch


def own_entry(arch: str, arch_args: Mapping[str, Any]) -> ModelEntry:
    """The entry of a network that the user's function or class makes.

    Its images are used as they are, normalised by ImageNet's mean and standard deviation; flags
    say otherwise. Its weights are those that the function returns, unless a checkpoint is given.
    """
    preprocess = Preprocess(IMAGENET_MEAN, IMAGENET_STD)
    return ModelEntry(arch, partial(_build, arch, dict(arch_args)), None, preprocess)


def read_arch_args(pairs: Sequence[str]) -> dict[str, Any]:
    """Arguments of a callable from ``KEY=VALUE`` texts, whose values are YAML.

    Raises:
        InputError: one has another form, or a key comes twice.
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.isidentifier() or key in found:
            raise InputError(f"arch_args must be KEY=VALUE, each key once, got {pair!r}")
        try:
            found[key] = parse_yaml(text)
        except ValueError as error:
            reason = first_line(error)
            raise InputError(f"arch_args must have YAML values, got {pair!r}: {reason}") from None
    return found


def _hidden_by(error: BaseException) -> str:
    """Says so where a package of this project hides one of the user's of the same name."""
    package, dot, _ = (getattr(error, "name", None) or "").partition(".")
    if isinstance(error, ModuleNotFoundError) and dot and package in sys.modules:
        return f" (this project has a package {package!r}, which hides yours)"
    return ""


def _build(arch: str, arch_args: Mapping[str, Any], num_classes: int) -> nn.Module:
    make = _find(arch)
    try:
        network = make(**arch_args)
    except (Exception, SystemExit) as error:
        reason = first_line(error)
        raise InputError(
            f"arch {arch} must return a network, got {type(error).__name__}: {reason}"
        ) from error
    if not isinstance(network, nn.Module):
        raise InputError(f"arch {arch} must return a torch.nn.Module, got {type(network).__name__}")
    return network


def _find(arch: str) -> Callable[..., Any]:
    place, _, name = arch.rpartition(SEPARATOR)
    module = _file(Path(place)) if place.endswith(".py") else _module(place)
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        known = [key for key, value in vars(module).items() if callable(value) and key[0] != "_"]
        if found is None and known:
            require_known(f"callable of {place}", name, known)
        raise InputError(f"arch must name a function or class of {place}, got {name!r}")
    return found


def _file(path: Path) -> ModuleType:
    if not path.is_file():
        raise InputError(f"arch must name a Python file that exists, got {path}")
    name = f"own_network_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    return _imported(str(path), path.resolve().parent, partial(_execute, spec, module))


def _execute(spec: Any, module: ModuleType) -> ModuleType:
    spec.loader.exec_module(module)
    return module


def _module(name: str) -> ModuleType:
    return _imported(name, Path.cwd(), partial(importlib.import_module, name))


def _imported(name: str, folder: Path, load: Callable[[], ModuleType]) -> ModuleType:
    """Import code of the user, which may import its neighbours in ``folder``."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    try:
        return load()
    except (Exception, SystemExit) as error:
        reason = first_line(error) + _hidden_by(error)
        raise InputError(
            f"arch must be importable, got {name}: {type(error).__name__}: {reason}"
        ) from error
