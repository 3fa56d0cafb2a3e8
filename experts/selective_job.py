"""Fits rules that accept or reject, measures them on ``test``, and applies stored ones."""

from __future__ import annotations

import argparse
import csv
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.console import EXIT_OK
from common.errors import InputError
from common.files import atomic_file
from common.marks import listed
from common.names import require_name
from common.torch_setup import require_seed
from experts.console import Console, console_of
from experts.expert_logits import origins, read_experts, read_plain
from experts.gate_files import (
    ARGSE,
    GATE,
    PRETRAINED,
    UNIFORM,
    StoredGate,
    read_gate,
    save_gate,
)
from experts.gating import gate_weights, mixture, posteriors
from experts.gating_job import chosen_experts, gate_path, make_room, require_gate_place
from experts.groups import Groups, make_groups
from experts.risk_coverage import SWEEPS, Scored, accepted_at, areas, curve_of
from experts.selective import (
    Fit,
    Rule,
    Sample,
    accepting,
    fit_argse,
    fit_rule,
    maximum_probability,
)
from experts.selective_report import Measured, print_report, require_own_results, write_results
from experts.splits import list_digest
from experts.stored_splits import StoredSplits
from experts.verify_job import choose_splits

CHOW, CHOW_GROUPS = "maximum probability", "group thresholds"
PLUG_IN, AR_GSE = "plug-in", "AR-GSE"
MIXTURES = (UNIFORM, GATE)


@dataclass(frozen=True)
class _Candidate:
    """A rule on a mixture, with one threshold or one per group of the prediction."""

    name: str
    mixture: str
    rule: Rule
    by_group: bool = False

    def scored(self, sample: Sample) -> Scored:
        predictions = self.rule.predictions(sample.eta)
        of_class = self.rule.of_class
        parts = of_class[predictions] if self.by_group else np.zeros(len(predictions), dtype=int)
        return Scored(
            self.rule.scores(sample.eta),
            predictions != sample.targets,
            parts,
            of_class[sample.targets],
        )


@dataclass(frozen=True)
class _Job:
    """What is checked before anything is computed."""

    options: argparse.Namespace
    kind: str
    splits: StoredSplits
    groups: Groups
    experts: list[str]
    stored: StoredGate
    path: Path
    results: Path

    @property
    def saved(self) -> str:
        """The name of the rule that is saved."""
        return AR_GSE if self.kind == ARGSE else PLUG_IN


def selective(options: argparse.Namespace, kind: str) -> int:
    """Fit rules on ``tunev`` and ``val``, measure them on ``test``; returns the exit status.

    Args:
        kind: ``SELECTIVE`` fits the plug-in rule, ``ARGSE`` its outer loop as well.
    """
    console = console_of(options)
    job = _prepare(options, kind, console)
    samples = _read_samples(job)
    fits = {name: _fitted(samples, name, job) for name in MIXTURES}
    candidates = [each for name in MIXTURES for each in _candidates(name, fits, job.groups)]
    measured = [_measure(each, samples, options.coverage, options.seed) for each in candidates]
    best = fits[GATE][job.saved]
    print_report(console, measured, job.groups, options.coverage)
    if kind == ARGSE and best.rank == fits[GATE][PLUG_IN].rank:
        console.line(f"{AR_GSE} is the plug-in rule here: no round was better on val or tunev")
    console.line(_verdict(measured, job.saved))
    _write(job, measured, _rule_record(best, samples, options))
    console.always(f"written: {job.path}, {job.results}")
    return EXIT_OK


