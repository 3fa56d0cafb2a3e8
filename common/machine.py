"""What the machine has left: memory and disk."""

from __future__ import annotations

import shutil
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
GB = 1e9


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


def free_disk(folder: Path) -> float:
    """Bytes that can be written below a folder, which need not exist yet."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return float(shutil.disk_usage(existing).free)


def in_gb(size: float) -> str:
    """A number of bytes in words, in the unit that gives it few digits."""
    if size < GB:
        return f"{size / 1e6:.3g} MB"
    return f"{size / GB:.3g} GB"
