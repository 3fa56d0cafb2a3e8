"""What is known of a trial that has ended, as a record that proves itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from common.errors import InputError
from common.sealed import SEAL, seal_of
from sweeps.search.space import Candidate

COMPLETE, PRUNED, FAILED = "complete", "pruned", "failed"


@dataclass(frozen=True)
class Ended:
    """A trial that has ended.

    Attributes:
        index: its place in the order of the search, from 0.
        is_default: whether it is a method with its defaults.
        state: complete, pruned or failed.
        kl, kl_error, agreement_pct: the score; None without one.
        digest: digest of all settings, those by default among them; equal ones have equal scores.
        same_as: index of an earlier trial of the same configuration, whose result this is.
        reason: why it was pruned or failed, in one line.
    """

    index: int
    method: str
    settings: Mapping[str, Any]
    correction: Mapping[str, Any]
    is_default: bool
    state: str
    kl: float | None = None
    kl_error: float | None = None
    agreement_pct: float | None = None
    digest: str = ""
    same_as: int | None = None
    reason: str = ""

    @property
    def candidate(self) -> Candidate:
        """The configuration of the trial."""
        return Candidate(self.method, self.settings, self.correction)

    @property
    def order(self) -> tuple[int, float, int]:
        """Sorts the best first; of equal ones the earlier."""
        place = (COMPLETE, PRUNED, FAILED).index(self.state)
        return place, math.inf if self.kl is None else self.kl, self.index

    def sealed(self) -> dict[str, Any]:
        """The record with its digest."""
        content = asdict(self)
        return {**content, SEAL: seal_of(content)}


def unsealed_trial(content: Any, where: str) -> Ended:
    """A trial from its record.

    Raises:
        InputError: the record is not as it was written.
    """
    plain = dict(content) if isinstance(content, dict) else {}
    if plain.pop(SEAL, None) != seal_of(plain):
        raise InputError(f"{where} must hold trials as they were written, got a changed one")
    return Ended(**plain)
