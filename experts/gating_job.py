"""Trains a gate on stored logits and compares it with its baselines."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from common.console import EXIT_OK
from common.errors import InputError
from common.files import require_writable, write_json
from common.marks import listed, replace_link, require_own_file, require_own_folder
from common.torch_setup import require_seed
from experts.console import Console, console_of
from experts.expert_logits import ExpertLogits, origins, read_experts, require_folders
from experts.gate_files import GATE, PRETRAINED, UNIFORM, StoredGate, is_gate, read_gate, save_gate
from experts.gating import (
    GateOptions,
    fit_temperatures,
    gate_state,
    gate_weights,
    mixture,
    num_features,
    posteriors,
    train_gate,
)
from experts.metrics import class_groups, expert_figures
from experts.schedules import EXPERTS
from experts.splits import list_digest
from experts.stored_splits import StoredSplits
from experts.verify_job import choose_splits, find_experts

LOGIT_MEAN = "mean of logits"
COLUMNS = ("accuracy", "balanced", "head", "tail", "nll")


def chosen_experts(options: argparse.Namespace) -> list[str]:
    """The experts to mix, in the order that was given, or in that of training.

    Raises:
        InputError: there are none, or one is given twice.
    """
    root: Path = options.logits_dir
    if options.experts is None:
        found = set(find_experts(root, None))
        trained = [name for name in EXPERTS if name in found]
        if not trained:
            raise InputError(f"experts must be given, got none in {root} that was trained here")
        return trained
    experts = [find_experts(root, [name])[0] for name in options.experts]
    require_folders(root, experts)
    return experts


def gate_path(kind: str, splits: StoredSplits, folder: Path | None) -> Path:
    return (folder or Path("checkpoints") / kind / splits.slug) / f"{kind}.ckpt"


def require_gate_place(path: Path, kind: str, experts: Sequence[str], force: bool) -> None:
    """Check, without writing, that a gate of a kind and of these experts can be written there.

    Raises:
        InputError: it would replace a file of the user or a gate of other experts, or the folder
            cannot be written.
    """
    require_own_folder(path.parent, force)
    require_writable(path.parent)
    require_own_file(path, force, lambda file: is_gate(file, kind))
    if path.is_file() and not force and is_gate(path, kind):
        former = read_gate(path).experts
        if former != list(experts):
            raise InputError(
                f"{path} must be a gate of {', '.join(experts)} or new, got that of "
                f"{', '.join(former)} (--output_dir writes elsewhere, --force replaces it)"
            )


def pretrain(options: argparse.Namespace) -> int:
    """Train a gate on ``tunev``, compare it with baselines on ``val``; returns the exit status."""
    console = console_of(options)
    training = gate_options(options)
    splits, reason = choose_splits(options)
    experts = chosen_experts(options)
    path = gate_path(PRETRAINED, splits, options.output_dir)
    require_gate_place(path, PRETRAINED, experts, options.force)
    require_own_file(_record_of(path), options.force)
    console.line(f"Dataset: {splits.dataset} ({reason}); experts: {', '.join(experts)}")
    data = read_experts(options.logits_dir, experts, ("tunev", "val"), splits)
    _require_halves(data["tunev"].known_targets())
    stored = _trained(data, training, splits, origins(options.logits_dir, experts, "tunev"))
    record = stored.notes["record"]
    console.line(
        f"gate: {num_features(len(experts))} features, NLL on half of tunev "
        f"{record['held_out'][0]:.4f} -> {min(record['held_out']):.4f} (epoch "
        f"{record['best_epoch']} of {training.epochs})"
    )
    _print(console, stored.notes["val"], stored.notes["beats_baselines"])
    if record["best_epoch"] == 0:
        console.line("no epoch was better than the start: the gate weighs all experts alike")
    make_room(path.parent, options.force)
    save_gate(path, stored)
    with listed(_record_of(path)):
        content = {"experts": experts, "temperatures": stored.temperatures, **stored.notes}
        write_json(_record_of(path), content)
    console.always(f"written: {path}, {_record_of(path).name}")
    console.line("next: python3 train_gating.py --mode selective")
    return EXIT_OK


def _record_of(path: Path) -> Path:
    """The file that says in words what a gate's file holds."""
    return path.with_suffix(".json")


