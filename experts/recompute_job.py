"""The input of ``recompute_logits.py``: checkpoints, quantized models, data set, splits."""

from __future__ import annotations

import argparse
import logging
import re
from collections.abc import Sequence
from pathlib import Path

from common.errors import InputError
from common.files import require_writable
from common.names import require_name
from common.torch_setup import pick_device
from experts.checkpoints import CALIBRATED, Found, find_checkpoint
from experts.console import Console
from experts.images import Choice, default_backbone, network_input
from experts.own_checkpoints import require_own_checkpoints
from experts.recompute import Images, Request, Source, quantized_name
from experts.schedules import EXPERTS, TWO_STAGES, Overrides, expert_names
from experts.stored_splits import check_indices
from experts.training import TrainingOptions, train_all
from experts.training_data import read_training_data
from models import load_quantized
from models.expert import resolve_backbone

logger = logging.getLogger(__name__)


def asked_experts(options: argparse.Namespace, slug: str) -> list[str]:
    """The experts that the flags name; by default all, decoupling only if it has a checkpoint.

    Raises:
        InputError: a name is unknown.
    """
    if options.experts is not None:
        return expert_names(options.experts)
    if options.quantized:
        return []
    names = list(EXPERTS)
    optional = next(name for name, kind in EXPERTS.items() if kind == TWO_STAGES)
    try:
        find_checkpoint(optional, options.checkpoint_prefix, options.experts_dir, slug)
    except InputError:
        names.remove(optional)
    return names


def find_sources(options: argparse.Namespace, names: Sequence[str], slug: str) -> list[Source]:
    """Find the checkpoints; a missing one is logged as an error and left out."""
    applied = {"yes": True, "no": False, "auto": options.checkpoint_prefix == CALIBRATED}
    found = []
    for name in names:
        try:
            place = find_checkpoint(
                name,
                options.checkpoint_prefix,
                options.experts_dir,
                slug,
                options.allow_fallback_names,
            )
        except InputError as error:
            logger.error("%s", error)
            continue
        if place.fallback:
            logger.warning("expert %r: taken from %s, a name without prefix", name, place.path)
        temperature = applied[options.apply_temperature]
        found.append(Source(name, place, options.checkpoint_prefix, temperature))
    return found


def quantized_sources(texts: Sequence[str], taken: Sequence[str]) -> list[Source]:
    """Quantized models given as FILE or NAME=FILE.

    Raises:
        InputError: a file is unusable, or a name is taken.
    """
    found: list[Source] = []
    for text in texts:
        name, _, file = text.rpartition("=")
        path = Path(file)
        if name:
            require_name("name of a quantized model", name)
        metadata = load_quantized(path)[1]
        name = name or quantized_name(metadata)
        if not re.fullmatch(r"[\w-]+", require_name("name of a quantized model", name)):
            raise InputError(
                f"name of a quantized model must be letters, digits, _ or -, got {name!r}"
            )
        if (
            name in (*EXPERTS, *EXPERTS.values())
            or name in taken
            or any(source.name == name for source in found)
        ):
            raise InputError(
                "quantized models must differ in name (NAME=FILE) from all others, got "
                f"{name!r} twice"
            )
        found.append(Source(name, Found(path, False), None, False))
    return found


def train_those_missing(
    options: argparse.Namespace, choice: Choice, names: Sequence[str], console: Console
) -> None:
    """Train the experts that have no checkpoint with the requested prefix."""
    folder = options.experts_dir / choice.splits.slug
    missing = []
    for name in names:
        try:
            find_checkpoint(
                name, options.checkpoint_prefix, options.experts_dir, choice.splits.slug
            )
        except InputError:
            missing.append(name)
    if not missing:
        return
    overrides = Overrides(epochs=options.train_epochs, lr=options.train_lr)
    overrides.require_sane()
    backbone = resolve_backbone(options.backbone or default_backbone(choice.dataset))
    training = TrainingOptions(
        folder=folder,
        backbone=backbone,
        device=pick_device(options.device),
        seed=options.seed,
        first=overrides.first(choice.dataset),
        second=overrides.second(choice.dataset),
        force=options.force,
        report=console.line,
    )
    require_own_checkpoints(missing, training)
    data = read_training_data(
        choice, backbone, download=options.download, workers=options.num_workers
    )
    train_all(missing, data, training, options.verbose)


def prepare(options: argparse.Namespace, choice: Choice, command: str) -> tuple[Request, Images]:
    """Check everything but the checkpoints, and return the settings and the images.

    Raises:
        InputError: a flag, the data or the splits are unusable.
    """
    if options.batch_size < 1:
        raise InputError(f"batch_size must be at least 1, got {options.batch_size}")
    backbone = options.backbone and resolve_backbone(options.backbone)
    device = pick_device(options.device)
    require_writable(options.output_dir)
    images = Images(choice, options.download, options.num_workers)
    usual = network_input(choice.dataset, backbone or default_backbone(choice.dataset))
    wanted = list(dict.fromkeys(options.splits))
    sizes = images.open(usual).sizes
    indices = check_indices(choice.splits, wanted, sizes, options.allow_size_mismatch)
    request = Request(
        choice=choice,
        indices=indices,
        output_dir=options.output_dir,
        device=device,
        batch_size=options.batch_size,
        dtype=options.dtype,
        auto_batch=not options.no_auto_batch,
        backbone=backbone,
        unsafe=options.unsafe_load,
        skip_existing=options.skip_existing,
        csv=options.csv,
        command=command,
    )
    return request, images
