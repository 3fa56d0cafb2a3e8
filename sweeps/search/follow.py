"""Tells which trials end while other processes run them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from common.errors import InputError
from sweeps.search.study import Study
from sweeps.search.trials import describe

INTERVAL = 1.0  # seconds between two looks at the journal

logger = logging.getLogger(__name__)


@contextmanager
def followed(study: Study) -> Iterator[None]:
    """Log each trial that ends while the block runs."""
    seen = {one.index for one in study.ended()}
    if seen:
        logger.info("search: %d trials ended before", len(seen))
    stop = threading.Event()

    def look() -> None:
        for one in study.ended():
            if one.index not in seen:
                seen.add(one.index)
                total = "" if study.limits.trials is None else f" of {study.limits.trials}"
                text = f"{describe(one)}, {one.candidate.describe()}"
                logger.info("trial %d, %d%s: %s", one.index, len(seen), total, text)

    def follow() -> None:
        with suppress(InputError):  # which the end of the block raises again
            while not stop.wait(INTERVAL):
                look()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    look()