def _trained(
    data: Mapping[str, ExpertLogits],
    training: GateOptions,
    splits: StoredSplits,
    found_origins: list[dict[str, Any]],
) -> StoredGate:
    """A gate trained on ``tunev``, and in its notes how it compares with baselines on ``val``."""
    temperatures = fit_temperatures(data["tunev"])
    p = {name: posteriors(found.logits, temperatures) for name, found in data.items()}
    gate, record = train_gate(p["tunev"], data["tunev"].known_targets(), training)
    experts = data["val"].experts
    probabilities = dict(zip(experts, p["val"], strict=True)) | {
        UNIFORM: p["val"].mean(axis=0),
        LOGIT_MEAN: _logit_mean(data["val"], temperatures),
        GATE: mixture(gate_weights(gate, p["val"]), p["val"]),
    }
    rows = compare(probabilities, data["val"], splits)
    notes = {"training": asdict(training), "record": asdict(record), "val": rows}
    notes["beats_baselines"] = _beats(rows)
    return StoredGate(
        PRETRAINED,
        splits.slug,
        list_digest(splits.indices("tunev")),
        splits.num_classes,
        list(experts),
        found_origins,
        temperatures,
        gate_state(gate),
        notes,
    )


def make_room(folder: Path, force: bool) -> None:
    """Remove a link in the place of a folder, if the user asks for it."""
    if force:
        replace_link(folder)


def _require_halves(targets: np.ndarray) -> None:
    """Check that both halves of ``tunev`` have samples of every class.

    Raises:
        InputError: a class has one sample.
    """
    counts = np.bincount(targets)
    if counts[counts > 0].min() < 2:
        raise InputError("tunev must have at least 2 samples of each class, got 1")


def gate_options(options: argparse.Namespace) -> GateOptions:
    """The options of the training, checked.

    Raises:
        InputError: a value is out of range.
    """
    for name, low in (("lr", 0.0), ("weight_decay", 0.0)):
        value = getattr(options, name)
        if not low <= value < np.inf:
            raise InputError(f"{name} must be at least {low:g} and finite, got {value}")
    if options.batch_size < 2:
        raise InputError(f"batch_size must be at least 2, got {options.batch_size}")
    return GateOptions(
        options.epochs,
        options.batch_size,
        options.lr,
        options.weight_decay,
        seed=require_seed(options.seed),
    )


def _logit_mean(data: ExpertLogits, temperatures: Sequence[float]) -> np.ndarray:
    """softmax of the mean of the scaled logits, (N, C)."""
    mean = (data.logits / np.asarray(temperatures)[:, None, None]).mean(axis=0)
    return posteriors(mean[None], [1.0])[0]


def compare(
    probabilities: Mapping[str, np.ndarray], data: ExpertLogits, splits: StoredSplits
) -> dict[str, dict[str, Any]]:
    """Metrics of (N, C) probabilities by name."""
    groups = class_groups(splits.counts)
    found = {}
    for name, p in probabilities.items():
        figures = expert_figures(
            np.log(p.clip(min=1e-30)), data.known_targets(), splits.weights, groups
        )
        found[name] = {column: getattr(figures, column) for column in COLUMNS}
    return found


def _beats(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, bool]:
    """Whether the gate is better than every other row, by accuracy and by NLL."""
    others = [row for name, row in rows.items() if name != GATE]
    return {
        "accuracy": all(rows[GATE]["accuracy"] > row["accuracy"] for row in others),
        "nll": all(rows[GATE]["nll"] < row["nll"] for row in others),
    }


def _print(
    console: Console, rows: Mapping[str, Mapping[str, Any]], beaten: Mapping[str, bool]
) -> None:
    width = max(map(len, rows))
    console.line(f"{'on val':<{width}}  accuracy  balanced    head    tail      NLL")
    for name, row in rows.items():
        shares = "  ".join(
            f"{'-' if row[key] is None else format(100 * row[key], '.2f'):>{size}}"
            for key, size in (("accuracy", 8), ("balanced", 8), ("head", 6), ("tail", 6))
        )
        console.line(f"{name:<{width}}  {shares}  {row['nll']:7.4f}")
    words = [f"{'better' if better else 'not better'} by {key}" for key, better in beaten.items()]
    console.line(f"the gate against each of the others: {', '.join(words)}")