def _prepare(options: argparse.Namespace, kind: str, console: Console) -> _Job:
    """Check everything that is known without the logits.

    Raises:
        InputError: a value, the gate or a place of output is unusable.
    """
    if not 0 < options.coverage <= 1:
        raise InputError(f"coverage must be above 0 and at most 1, got {options.coverage}")
    require_seed(options.seed)
    if options.groups is not None and options.head_above is not None:
        raise InputError(f"head_above must be left out with groups, got {options.head_above}")
    splits, reason = choose_splits(options)
    groups = make_groups(splits.counts, options.groups, options.head_above)
    experts = chosen_experts(options)
    source = options.gate or gate_path(PRETRAINED, splits, None)
    stored = read_gate(source)
    own = {"slug": splits.slug, "num_classes": splits.num_classes}
    own["tunev"] = list_digest(splits.indices("tunev"))
    stored.require_fit(source, experts, origins(options.logits_dir, experts, "tunev"), own)
    path = gate_path(kind, splits, options.output_dir)
    require_gate_place(path, kind, experts, options.force)
    results = options.results_dir / splits.slug / kind
    require_own_results(results, options.force)
    console.line(f"Dataset: {splits.dataset} ({reason}); experts: {', '.join(experts)}")
    console.line(groups.describe())
    return _Job(options, kind, splits, groups, experts, stored, path, results)


def _read_samples(job: _Job) -> dict[str, dict[str, Sample]]:
    """The probabilities of both mixtures on every split."""
    names = ("tunev", "val", "test")
    data = read_experts(job.options.logits_dir, job.experts, names, job.splits)
    for name, found in data.items():
        _require_groups(name, job.groups, found.known_targets())
    return {
        name: _mixtures(job.stored, found.logits, found.known_targets())
        for name, found in data.items()
    }


def _write(job: _Job, measured: Sequence[Measured], rule: dict[str, Any]) -> None:
    about = {
        "kind": job.kind,
        "slug": job.splits.slug,
        "experts": job.experts,
        "classes_by_group": job.groups.lists(),
        "coverage": job.options.coverage,
        "objective": job.options.objective,
        "seed": job.options.seed,
        "saved_rule": rule,
    }
    for folder in (job.results, job.path.parent):
        make_room(folder, job.options.force)
    write_results(job.results, measured, job.groups, about)
    save_gate(job.path, dataclasses.replace(job.stored, kind=job.kind, rule=rule))


def _require_groups(name: str, groups: Groups, targets: np.ndarray) -> None:
    """Check that a split has samples of every group.

    Raises:
        InputError: it has none of one.
    """
    found = np.bincount(groups.of_class[targets], minlength=groups.count)
    for group, number in zip(groups.names, found, strict=True):
        if number == 0:
            raise InputError(f"{name} must have samples of every group, got none of {group}")


def _verdict(measured: Sequence[Measured], saved: str) -> str:
    """How the saved rule compares with maximum probability on the same mixture, in words."""
    own, chow = (
        next(each for each in measured if (each.rule, each.mixture) == (name, GATE)).area("worst")
        for name in (saved, CHOW)
    )
    word = "below" if own.value < chow.value else "not below"
    return (
        f"AURC of the worst group: {own.value:.4f} with the saved rule, {word} "
        f"{chow.value:.4f} with maximum probability on the same gate"
    )


def _mixtures(stored: StoredGate, logits: np.ndarray, targets: np.ndarray) -> dict[str, Sample]:
    """The probabilities of both mixtures of (E, N, C) logits."""
    p = posteriors(logits, stored.temperatures)
    mixed = mixture(gate_weights(stored.gate(), p), p)
    return {UNIFORM: Sample(p.mean(axis=0), targets), GATE: Sample(mixed, targets)}


def _fitted(samples: Mapping[str, Mapping[str, Sample]], name: str, job: _Job) -> dict[str, Fit]:
    """The rules on a mixture by name."""
    options = job.options
    arguments = (samples["tunev"][name], samples["val"][name], job.groups.of_class)
    if job.kind == ARGSE:
        best, rounds = fit_argse(*arguments, options.coverage, options.objective, options.rounds)
        return {PLUG_IN: rounds[0], AR_GSE: best}
    return {PLUG_IN: fit_rule(*arguments, options.coverage, options.objective)}


