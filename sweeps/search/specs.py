"""What the engines run for a search: processes that run trials, and the two final runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path
from typing import Any, ClassVar

from common.marks import mark
from common.sealed import read_record, write_record
from logits_io.naming import SWEEP_RUNS
from sweeps.spec import SPEC_LOCK, RunSpec

RUN_SCRIPT = Path(__file__).resolve().parents[2] / "run_script.py"
WORKERS, DONE = "workers", "done.json"
WORKER_FLAG = "--search_worker"
BEST, DEFAULT = "best", "default"  # names of the final runs


@dataclass(frozen=True)
class Worker(RunSpec):
    """A process that runs trials until the search is over.

    Attributes:
        root: folder of the search.
        argv: the command of the search.
        slot: its number, from 0.
    """

    root: Path
    arch: str
    argv: tuple[str, ...]
    slot: int

    method = "search"
    script: ClassVar[Path | None] = RUN_SCRIPT

    @property
    def name(self) -> str:
        return f"process {self.slot} of the search"

    @property
    def folder(self) -> Path:
        return self.root / WORKERS / str(self.slot)

    @property
    def flags(self) -> list[str]:
        own = [WORKER_FLAG, str(self.slot)]
        cut = self.argv.index("--") if "--" in self.argv else len(self.argv)
        return [*self.argv[:cut], *own, *self.argv[cut:]]

    def record(self) -> dict[str, Any] | None:
        """What the process noted at its end; None: it has not ended, or ended early."""
        content = read_record(self.folder / DONE)
        return content if content is not None and content.get("argv") == self.flags else None

    def note_end(self) -> None:
        """Note that there is no further trial."""
        self.folder.mkdir(parents=True, exist_ok=True)
        mark(self.folder, (DONE,))
        write_record(self.folder / DONE, {"argv": self.flags})

    def begin(self) -> None:
        """Forget the end of an earlier process."""
        (self.folder / DONE).unlink(missing_ok=True)


def free_slots(root: Path) -> Iterator[int]:
    """Numbers of the processes of a search that are no more; each is locked while it is used."""
    for folder in sorted((root / WORKERS).glob("*")):
        path = folder / SPEC_LOCK
        if folder.name.isdecimal() and path.is_file() and not path.is_symlink():
            with _try_lock(path) as is_free:
                if is_free:
                    yield int(folder.name)


@contextmanager
def _try_lock(path: Path) -> Iterator[bool]:
    """Lock a file unless another process has it; the block is told."""
    with path.open("rb+") as handle:
        try:
            flock(handle, LOCK_EX | LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


@dataclass(frozen=True)
class FinalRun(RunSpec):
    """The run of one configuration on the evaluation images.

    Attributes:
        root: folder of the search.
        kind: best or default.
        own_flags: all its flags.
    """

    root: Path
    arch: str
    method: str
    kind: str
    own_flags: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.kind} configuration"

    @property
    def folder(self) -> Path:
        return final_folder(self.root, self.kind)

    @property
    def flags(self) -> list[str]:
        return list(self.own_flags)


def final_folder(root: Path, kind: str) -> Path:
    """The output folder of a final run."""
    return root / SWEEP_RUNS / kind


def workers_of(root: Path, arch: str, argv: Sequence[str], count: int) -> list[Worker]:
    """The processes of a search."""
    return [Worker(root, arch, tuple(argv), slot) for slot in range(count)]
