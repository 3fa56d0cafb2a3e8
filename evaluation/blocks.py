"""Rows of large arrays, processed in blocks on all cores."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

BLOCK_ROWS = 512  # few enough that the intermediate arrays of a block fit in CPU caches


def blocks(rows: int) -> Iterator[slice]:
    """Yield slices that cover ``rows`` rows in order."""
    for start in range(0, rows, BLOCK_ROWS):
        yield slice(start, min(start + BLOCK_ROWS, rows))


def map_blocks(function: Callable[[slice], T], rows: int) -> list[T]:
    """Apply ``function`` to every block; the results are in order for any number of threads."""
    if rows <= BLOCK_ROWS:
        return [function(block) for block in blocks(rows)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(function, blocks(rows)))
