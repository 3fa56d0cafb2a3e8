"""The runs of a sweep: each is defined by its flags, and its state is read from its files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from common.console import EXIT_UNSAVED
from common.errors import InputError
from common.marks import mark
from common.sealed import read_record, write_record
from logits_io.naming import RUN_FILE, SWEEP_RUNS, grid_run
from logits_io.runs import broken_promises, read_run

FAILURE = "failed.json"
LOG = "log.txt"
SPEC_LOCK = ".lock"  # in the folder of a run that was started; held while it runs
DEFAULT_METHODS = ("adaround",)
DEFAULT_BITS = ((2, 2), (4, 2), (2, 4), (4, 4))
DEFAULT_SEEDS = tuple(range(1001, 1011))
DEFAULT_ALPHAS = (0.2, 0.4, 0.6)
CORRECTION_LISTS = ("alpha_list", "num_clusters_list", "pca_dim_list")
NO_CORRECTION = "__no_correction"  # --no-correction, with underscores for dashes
SET_BY_GRID = frozenset(
    (
        "quant_method",
        "arch",
        "n_bits_w",
        "n_bits_a",
        "seed",
        "output_dir",
        *CORRECTION_LISTS,
    )
)
OTHER_NAMES = {"b": "n_bits_w", "model": "arch", "s": "scalar", "num_bits": "n_bits_w"}
EXAMPLE = "digits_resnet"
# Networks for few classes, which use the default strengths of main_imagenet.py.
FEW_CLASSES = (EXAMPLE, "cifar_", "lenet", "expert_")


class RunSpec(ABC):
    """One run of main_imagenet.py, or of another script.

    Attributes:
        script: the other script; None: main_imagenet.py.
    """

    arch: str
    method: str
    script: ClassVar[Path | None] = None

    @property
    @abstractmethod
    def name(self) -> str:
        """A readable name of the run."""

    @property
    @abstractmethod
    def folder(self) -> Path:
        """Output folder of the run."""

    @property
    @abstractmethod
    def flags(self) -> list[str]:
        """The flags for main_imagenet.py; equal flags mean the same run."""

    def record(self) -> dict[str, Any] | None:
        """The record of the finished run with these flags; None if there is none.

        A run is finished when all that its record promises is there and whole.
        """
        root = self.folder / self.method
        content = read_run(root / RUN_FILE)
        if content is None or content["argv"] != self.flags or content.get("unsaved"):
            return None
        return None if broken_promises(root, content) else content

    def failure(self) -> dict[str, Any] | None:
        """The recorded failure of an earlier run with these flags; None if there is none."""
        content = read_record(self.folder / FAILURE)
        return content if content is not None and self._is_failure(content) else None

    def _is_failure(self, content: Mapping[str, Any]) -> bool:
        log = content.get("log")
        return (
            content.get("argv") == self.flags
            and isinstance(content.get("status"), int)
            and isinstance(log, list)
            and all(isinstance(line, str) for line in log)
        )

    def reason(self) -> str:
        """The last line of the log of a run that failed; empty if it did not, or said nothing."""
        lines = (self.failure() or {"log": ()})["log"]
        return next((line for line in reversed(lines) if line.strip()), "")

    def note_failure(self, status: int, tail: Sequence[str]) -> None:
        """Record that the run failed.

        Args:
            status: exit status.
            tail: last lines of the log.
        """
        content = {"argv": self.flags, "status": status, "log": list(tail)}
        mark(self.folder, (FAILURE,))
        write_record(self.folder / FAILURE, content)

    def is_unsaved(self) -> bool:
        """Whether the run ended, but could not save everything; it is worth another try."""
        failure = self.failure()
        return failure is not None and failure["status"] == EXIT_UNSAVED

    def state(self) -> str:
        """``finished``, ``failed`` or ``open``."""
        if self.record() is not None:
            return "finished"
        return "failed" if self.failure() is not None else "open"


def arch_flags(arch: str) -> list[str]:
    """The flags that name an architecture; none for the embedded example."""
    return [] if arch == EXAMPLE else ["--arch", arch]


@dataclass(frozen=True)
class GridRun(RunSpec):
    """A point of the grid.

    Attributes:
        root: folder of the sweep.
        options: flags common to all runs, placed after those of the run itself.
    """

    root: Path
    arch: str
    method: str
    n_bits_w: int
    n_bits_a: int
    seed: int
    options: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return grid_run(self.arch, self.method, self.n_bits_w, self.n_bits_a, self.seed)

    @property
    def folder(self) -> Path:
        return self.root / SWEEP_RUNS / self.name

    @property
    def flags(self) -> list[str]:
        bits = ["--n_bits_w", str(self.n_bits_w), "--n_bits_a", str(self.n_bits_a)]
        return [
            "--quant_method",
            self.method,
            *arch_flags(self.arch),
            *bits,
            "--seed",
            str(self.seed),
            "--output_dir",
            str(self.folder),
            *self.options,
        ]


@dataclass(frozen=True)
class Grid:
    """What a sweep varies.

    Attributes:
        bits: pairs of weight and activation bits.
        correction: flag of the correction's grid -> values; without ``alpha_list`` it is
            ``DEFAULT_ALPHAS``, the others are then those that main_imagenet.py chooses.
    """

    archs: Sequence[str]
    methods: Sequence[str] = DEFAULT_METHODS
    bits: Sequence[tuple[int, int]] = DEFAULT_BITS
    seeds: Sequence[int] = DEFAULT_SEEDS
    correction: Mapping[str, Sequence[float] | None] | None = None

    def runs(self, root: Path, extra: Sequence[str]) -> list[GridRun]:
        """All runs, ordered by seed, so that every setting gets a first result early."""
        cache = ("--cache_dir", str(root / "cache"))
        return [
            GridRun(root, arch, method, *bits, seed, (*self._options(arch, extra), *cache, *extra))
            for arch in self.archs
            for seed in self.seeds
            for method in self.methods
            for bits in self.bits
        ]

    def _options(self, arch: str, extra: Sequence[str]) -> list[str]:
        flags = ["--no-plots", "--save_results", "selected"]
        if NO_CORRECTION in (flag.replace("-", "_") for flag in extra):
            return flags
        alphas = () if arch.startswith(FEW_CLASSES) else DEFAULT_ALPHAS
        given = self.correction or {}
        for name in CORRECTION_LISTS:
            values = given.get(name) or (alphas if name == "alpha_list" else ())
            if values:
                flags += [f"--{name}", *map(number_text, values)]
        return flags


def number_text(value: float) -> str:
    """A number as a flag's value: in up to six digits where these say it exactly, else in full."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def parse_bits(text: str) -> tuple[int, int]:
    """Turn ``4,2`` into (4, 2), the bits of weights and activations.

    Raises:
        InputError: ``text`` is not two whole numbers.
    """
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdigit() for part in parts):
        raise InputError(f"bits must be W,A as in 4,2, got {text!r}")
    return int(parts[0]), int(parts[1])


def require_free(extra: Sequence[str], taken: Collection[str]) -> None:
    """Check that the flags passed to every run set nothing that the sweep sets.

    Args:
        extra: flags after ``--``, with dashes or underscores.
        taken: flags that the sweep sets.

    Raises:
        InputError: one of them is set by the sweep.
    """
    for argument in extra:
        flag = argument.partition("=")[0]
        name = flag.lstrip("-").replace("-", "_")
        if flag.startswith("-") and OTHER_NAMES.get(name, name) in taken:
            raise InputError(f"{flag} must be left out after --, because the sweep sets it")
