"""The study of Optuna: its journal file, and which trial comes next.

A trial has an index, its place in the order of the search. The sampler of a trial is seeded by it,
so that one process at a time finds the same trials, whether or not it was killed on the way: a
trial that did not end is begun again under its index.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

from common.errors import InputError, first_line
from common.files import locked
from sweeps.search.records import COMPLETE, FAILED, PRUNED, Ended, unsealed_trial
from sweeps.search.space import METHOD, Candidate, Space

JOURNAL, ASK_LOCK = "journal.log", ".ask.lock"
NAME = "search"  # of the study in the journal
INDEX, SLOT, CANDIDATE, RESULT = "index", "slot", "candidate", "result"  # what a trial notes
FEWEST_RIVALS = 5  # complete trials of a method, before others of it are pruned
SEED_STEP = 1_000_003


def import_optuna() -> Any:
    """The module ``optuna``, which logs warnings only.

    Raises:
        InputError: it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise InputError(
            f"search needs Optuna (pip install -r requirements-search.txt), got: {error}"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


@dataclass(frozen=True)
class Limits:
    """When a search ends: after so many trials or minutes, whichever comes first; None: never."""

    trials: int | None
    minutes: float | None


class Study:
    """The trials of a search in the journal file of a folder, which several processes share.

    Args:
        defaults: method -> its settings by default; these trials come first.
        slot: number of the process that runs trials; None: it runs none.

    Raises:
        InputError: the journal cannot be read.
    """

    def __init__(
        self,
        folder: Path,
        space: Space,
        defaults: Mapping[str, Any],
        limits: Limits,
        seed: int,
        slot: int | None = None,
    ):
        self.optuna = import_optuna()
        self.folder, self.space, self.defaults = folder, space, defaults
        self.limits, self.seed, self.slot = limits, seed, slot
        journal = self.optuna.storages.journal
        path = str(folder / JOURNAL)
        lock = RepairingLock(journal.JournalFileOpenLock(path), folder / JOURNAL)
        with self._readable(), locked(folder / ASK_LOCK):
            lock.acquire()
            lock.release()
            backend = journal.JournalFileBackend(path, lock)
            self.storage = self.optuna.storages.JournalStorage(backend)
            self.study = self.optuna.create_study(
                storage=self.storage, study_name=NAME, direction="minimize", load_if_exists=True
            )

    @contextmanager
    def _readable(self) -> Iterator[None]:
        """Turn what Optuna raises on a damaged journal into one line."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        except (InputError, OSError):
            raise
        except Exception as error:  # noqa: BLE001  (a damaged journal fails in every way)
            reason = first_line(error)
            raise InputError(
                f"{self.folder / JOURNAL} must be a journal as Optuna wrote it, got: {reason}"
            ) from None

    def _trials(self) -> list[Any]:
        with self._readable():
            found: list[Any] = self.study.get_trials(deepcopy=False)
            return found

    def ended(self) -> list[Ended]:
        """The trials that have ended, by index.

        Raises:
            InputError: one is not as it was written.
        """
        found: dict[int, Ended] = {}
        for trial in self._trials():
            if trial.state.is_finished() and RESULT in trial.user_attrs:
                one = unsealed_trial(trial.user_attrs[RESULT], str(self.folder / JOURNAL))
                if self._matches(trial, one):
                    found.setdefault(one.index, one)
        return [found[index] for index in sorted(found)]

    def complete(self) -> list[Any]:
        """Optuna's trials that have a score."""
        complete = self.optuna.trial.TrialState.COMPLETE
        return [trial for trial in self._trials() if trial.state == complete]

    def _matches(self, trial: Any, one: Ended) -> bool:
        """Whether the study knows the end of a trial as its record tells it.

        Raises:
            InputError: the study holds another score.
        """
        states = self.optuna.trial.TrialState
        if trial.state == states.COMPLETE and trial.value != one.kl:
            raise InputError(
                f"{self.folder / JOURNAL} must hold trials as they were written, got another "
                f"score of trial {one.index}"
            )
        known = {COMPLETE: states.COMPLETE, PRUNED: states.PRUNED, FAILED: states.FAIL}
        return bool(trial.state == known[one.state])

    def seconds(self) -> float:
        """Seconds in which trials were running; those that did not end are left out."""
        spans = []
        for trial in self._trials():
            is_running = not trial.state.is_finished() and trial.datetime_start is not None
            if is_running or RESULT in trial.user_attrs:
                spans.append((trial.datetime_start, trial.datetime_complete or datetime.now()))
        return covered_seconds(spans)

    def is_over(self) -> bool:
        """Whether no further trial will begin, and none is missing."""
        return self._next_index(self.ended(), running=frozenset()) is None

    def _next_index(self, ended: Sequence[Ended], running: frozenset[int]) -> int | None:
        """The smallest index without a trial; None: the search is over."""
        taken = {one.index for one in ended} | running
        index = next(i for i in range(len(taken) + 1) if i not in taken)
        if self.limits.trials is not None and index >= self.limits.trials:
            return None
        is_late = self.limits.minutes is not None and self.seconds() >= 60 * self.limits.minutes
        return None if is_late and index >= len(self.defaults) else index

    def ask(self) -> tuple[Any, int, Candidate] | None:
        """Begin the next trial: of Optuna, its index, its configuration; None: there is none."""
        with locked(self.folder / ASK_LOCK), self._readable():
            index = self._next_index(self.ended(), self._running())
            if index is None:
                return None
            self.study.sampler = self.optuna.samplers.TPESampler(
                seed=(self.seed * SEED_STEP + index) % 2**32, multivariate=False
            )
            methods = list(self.defaults)
            is_default = index < len(methods)
            if is_default:
                method = methods[index]
                settings = self.defaults[method]
                self.study.enqueue_trial(self.space.default_values(method, settings))
            trial = self.study.ask()
            if is_default:
                candidate = self.space.suggest_default(trial, method, settings)
            else:
                candidate = self.space.suggest(trial)
            notes = {SLOT: self.slot, INDEX: index, CANDIDATE: asdict(candidate)}
            for name, value in notes.items():
                trial.set_user_attr(name, value)
            return trial, index, candidate

    def _running(self) -> frozenset[int]:
        trials = (trial for trial in self._trials() if not trial.state.is_finished())
        return frozenset(t.user_attrs[INDEX] for t in trials if INDEX in t.user_attrs)

    def tell(self, trial: Any, ended: Ended) -> None:
        """End a trial of ``ask``."""
        states = self.optuna.trial.TrialState
        with locked(self.folder / ASK_LOCK), self._readable():
            trial.set_user_attr(RESULT, ended.sealed())
            if ended.state == COMPLETE:
                self.study.tell(trial, ended.kl)
            else:
                state = states.PRUNED if ended.state == PRUNED else states.FAIL
                self.study.tell(trial, state=state)

    def give_up(self, slots: frozenset[int], reason: str = "") -> int:
        """End the trials of processes that are no more; returns how many.

        Args:
            slots: numbers of the processes.
            reason: why they failed; empty: they are begun again.
        """
        fail, count = self.optuna.trial.TrialState.FAIL, 0
        with locked(self.folder / ASK_LOCK), self._readable():
            for trial in self._trials():
                notes = trial.user_attrs
                if trial.state.is_finished() or notes.get(SLOT) not in {*slots, None}:
                    continue
                if reason and CANDIDATE in notes:
                    ended = self.ending(notes[INDEX], Candidate(**notes[CANDIDATE]), reason)
                    self.storage.set_trial_user_attr(trial._trial_id, RESULT, ended.sealed())
                self.storage.set_trial_state_values(trial._trial_id, state=fail)
                count += 1
        return count

    def ending(self, index: int, candidate: Candidate, reason: str) -> Ended:
        """A trial that failed."""
        is_default = index < len(self.defaults)
        return Ended(index, **asdict(candidate), is_default=is_default, state=FAILED, reason=reason)

    def behind(self, method: str, done: int, kl: float) -> str:
        """Why a trial of a method is to be pruned; empty: it goes on.

        Args:
            done: number of units that are quantized.
            kl: its divergence with these quantized.
        """
        rivals = [
            trial.intermediate_values[done]
            for trial in self.complete()
            if trial.params.get(METHOD) == method and done in trial.intermediate_values
        ]
        if len(rivals) < FEWEST_RIVALS or kl <= median(rivals):
            return ""
        return (
            f"KL {kl:.4g} with {done} units quantized, above the median {median(rivals):.4g} of "
            f"{len(rivals)} trials"
        )


def covered_seconds(spans: Sequence[tuple[datetime, datetime]]) -> float:
    """Length of the union of spans of time, in seconds."""
    total, end = 0.0, -math.inf
    for start, stop in sorted((a.timestamp(), b.timestamp()) for a, b in spans):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total


class RepairingLock:
    """A lock of a journal's writers, each of which finds whole lines.

    Args:
        inner: the lock of Optuna.
        path: the journal.
    """

    def __init__(self, inner: Any, path: Path):
        self.inner, self.path = inner, path

    def acquire(self) -> bool:
        """Wait for the lock, then cut a line that a killed writer did not finish."""
        acquired: bool = self.inner.acquire()
        repair_tail(self.path)
        return acquired

    def release(self) -> None:
        """Let other writers go on."""
        self.inner.release()


def repair_tail(path: Path) -> None:
    """Cut the line at the end of a journal that is not finished."""
    if not path.is_file() or path.stat().st_size == 0:
        return
    with path.open("rb") as handle:
        handle.seek(-1, os.SEEK_END)
        if handle.read(1) == b"\n":
            return
    os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
