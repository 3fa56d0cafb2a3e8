"""Runs the checks of ``verify_logits.py`` on experts' logits, and writes the reports."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from common.console import EXIT_FAILED, EXIT_OK
from common.errors import InputError, RunError
from common.files import write_json
from common.names import require_name
from experts.console import console_of
from experts.metrics import class_groups
from experts.own_reports import FIGURE_TITLE, require_own_reports
from experts.schedules import EXPERTS
from experts.stored_splits import StoredSplits, read_splits, splits_folder
from experts.verification import Rules, cross_checks, verify_file
from experts.verification_report import (
    BAR_LABELS,
    Verification,
    as_json,
    bars,
    print_files,
    print_summaries,
    write_table,
)


def verify_experts(options: argparse.Namespace) -> int:
    """Check the logits of experts; returns the exit status."""
    console = console_of(options)
    if not 0 <= options.min_accuracy <= 1:
        raise InputError(f"min-accuracy must be from 0 to 1, got {options.min_accuracy}")
    require_own_reports(options)
    experts = find_experts(options.logits_dir, options.experts)
    splits, reason = choose_splits(options)
    console.line(f"Dataset: {splits.dataset} ({reason})")
    groups = class_groups(splits.counts, options.group_by, options.threshold)
    console.line(", ".join(f"{name}: {len(found)} classes" for name, found in groups.items()))
    rules = Rules(
        splits,
        groups,
        options.min_accuracy,
        options.accuracy_metric,
        options.accuracy_check,
        read_labels(options, splits),
    )
    wanted = list(dict.fromkeys(options.splits))
    unchecked = sorted(
        {p.name.removesuffix("_logits.npz") for p in options.logits_dir.glob("*/*_logits.npz")}
        - set(wanted)
    )
    if unchecked:
        console.line(f"not checked: {', '.join(unchecked)} (add them to --splits)")
    files = [verify_file(options.logits_dir, e, s, rules) for e in experts for s in wanted]
    verification = Verification(files, cross_checks(files), groups, options.strict)
    print_files(console, verification)
    print_summaries(console, verification)
    status = EXIT_FAILED if verification.failures else EXIT_OK
    about = {
        "slug": splits.slug,
        "dataset_choice": reason,
        "logits_dir": str(options.logits_dir),
        "splits_dir": str(splits.folder),
        "group_by": options.group_by,
    }
    write_reports(options, verification, about, status)
    console.always(verification.last_line())
    return status


def find_experts(root: Path, asked: Sequence[str] | None) -> list[str]:
    """The experts to check, sorted.

    Raises:
        InputError: there is no such folder, or no expert in it.
    """
    if not root.is_dir():
        raise InputError(f"logits-dir must be a folder, got {str(root)!r}")
    if asked is not None:
        for name in asked:
            require_name("experts", name)
        by_key = {kind: name for name, kind in EXPERTS.items()}
        names = {name if (root / name).is_dir() else by_key.get(name, name) for name in asked}
        return sorted(names)
    folders = (path for path in root.iterdir() if path.is_dir() and path.name[:1] != ".")
    found = sorted(folder.name for folder in folders if _holds_logits(folder))
    if not found:
        raise InputError(
            f"logits-dir must hold a folder with npz files per expert, got none in {root}"
        )
    return found


def _holds_logits(folder: Path) -> bool:
    """Whether a folder holds logits of an expert; an unreadable one counts as such."""
    try:
        return any(path.name.endswith((".npz", ".meta.json")) for path in folder.iterdir())
    except OSError:
        return True


def choose_splits(options: argparse.Namespace) -> tuple[StoredSplits, str]:
    """The splits of the logits, and the reason for choosing them.

    Raises:
        InputError: there are none, or they belong to another data set.
    """
    folder, name = options.splits_dir, options.dataset
    if name == "auto" and folder is not None:
        return read_splits(folder, "digits"), f"the splits in {folder} are of it"
    reason = "as given"
    if name == "auto":
        cifar100 = splits_folder("cifar100", None)
        name = "cifar100" if cifar100.is_dir() else "digits"
        reason = f"{'found' if name == 'cifar100' else 'no'} {cifar100}"
    splits = read_splits(splits_folder(name, folder), name)
    if splits.dataset != name:
        raise InputError(f"splits-dir must hold splits of {name}, got those of {splits.dataset}")
    return splits, reason


def read_labels(
    options: argparse.Namespace, splits: StoredSplits
) -> Mapping[str, np.ndarray] | None:
    """The (N,) labels of both sources; None if they are not to be compared or not on disk.

    Raises:
        InputError: ``--against_data yes`` or ``--class_order`` is given and they cannot be read, or
            ``--class_order`` has no effect.
    """
    if options.against_data == "no":
        if options.class_order is not None:
            raise InputError(
                f"class_order must be left out with --against-data no, got {options.class_order}"
            )
        return None
    from experts.images import Choice, read_source_labels

    choice = Choice(splits.dataset, options.data_root, "", splits, options.class_order)
    try:
        return read_source_labels(choice)
    except InputError:
        if options.against_data == "yes" or options.class_order is not None:
            raise
        return None


def write_reports(
    options: argparse.Namespace, verification: Verification, about: dict, status: int
) -> None:
    """Write the requested reports.

    Raises:
        RunError: one cannot be written.
    """
    try:
        for path in (options.json, options.csv, options.plot):
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
        if options.json is not None:
            write_json(options.json, as_json(verification, about, status))
        if options.csv is not None:
            write_table(options.csv, verification)
        if options.plot is not None:
            from plots.axes import save_figure
            from plots.experts import bar_figure

            figure = bar_figure(bars(verification), BAR_LABELS, "accuracy (%)")
            save_figure(options.plot, figure, FIGURE_TITLE)
    except OSError as error:
        raise RunError(f"reports must be writable, got {error}") from error
