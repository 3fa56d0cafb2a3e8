"""``--compare``: several finished runs side by side on one page."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from common.cells import cell_text
from common.errors import InputError
from common.files import atomic_file, require_writable
from common.marks import listed, require_own_file
from common.reading import require_regular
from logits_io.naming import EVALUATION_FILE, FULL_PRECISION, PAGE_FILE, QUANTIZED, RUN_FILE
from logits_io.runs import NO_RECORD, broken_promises, read_run
from pipeline.page import PLOTS
from plots.page import Link, captioned, escape, page, picture, table

COMPARISON_FILE = "comparison.html"
RUN_PREFIX, SUMMARY_PREFIX = "run_", "logits_summary_"
TABLES = {  # columns that are read
    "comparison": ("logits", "top1_pct_low", "top1_pct_high"),
    "per_class": ("logits", "class", "top1_pct"),
}
NEEDED = ("arch", "quant_method", "n_bits_w", "n_bits_a", "seed")  # in the configuration
SHOWN_PLOTS = ("reliability.png", "per_class_change.png")
WORST = 20  # classes shown
COLUMNS = (
    "run",
    "float",
    "quantized",
    "95 % interval",
    "drop",
    "corrected",
    "agreement",
    "KL",
    "bytes",
    "seconds",
)


@dataclass(frozen=True)
class StoredRun:
    """A finished run as its files tell it.

    Attributes:
        folder: ``run_TAG`` below the folder of the method.
        label: tells it from the other runs of a comparison.
        record: content of run.json.
    """

    folder: Path
    label: str
    record: Mapping[str, Any]

    @property
    def summary(self) -> Path:
        tag = self.folder.name.removeprefix(RUN_PREFIX)
        return self.folder.parent / f"{SUMMARY_PREFIX}{tag}"

    def rows(self, ending: str) -> list[dict[str, str]]:
        """The rows of a table of the summary, ``comparison`` or ``per_class``.

        Raises:
            InputError: it cannot be read.
        """
        return _read_table(self.summary / f"{self.summary.name}_{ending}.csv", TABLES[ending])

    def classes(self) -> dict[int, str]:
        """The names of the classes that have evaluation images; empty if they are not stored."""
        if not (self.folder / EVALUATION_FILE).is_file():
            return {}
        rows = _read_table(self.folder / EVALUATION_FILE, ("label", "class"))
        return {int(row["label"]): row["class"] for row in rows}


def compare_runs(folders: Sequence[Path], output_dir: Path, force: bool) -> Path:
    """Write a page that shows runs side by side, and return its path.

    Args:
        folders: of runs, or of methods that hold one run.
        force: replace a file of the user.

    Raises:
        InputError: fewer than two runs, one that is not finished and whole, or the page cannot be
            written.
    """
    runs = _read_runs(folders)
    path = output_dir / COMPARISON_FILE
    require_writable(output_dir)
    require_own_file(path, force)
    content = _page(runs, output_dir)
    try:
        with listed(path), atomic_file(path) as part:
            part.write_text(content, encoding="utf-8")
    except OSError as error:
        raise InputError(f"output_dir must be writable, got: {error}") from None
    return path


def _read_runs(folders: Sequence[Path]) -> list[StoredRun]:
    found = list(dict.fromkeys(_run_folder(folder).resolve() for folder in folders))
    if len(found) < 2:
        raise InputError(f"compare must name at least two runs, got {len(found)}")
    records = [_read_run(folder) for folder in found]
    labels = _labels([_subject(record) for record in records], found)
    return [StoredRun(*parts) for parts in zip(found, labels, records, strict=True)]


def _run_folder(folder: Path) -> Path:
    """The folder of a run, given itself or a folder above it that holds no other run."""
    if folder.name.startswith(RUN_PREFIX) and (folder / RUN_FILE).is_file():
        return folder
    found = sorted(path.parent for path in folder.rglob(f"{RUN_PREFIX}*/{RUN_FILE}"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found[:5]) or "none"
        raise InputError(f"compare: {folder} must hold one finished run, got {names}")
    return found[0]


def _read_run(folder: Path) -> dict[str, Any]:
    record = read_run(folder / RUN_FILE, says_so=False)
    if record is None:
        raise InputError(f"compare: {folder / RUN_FILE} {NO_RECORD}, got another file")
    missing = [name for name in NEEDED if name not in record["config"]]
    if missing or not {"data", "model"} <= record.keys():
        raise InputError(
            f"compare: {folder / RUN_FILE} must be the record of a run of main_imagenet.py, got "
            f"one without {missing[0] if missing else 'its images and network'}"
        )
    problems = broken_promises(folder.parent, record)
    if problems:
        raise InputError(f"compare: {problems[0]}")
    return record


def _subject(record: Mapping[str, Any]) -> str:
    config = record["config"]
    bits = f"W{config['n_bits_w']}A{config['n_bits_a']}"
    return f"{config['arch']} {config['quant_method']} {bits} seed {config['seed']}"


def _labels(subjects: Sequence[str], folders: Sequence[Path]) -> list[str]:
    """A text of its own for each run: its subject, and where it lies if others have the same."""
    ends = dict(zip(folders, subjects, strict=True))
    for subject in set(subjects):
        same = [folder for folder in folders if ends[folder] == subject]
        if len(same) > 1:
            ends |= {f: f"{subject} ({end})" for f, end in zip(same, _ends(same), strict=True)}
    return [ends[folder] for folder in folders]


def _ends(folders: Sequence[Path]) -> list[str]:
    """Short ends of different paths that tell them apart, without what all end in."""
    parts = [folder.parts for folder in folders]
    while len({path[-1] for path in parts}) == 1:
        parts = [path[:-1] for path in parts]
    depth = 1
    while len({path[-depth:] for path in parts}) < len(parts):
        depth += 1
    return [Path(*path[-depth:]).as_posix() for path in parts]


def _page(runs: Sequence[StoredRun], root: Path) -> str:
    title = f"{len(runs)} runs side by side"
    parts = [
        f"<h1>{title}</h1>",
        *(f'<p class="failed">{escape(text)}</p>' for text in differences(runs)),
        "<p>Top-1, drop and agreement in %; the intervals are a bootstrap over the evaluation "
        "images; KL in nats from the float network; bytes of the quantized model.</p>",
        table([_row(run, root) for run in runs], COLUMNS),
        "<h2>Settings that differ</h2>",
        *_settings(runs),
        "<h2>Quantized Top-1 by class, largest differences first</h2>",
        *_classes(runs),
        *_plots(runs),
    ]
    return page(title, parts)


def differences(runs: Sequence[StoredRun]) -> list[str]:
    """Why the accuracies of runs cannot be compared, in words; empty if they can."""
    texts = []
    for what, read in (
        ("evaluation images", lambda record: record["data"]["evaluation"]["digest"]),
        ("float networks", lambda record: record["model"]["digest"]),
    ):
        if len({read(run.record) for run in runs}) > 1:
            texts.append(f"These runs have different {what}: their figures cannot be compared.")
    accuracies = [run.record["figures"][FULL_PRECISION]["top1_pct"] for run in runs]
    if not texts and len(set(accuracies)) > 1:
        found = ", ".join(f"{accuracy:.2f} %" for accuracy in accuracies)
        texts.append(
            f"These runs have the same images and weights, and other float Top-1 ({found}): their "
            "images were prepared otherwise, and their figures cannot be compared."
        )
    return texts


def _row(run: StoredRun, root: Path) -> dict[str, Any]:
    figures = run.record["figures"]
    whole = next(row for row in run.rows("comparison") if row["logits"] == QUANTIZED)
    quantized, corrected = figures["quantized"], figures["corrected"]
    accuracies = figures["fullprecision"]["top1_pct"], quantized["top1_pct"]
    ends = [f"{float(whole[f'top1_pct_{end}']):.2f}" for end in ("low", "high")]
    label: str = run.label
    if (run.folder / PAGE_FILE).is_file():
        place = Path(os.path.relpath(run.folder / PAGE_FILE, root.resolve())).as_posix()
        label = Link(run.label, quote(place))
    cells = (
        label,
        *accuracies,
        f"{ends[0]} to {ends[1]}",
        accuracies[1] - accuracies[0],
        None if corrected is None else corrected["top1_pct"],
        quantized["agreement_pct"],
        f"{quantized['kl_to_fp']:.4f}",
        (run.record.get("sizes") or {}).get("file"),
        sum(run.record["seconds"].values()),
    )
    return dict(zip(COLUMNS, cells, strict=True))


def _settings(runs: Sequence[StoredRun]) -> list[str]:
    names = sorted({name for run in runs for name in run.record["config"]} - {"output_dir"})
    rows = []
    for name in names:
        values = [str(run.record["config"].get(name, "-")) for run in runs]
        if len(set(values)) > 1:
            labels = [run.label for run in runs]
            rows.append({"setting": name} | dict(zip(labels, values, strict=True)))
    return [table(rows, tuple(rows[0]))] if rows else ["<p>None.</p>"]


def _classes(runs: Sequence[StoredRun]) -> list[str]:
    """The table by class; classes of different runs are the same if their names are."""
    top1: dict[str, dict[str, float]] = {}
    floats: dict[str, set[float]] = {}
    for run in runs:
        names = run.classes()
        for row in run.rows("per_class"):
            place, label, value = int(row["class"]), row["logits"], float(row["top1_pct"])
            name = names.get(place, str(place))
            if label == QUANTIZED:
                top1.setdefault(name, {})[run.label] = value
            elif label == FULL_PRECISION:
                floats.setdefault(name, set()).add(value)
    labels = [run.label for run in runs]
    is_common = all(len(found) == 1 for found in floats.values())
    columns = ("class", *(["float"] if is_common else []), *labels)
    rows: list[dict[str, Any]] = [
        {"class": name, "float": min(floats[name])} | {label: found.get(label) for label in labels}
        for name, found in top1.items()
    ]
    rows.sort(key=lambda row: -_reach([row[label] for label in labels]))
    return [table(rows[:WORST], columns)]


def _reach(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return max(known) - min(known) if known else 0.0


def _plots(runs: Sequence[StoredRun]) -> list[str]:
    parts = []
    for name in SHOWN_PLOTS:
        shown = [
            captioned(
                picture(f"{PLOTS[name]}: {run.label}", (run.summary / name).read_bytes()), run.label
            )
            for run in runs
            if (run.summary / name).is_file()
        ]
        if shown:
            parts += [f"<h2>{PLOTS[name]}</h2>", f'<div class="beside">{"".join(shown)}</div>']
    return parts


def _read_table(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV table that must have some columns."""
    try:
        with require_regular(path).open(encoding="utf-8", newline="") as handle:
            found = list(csv.DictReader(handle))
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"compare: {path} must be a table of a run, got: {error}") from None
    missing = [name for name in columns if any(row.get(name) is None for row in found)]
    if missing or not found:
        got = f"none of {missing[0]} in a row" if missing else "no row"
        raise InputError(f"compare: {path} must be a table of a run, got {got}")
    return [{key: cell_text(cell) for key, cell in row.items()} for row in found]
