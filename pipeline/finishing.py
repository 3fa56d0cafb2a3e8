"""The last stages of a run: its summary, page and record."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from common.errors import InputError
from common.files import atomic_file, atomic_folder, write_json
from common.marks import mark_whole
from correction import Corrections
from evaluation.inference import Inference
from logits_io.naming import EVALUATION_FILE, FULL_PRECISION, PAGE_FILE, QUANTIZED
from logits_io.tables import write_records
from pipeline.context import Context
from pipeline.images import Change, changed_images, image_rows
from pipeline.page import RunPage, write_page
from pipeline.record import Outline, copy_to_url, run_record, write_record
from pipeline.summary import Summary
from quant import QuantModel, bits_by_tensor

logger = logging.getLogger(__name__)


def save_summary(
    context: Context,
    outline: Outline,
    corrections: Corrections,
    evaluation: Inference,
    quantized: QuantModel,
) -> Summary:
    """Write the tables and plots of the run, and the names of its evaluation images."""
    job, saves, results = context.job, context.saves, outline.results
    stem = job.name.summary_folder
    summary = Summary(
        results, evaluation, corrections.selected_correction(), job.method.settings.seed
    )
    with context.clock("save summary"):
        with saves.attempt("the summary"), atomic_folder(job.root / stem, mark_whole) as part:
            content = {
                "rows": results.as_records(),
                "warning_signs": dict(outline.signs),
                "bits": bits_by_tensor(quantized),
            }
            write_json(part / f"{stem}.json", content)
            summary.write_tables(part, stem)
            if job.options.output.plots:
                summary.draw(part)
        context.written.append(stem)
        with saves.attempt("the TensorBoard accuracies"):
            context.board.add_results(results)
        rows = image_rows(context.plan.evaluation, job.dataset.classes, results.images)
        with saves.attempt(EVALUATION_FILE):
            if rows:
                with atomic_file(job.folder / EVALUATION_FILE) as part:
                    write_records(part, rows)
    return summary


def finish(context: Context, outline: Outline, summary: Summary) -> None:
    """Write the page and the record of the run, copy all to a URL if given, log where it is."""
    job, clock, saves = context.job, context.clock, context.saves
    record = run_record(job, context.plan, outline, clock, saves)
    with saves.attempt(PAGE_FILE):
        try:
            write_page(job.folder / PAGE_FILE, _page(context, record, summary))
        except InputError as error:  # an image is gone: keep the rest of the run
            raise OSError(str(error)) from error
    write_record(job, record, saves)
    copy_to_url(job, context.written, clock, saves)
    stages = (f"{stage} {value:.1f}" for stage, value in clock.seconds.items())
    logger.info("seconds: %s", ", ".join(stages))
    logger.info("written to %s", job.options.output.output_url or job.root)


def _page(context: Context, record: Mapping[str, Any], summary: Summary) -> RunPage:
    job, evaluation = context.job, summary.evaluation
    changes: list[Change] = []
    if len(context.plan.evaluation) == summary.results.images:
        logits = [evaluation.logits[kind] for kind in (FULL_PRECISION, QUANTIZED)]
        changes = changed_images(context.plan.evaluation, job.dataset.classes, *logits)
    return RunPage(
        subject=job.subject,
        record=record,
        results=summary.results,
        comparison=summary.comparison,
        classes=job.dataset.classes,
        units=context.units,
        changes=changes,
        warnings=context.warnings,
        folder=job.folder,
        summary=job.root / job.name.summary_folder,
        sweep=job.sweep_folder,
        draw=job.options.output.plots,
    )
