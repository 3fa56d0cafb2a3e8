"""The text on stdout at the end of a run: results, files, next steps, warnings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from logits_io.naming import MODEL_FILE
from models.own import is_own
from pipeline.job import Job
from pipeline.options import DEFAULT_ARCH, DEFAULT_METHOD
from pipeline.results import Results
from pipeline.tables import format_table, headline, main_rows

# Points of Top-1 lost to the float network above which another method is suggested.
LARGE_DROP = 1.0
BETTER_METHOD = "qdrop"


def closing_text(job: Job, results: Results, table: str, warnings: Sequence[str]) -> str:
    """The text printed at the end of a run.

    Args:
        table: rows of results to show, ``compact`` or ``full``.
        warnings: the warnings logged during the run.
    """
    rows = results.rows if table == "full" else main_rows(results)
    parts = [headline(results, job.subject), format_table(results, rows)]
    left_out = len(results.rows) - len(rows)
    if left_out:
        parts[-1] += f"\n({left_out} more corrections: --table full, or the summary below)"
    parts.append(_files(job))
    parts.append("\n".join(["next:", *(f"  {line}" for line in next_steps(job, results))]))
    if warnings:
        parts.append("\n".join(["warnings:", *(f"  {text}" for text in warnings)]))
    if job.recipe is not None:
        figures = results.full_precision.top1_pct, results.quantized.top1_pct
        parts.append(job.recipe.comparison(*figures))
    return "\n\n".join(parts)


def _files(job: Job) -> str:
    name, url = job.name, job.options.output.output_url
    places = {
        "model": Path(name.run_folder, MODEL_FILE),
        "summary": Path(name.summary_folder, f"{name.summary_folder}.csv"),
        "logits": Path(name.initial_folder),
    }
    root = job.root if url is None else f"{url.rstrip('/')}/{job.method.name}"
    lines = [f"  {what + ':':<9}{root}/{place}" for what, place in places.items()]
    return "\n".join(["files:", *lines])


def next_steps(job: Job, results: Results) -> list[str]:
    """One or two commands to try after this run."""
    options = job.options
    drop = results.full_precision.top1_pct - results.selected.top1_pct
    steps = []
    if options.network.arch == DEFAULT_ARCH:
        steps.append(
            "your network:   python main_imagenet.py --data_path IMAGES --arch resnet18 "
            "--checkpoint FILE --n_bits_w 4 --n_bits_a 4"
        )
    if drop > LARGE_DROP:
        other = BETTER_METHOD if job.method.name != BETTER_METHOD else DEFAULT_METHOD
        steps.append(f"another method: --quant_method {other}, or more bits: --n_bits_w --n_bits_a")
    if options.export is None and len(steps) < 2:
        model = job.folder / MODEL_FILE
        steps.append(f"an ONNX file:   python export_onnx.py {model}")
    if len(steps) < 2 and not is_own(options.network.arch):
        arch = options.network.arch
        steps.append(f"many settings:  python run_script.py {arch} --methods rtn adaround")
    return steps
