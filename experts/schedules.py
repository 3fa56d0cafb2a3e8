"""The experts, and the training schedule of each on each data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from common.errors import InputError, closest_names

EXPERTS = {
    "ce_baseline": "ce",
    "balsoftmax_baseline": "balsoftmax",
    "logitadjust_baseline": "logitadjust",
    "decoupling_twostage": "decoupling",
}
TWO_STAGES = "decoupling"
GAMMA = 0.1  # factor on the learning rate at every milestone
MOMENTUM = 0.9


@dataclass(frozen=True)
class Schedule:
    """SGD of one stage.

    Attributes:
        milestones: epochs after which the learning rate is multiplied by ``GAMMA``; empty: it falls
            to 0 along half a cosine.
        dropout: probability of dropping a channel.
    """

    epochs: int
    lr: float
    weight_decay: float
    milestones: tuple[int, ...] = ()
    dropout: float = 0.1
    batch_size: int = 128

    def over(self, epochs: int) -> Schedule:
        """The same schedule stretched over another number of epochs."""
        scaled = {max(1, round(m * epochs / self.epochs)) for m in self.milestones}
        return replace(self, epochs=epochs, milestones=tuple(sorted(scaled)))

    def describe(self) -> str:
        drops = (
            f"a tenth after {', '.join(map(str, self.milestones))}" if self.milestones else "cosine"
        )
        return (
            f"{self.epochs} epochs, lr {self.lr:g} ({drops}), weight decay {self.weight_decay:g}, "
            f"dropout {self.dropout:g}, batch {self.batch_size}"
        )


_CIFAR = {
    "ce": Schedule(256, 0.1, 1e-4, (96, 192, 224)),
    "balsoftmax": Schedule(256, 0.1, 5e-4, (96, 192, 224)),
    "logitadjust": Schedule(256, 0.1, 5e-4, (160, 180)),
    "decoupling": Schedule(256, 0.1, 1e-4, (96, 192, 224)),
}
_DIGITS = Schedule(40, 0.05, 5e-4, (24, 34), batch_size=64)
_HEAD = Schedule(30, 0.1, 5e-4)


@dataclass(frozen=True)
class Overrides:
    """Changes to the default schedules; None: no change.

    ``epochs``, ``lr`` and ``dropout`` apply to the first or only stage, ``stage2_epochs`` to the
    second, the others to both.
    """

    epochs: int | None = None
    lr: float | None = None
    batch_size: int | None = None
    weight_decay: float | None = None
    dropout: float | None = None
    stage2_epochs: int | None = None

    def require_sane(self) -> None:
        """Check every number.

        Raises:
            InputError: one is out of range.
        """
        ranges = {
            **dict.fromkeys(("epochs", "stage2_epochs", "batch_size"), (1, 10**9)),
            "lr": (1e-12, 1e3),
            "weight_decay": (0.0, 1e3),
            "dropout": (0.0, 0.999),
        }
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise InputError(f"{name} must be from {low:g} to {high:g}, got {value}")

    def _shared(self, *names: str) -> dict[str, Any]:
        given = {name: getattr(self, name) for name in names}
        return {name: value for name, value in given.items() if value is not None}

    def first(self, dataset: str) -> dict[str, Schedule]:
        """The schedules of the first or only stage, by kind of expert."""
        changes = self._shared("lr", "batch_size", "weight_decay", "dropout")
        table = dict.fromkeys(_CIFAR, _DIGITS) if dataset == "digits" else _CIFAR
        return {
            kind: replace(schedule.over(self.epochs or schedule.epochs), **changes)
            for kind, schedule in table.items()
        }

    def second(self, dataset: str) -> Schedule:
        """The schedule of the second stage, which trains the head."""
        size = _DIGITS.batch_size if dataset == "digits" else _HEAD.batch_size
        schedule = replace(_HEAD, batch_size=size).over(self.stage2_epochs or _HEAD.epochs)
        return replace(schedule, **self._shared("batch_size", "weight_decay"))


def expert_names(asked: Sequence[str]) -> list[str]:
    """Full names of experts given by name or key (``ce``), without repeats; ``all``: every expert.

    Raises:
        InputError: a name is unknown; the error gives the closest known one.
    """
    if "all" in asked:
        return list(EXPERTS)
    by_key = {kind: name for name, kind in EXPERTS.items()}
    return list(dict.fromkeys(known_expert(by_key.get(name, name)) for name in asked))


def known_expert(name: str) -> str:
    """Return ``name`` if it is the full name of an expert.

    Raises:
        InputError: it is unknown; the error gives the closest known name.
    """
    if name in EXPERTS:
        return name
    raise InputError(
        f"expert must be one of {', '.join(EXPERTS)}, got {name!r}; did you mean "
        f"{closest_names(name, EXPERTS)[0]}?"
    )
