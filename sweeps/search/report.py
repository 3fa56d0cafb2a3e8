"""What a search leaves: the best configuration as YAML, the importance plot, the final runs."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from common.console import write_stdout
from common.files import atomic_file
from evaluation.metrics import classes_ahead, standard_error
from logits_io import LogitsAnalyzer
from logits_io.naming import CORRECTED, QUANTIZED
from pipeline.command import read_command
from pipeline.flags import build_parser
from pipeline.method import configuration, make_method
from pipeline.results import IDENTITY
from plots.axes import save_figure
from plots.search import importance_figure
from sweeps.results import as_csv
from sweeps.search.definition import Search
from sweeps.search.importance import importances
from sweeps.search.ranking import DECIMALS, RANKING_FILE, aligned
from sweeps.search.records import Ended
from sweeps.search.specs import BEST, DEFAULT, FinalRun, final_folder
from sweeps.search.study import Study

BEST_FILE, PLOT_FILE, EVALUATION_FILE = "best.yaml", "importance.png", "evaluation.csv"
WRITTEN = (RANKING_FILE, BEST_FILE, PLOT_FILE, EVALUATION_FILE)
OF_SEARCH = ("output_dir", "cache_dir", "save_results")  # flags that a run of one's own has not
COLUMNS = (
    "configuration",
    "method",
    "images",
    "fullprecision_top1",
    "quantized_top1",
    "quantized_error",
    "corrected_top1",
    "corrected_error",
    "agreement",
    "kl_to_fp",
    "kl_heldout",
    "folder",
)

logger = logging.getLogger(__name__)


def final_runs(search: Search, best: Ended, default: Ended | None) -> list[FinalRun]:
    """The runs of the best and the default configuration; one, if they are the same."""
    kinds = {BEST: best, DEFAULT: default}
    if default is not None and default.index in (best.index, best.same_as):
        del kinds[BEST]
    return [
        FinalRun(search.root, search.arch, one.method, kind, _flags(search, kind, one))
        for kind, one in kinds.items()
        if one is not None
    ]


def _flags(search: Search, kind: str, one: Ended) -> tuple[str, ...]:
    return tuple(search.flags_of(one.candidate, final_folder(search.root, kind)))


def write_results(search: Search, study: Study, best: Ended, runs: Sequence[FinalRun]) -> None:
    """Write the best configuration, the plot and the table of the final runs, and print these.

    Raises:
        OSError: one cannot be written.
    """
    with atomic_file(search.root / BEST_FILE) as part:
        content = yaml.safe_dump(best_config(search, best), sort_keys=True)
        part.write_text(content, encoding="utf-8")
    title = f"{search.arch}, W{search.n_bits_w}A{search.n_bits_a}: which settings matter"
    save_figure(search.root / PLOT_FILE, importance_figure(importances(study), title))
    kls = {run.kind: one.kl for run in runs for one in _of(search, study, run)}
    rows = [row for run in runs for row in _row(run, kls.get(run.kind), search.root)]
    with atomic_file(search.root / EVALUATION_FILE) as part:
        part.write_text(as_csv(rows, COLUMNS), encoding="utf-8")
    _print(search, rows, runs)


def _of(search: Search, study: Study, run: FinalRun) -> list[Ended]:
    """The first trial that a final run repeats."""
    own = (one for one in study.ended() if _flags(search, run.kind, one) == run.own_flags)
    return [one for one in own if one.kl is not None][:1]


def best_config(search: Search, best: Ended) -> dict[str, Any]:
    """Every flag of the best configuration, in the form that ``--config`` reads."""
    flags = search.flags_of(best.candidate, search.root)
    options = read_command(build_parser(), flags).options
    values = configuration(options, make_method(options))
    return {name: value for name, value in values.items() if name not in OF_SEARCH}


def _row(run: FinalRun, kl: float | None, root: Path) -> list[dict[str, Any]]:
    """The row of a finished final run: accuracies and standard errors in percent."""
    record = run.record()
    if record is None:
        return []
    figures, images = record["figures"], record["data"]["evaluated"]
    row: dict[str, Any] = dict.fromkeys(COLUMNS)
    row |= {"configuration": run.kind, "method": run.method, "images": images}
    row["fullprecision_top1"] = figures["fullprecision"]["top1_pct"]
    for name in (QUANTIZED, CORRECTED):
        if figures[name] is not None:
            row[f"{name}_top1"] = figures[name]["top1_pct"]
            row[f"{name}_error"] = round(
                standard_error(figures[name]["top1_pct"], images), DECIMALS
            )
    last = figures[CORRECTED] or figures[QUANTIZED]
    row |= {"agreement": last["agreement_pct"], "kl_to_fp": last["kl_to_fp"]}
    kl = None if kl is None else round(kl, DECIMALS)
    return [row | {"kl_heldout": kl, "folder": run.folder.relative_to(root).as_posix()}]


def _print(search: Search, rows: Sequence[dict[str, Any]], runs: Sequence[FinalRun]) -> None:
    """Print the final runs, the difference of the two, and where the files are."""
    table = [("configuration", "method", "Top-1 %", "corrected %", "agree %", "KL")]
    for row in rows:
        corrected = _with_error(row, CORRECTED) if row["corrected_top1"] is not None else "-"
        agree, kl = f"{row['agreement']:.2f}", f"{row['kl_to_fp']:.4f}"
        cells = (row["configuration"], row["method"], _with_error(row, QUANTIZED), corrected)
        table.append((*cells, agree, kl))
    if rows:
        head = f"{rows[0]['images']} evaluation images, float Top-1"
        write_stdout(f"\n{head} {rows[0]['fullprecision_top1']:.2f} %, ± standard error")
        write_stdout(aligned(table))
    if len(rows) == 2:
        mean, error = paired_difference(*(_right(run) for run in runs))
        what = compared([row["corrected_top1"] is not None for row in rows])
        write_stdout(f"best - default: {mean:+.2f} ± {error:.2f} points of {what} (same images)")
    elif len(runs) == 1 and runs[0].kind == DEFAULT:
        write_stdout("no configuration is better than the default one")
    names = (RANKING_FILE, BEST_FILE, PLOT_FILE, EVALUATION_FILE)
    write_stdout("\n".join(["files:", *(f"  {search.root / name}" for name in names)]))


def compared(is_corrected: Sequence[bool]) -> str:
    """The name of the accuracies whose difference is printed."""
    if all(is_corrected):
        return "corrected Top-1"
    return "Top-1, corrected where it is" if any(is_corrected) else "Top-1"


def _with_error(row: dict[str, Any], name: str) -> str:
    return f"{row[f'{name}_top1']:.2f} ± {row[f'{name}_error']:.2f}"


def _right(run: FinalRun) -> np.ndarray:
    """Whether the last logits of a finished run are right, for each evaluation image."""
    record = run.record() or {}
    corrected = record["figures"][CORRECTED]
    is_plain = corrected is None or corrected["logits"] == IDENTITY
    folders = [name for name in record["folders"] if name.startswith("initial_") == is_plain]
    stem = record["folders"][folders[0]]["stem"]
    saved = LogitsAnalyzer(run.folder / run.method).load(folders[0], stem)
    assert saved.targets is not None  # a run has labels
    return classes_ahead(saved.logits[QUANTIZED if is_plain else CORRECTED], saved.targets) == 0


def paired_difference(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Mean difference of two accuracies on the same images and its standard error, in percent.

    Args:
        first, second: (N,) bool, whether each prediction is right.
    """
    gain = first.astype(np.float64) - second
    return 100 * float(gain.mean()), 100 * float(gain.std()) / math.sqrt(len(gain))
