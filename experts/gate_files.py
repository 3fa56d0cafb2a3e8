"""The files of gates and rules: what they hold, and whether they fit some experts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.errors import InputError
from common.files import read_torch_file, write_torch_file
from common.marks import listed
from experts.gating import Gate, gate_of, num_features
from experts.selective import Rule

FORMAT, VERSION = "ptq-gate", 1
PRETRAINED, SELECTIVE, ARGSE = "gating_pretrained", "gating_selective", "argse"
UNIFORM, GATE = "uniform", "gate"  # mixtures


@dataclass(frozen=True)
class StoredGate:
    """A gate and the experts that it was trained on.

    Attributes:
        kind: ``PRETRAINED``, ``SELECTIVE`` or ``ARGSE``; the last two hold a rule.
        experts: names in the order of the gate's outputs.
        origins: checkpoint and temperature of each expert's logits, as far as known.
        temperatures: of each expert, fitted on ``tunev``.
        state: the tensors of the gate.
        notes: how it was trained, and how it compares with its baselines on ``val``.
        rule: of the mixture ``GATE``; None without one.
    """

    kind: str
    slug: str
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
        return Rule(
            np.asarray(self.rule["groups"]),
            np.asarray(self.rule["alpha"]),
            np.asarray(self.rule["mu"]),
            float(self.rule["threshold"]),
        )

    def require_fit(
        self, path: Path, experts: Sequence[str], classes: int, origins: Sequence[dict[str, Any]]
    ) -> None:
        """Check that the gate was trained on these experts.

        Raises:
            InputError: number, order, classes, checkpoints or temperatures differ.
        """
        pairs: list[tuple[str, Any, Any]] = [
            ("experts", ", ".join(self.experts), ", ".join(experts)),
            ("classes", self.num_classes, classes),
        ]
        for name, trained, given in zip(experts, self.origins, origins, strict=False):
            pairs += [
                (f"{key} of {name}", trained[key], given[key])
                for key in trained
                if None not in (trained[key], given[key])
            ]
        for what, own, found in pairs:
            if own != found:
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
        InputError: there is none, or it is damaged or of another kind.
    """
    if not path.exists():
        raise InputError(
            f"gate must be in {path}, got no such file; train_gating.py --mode pretrain writes it"
        )
    content = read_torch_file(path)
    names = [part.name for part in dataclasses.fields(StoredGate)]
    known = isinstance(content, dict) and content.get("format") == FORMAT
    if not known or content.get("version") != VERSION or not set(names) <= content.keys():
        raise InputError(f"{path} must be a gate of train_gating.py, got another file")
    stored = StoredGate(**{name: content[name] for name in names})
    width = num_features(len(stored.experts))
    found = stored.state.get("mean")
    if found is None or found.shape != (width,) or len(stored.temperatures) != len(stored.experts):
        raise InputError(f"{path} must hold a gate of {len(stored.experts)} experts, got another")
    try:
        stored.gate()
    except (RuntimeError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path} must hold the tensors of a gate, got: {reason}") from None
    return stored


def is_gate(path: Path) -> bool:
    """Whether a file is one of ``save_gate``."""
    try:
        read_gate(path)
    except (InputError, OSError):
        return False
    return True
