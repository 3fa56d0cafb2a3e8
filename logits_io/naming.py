"""Every folder and file name of a run, except those of its units (quant.network.states)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from common.errors import InputError

QUANTIZED = "quantized"
FULL_PRECISION = "fullprecision"
CORRECTED = "corrected"
TARGETS = "targets"

METADATA_ENDING = "_metadata.csv"
CHUNKED_ENDING = "_chunked_metadata.csv"

# Below the root of a method, and in the folder of a run.
RUN_FILE = "run.json"  # written last, so that it marks the run as complete

# In the folder of a run.
MODEL_FILE = "quantized_model.pt"
CORRECTION_FILE = "correction.npz"
ONNX_FILE = "quantized_model.onnx"
EXPORT_REPORT_FILE = "export_report.json"
CONFIG_FILE = "config.yaml"
CALIBRATION_FILE = "calibration_ids.json"
EVALUATION_FILE = "evaluation_ids.csv"
PAGE_FILE = "report.html"
LOG_FILE = "run.log"
STATE_FOLDER = "state"
TENSORBOARD_FOLDER = "tensorboard"

# Endings of the files that are copied last to remote storage, as they mark a folder as complete.
LAST_FILES = (METADATA_ENDING, RUN_FILE)

# Below the output folder, for all methods.
CACHE_FOLDER = "cache"
SWEEP_FILE, SWEEP_RUNS = "sweep_summary.csv", "runs"  # a row per run; their folders
GIVEN_FOLDER = "correction"  # of the results on logits of other programs
RUN_PREFIXES = ("run_", "initial_logits_", "results_alpha", "logits_summary_")
CACHED_LOGITS = re.compile(r"logits_[0-9a-f]{16}\.(npy|lock)")  # of the float network


Number = int | str  # a whole number, or its text in a table

LONGEST_STEM = 200  # bytes
LONGEST_FOLDER = 200
LONGEST_PART = 120  # bytes of an architecture in a file name, which has up to 255


def file_name(arch: str) -> str:
    """An architecture as part of a file name: ``timm/x`` and ``nets.py:x`` have ``_`` instead.

    A digest stands for the end of a long one, such as one with a whole path.
    """
    name = re.sub(r"[^\w.-]+", "_", arch).strip("._")
    encoded = name.encode()
    if len(encoded) <= LONGEST_PART:
        return name
    digest = hashlib.sha256(arch.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return f"{encoded[: LONGEST_PART - 9].decode(errors='ignore')}_{digest}"


def grid_run(arch: str, method: str, n_bits_w: Number, n_bits_a: Number, seed: Number) -> str:
    """The name of a run of a sweep, which is its folder below ``runs`` as well."""
    return f"{file_name(arch)}/{method}_w{n_bits_w}a{n_bits_a}_seed{seed}"


def is_of_runs(name: str) -> bool:
    """Whether runs give such a name to a folder or file of their own."""
    return name == RUN_FILE or name.startswith(RUN_PREFIXES)


def cached_logits_file(key: str) -> str:
    """The file in a cache that holds the float network's logits; ``key`` says of what and how."""
    return f"logits_{hashlib.sha256(key.encode()).hexdigest()[:16]}.npy"


@dataclass(frozen=True)
class RunName:
    """The values that distinguish runs below one root, and the names made from them.

    ``arch`` is in the form of ``file_name``.
    """

    arch: str
    n_bits_w: int
    n_bits_a: int
    seed: int

    @property
    def bits(self) -> str:
        return f"w{self.n_bits_w}bit_a{self.n_bits_a}bit"

    @property
    def tag(self) -> str:
        return f"{self.arch}_{self.bits}_seed{self.seed}"

    @property
    def run_folder(self) -> str:
        """Folder of the quantized model, the settings and the record of the run."""
        return f"run_{self.tag}"

    @property
    def initial_folder(self) -> str:
        return f"initial_logits_{self.tag}"

    @property
    def summary_folder(self) -> str:
        return f"logits_summary_{self.tag}"

    def results_folder(self, alpha: float, num_clusters: int, pca_dim: int) -> str:
        return f"results_alpha{alpha}_clusters{num_clusters}_pca{pca_dim}_{self.arch}_{self.bits}"

    def sweep_folder(self, method: str) -> str:
        """Default folder of the validation at random bits per layer."""
        return f"bitwidth_sweep_{self.arch}_{method}_seed{self.seed}"

    @property
    def file_stem(self) -> str:
        """Beginning of the file names in a logits folder."""
        return f"logits_{self.tag}"


