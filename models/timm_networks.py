"""timm's networks by name, ``timm/NAME``; timm is an optional package."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn

from common.errors import InputError, first_line, require_known
from loaders.transforms import INTERPOLATIONS, Preprocess
from models.entries import ModelEntry

PREFIX = "timm/"


def is_timm(arch: str) -> bool:
    return arch.startswith(PREFIX)


def timm_entry(arch: str, arch_args: Mapping[str, Any]) -> ModelEntry:
    """The entry of a network of timm, with the input of its published weights.

    Args:
        arch_args: further arguments of ``timm.create_model``.

    Raises:
        InputError: timm is not installed or does not know the name.
    """
    timm = _import_timm()
    name = arch.removeprefix(PREFIX)
    plain = name.partition(".")[0]
    require_known("timm network", plain, timm.list_models())
    if name != plain:
        require_known(f"weights of {plain}", name, timm.list_pretrained(f"{plain}.*"))
    config = timm.get_pretrained_cfg(name)
    config = {} if config is None else config.to_dict()
    published = bool(timm.models.is_model_pretrained(plain))
    preprocess = _preprocess(config)
    return ModelEntry(
        arch,
        partial(_build, name, dict(arch_args)),
        config.get("num_classes") or 1000,
        preprocess,
        pretrained=partial(_download, name, dict(arch_args)) if published else None,
    )


def _import_timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise InputError(
            "arch timm/NAME needs timm (pip install -r requirements-timm.txt), got: "
            f"{first_line(error)}"
        ) from None
    return timm


def _preprocess(config: Mapping[str, Any]) -> Preprocess:
    """timm's evaluation transform: short side to crop / crop_pct, then a crop in the centre."""
    crop = (config.get("input_size") or (3, 224, 224))[-1]
    interpolation = config.get("interpolation") or "bicubic"
    return Preprocess(
        mean=tuple(config.get("mean") or (0.485, 0.456, 0.406)),
        std=tuple(config.get("std") or (0.229, 0.224, 0.225)),
        resize=int(crop / (config.get("crop_pct") or 0.875)),
        crop=crop,
        interpolation=interpolation if interpolation in INTERPOLATIONS else "bicubic",
    )


def _build(name: str, arch_args: Mapping[str, Any], num_classes: int) -> nn.Module:
    return _created(name, {"num_classes": num_classes, **arch_args}, pretrained=False)


def _download(name: str, arch_args: Mapping[str, Any]) -> nn.Module:
    return _created(name, arch_args, pretrained=True)


def _created(name: str, arguments: Mapping[str, Any], pretrained: bool) -> nn.Module:
    try:
        return _import_timm().create_model(name, pretrained=pretrained, **arguments)
    except Exception as error:  # (the hub's and timm's errors have no common class)
        reason = first_line(error)
        what = "weights of {} must be downloadable" if pretrained else "timm must build {}"
        raise InputError(f"{what.format(name)}, got {type(error).__name__}: {reason}") from error
