"""Fits, selects and saves a correction of logits that another program wrote.

The samples are split, the grid is fitted and scored, and tables and plots are made by the code of a
run, so that the figures are those of a run on the same logits.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import InputError
from common.files import atomic_file, atomic_folder, sha256_file, write_json, written_alone
from common.marks import mark, mark_whole, replace_link
from common.provenance import SaveLog, StageClock, current_commit, provenance, utc_now, versions
from common.sealed import write_record
from correction import (
    ClusterAffineCorrection,
    Corrections,
    LoadedCorrection,
    SettingResult,
    fit_grid,
)
from evaluation.inference import Inference
from logits_io.naming import (
    CORRECTED,
    CORRECTION_FILE,
    EVALUATION_FILE,
    FULL_PRECISION,
    QUANTIZED,
    RUN_FILE,
)
from logits_io.runs import promises
from logits_io.tables import write_records
from pipeline.belonging import doubt_of_labels, doubt_of_pair
from pipeline.given_job import NO_LABEL, OWN_FILES, GivenJob
from pipeline.record import replaced_run
from pipeline.results import Results, score_corrections, warn_of_memories, warning_signs
from pipeline.summary import Summary

logger = logging.getLogger(__name__)


@dataclass
class _Kept:
    """The corrected logits of the selected correction; the quantized ones where none is."""

    selected: int
    logits: np.ndarray
    setting: dict[str, Any] = field(default_factory=dict)

    def __call__(self, index: int, result: SettingResult, logits: np.ndarray) -> None:
        if index == self.selected and result.setting is not None:
            self.logits, self.setting = logits, dataclasses.asdict(result.setting)


@dataclass(frozen=True)
class GivenOutcome:
    """The outcome of a correction of given logits.

    Attributes:
        unsaved: what could not be saved, in words.
    """

    results: Results
    unsaved: list[str]


def run_given(job: GivenJob) -> GivenOutcome:
    """Fit, select, score and save.

    Raises:
        InputError: the output folder cannot be written.
    """
    started, clock, saves = utc_now(), StageClock(), SaveLog()
    with written_alone(job.folder):
        _open_folder(job)
        with clock("fit correction"):
            corrections = _corrections(job)
        evaluation = job.evaluation()
        kept = _Kept(corrections.selected, evaluation.logits[QUANTIZED])
        has_labels = job.targets is not None
        with clock("apply corrections"):
            results = score_corrections(corrections, evaluation, kept, has_labels)
        signs = _signs(job, evaluation, results)
        selected = corrections.selected_correction()
        with clock("save"):
            logits = _save(job, results, kept, evaluation, selected, signs, saves)
        record = {
            **_record(job, results, signs, logits, clock, saves),
            "started": started,
            "finished": utc_now(),
        }
        with saves.attempt(RUN_FILE):
            write_record(job.folder / RUN_FILE, record)
    logger.info("written to %s", job.root)
    return GivenOutcome(results, saves.failures)


def _open_folder(job: GivenJob) -> None:
    """Make the folder, without the record of an earlier run, which would call it complete."""
    told = replaced_run(job.folder, job.options.as_record())
    if told is not None:
        logger.info(told)
    try:
        name = job.options.naming
        for folder in (job.folder, job.root / name.summary_folder, job.root / name.logits_folder):
            replace_link(folder)
        job.folder.mkdir(parents=True, exist_ok=True)
        (job.folder / RUN_FILE).unlink(missing_ok=True)
        mark(job.folder, OWN_FILES)
    except OSError as error:
        raise InputError(f"output folder must be writable, got {error}") from error


def _corrections(job: GivenJob) -> Corrections:
    if job.fitting is None:
        assert job.correction is not None
        return LoadedCorrection(job.correction)
    grid = job.options.correction.grid(job.options.seed)
    return fit_grid(job.fitting[QUANTIZED], job.fitting[FULL_PRECISION], grid)


def _signs(job: GivenJob, evaluation: Inference, results: Results) -> dict[str, float]:
    """The signs that fitting and evaluation samples differ; warns of them and of odd pairs."""
    pair = doubt_of_pair(evaluation.logits[QUANTIZED], evaluation.logits[FULL_PRECISION])
    if pair is not None:
        logger.warning(pair)
    if job.targets is not None:
        doubt = doubt_of_labels(evaluation.logits[FULL_PRECISION], job.targets)
        if doubt is not None:
            logger.warning(doubt)
    if job.fitting is None:
        return {}
    none = np.full(len(job.fitting[QUANTIZED]), NO_LABEL)
    signs = warning_signs(Inference(job.fitting, none), evaluation, job.source)
    warn_of_memories(signs, job.source, results, "--fit 0.3 without --fit_quantized")
    return signs


def _save(
    job: GivenJob,
    results: Results,
    kept: _Kept,
    evaluation: Inference,
    selected: ClusterAffineCorrection | None,
    signs: dict[str, float],
    saves: SaveLog,
) -> list[str]:
    """Save the correction, the ids of the rows, the corrected logits, the tables and plots.

    Returns:
        the folders of logits that were written.
    """
    options, name = job.options, job.options.naming
    written = []
    assert selected is not None
    with saves.attempt("the correction"):
        selected.save(job.folder / CORRECTION_FILE)
    with saves.attempt(EVALUATION_FILE), atomic_file(job.folder / EVALUATION_FILE) as part:
        write_records(part, _row_ids(job))
    with saves.attempt("the corrected logits"):
        job.analyzer().save_logits_to_csv(
            name.logits_folder,
            name.file_stem,
            {**evaluation.logits, CORRECTED: kept.logits},
            job.targets,
            _metadata(job, kept, selected),
        )
        written.append(name.logits_folder)
    summary, stem = Summary(results, evaluation, selected, options.seed), name.summary_folder
    with saves.attempt("the summary"), atomic_folder(job.root / stem, mark_whole) as part:
        content = {"rows": results.as_records(), "warning_signs": signs}
        write_json(part / f"{stem}.json", content)
        summary.write_tables(part, stem)
        if options.output.plots:
            summary.draw(part)
    return written


def _row_ids(job: GivenJob) -> list[dict[str, Any]]:
    """For each row of the saved logits: its id, or its row in the given files, and its label."""
    ids, targets = job.saved.ids, job.targets
    return [
        {
            "row": row,
            "image": int(source) if ids is None else ids[source],
            "class": label,
            "label": label,
        }
        for row, source in enumerate(job.rows)
        for label in [None if targets is None else int(targets[row])]
    ]


def _metadata(job: GivenJob, kept: _Kept, selected: ClusterAffineCorrection) -> dict[str, Any]:
    """Metadata row saved with the logits; it holds no time, so equal inputs give equal bytes."""
    return {
        "seed": job.options.seed,
        **{f"digest_of_{kind}": _digest(path) for kind, path in job.options.files.items()},
        "commit": current_commit() or "unknown",
        "versions": " ".join(f"{name}={number}" for name, number in versions().items()),
        **kept.setting,
        "shrinkage": selected.shrinkage,
        "correction_source": job.source,
    }


def _digest(path: Path) -> str:
    """SHA-256 of a file, or of the names and digests of the files of a folder."""
    if not path.is_dir():
        return sha256_file(path)
    files = sorted(file for file in path.iterdir() if file.is_file())
    text = "\n".join(f"{file.name} {sha256_file(file)}" for file in files)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _record(
    job: GivenJob,
    results: Results,
    signs: dict[str, float],
    logits: list[str],
    clock: StageClock,
    saves: SaveLog,
) -> dict[str, Any]:
    """The content of run.json."""
    name, options = job.options.naming, job.options
    samples = len(job.saved.logits[QUANTIZED])
    summary = job.root / name.summary_folder
    tables = [summary / f"{name.summary_folder}{ending}" for ending in (".json", ".csv")]
    corrected = results.corrected
    return {
        **provenance(job.argv),
        "config": options.as_record(),
        "data": {
            "samples": samples,
            "fitted": 0 if job.fitting is None else len(job.fitting[QUANTIZED]),
            "evaluated": results.images,
            "correction_source": job.source,
            "digests": {kind: _digest(path) for kind, path in options.files.items()},
        },
        "labels": results.has_labels,
        "figures": {
            "fullprecision": results.full_precision.as_record(),
            "quantized": results.quantized.as_record(),
            "corrected": None if corrected is None else corrected.as_record(),
        },
        "warning_signs": signs,
        "seconds": clock.seconds,
        "cpu_seconds": clock.cpu_seconds,
        "unsaved": saves.failures,
        **promises(
            job.root,
            name.file_stem,
            logits,
            [*(job.folder / file for file in OWN_FILES[1:]), *tables],
        ),
    }