def _candidates(
    name: str, fits: Mapping[str, Mapping[str, Fit]], groups: Groups
) -> list[_Candidate]:
    plain = maximum_probability(groups.of_class)
    return [
        _Candidate(CHOW, name, plain),
        _Candidate(CHOW_GROUPS, name, plain, by_group=True),
        *(_Candidate(rule, name, fit.rule) for rule, fit in fits[name].items()),
    ]


def _measure(
    candidate: _Candidate,
    samples: Mapping[str, Mapping[str, Sample]],
    coverage: float,
    seed: int,
) -> Measured:
    """Thresholds from ``tunev`` and ``val``, everything else from ``test``."""
    tunev, val, test = (samples[name][candidate.mixture] for name in ("tunev", "val", "test"))
    chosen, applied = candidate.scored(_both(tunev, val)), candidate.scored(test)
    accepted = {sweep: accepted_at(chosen, applied, sweep) for sweep in SWEEPS}
    at_target = accepted_at(chosen, applied, "coverage", np.array([coverage]))
    return Measured(
        candidate.name,
        candidate.mixture,
        {sweep: curve_of(taken, applied) for sweep, taken in accepted.items()},
        {sweep: areas(taken, applied, seed) for sweep, taken in accepted.items()},
        curve_of(at_target, applied),
    )


def _both(tunev: Sample, val: Sample) -> Sample:
    """The samples that thresholds are chosen on."""
    return Sample(
        np.concatenate([tunev.eta, val.eta]), np.concatenate([tunev.targets, val.targets])
    )


def _rule_record(
    fit: Fit, samples: Mapping[str, Mapping[str, Sample]], options: argparse.Namespace
) -> dict[str, Any]:
    both = _both(samples["tunev"][GATE], samples["val"][GATE])
    rule = accepting(fit.rule, both, options.coverage)
    return {
        "groups": rule.of_class.tolist(),
        "alpha": rule.alpha.tolist(),
        "mu": rule.mu.tolist(),
        "threshold": rule.threshold,
        "lambda": fit.offset,
        "weights": fit.weights.tolist(),
        "coverage": options.coverage,
        "objective": options.objective,
        "objective_on_val": fit.objective,
    }


def apply(options: argparse.Namespace) -> int:
    """Apply a stored rule to logits and write what it says of each sample; returns the status."""
    console = console_of(options)
    require_name("split", options.split)
    stored = read_gate(options.apply)
    rule = stored.stored_rule(options.apply)
    experts = stored.experts if options.experts is None else chosen_experts(options)
    found_origins = origins(options.logits_dir, experts, options.split)
    stored.require_fit(options.apply, experts, found_origins)
    data = read_plain(options.logits_dir, experts, options.split, stored.num_classes, stored.slug)
    targets = np.zeros(data.logits.shape[1], dtype=int)
    eta = _mixtures(stored, data.logits, targets)[GATE].eta
    scores, predictions = rule.scores(eta), rule.predictions(eta)
    accepted = scores >= rule.threshold
    path = options.results_dir / stored.slug / stored.kind / f"applied_{options.split}.csv"
    require_own_results(path.parent, options.force, (path.name,))
    make_room(path.parent, options.force)
    _write_decisions(path, data.indices, predictions, accepted, scores)
    console.always(f"{accepted.sum()} of {len(scores)} samples are accepted; written: {path}")
    return EXIT_OK


def _write_decisions(
    path: Path,
    indices: np.ndarray,
    predictions: np.ndarray,
    accepted: np.ndarray,
    scores: np.ndarray,
) -> None:
    columns = (
        indices.tolist(),
        predictions.tolist(),
        accepted.astype(int).tolist(),
        scores.tolist(),
    )
    with listed(path), atomic_file(path) as part, part.open("w", newline="") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(["index", "prediction", "accepted", "score"])
        writer.writerows(zip(*columns, strict=True))
