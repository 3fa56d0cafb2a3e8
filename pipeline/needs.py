"""Disk that a run takes: how much, whether it is there, and which corrections are saved."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from common.errors import InputError
from common.machine import free_disk, in_gb
from correction.selection import GLOBAL_LINE
from logits_io.formats import FORMATS
from pipeline.job import Job

MOST_RESULTS = 2e9  # bytes up to which the logits of all corrections are saved without a flag
OTHER_BYTES = 5e6  # plots, tables and records

logger = logging.getLogger(__name__)


def logits_bytes(count: int, classes: int, formats: Sequence[str], corrections: int) -> float:
    """Bytes of the saved logits of ``count`` images: both networks' and those of corrections."""
    values = count * classes * (2 + corrections)
    return values * sum(FORMATS[name].value_bytes for name in dict.fromkeys(formats))


def saves_all(job: Job) -> bool:
    """Whether the logits of all corrections are saved, or of the selected one alone."""
    choice = job.options.output.save_results
    return choice == "all" or (choice == "auto" and _bytes(job, _settings(job)) <= MOST_RESULTS)


def require_disk(job: Job) -> None:
    """Log what the results of a run take, and check that the disk has it.

    Raises:
        InputError: the disk is too small.
    """
    saved = _settings(job) if saves_all(job) else min(1, _settings(job))
    needed = _bytes(job, saved) + OTHER_BYTES
    if job.options.output.save_results == "auto" and not saves_all(job):
        logger.info(
            "save_results: selected, because the logits of all %d corrections would take %s",
            _settings(job),
            in_gb(_bytes(job, _settings(job))),
        )
    logger.info("plan: results take about %s of disk", in_gb(needed))
    free = free_disk(job.root)
    if free < needed:
        advice = " (--save_results selected takes less)" if saved > 1 else ""
        raise InputError(
            f"disk of {job.root} must have {in_gb(needed)} free for the results, got "
            f"{in_gb(free)}{advice}"
        )


def _bytes(job: Job, corrections: int) -> float:
    formats = job.options.output.logits_format
    return logits_bytes(len(job.plan.evaluation), job.model.num_classes, formats, corrections)


def _settings(job: Job) -> int:
    """Number of corrections whose logits may be saved: the grid and the global line."""
    if job.shape is None:
        return int(job.correction is not None)
    return len({*job.shape.settings(), GLOBAL_LINE})