@dataclass(frozen=True)
class GivenName:
    """Names of what is made from logits of another program; ``name`` as from ``file_name``."""

    name: str
    seed: int

    @property
    def tag(self) -> str:
        return f"{self.name}_seed{self.seed}"

    @property
    def run_folder(self) -> str:
        """Folder of the correction, the ids of the rows and the record."""
        return f"run_{self.tag}"

    @property
    def logits_folder(self) -> str:
        return f"corrected_logits_{self.tag}"

    @property
    def summary_folder(self) -> str:
        return f"logits_summary_{self.tag}"

    @property
    def file_stem(self) -> str:
        """Beginning of the file names in the folder of logits."""
        return f"logits_{self.tag}"


def whole_file(stem: str, kind: str, ending: str) -> str:
    return f"{stem}_{kind}{ending}"


def chunk_file(stem: str, kind: str, index: int, count: int, ending: str) -> str:
    """Name of chunk ``index`` (from 1) of ``count``."""
    return f"{stem}_{kind}_chunk{index:03d}_of_{count:03d}{ending}"


def metadata_file(stem: str) -> str:
    return f"{stem}{METADATA_ENDING}"


def chunk_metadata_file(stem: str) -> str:
    return f"{stem}{CHUNKED_ENDING}"


def file_pattern(stem: str, kinds: Iterable[str]) -> re.Pattern[str]:
    """The names that files of a stem and of one of ``kinds`` may have."""
    named = "|".join(map(re.escape, kinds))
    return re.compile(rf"{re.escape(stem)}_({named})(_chunk\d+_of_\d+)?\.[a-z0-9]+(\.gz|\.zst)?")


def find_stems(folder: Path) -> list[str]:
    """The sorted stems in a logits folder, taken from the names of its metadata files."""
    return sorted(
        path.name.removesuffix(METADATA_ENDING)
        for path in folder.glob(f"logits_*{METADATA_ENDING}")
        if not path.name.endswith(CHUNKED_ENDING)
    )


def owner(name: str, stems: Iterable[str]) -> str | None:
    """The stem that a file belongs to: the longest one that its name begins with, else None."""
    found = [stem for stem in stems if name.startswith(f"{stem}_")]
    return max(found, key=len) if found else None


def require_stem(stem: str) -> None:
    """Check a stem, the beginning of file names.

    Raises:
        InputError: ``find_stems`` would not find it again, or it is too long.
    """
    is_long = len(stem.encode("utf-8", "surrogatepass")) > LONGEST_STEM
    if not re.fullmatch(r"logits_[\w.-]+", stem) or stem.endswith("_chunked") or is_long:
        raise InputError(f"stem must be logits_ and letters, digits, _ . or -, got {stem!r}")


def require_kind(kind: str) -> None:
    """Check the name of a kind of logits.

    Raises:
        InputError: it could be mistaken for another part of a file name.
    """
    if not re.fullmatch(r"[A-Za-z0-9-]{1,50}", kind) or kind in (TARGETS, "metadata"):
        raise InputError(f"kind must be letters, digits or -, and not {TARGETS}, got {kind!r}")


def require_folder(name: str | Path) -> None:
    """Check the name of a folder below the root.

    Raises:
        InputError: it is the root itself, leads out of it, or is too long.
    """
    parts = PurePosixPath(name).parts
    is_long = any(len(p.encode("utf-8", "surrogatepass")) > LONGEST_FOLDER for p in parts)
    outside = not parts or ".." in parts or PurePosixPath(name).is_absolute()
    if outside or is_long or "\0" in str(name):
        raise InputError(
            f"folder must be a name below the root, got {str(name)[:LONGEST_FOLDER]!r}"
        )
