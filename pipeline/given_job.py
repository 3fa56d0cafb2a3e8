"""A correction of logits that another program wrote, with everything read and checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.errors import InputError
from common.files import require_writable
from common.marks import require_replaceable
from correction import ClusterAffineCorrection, plan_grid
from correction.checks import check_logits
from evaluation.inference import Inference
from loaders.plan import split_val
from logits_io import LogitsAnalyzer, SavedLogits
from logits_io.given import read_given
from logits_io.naming import (
    CORRECTION_FILE,
    EVALUATION_FILE,
    GIVEN_FOLDER,
    QUANTIZED,
    RUN_FILE,
)
from logits_io.writer import require_logits_folder
from pipeline.given_options import GivenOptions

OWN_FILES = (RUN_FILE, CORRECTION_FILE, EVALUATION_FILE)
NO_LABEL = -1  # stands where the labels are not known, and is no class


@dataclass(frozen=True)
class GivenJob:
    """A correction of given logits with everything read and checked, and nothing written.

    Attributes:
        saved: all logits that were read.
        rows: the rows of ``saved`` that are evaluated.
        fitting: the logits to fit on; None where a correction is loaded.
        source: where these come from, in the words of ``--correction_source``.
        correction: the one loaded from a file.
    """

    options: GivenOptions
    argv: tuple[str, ...]
    saved: SavedLogits
    rows: np.ndarray
    fitting: dict[str, np.ndarray] | None
    source: str
    correction: ClusterAffineCorrection | None

    @property
    def root(self) -> Path:
        """The folder of all corrections of given logits."""
        return self.options.output.output_dir / GIVEN_FOLDER

    @property
    def folder(self) -> Path:
        """The folder of the correction and the record."""
        return self.root / self.options.naming.run_folder

    @property
    def targets(self) -> np.ndarray | None:
        """The labels of the evaluated rows, if they are known."""
        return None if self.saved.targets is None else self.saved.targets[self.rows]

    def analyzer(self) -> LogitsAnalyzer:
        """The writer of the folder of logits."""
        output = self.options.output
        formats = tuple(dict.fromkeys(output.logits_format))
        return LogitsAnalyzer(self.root, output.chunk_size, formats, output.compression)

    def evaluation(self) -> Inference:
        """The logits of the evaluated rows."""
        logits = {kind: values[self.rows] for kind, values in self.saved.logits.items()}
        unknown = np.full(len(self.rows), NO_LABEL)
        return Inference(logits, unknown if self.targets is None else self.targets)


def prepare_given(options: GivenOptions, argv: Sequence[str] = ()) -> GivenJob:
    """Read and check everything; nothing is written.

    Raises:
        InputError: a file or option is unusable, or a file of the user would be replaced.
    """
    saved = read_given(options.files, options.schema, options.labels)
    for kind, path in options.files.items():
        check_logits(f"{kind} logits of {path}", saved.logits[kind])
    samples, classes = saved.logits[QUANTIZED].shape
    correction = options.correction.loaded(classes)
    fitting, rows, source = None, np.arange(samples), "file"
    if correction is None:
        fitting, rows, source = _split(options, saved)
        plan_grid(options.correction.grid(options.seed), len(fitting[QUANTIZED]), classes)
    job = GivenJob(options, tuple(argv), saved, rows, fitting, source, correction)
    _require_own_output(job)
    return job


def _split(
    options: GivenOptions, saved: SavedLogits
) -> tuple[dict[str, np.ndarray], np.ndarray, str]:
    """The logits to fit on, the rows to evaluate, and where the former come from.

    Raises:
        InputError: there are too few samples, or the classes differ.
    """
    samples, classes = saved.logits[QUANTIZED].shape
    files = options.fitting_files
    if files is None:
        part = split_val(samples, options.fraction, options.seed)
        chosen, rows = saved.logits, np.setdiff1d(np.arange(samples), part)
        source = f"val:{options.fraction:g}"
    else:
        chosen = read_given(files, options.schema, needs_all=False).logits
        found = chosen[QUANTIZED].shape[1]
        if found != classes:
            path = files[QUANTIZED]
            raise InputError(
                f"{path}: must have {classes} classes as {options.quantized}, got {found}"
            )
        part, rows = np.arange(len(chosen[QUANTIZED])), np.arange(samples)
        source = "files"
    if len(rows) == 0:
        raise InputError("evaluation set must keep at least one sample, got all used for fitting")
    count = options.correction.correction_samples or len(part)
    if count > len(part):
        raise InputError(
            f"correction_samples must be at most {len(part)} (the samples to fit on), got {count}"
        )
    return {kind: values[part[:count]] for kind, values in chosen.items()}, rows, source


def _require_own_output(job: GivenJob) -> None:
    """Check, without writing, that the output can be written and replaces no file of the user.

    Raises:
        InputError: it cannot, or would.
    """
    options, name = job.options, job.options.naming
    job.analyzer()
    require_writable(job.root)
    require_replaceable(job.folder, OWN_FILES, force=options.force)
    require_replaceable(job.root / name.summary_folder, None, force=options.force)
    logits = job.root / name.logits_folder
    if not (options.force and logits.is_symlink()):
        require_logits_folder(logits)
