"""The files of gates and rules: what they hold, and whether they fit some experts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.errors import InputError
from common.files import read_torch_file, write_torch_file
from common.marks import listed
from experts.expert_logits import ORIGIN
from experts.gating import Gate, gate_of
from experts.selective import Rule

FORMAT, VERSION = "ptq-gate", 1
PRETRAINED, SELECTIVE, ARGSE = "gating_pretrained", "gating_selective", "argse"
MOST_SHOWN = 120  # letters of a value in an error text
KINDS = (PRETRAINED, SELECTIVE, ARGSE)
UNIFORM, GATE = "uniform", "gate"  # mixtures


@dataclass(frozen=True)
class StoredGate:
    """A gate and the experts that it was trained on.

    Attributes:
        kind: one of ``KINDS``; the last two hold a rule.
        tunev: ``list_digest`` of the indices of ``tunev``, on which it was trained.
        experts: names in the order of the gate's outputs.
        origins: checkpoint and temperature of each expert's logits, as far as known.
        temperatures: of each expert, fitted on ``tunev``.
        state: the tensors of the gate.
        notes: how it was trained, and how it compares with its baselines on ``val``.
        rule: of the mixture ``GATE``; None without one.
    """

    kind: str
    slug: str
    tunev: str
    num_classes: int
    experts: list[str]
    origins: list[dict[str, Any]]
    temperatures: list[float]
    state: dict[str, torch.Tensor]
    notes: dict[str, Any] = field(default_factory=dict)
    rule: dict[str, Any] | None = None

    def gate(self) -> Gate:
        return gate_of(self.state, len(self.experts))

    def stored_rule(self, path: Path) -> Rule:
        """The rule.

        Raises:
            InputError: the file holds none.
        """
        if self.rule is None:
            raise InputError(
                f"{path} must hold a rule of train_gating.py --mode selective or train_argse.py, "
                "got a gate alone"
            )
        alpha, mu = np.asarray(self.rule["alpha"]), np.asarray(self.rule["mu"])
        return Rule(np.asarray(self.rule["groups"]), alpha, mu, float(self.rule["threshold"]))

    def require_fit(
        self,
        path: Path,
        experts: Sequence[str],
        origins: Sequence[dict[str, Any]],
        splits: dict[str, Any] | None = None,
    ) -> None:
        """Check that the gate was trained on these experts.

        Args:
            splits: slug, num_classes and tunev, as the gate must have them; None: not compared.

        Raises:
            InputError: number, order, classes, checkpoints, temperatures or splits differ.
        """
        pairs: list[tuple[str, Any, Any]] = [
            (key, getattr(self, key), value) for key, value in (splits or {}).items()
        ]
        pairs.insert(0, ("experts", ", ".join(self.experts), ", ".join(experts)))
        for name, trained, given in zip(experts, self.origins, origins, strict=False):
            pairs += [
                (f"{key} of {name}", trained[key], given[key])
                for key in trained
                if None not in (trained[key], given[key])
            ]
        for what, own, found in pairs:
            if own != found:
                own, found = (str(value)[:MOST_SHOWN] for value in (own, found))
                raise InputError(f"{what} must be as in the gate {path}: {own}, got {found}")


def save_gate(path: Path, stored: StoredGate) -> None:
    """Write the file and list it as the suite's.

    Raises:
        OSError: the disk is full or not writable.
    """
    with listed(path):
        write_torch_file(path, {"format": FORMAT, "version": VERSION, **_fields(stored)})


def _fields(stored: StoredGate) -> dict[str, Any]:
    return {part.name: getattr(stored, part.name) for part in dataclasses.fields(stored)}


def read_gate(path: Path) -> StoredGate:
    """Read a file of ``save_gate``.

    Raises:
        InputError: there is none, or it is damaged, of another kind, or holds impossible values.
    """
    if not path.exists():
        raise InputError(
            f"gate must be in {path}, got no such file; train_gating.py --mode pretrain writes it"
        )
    content = read_torch_file(path)
    names = [part.name for part in dataclasses.fields(StoredGate)]
    if not isinstance(content, dict) or str(content.get("format")) != FORMAT:
        raise InputError(f"{path} must be a gate of train_gating.py, got another file")
    if not {"version", *names} <= content.keys() or str(content["version"]) != str(VERSION):
        raise InputError(f"{path} must be a gate of this version, got another; train it again")
    stored = StoredGate(**{name: content[name] for name in names})
    for what, is_sound in _SOUND.items():
        try:
            good = is_sound(stored)
        except Exception:  # noqa: BLE001  (values of any type fail in every possible way)
            good = False
        if not good:
            raise InputError(f"{path} must be a whole gate, got impossible {what}")
    return stored


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value != "" and not set(value) & set("/\\\0")


def _are_numbers(values: Any, count: int, positive: bool) -> bool:
    return (
        isinstance(values, list)
        and len(values) == count
        and all(isinstance(v, float) and math.isfinite(v) for v in values)
        and (not positive or min(values) > 0)
    )


def _is_state(stored: StoredGate) -> bool:
    gate = stored.gate()
    tensors = stored.state.values()
    return all(bool(torch.isfinite(value).all()) for value in tensors) and bool(
        (gate.deviation > 0).all()
    )


def _is_rule(stored: StoredGate) -> bool:
    rule = stored.rule
    if rule is None:
        return stored.kind == PRETRAINED
    groups = rule["groups"]
    count = len(set(groups))
    return (
        stored.kind != PRETRAINED
        and all(type(group) is int for group in groups)
        and len(groups) == stored.num_classes
        and set(groups) == set(range(count))
        and _are_numbers(rule["alpha"], count, positive=True)
        and _are_numbers(rule["mu"], count, positive=False)
        and type(rule["threshold"]) is float
        and rule["threshold"] < math.inf
    )


# What a file holds -> whether it can be true.
_SOUND: dict[str, Callable[[StoredGate], bool]] = {
    "kind": lambda stored: stored.kind in KINDS,
    "slug": lambda stored: _is_name(stored.slug) and isinstance(stored.tunev, str),
    "number of classes": lambda stored: type(stored.num_classes) is int and stored.num_classes > 1,
    "experts": lambda stored: (
        isinstance(stored.experts, list)
        and all(map(_is_name, stored.experts))
        and 0 < len(set(stored.experts)) == len(stored.experts)
    ),
    "origins": lambda stored: (
        len(stored.origins) == len(stored.experts)
        and all(origin.keys() == set(ORIGIN) for origin in stored.origins)
    ),
    "temperatures": lambda stored: _are_numbers(
        stored.temperatures, len(stored.experts), positive=True
    ),
    "tensors": _is_state,
    "notes": lambda stored: isinstance(stored.notes, dict),
    "rule": _is_rule,
}


def is_gate(path: Path, kind: str) -> bool:
    """Whether a file is one of ``save_gate``, of this kind."""
    try:
        return read_gate(path).kind == kind
    except (InputError, OSError):
        return False
