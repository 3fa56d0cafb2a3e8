"""Loading of networks by name, with their weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.errors import InputError, first_line, require_known
from loaders.transforms import Preprocess
from models import brecq
from models.checkpoints import build_for, load_strictly, state_digest
from models.cifar_resnet import CifarResNet
from models.digits import DIGITS_ENTRY
from models.entries import IMAGENET_MEAN, IMAGENET_STD, ModelEntry
from models.expert import BACKBONES, entry_of_file, expert_entry
from models.lenet import LENET_ENTRY
from models.own import is_own as is_own
from models.own import own_entry
from models.own import read_arch_args as read_arch_args
from models.timm_networks import is_timm as is_timm
from models.timm_networks import timm_entry
from models.vit import CIFAR_VIT, DIGITS_VIT
from models.zoo import ALIASES as ALIASES
from models.zoo import (
    CIFAR_RESNET18,
    UNNAMED,
    cifar_resnet18_entry,
    list_zoo,
    zoo_entry,
)
from quant import (
    CapturedNetwork,
    QuantModel,
    capture,
    read_quantized_file,
    restore_quantized,
)

PLAIN = "plain"
SMALL_IMAGES = 32  # pixels; input of the networks for CIFAR, MNIST and digits
CHECKPOINT_FORMATS = (PLAIN, brecq.FORMAT)
CIFAR_DEPTHS = (20, 32, 44, 56)
OWN_ENTRIES = {
    "digits_resnet": DIGITS_ENTRY,
    "digits_vit": DIGITS_VIT,
    "cifar_vit": CIFAR_VIT,
    "lenet": LENET_ENTRY,
    CIFAR_RESNET18: cifar_resnet18_entry(),
} | {
    f"cifar_resnet{depth}": ModelEntry(
        arch=f"cifar_resnet{depth}",
        build=partial(CifarResNet, depth),
        num_classes=10,
        preprocess=Preprocess(IMAGENET_MEAN, IMAGENET_STD),
        image_size=SMALL_IMAGES,
    )
    for depth in CIFAR_DEPTHS
}
OWN_ENTRIES |= {entry.arch: entry for entry in map(expert_entry, BACKBONES)}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedModel:
    """A network with its weights and their origin."""

    entry: ModelEntry
    network: nn.Module
    num_classes: int
    weights: str  # where the weights come from
    digest: str  # SHA-256 of the weights


def get_entry(arch: str, arch_args: Mapping[str, Any] | None = None) -> ModelEntry:
    """The entry of an architecture.

    Args:
        arch_args: arguments of the function that makes the network; not for the networks of this
            project.

    Raises:
        InputError: unknown; the text names the closest known name.
    """
    arguments = arch_args or {}
    if is_own(arch):
        return own_entry(arch, arguments)
    if is_timm(arch):
        return timm_entry(arch, arguments)
    if arch in OWN_ENTRIES and not arguments:
        return OWN_ENTRIES[arch]
    require_known("arch", arch, list_archs())
    if arch not in list_zoo():
        raise InputError(f"arch_args must be left out for {arch}, which takes none")
    return zoo_entry(arch, arguments)


def entry_for(
    arch: str, checkpoint: str | Path | None, arch_args: Mapping[str, Any] | None = None
) -> ModelEntry:
    """The entry of an architecture; the checkpoint of an expert brings its own.

    Raises:
        InputError: as ``get_entry``, or the checkpoint cannot be used.
    """
    if checkpoint is not None and not (is_own(arch) or is_timm(arch)):
        own = entry_of_file(arch, Path(checkpoint))
        if own is not None:
            return own
    return get_entry(arch, arch_args)


def list_archs() -> list[str]:
    """All known architectures, sorted."""
    return sorted([*OWN_ENTRIES, *list_zoo()])


def archs_by_origin() -> dict[str, list[str]]:
    """The names of ``list_archs`` in groups: of this project, of torchvision, and aliases."""
    project = {*OWN_ENTRIES, *UNNAMED}
    return {
        "this project": sorted(project),
        "torchvision": [name for name in list_archs() if name not in project | set(ALIASES)],
        "aliases of torchvision's names": sorted(ALIASES),
    }


def load_model(
    arch: str,
    checkpoint: str | Path | None = None,
    weights: str | None = None,
    num_classes: int | None = None,
    checkpoint_format: str = PLAIN,
    checkpoint_key: str | None = None,
    arch_args: Mapping[str, Any] | None = None,
) -> LoadedModel:
    """Build a network in evaluation mode and load its weights.

    Args:
        arch: a known name, ``timm/NAME``, ``package.module:callable`` or ``file.py:callable``.
        checkpoint: a file made by ``torch.save`` of a state dict, or a safetensors file.
        weights: "DEFAULT" for published weights, downloaded on first use.
        num_classes: used only if weights do not determine it.
        checkpoint_format: ``plain`` if names are those of the network; ``brecq`` for a release
            checkpoint of BRECQ, with an architecture in ``models.brecq.ARCHS``.
        checkpoint_key: where the state dict is in the file; None: at a known place.
        arch_args: arguments of the function that makes the network.

    Raises:
        InputError: unknown architecture, both sources given, or weights that cannot be used or do
            not fit.
    """
    _require_one_source(checkpoint, weights, checkpoint_format, checkpoint_key)
    is_brecq = checkpoint_format == brecq.FORMAT
    arch = brecq.resolve_arch(arch) if is_brecq else arch
    entry = entry_for(arch, checkpoint, arch_args)
    if weights is not None:
        return _published(entry, weights)
    classes = entry.num_classes or num_classes or 0
    path = checkpoint or entry.shipped_weights
    if path is not None:
        rename = partial(brecq.renamed, arch, source=str(path)) if is_brecq else dict
        network, classes, state = build_for(entry, Path(path), checkpoint_key, classes, rename)
        spell = partial(brecq.their_name, arch) if is_brecq else str
        load_strictly(network, state, str(path), spell)
        if entry.complete is not None:
            entry.complete(network, Path(path))
        source = str(path)
    elif entry.num_classes is None:
        network, source = entry.build(classes), f"those of {arch}"
    else:
        logger.warning("%s has RANDOM weights: neither checkpoint nor weights are given", arch)
        classes = num_classes or entry.num_classes
        network, source = entry.build(classes), "random"
    network.eval()
    return LoadedModel(entry, network, classes, source, state_digest(network))


def _require_one_source(
    checkpoint: str | Path | None,
    weights: str | None,
    checkpoint_format: str,
    checkpoint_key: str | None,
) -> None:
    require_known("checkpoint_format", checkpoint_format, CHECKPOINT_FORMATS)
    if checkpoint is not None and weights is not None:
        raise InputError("checkpoint and weights must not both be given")
    if checkpoint is None and checkpoint_format == brecq.FORMAT:
        raise InputError("checkpoint must be given with checkpoint_format brecq, got none")
    if checkpoint is None and checkpoint_key is not None:
        raise InputError("checkpoint_key must be given with checkpoint, got no checkpoint")


def _published(entry: ModelEntry, weights: str) -> LoadedModel:
    if weights != "DEFAULT":
        raise InputError(f"weights must be DEFAULT, got {weights!r}")
    if entry.pretrained is None:
        raise InputError(
            "weights DEFAULT must be for a network with published weights, of torchvision or "
            f"timm, got arch {entry.arch!r}"
        )
    network = entry.pretrained().eval()
    source = "timm DEFAULT" if is_timm(entry.arch) else "torchvision DEFAULT"
    return LoadedModel(entry, network, entry.num_classes or 0, source, state_digest(network))


def _captured_anew(metadata: dict) -> CapturedNetwork:
    """The network of a file that holds no graph, from its code, with random weights."""
    entry = get_entry(metadata["arch"])
    size = entry.preprocess.crop or SMALL_IMAGES
    shape = metadata.get("image_shape") or (3, size, size)
    return capture(entry.build(metadata["num_classes"]), torch.zeros(2, *shape))


def load_quantized(path: str | Path) -> tuple[QuantModel, dict]:
    """Load a quantized model and its metadata, which hold the shape of the images.

    Raises:
        InputError: no such file, another format, or an unknown architecture.
    """
    content = read_quantized_file(Path(path))
    try:
        metadata = dict(content["metadata"])
        if "image_shape" in content:
            metadata.setdefault("image_shape", list(content["image_shape"]))
        return restore_quantized(content, partial(_captured_anew, metadata)), metadata
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        reason = first_line(error)
        raise InputError(f"{path}: must be a whole quantized model, got: {reason}") from None
