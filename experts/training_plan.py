"""The settings of ``train_experts.py``, and its plan as text."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from common.errors import InputError
from common.torch_setup import pick_device, require_seed
from experts.console import Console
from experts.images import Choice, default_backbone
from experts.schedules import EXPERTS, TWO_STAGES, Overrides, expert_names
from experts.training import TrainingOptions, finished
from models.expert import resolve_backbone

DEFAULT_ROOT = Path("checkpoints") / "experts"
MAX_TAU = 1e3


def training_options(
    options: argparse.Namespace, choice: Choice, console: Console
) -> TrainingOptions:
    """The settings of the training that the flags describe.

    Raises:
        InputError: a flag is out of range, or names an unknown backbone, device or expert.
    """
    overrides = Overrides(**{f.name: getattr(options, f.name) for f in fields(Overrides)})
    overrides.require_sane()
    if not 0 <= options.tau <= MAX_TAU:
        raise InputError(f"tau must be from 0 to {MAX_TAU:g}, got {options.tau}")
    source = options.stage1_from
    return TrainingOptions(
        folder=options.output_dir or DEFAULT_ROOT / choice.splits.slug,
        backbone=resolve_backbone(options.backbone or default_backbone(choice.dataset)),
        device=pick_device(options.device),
        seed=require_seed(options.seed),
        first=overrides.first(choice.dataset),
        second=overrides.second(choice.dataset),
        tau=options.tau,
        stage1_from=None if source is None else expert_names([source])[0],
        calibrate=options.calibrate,
        resume=options.resume,
        keep_last=options.keep_last,
        force=options.force,
        report=console.line,
    )


def describe(names: Sequence[str], options: TrainingOptions) -> list[str]:
    """The plan in lines."""
    lines = [f"backbone: {options.backbone}, device: {options.device}, seed: {options.seed}"]
    for name in names:
        kind = EXPERTS[name]
        stages = [options.first[kind].describe()]
        if kind == TWO_STAGES:
            stages = [f"backbone of {options.stage1_from}"] if options.stage1_from else stages
            stages.append(f"then the head: {options.second.describe()}")
        if kind == "logitadjust":
            stages.append(f"tau {options.tau:g}")
        kept = " (already trained: kept)" if finished(options, name) and not options.force else ""
        lines.append(f"{name}{kept}: {'; '.join(stages)} -> {options.folder}")
    return lines
