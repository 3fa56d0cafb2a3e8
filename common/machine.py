"""What the machine has left, memory and disk, and how a process keeps its memory."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
GB = 1e9
# mallopt's parameters (malloc.h).
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
LARGEST_KEPT = 1 << 30  # bytes; larger blocks go back to the system as soon as they are freed
MOST_KEPT = (1 << 31) - 1  # bytes, the largest value that mallopt takes
MALLOC_VARIABLES = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


def available_memory() -> float:
    """Bytes of memory that can be used without swapping, within the limit of the container.

    Infinity where the system does not say.
    """
    found = [_free_of_machine(), _free_of_container()]
    return min((value for value in found if value is not None), default=float("inf"))


def _free_of_machine() -> float | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    values = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return 1024.0 * int(values[0]) if values else None


def _free_of_container() -> float | None:
    """Limit less use of the control group (version 2) that the process is in; caches are free."""
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        used = int((CGROUP / "memory.current").read_text())
        lines = (CGROUP / "memory.stat").read_text().splitlines()
    except (OSError, ValueError):
        return None
    cached = sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
    return None if limit == "max" else float(int(limit) - used + cached)


def keep_freed_memory() -> bool:
    """Let the process keep the memory that it frees, for the tensors that it makes next.

    By default glibc gives every freed block above 32 MB back to the system, which clears each page
    anew for the next: activations of ImageNet size then cost more time than what computes them.

    Returns:
        Whether it was set: not where the C library is another, nor where the user chose by
        ``MALLOC_MMAP_THRESHOLD_``, ``MALLOC_TRIM_THRESHOLD_`` or ``GLIBC_TUNABLES``.
    """
    if sys.platform != "linux" or any(name in os.environ for name in MALLOC_VARIABLES):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(
        mallopt(parameter, value) == 1
        for parameter, value in ((M_MMAP_THRESHOLD, LARGEST_KEPT), (M_TRIM_THRESHOLD, MOST_KEPT))
    )


def free_disk(folder: Path) -> float:
    """Bytes that can be written below a folder, which need not exist yet."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return float(shutil.disk_usage(existing).free)


def in_gb(size: float) -> str:
    """A number of bytes in words, in the unit that gives it few digits."""
    if size < GB:
        return f"{size / 1e6:.3g} MB"
    return f"{size / GB:.3g} GB"
