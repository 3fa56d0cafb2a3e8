"""One process of a search: takes the next trial, measures it, notes how it ended."""

from __future__ import annotations

import dataclasses
import logging
import os
from typing import Any

from common.errors import InputError, RunError
from sweeps.search.bench import Bench
from sweeps.search.records import COMPLETE, PRUNED, Ended
from sweeps.search.space import Candidate
from sweeps.search.study import Study

logger = logging.getLogger(__name__)


class Pruned(RuntimeError):
    """A trial is behind others of its method; the text says by how much."""


def run_trials(study: Study, bench: Bench) -> bool:
    """Run trials until there is no further one.

    Returns:
        whether the search is over; False if the process that started this one is no more.
    """
    parent = os.getppid()
    while os.getppid() == parent:
        asked = study.ask()
        if asked is None:
            return True
        trial, index, candidate = asked
        logger.info("trial %d: %s, %s", index, candidate.method, candidate.describe())
        ended = _measure(study, bench, trial, index, candidate)
        study.tell(trial, ended)
        logger.info("trial %d: %s", index, describe(ended))
    return False


def describe(ended: Ended) -> str:
    """How a trial ended, in words."""
    if ended.kl is None:
        return f"{ended.method} {ended.state}: {ended.reason}"
    return f"{ended.method} {ended.state}, KL {ended.kl:.4g}"


def _measure(study: Study, bench: Bench, trial: Any, index: int, candidate: Candidate) -> Ended:
    """How a trial ends; an error of its own is its end, not that of the search."""
    failed = study.ending(index, candidate, "")
    try:
        failed = dataclasses.replace(failed, digest=bench.digest(candidate))
        for known in study.ended():
            if known.state == COMPLETE and known.digest == failed.digest:
                return dataclasses.replace(
                    known,
                    **dataclasses.asdict(candidate),
                    index=index,
                    is_default=failed.is_default,
                    same_as=known.index if known.same_as is None else known.same_as,
                )

        def note_part(done: int, kl: float) -> None:
            trial.report(kl, done)
            reason = study.behind(candidate.method, done, kl)
            if reason:
                raise Pruned(reason)

        score = bench.score(candidate, note_part)
    except Pruned as error:
        return dataclasses.replace(failed, state=PRUNED, reason=str(error))
    except (InputError, RunError) as error:
        return dataclasses.replace(failed, reason=_one_line(error))
    except Exception as error:  # one configuration must not end the search
        logger.debug("trial %d", index, exc_info=True)
        return dataclasses.replace(failed, reason=f"{type(error).__name__}: {_one_line(error)}")
    if not score.kl < float("inf"):
        return dataclasses.replace(failed, reason=f"KL must be finite, got {score.kl}")
    return dataclasses.replace(failed, state=COMPLETE, **dataclasses.asdict(score))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
