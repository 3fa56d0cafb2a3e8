"""Loading of networks by name, with their weights."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import nn

from common.errors import InputError, require_known
from loaders.transforms import Preprocess
from models import brecq
from models.checkpoints import build_for, load_strictly, read_state_dict, state_digest
from models.cifar_resnet import CifarResNet
from models.digits import DIGITS_ENTRY
from models.entries import IMAGENET_MEAN, IMAGENET_STD, ModelEntry
from models.expert import BACKBONES, entry_of_file, expert_entry
from models.lenet import LENET_ENTRY
from models.zoo import (
    CIFAR_RESNET18,
    cifar_resnet18_entry,
    list_zoo,
    refuse_transformer,
    zoo_entry,
)
from quant import QuantModel, read_quantized_file, restore_quantized

PLAIN = "plain"
CHECKPOINT_FORMATS = (PLAIN, brecq.FORMAT)
CIFAR_DEPTHS = (20, 32, 44, 56)
OWN_ENTRIES = {
    "digits_resnet": DIGITS_ENTRY,
    "lenet": LENET_ENTRY,
    CIFAR_RESNET18: cifar_resnet18_entry(),
} | {
    f"cifar_resnet{depth}": ModelEntry(
        arch=f"cifar_resnet{depth}",
        build=partial(CifarResNet, depth),
        num_classes=10,
        preprocess=Preprocess(IMAGENET_MEAN, IMAGENET_STD),
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


def get_entry(arch: str) -> ModelEntry:
    """The entry of an architecture.

    Raises:
        InputError: unknown; the text names the closest known name.
    """
    if arch in OWN_ENTRIES:
        return OWN_ENTRIES[arch]
    refuse_transformer(arch)
    return zoo_entry(require_known("arch", arch, list_archs()))


def entry_for(arch: str, checkpoint: str | Path | None) -> ModelEntry:
    """The entry of an architecture; the checkpoint of an expert brings its own.

    Raises:
        InputError: as ``get_entry``, or the checkpoint cannot be used.
    """
    own = None if checkpoint is None else entry_of_file(arch, Path(checkpoint))
    return own or get_entry(arch)


def list_archs() -> list[str]:
    """All known architectures, sorted."""
    return sorted([*OWN_ENTRIES, *list_zoo()])


def load_model(
    arch: str,
    checkpoint: str | Path | None = None,
    weights: str | None = None,
    num_classes: int | None = None,
    checkpoint_format: str = PLAIN,
) -> LoadedModel:
    """Build a network in evaluation mode and load its weights.

    Args:
        checkpoint: a file made by ``torch.save`` of a state dict.
        weights: "DEFAULT" for the weights that torchvision publishes, downloaded on first use.
        num_classes: used only if the network keeps random weights.
        checkpoint_format: ``plain`` if names are those of our networks; ``brecq`` for a release
            checkpoint of BRECQ, with an ``arch`` in ``models.brecq.ARCHS``.

    Raises:
        InputError: unknown architecture, both sources given, or weights that cannot be used or do
            not fit.
    """
    if checkpoint is not None and weights is not None:
        raise InputError("checkpoint and weights must not both be given")
    require_known("checkpoint_format", checkpoint_format, CHECKPOINT_FORMATS)
    is_brecq = checkpoint_format == brecq.FORMAT
    if is_brecq:
        arch = brecq.resolve_arch(arch)
        if checkpoint is None:
            raise InputError("checkpoint must be given with checkpoint_format brecq, got none")
    entry = entry_for(arch, checkpoint)
    if weights is not None:
        return _published(entry, weights)
    path = checkpoint or entry.shipped_weights
    if path is None:
        logger.warning("%s has RANDOM weights: neither checkpoint nor weights are given", arch)
        classes = num_classes or entry.num_classes
        network, source = entry.build(classes), "random"
    else:
        state = read_state_dict(Path(path))
        if is_brecq:
            state = brecq.renamed(arch, state, str(path))
        (network, classes), source = build_for(entry, state), str(path)
        load_strictly(network, state, source, partial(brecq.their_name, arch) if is_brecq else str)
    network.eval()
    return LoadedModel(entry, network, classes, source, state_digest(network))


def _published(entry: ModelEntry, weights: str) -> LoadedModel:
    if weights != "DEFAULT":
        raise InputError(f"weights must be DEFAULT, got {weights!r}")
    if entry.pretrained is None:
        raise InputError(
            f"weights DEFAULT must be for a torchvision network, got arch {entry.arch!r}"
        )
    network = entry.pretrained().eval()
    return LoadedModel(
        entry, network, entry.num_classes, "torchvision DEFAULT", state_digest(network)
    )


def load_quantized(path: str | Path) -> tuple[QuantModel, dict]:
    """Load a quantized model saved by ``main_imagenet.py``, and its metadata.

    Raises:
        InputError: no such file, another format, or an unknown architecture.
    """
    content = read_quantized_file(Path(path))
    try:
        metadata = dict(content["metadata"])
        network = get_entry(metadata["arch"]).build(metadata["num_classes"])
        return restore_quantized(content, network), metadata
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{path}: must be a whole quantized model, got: {reason}") from None
