"""The page of a run, and the page that shows several runs side by side."""

from __future__ import annotations

import contextlib
import csv
import html
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.errors import InputError
from common.sealed import read_record, write_record
from loaders.imageset import MemoryImages
from loaders.transforms import Preprocess
from main_imagenet import main
from pipeline.comparing import StoredRun, compare_runs, differences
from pipeline.images import changed_images, image_rows
from pipeline.page import command
from plots.page import STYLE, Link, table
from tests.conftest import FEW, RANGES

CLASSES = ["cat", "dog", "cow"]
BITS = ["--n_bits_w", "2", "--n_bits_a", "2"]
FLAGS = [*FEW, *RANGES, *BITS]
UNCORRECTED = ["--num_samples", "64", *BITS, "--no-plots", "--no-correction"]
GRID = ["--alpha_list", "1", "--num_clusters_list", "4", "--pca_dim_list", "2"]


class Page(HTMLParser):
    """The texts and images of a page, and whatever it would load from elsewhere."""

    def __init__(self, text: str):
        super().__init__()
        self.images: list[dict] = []
        self.links: list[str] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag == "img":
            self.images.append(given)
        if tag == "a":
            self.links.append(given["href"])
        assert tag not in ("iframe", "object", "embed")
        assert not (given.get("src") or "data:").startswith(("http", "//", "file"))

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.texts)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Two finished runs on digits that differ in their method, one with plots."""
    root = tmp_path_factory.mktemp("pages")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        out = ["--output_dir", str(root)]
        assert main(["--quant_method", "rtn", *FLAGS, *GRID, *out, "--plots"]) == 0
        assert main(["--quant_method", "aciq_mix", *UNCORRECTED, *out]) == 0
    return root


def folder_of(runs: Path, method: str) -> Path:
    return next((runs / method).glob("run_*"))


def rewrite(path: Path, rows: list[dict]) -> None:
    with path.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def without_digests(path: Path) -> None:
    """Make a record one of a version that did not hold the digests of tables."""
    write_record(path, read_record(path) | {"files": {}})


def records(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as handle:
        return list(csv.DictReader(handle))


# --- names of rows


def memory_images(count: int = 6) -> MemoryImages:
    pixels = torch.arange(count * 3 * 2 * 2, dtype=torch.uint8).reshape(count, 3, 2, 2)
    labels = np.arange(count) % 3
    preprocess = Preprocess((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    return MemoryImages(pixels, labels, [f"val/{i}.png" for i in range(count)], preprocess)


def test_every_row_has_the_name_and_class_of_its_image(runs):
    rows = image_rows(memory_images(), CLASSES, 6)
    assert rows[4] == {"row": 4, "image": "val/4.png", "class": "dog", "label": 1}
    folder = folder_of(runs, "rtn")
    stored = records(folder / "evaluation_ids.csv")
    assert [int(row["row"]) for row in stored] == list(range(500))
    targets = next(runs.glob("rtn/initial_logits_*/*_targets.csv")).read_text().split()
    assert [row["label"] for row in stored] == targets[-500:]
    record = json.loads((folder / "run.json").read_text())
    assert any(name.endswith("/evaluation_ids.csv") for name in record["files"])


def test_rows_that_cannot_be_named_are_not(caplog):
    assert image_rows(memory_images(), CLASSES, 5) == []
    assert "rows of logits have no names: 5 of 6 images could be read" in caplog.text


# --- changed decisions


def test_changed_decisions_are_those_of_which_the_float_network_was_surest():
    images = memory_images(15)
    reference = np.zeros((15, 3), dtype=np.float32)
    reference[:, 0] = np.arange(15)  # ever surer of the cat
    logits = reference.copy()
    changed = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14]
    logits[changed] = [0, 0, 1]
    found = changed_images(images, CLASSES, reference, logits)
    assert [change.row for change in found] == changed[::-1][:12]
    first = found[0]
    assert (first.name, first.label) == ("val/14.png", "cow")
    assert first.before == ("cat", pytest.approx(np.exp(14) / (np.exp(14) + 2)))
    assert first.after == ("cow", pytest.approx(np.e / (np.e + 2)))
    with Image.open(io.BytesIO(first.content)) as picture:
        assert np.array_equal(np.array(picture), images.pixels[14].permute(1, 2, 0).numpy())
    assert changed_images(images, CLASSES, reference, reference) == []


class Gone(MemoryImages):
    """Images of which only the first can still be read."""

    def subset(self, indices):
        return super().subset(indices[:1])


def test_images_that_are_gone_are_told_and_lose_nothing_else(tmp_path, monkeypatch, capsys):
    images = memory_images()
    gone = Gone(images.pixels, images.labels, images.ids, images.preprocess)
    logits = np.eye(3, dtype=np.float32)[np.arange(6) % 3]
    with pytest.raises(InputError, match="must still be readable, got 1 of 6"):
        changed_images(gone, CLASSES, logits, np.roll(logits, 1, axis=1))
    monkeypatch.setattr(
        "pipeline.finishing.changed_images",
        lambda *_: changed_images(gone, CLASSES, logits, np.roll(logits, 1, axis=1)),
    )
    out = ["--output_dir", str(tmp_path)]
    assert main(["--quant_method", "rtn", *UNCORRECTED, *RANGES, *out]) == 3
    record = json.loads((folder_of(tmp_path, "rtn") / "run.json").read_text())
    assert record["unsaved"] == ["report.html"]
    assert "changed images must still be readable, got 1 of 6" in capsys.readouterr().err


# --- the page of a run


def test_the_page_shows_the_figures_of_the_tables(runs):
    page = Page((folder_of(runs, "rtn") / "report.html").read_text())
    whole = records(next(runs.glob("rtn/logits_summary_*/*_comparison.csv")))
    quantized = next(row for row in whole if row["logits"] == "quantized")
    low, value, high = (float(quantized[f"top1_pct{end}"]) for end in ("_low", "", "_high"))
    assert f"{value:.2f} [{low:.2f}, {high:.2f}]" in page.text
    record = json.loads((folder_of(runs, "rtn") / "run.json").read_text())
    assert f"{record['sizes']['file']:,} bytes" in page.text
    model = folder_of(runs, "rtn") / "quantized_model.pt"
    assert record["sizes"]["file"] == model.stat().st_size
    for told in ("n_bits_w: 2", record["versions"]["torch"], record["started"], "layer3.0"):
        assert told in page.text
    classes = records(next(runs.glob("rtn/logits_summary_*/*_per_class.csv")))
    top1 = {(row["logits"], row["class"]): float(row["top1_pct"]) for row in classes}
    changes = {c: top1["quantized", c] - top1["fullprecision", c] for _, c in top1}
    assert page.text.count(f"{min(changes.values()):.2f}") >= 1


def test_every_image_has_a_text_and_the_page_is_small(runs):
    text = (folder_of(runs, "rtn") / "report.html").read_text()
    page = Page(text)
    plots = len(list(runs.glob("rtn/logits_summary_*/*.png")))
    assert plots >= 4
    assert len(page.images) == plots + 1 + 12  # losses of units, changed decisions
    assert all(image["alt"] for image in page.images)
    assert len(text) < 3 * 2**20
    told = re.findall(
        r"row (\d+), (val/\d+): (\d); float (\d) \(\d+ %\), quantized (\d)", page.text
    )
    names = {row["row"]: row for row in records(folder_of(runs, "rtn") / "evaluation_ids.csv")}
    assert len(told) == 12
    for row, name, label, before, after in told:
        assert (names[row]["image"], names[row]["class"]) == (name, label)
        assert before != after


def test_without_plots_the_page_has_no_plots(runs):
    page = Page((folder_of(runs, "aciq_mix") / "report.html").read_text())
    assert len(page.images) <= 12
    assert "Accuracy against confidence" not in page.text


def test_warnings_are_on_the_page(tmp_path, monkeypatch):
    import pipeline.stages

    def doubt(*_):
        return "labels <must> be doubted"

    monkeypatch.setattr(pipeline.stages, "doubt_of_labels", doubt)
    out = ["--output_dir", str(tmp_path)]
    assert main(["--quant_method", "rtn", *UNCORRECTED, *RANGES, *out]) == 0
    text = (folder_of(tmp_path, "rtn") / "report.html").read_text()
    assert '<p class="failed">labels &lt;must&gt; be doubted</p>' in text


def test_a_page_that_cannot_be_written_loses_nothing(tmp_path, monkeypatch, caplog):
    import pipeline.finishing

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(pipeline.finishing, "write_page", fail)
    out = ["--output_dir", str(tmp_path)]
    assert main(["--quant_method", "rtn", *UNCORRECTED, *RANGES, *out]) == 3
    record = json.loads((folder_of(tmp_path, "rtn") / "run.json").read_text())
    assert any("report.html" in text for text in record["unsaved"])


def test_cells_are_text_and_links_lead_where_they_say():
    row = {"a": "<b>", "b": Link("x & y", "runs/a b"), "c": (1.5, 0.25), "d": None}
    text = table([row], tuple(row))
    assert '<td data-value="&lt;b&gt;">&lt;b&gt;</td>' in text
    assert '<a href="runs/a b">x &amp; y</a>' in text
    assert '<td data-value="1.5">1.50 ± 0.25</td>' in text
    assert '<td data-value="">-</td>' in text


def test_long_names_are_broken_so_that_the_figures_beside_them_are_seen():
    text = table([{"class": "n" * 33, "x": 1}, {"class": "n" * 32, "x": 2}], ("class", "x"))
    assert re.findall(r'<td class="long" data-value="(.*?)"', text) == ["n" * 33]
    assert "td.long { white-space: normal; overflow-wrap: anywhere;" in STYLE


def test_the_command_can_be_typed():
    (text,) = command(["--data_path", "my images/<i>"])
    assert html.unescape(text) == "<pre>python main_imagenet.py --data_path 'my images/<i>'</pre>"
    assert command([]) == []


# --- runs side by side


def test_runs_are_shown_side_by_side(runs, tmp_path, capsys):
    command = ["--compare", str(runs / "rtn"), str(folder_of(runs, "aciq_mix"))]
    assert main([*command, "--output_dir", str(runs)]) == 0
    assert capsys.readouterr().out == f"comparison: {runs / 'comparison.html'}\n"
    page = Page((runs / "comparison.html").read_text())
    for method in ("rtn", "aciq_mix"):
        record = json.loads((folder_of(runs, method) / "run.json").read_text())
        assert f"digits_resnet {method} W2A2 seed 1005" in page.text
        assert f"{record['figures']['quantized']['top1_pct']:.2f}" in page.text
    assert [(runs / link).resolve() for link in page.links] == [
        (folder_of(runs, method) / "report.html").resolve() for method in ("rtn", "aciq_mix")
    ]
    assert "cannot be compared" not in page.text
    settings = page.text.partition("Settings that differ")[2].partition("by class")[0]
    assert "quant_method" in settings and "n_bits_w" not in settings
    assert all(image["alt"] for image in page.images)


@pytest.mark.parametrize("flag", [["--n_bits_w", "4"], ["--arch", "lenet"], ["--dry_run"]])
def test_flags_of_a_run_are_refused_with_compare(flag, capsys):
    assert main(["--compare", "a", "b", *flag]) == 2
    name = flag[0].removeprefix("--")
    assert f"error: {name} must be left out with --compare, got" in capsys.readouterr().err


def test_other_images_or_networks_are_told():
    def run(images: str, network: str, top1: float = 50.0) -> StoredRun:
        record = {
            "data": {"evaluation": {"digest": images}},
            "model": {"digest": network},
            "figures": {"fullprecision": {"top1_pct": top1}},
        }
        return StoredRun(Path("run_x"), "x", record)

    assert differences([run("a", "n"), run("a", "n")]) == []
    (text,) = differences([run("a", "n"), run("b", "n")])
    assert text == "These runs have different evaluation images: their figures cannot be compared."
    assert len(differences([run("a", "n"), run("b", "m")])) == 2
    (text,) = differences([run("a", "n"), run("a", "n", 49.5)])
    assert "the same images and weights, and other float Top-1 (50.00 %, 49.50 %)" in text


@pytest.mark.parametrize("has_other_classes", [False, True])
def test_runs_of_one_subject_keep_their_own_columns(runs, tmp_path, has_other_classes):
    """Copies of a run in folders of the same name; one has other figures, and classes too."""
    folders = [tmp_path / place / "out" / "rtn" for place in ("one", "two")]
    for folder in folders:
        shutil.copytree(runs / "rtn", folder)
    changed = next(folders[1].glob("*/*_per_class.csv"))
    rows = records(changed)
    own = {row["class"]: row["top1_pct"] for row in rows if row["logits"] == "quantized"}
    rewrite(changed, [r | {"top1_pct": 12.5 if r["logits"] == "quantized" else 99.5} for r in rows])
    if has_other_classes:
        names = next(folders[1].glob("run_*/evaluation_ids.csv"))
        rewrite(names, [row | {"class": f"b{row['class']}"} for row in records(names)])
    without_digests(next(folders[1].glob("run_*/run.json")))
    text = compare_runs(folders, tmp_path, force=False).read_text()
    head, *lines = re.findall(r"<tr.*?</tr>", text.partition("by class")[2], re.DOTALL)
    floats = ["float"] if has_other_classes else []  # of the same classes they differ
    labels = [f"digits_resnet rtn W2A2 seed 1005 ({place})" for place in ("one", "two")]
    assert Page(head).texts == ["class", *floats, *labels]
    found = {tuple(cells[:1] + cells[-2:]) for cells in (Page(line).texts for line in lines)}
    own = {name: f"{float(top1):.2f}" for name, top1 in own.items()}
    if has_other_classes:
        apart = {(f"b{name}", "-", "12.50") for name in own}
        assert found == {(name, top1, "-") for name, top1 in own.items()} | apart
    else:
        assert found == {(name, top1, "12.50") for name, top1 in own.items()}


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        ("one", "compare must name at least two runs, got 1"),
        ("twice", "compare must name at least two runs, got 1"),
        ("none", "must hold one finished run, got none"),
        ("both", "must hold one finished run, got run_digits"),
        ("record", "must be the record of a run as it was written, got another file"),
        ("given", "must be the record of a run of main_imagenet.py, got one without arch"),
        ("model", "quantized_model.pt: must be as the run wrote it, got other bytes"),
        ("table", "_per_class.csv: must be as the run wrote it, got other bytes"),
        ("older", "_comparison.csv must be a table of a run, got none of top1_pct_low in a row"),
        ("foreign", "comparison.html: must be a file that this suite wrote"),
    ],
)
def test_what_cannot_be_compared_is_refused(runs, tmp_path, spoil, text):
    copy = tmp_path / "copy"
    shutil.copytree(runs, copy, ignore=shutil.ignore_patterns("comparison.html", ".written.json.*"))
    one, two = folder_of(copy, "rtn"), folder_of(copy, "aciq_mix")
    folders = {"one": [one], "twice": [one, copy / "rtn"], "both": [copy, two]}
    if spoil == "none":
        folders["none"] = [one, tmp_path / "absent"]
    if spoil == "record":
        (one / "run.json").write_text("{}")
    if spoil == "given":  # logits that another program wrote
        record = read_record(one / "run.json")
        write_record(one / "run.json", record | {"config": {"seed": 1}})
    if spoil == "model":
        (one / "quantized_model.pt").write_bytes(b"other")
    if spoil == "table":  # half of the classes, each line whole
        table_path = next((copy / "rtn").glob("*/*_per_class.csv"))
        table_path.write_text("".join(table_path.read_text().splitlines(keepends=True)[:16]))
    if spoil == "older":  # a version whose records do not hold the digests of these tables
        without_digests(one / "run.json")
        next((copy / "rtn").glob("*/*_comparison.csv")).write_text("logits\nquantized\n")
    out = tmp_path / "out"
    out.mkdir()
    if spoil == "foreign":
        (out / "comparison.html").write_text("mine")
    before = sorted(out.iterdir())
    with pytest.raises(InputError, match=re.escape(text)):
        compare_runs(folders.get(spoil, [one, two]), out, force=False)
    assert sorted(out.iterdir()) == before
