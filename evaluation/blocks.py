"""Rows of large arrays, a block at a time, on all cores."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

BLOCK_ROWS = 512  # rows whose intermediate arrays stay in the caches of a CPU


def blocks(rows: int) -> Iterator[slice]:
    """Slices that cover ``rows`` rows in order."""
    for start in range(0, rows, BLOCK_ROWS):
        yield slice(start, min(start + BLOCK_ROWS, rows))


def map_blocks(function: Callable[[slice], T], rows: int) -> list[T]:
    """``function`` of every block, in order whatever the number of threads."""
    if rows <= BLOCK_ROWS:
        return [function(block) for block in blocks(rows)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(function, blocks(rows)))
