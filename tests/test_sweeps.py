"""Sweeps over methods, bits and seeds: what is run, what is not run again, and what is written."""

from __future__ import annotations

import csv
import html.parser
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import quote

import pytest

import run_script
from common.errors import InputError
from common.sealed import write_record
from logits_io.runs import verify_runs
from plots.axes import new_figure
from sweeps import engine, grid
from sweeps.engine import LocalEngine, execute
from sweeps.figures import figure_names, sweep_figures
from sweeps.report import RUN_COLUMNS, write_report
from sweeps.results import TABLE_COLUMNS, as_csv, as_markdown, spread, summary_row, table_rows
from sweeps.running import require_own_folders
from sweeps.spec import DEFAULT_SEEDS, Grid, GridRun, parse_bits
from tests.conftest import PROJECT

FAKE = """
import json, os, pathlib, sys, time
flags = dict(zip(sys.argv[1::1], sys.argv[2::1]))
root = pathlib.Path(flags["--output_dir"])
with (root / "starts.txt").open("a") as handle:
    handle.write("start\\n")
seed, bits = int(flags["--seed"]), int(flags["--n_bits_w"])
print("a line of the log")
time.sleep(float(os.environ.get("FAKE_SECONDS", "0")))
if seed == 13:
    print("error: weights must be finite")
    sys.exit(2)
unsaved = ["the quantized model"] if (root.parents[2] / "full").exists() else []
figure = {"top5_pct": 99.0, "agreement_pct": 95.0}
figures = {
    "fullprecision": {**figure, "top1_pct": 90.0},
    "quantized": {**figure, "top1_pct": 70.0 + bits + seed},
    "corrected": {**figure, "top1_pct": 71.0 + bits + seed},
}
folder = root / flags["--quant_method"]
folder.mkdir(parents=True, exist_ok=True)
record = {"argv": sys.argv[1:], "figures": figures, "seconds": {"quantize": 1.0, "save": 0.5}}
record["gpu"] = os.environ.get("CUDA_VISIBLE_DEVICES")
record["unsaved"] = unsaved
(folder / "run.json").write_text(json.dumps(record))
sys.exit(3 if unsaved else 0)
"""


def blank_figures(rows) -> dict:
    """The plots of ``sweep_figures``, without anything on them, which takes no time."""
    archs = dict.fromkeys(row["arch"] for row in rows)
    return {text: new_figure(1, 1) for arch in archs for text in figure_names(arch)}


@pytest.fixture
def fake(tmp_path, monkeypatch) -> Path:
    """A main script that takes no time, and plots that take none; the root of a sweep."""
    monkeypatch.setattr(grid, "sweep_figures", blank_figures)
    script = tmp_path / "fake.py"
    script.write_text(FAKE)
    monkeypatch.setattr(engine, "MAIN_SCRIPT", script)
    return tmp_path / "out"


def sweep(root: Path, *flags: str) -> int:
    own = ["digits_resnet", "--methods", "rtn", "gpfq", "--bits", "4,4", "2,4"]
    return run_script.main([*own, "--seeds", "1", "2", "--output_dir", str(root), *flags])


def starts(root: Path) -> int:
    return sum(len(path.read_text().splitlines()) for path in root.rglob("starts.txt"))


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as handle:
        return list(csv.DictReader(handle))


def test_the_defaults_are_those_of_the_published_scripts():
    runs = Grid(("resnet18", "mobilenet_v2")).runs(Path("o"), ("--weights", "DEFAULT"))
    assert len(runs) == 2 * 4 * 10
    assert {(run.n_bits_w, run.n_bits_a) for run in runs} == {(2, 2), (4, 2), (2, 4), (4, 4)}
    assert {run.seed for run in runs} == set(range(1001, 1011)) == set(DEFAULT_SEEDS)
    flags = " ".join(runs[0].flags)
    assert "--alpha_list 0.2 0.4 0.6 --cache_dir" in flags
    assert flags.endswith("--weights DEFAULT")
    small = Grid(("cifar_resnet20",)).runs(Path("o"), ())[0]
    assert "--pca_dim_list" not in small.flags
    given = Grid(("cifar_resnet20",), correction={"pca_dim_list": [2, 5]}).runs(Path("o"), ())[0]
    assert given.flags[given.flags.index("--pca_dim_list") + 1 :][:2] == ["2", "5"]
    assert len({run.folder for run in runs}) == len(runs)


@pytest.mark.parametrize("flag", ["--no-correction", "--no_correction"])
def test_runs_without_correction_get_no_grid_of_corrections(flag):
    run = Grid(("resnet18",)).runs(Path("o"), (flag,))[0]
    assert not {"--alpha_list", "--num_clusters_list", "--pca_dim_list"} & set(run.flags)


def test_runs_without_correction_have_rows_without_it(fake, monkeypatch):
    spec = Grid(("a",), seeds=(1,), bits=((4, 4),)).runs(fake, ("--no-correction",))[0]
    figures = {"top1_pct": 70.0, "top5_pct": 90.0, "agreement_pct": 80.0}
    record = {"figures": {"fullprecision": figures, "quantized": figures, "corrected": None}}
    monkeypatch.setattr(type(spec), "record", lambda self: {**record, "seconds": {}})
    row = summary_row(spec)
    assert (row["quantized_top1"], row["agreement"], row["corrected_top1"]) == (70.0, 80.0, None)
    table = table_rows([row])[0]
    assert (table["quantized"], table["corrected"], table["gain"]) == ((70.0, None), None, None)


def test_bits_are_pairs():
    assert parse_bits("4,2") == (4, 2)
    for text in ("4", "4,x", "4,2,1", ""):
        with pytest.raises(InputError, match="bits must be W,A as in 4,2"):
            parse_bits(text)


def test_a_sweep_writes_its_tables_and_runs_nothing_twice(fake, capsys, monkeypatch, real_plots):
    monkeypatch.setattr(grid, "sweep_figures", sweep_figures)
    assert sweep(fake) == 0
    assert starts(fake) == 8
    rows = rows_of(fake / "sweep_summary.csv")
    assert len(rows) == 8
    assert {row["status"] for row in rows} == {"finished"}
    first = next(r for r in rows if (r["method"], r["n_bits_w"], r["seed"]) == ("rtn", "4", "2"))
    assert (first["quantized_top1"], first["corrected_top1"]) == ("76.0", "77.0")
    assert (first["seconds_quantize"], first["seconds"]) == ("1.0", "1.5")
    table = rows_of(fake / "sweep_table.csv")
    assert [(row["method"], row["W/A"], row["n"]) for row in table] == [
        ("rtn", "4/4", "2"),
        ("rtn", "2/4", "2"),
        ("gpfq", "4/4", "2"),
        ("gpfq", "2/4", "2"),
    ]
    assert float(table[0]["quantized mean"]) == 75.5
    assert float(table[0]["quantized sd"]) == pytest.approx(0.5**0.5)
    assert (
        "| rtn | 4/4 | 2 | 90.00 ± 0.00 | 75.50 ± 0.71 |" in (fake / "sweep_table.md").read_text()
    )
    assert "75.50 ± 0.71" in capsys.readouterr().out
    assert len(list((fake / "image").glob("*.png"))) == 2
    before = (fake / "report.html").stat().st_mtime_ns
    assert sweep(fake) == 0
    assert starts(fake) == 8
    assert (fake / "report.html").stat().st_mtime_ns == before
    assert sweep(fake, "--report_only") == 0
    assert (fake / "report.html").stat().st_mtime_ns > before


def test_one_seed_has_no_deviation(fake, capsys):
    assert sweep(fake, "--seeds", "1") == 0
    assert "±" not in capsys.readouterr().out + (fake / "report.html").read_text()
    assert (
        "| rtn | 4/4 | 1 | 90.00 | 75.00 | 76.00 | 1.00 |" in (fake / "sweep_table.md").read_text()
    )
    table = rows_of(fake / "sweep_table.csv")
    assert (table[0]["quantized mean"], table[0]["quantized sd"]) == ("75.0", "")


def test_other_flags_are_other_runs(fake):
    assert sweep(fake, "--seeds", "1") == 0
    assert sweep(fake, "--seeds", "1", "--", "--batch_size", "32") == 0
    assert starts(fake) == 8


def test_a_plan_runs_nothing(fake, capsys):
    assert sweep(fake, "--dry_run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8
    assert lines[0].startswith("python3 main_imagenet.py --quant_method rtn --n_bits_w 4")
    assert not fake.exists()


def test_what_a_link_or_a_second_name_leads_to_is_never_written(fake, tmp_path, capsys):
    mine = tmp_path / "mine"
    mine.write_text("precious")
    folder = fake / "runs" / "digits_resnet" / "rtn_w4a4_seed1"
    folder.mkdir(parents=True)
    (folder / ".lock").symlink_to(mine)
    assert sweep(fake) == 2
    assert f"{folder / '.lock'}: must be a file that this suite wrote" in capsys.readouterr().err
    (folder / ".lock").unlink()
    os.link(mine, folder / ".lock")
    (folder / "log.txt").symlink_to(mine)
    assert sweep(fake) == 2
    assert sweep(fake, "--force") == 0
    assert "a line of the log" in (folder / "log.txt").read_text()
    assert mine.read_text() == "precious"
    os.link(folder / "log.txt", tmp_path / "copy")
    (folder / "rtn" / "run.json").unlink()
    assert sweep(fake) == 0
    assert "a line of the log" in (tmp_path / "copy").read_text()
    assert not (tmp_path / "copy").samefile(folder / "log.txt")


def test_plots_of_the_user_stay(fake, tmp_path, capsys):
    plot = fake / "image" / "digits_resnet_accuracy_against_bits.png"
    plot.parent.mkdir(parents=True)
    plot.write_text("mine")
    assert sweep(fake) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {plot}: must be a file")
    assert plot.read_text() == "mine"
    plot.parent.rename(tmp_path / "elsewhere")
    plot.parent.symlink_to(tmp_path / "elsewhere")
    assert sweep(fake) == 2
    assert sweep(fake, "--force") == 0
    assert (tmp_path / "elsewhere" / plot.name).read_text() == "mine"
    assert plot.read_bytes()[:4] == b"\x89PNG"
    assert sweep(fake, "--report_only") == 0


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (("--seeds", "-1"), "seed must be between 0 and 2^32 - 1, got -1"),
        (("--bits", "4,99"), "n_bits_a must be"),
        (("--alpha_list", "nan"), "alpha must be between 0 and 1, got nan"),
    ],
)
def test_values_that_no_run_takes_are_refused_before_the_first(fake, capsys, flags, text):
    assert sweep(fake, *flags, "--dry_run") == 2
    assert text in capsys.readouterr().err
    assert not fake.exists()


def test_verification_notices_a_run_that_is_gone(fake):
    assert sweep(fake) == 0
    assert verify_runs(fake.parent) == []
    gone = fake / "runs" / "digits_resnet" / "gpfq_w2a4_seed2"
    shutil.rmtree(gone)
    record = gone / "gpfq" / "run.json"
    assert verify_runs(fake) == [f"{record}: must be there as sweep_summary.csv says, got nothing"]


def test_a_failure_is_told_kept_and_run_again_when_asked(fake, capsys):
    assert sweep(fake, "--seeds", "1", "13") == 1
    error = capsys.readouterr().err
    reason = "digits_resnet/rtn_w4a4_seed13 ended in status 2: error: weights must be finite"
    assert reason in error
    assert "digits_resnet/rtn_w4a4_seed13 failed (error: weights must be finite)" in error
    rows = rows_of(fake / "sweep_summary.csv")
    failed = [row for row in rows if row["status"] == "failed"]
    assert len(failed) == 4
    assert {row["error"] for row in failed} == {"error: weights must be finite"}
    assert starts(fake) == 8
    assert sweep(fake, "--seeds", "1", "13") == 1
    error = capsys.readouterr().err
    assert reason in error
    assert "4 finished before, 4 failed before (--retry_failed runs them again), 0 to do" in error
    assert starts(fake) == 8
    assert sweep(fake, "--seeds", "1", "13", "--retry_failed") == 1
    assert starts(fake) == 12
    page = (fake / "report.html").read_text()
    assert "<h2>Failures</h2>" in page
    assert "a line of the log" in page


def test_an_unknown_architecture_is_refused_unless_it_is_code_or_of_timm(fake, capsys):
    flags = ["--bits", "4,4", "--seeds", "1", "--output_dir", str(fake), "--dry_run"]
    assert run_script.main(["resnt18", *flags]) == 2
    error = capsys.readouterr().err
    assert error.splitlines()[-1] == (
        "error: arch must be a known name, got 'resnt18'; closest: resnet18"
    )
    assert run_script.main(["nets.py:Net", "timm/x", "resnet18", *flags]) == 0
    assert capsys.readouterr().out.count("main_imagenet.py") == 3
    assert run_script.main(["digits_resnet", "--sweep", "bits", *flags[4:], "--", "--lrr=1"]) == 2
    assert "flag must be a known name, got" in capsys.readouterr().err


def test_help_and_finished_sweeps_load_no_torch(fake):
    assert sweep(fake) == 0
    own = ["digits_resnet", "--methods", "rtn", "--bits", "4,4", "--seeds", "1"]
    code = (
        f"import sys, run_script; run_script.main({[*own, '--output_dir', str(fake)]!r}); "
        "print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT, check=True)
    assert result.stdout.splitlines()[-1] == "False"


class Page(html.parser.HTMLParser):
    """What a page holds."""

    def __init__(self):
        super().__init__()
        self.images: list[dict] = []
        self.heads: list[str] = []
        self.links: list[str] = []
        self.tables = self.buttons = 0

    def handle_starttag(self, tag, attributes):
        known = dict(attributes)
        self.tables += tag == "table"
        self.buttons += tag == "button"
        if tag == "img":
            self.images.append(known)
        self.links += [known[name] for name in ("src", "href") if name in known]


def test_the_report_is_one_page_that_needs_no_network(fake):
    assert sweep(fake) == 0
    page = Page()
    page.feed((fake / "report.html").read_text())
    assert page.tables == 2
    assert page.buttons == len(TABLE_COLUMNS) + len(RUN_COLUMNS)
    assert [image["alt"] for image in page.images] == [
        "digits_resnet: accuracy against bits",
        "digits_resnet: what the correction adds",
    ]
    assert all(link.startswith("data:") for link in page.links)


def test_a_run_s_row_has_its_drop_size_correction_and_page(tmp_path):
    spec = GridRun(tmp_path, "digits_resnet", "rtn", 4, 4, 1)
    row = {"top1_pct": 90.0, "top5_pct": 99.0, "agreement_pct": 93.0, "kl_to_fp": 0.25}
    setting = {"logits": "cluster_affine", "alpha": 0.5, "num_clusters": 8, "pca_dim": 2}
    record = {
        "argv": spec.flags,
        "figures": {
            "fullprecision": row | {"top1_pct": 92.5},
            "quantized": row,
            "corrected": row | setting,
        },
        "seconds": {"quantize": 1.0},
        "sizes": {"file": 1234},
        "data": {"evaluated": 500},
    }
    root = spec.folder / "rtn"
    page = root / "run_x y" / "report.html"
    page.parent.mkdir(parents=True)
    page.write_text("")
    write_record(root / "run.json", record)
    found = summary_row(spec)
    assert (found["drop"], found["kl"], found["size_bytes"], found["images"]) == (
        -2.5,
        0.25,
        1234,
        500,
    )
    assert found["correction"] == "cluster_affine alpha=0.5 clusters=8 pca=2"
    assert tmp_path / found["page"] == page
    text = write_report(tmp_path, [spec], [found], {}, {}).read_text()
    address = quote(page.relative_to(tmp_path).as_posix())
    assert f'<a href="{address}">page</a>' in text and "run_x%20y" in address
    write_record(root / "run.json", record | {"sizes": None, "data": None})  # an earlier version's
    page.unlink()
    old = summary_row(spec)
    assert old["size_bytes"] is None and old["images"] is None and old["page"] is None
    assert old["status"] == "finished"
    (figure,) = [f for text, f in sweep_figures([found]).items() if "accuracy" in text]
    labels = [t.get_text() for t in figure.axes[0].get_legend().get_texts()]
    assert "full precision 92.50 ± 1.18 %" in labels


def test_what_a_name_holds_cannot_break_the_page(tmp_path):
    spec = GridRun(tmp_path, '<b>&"', "rtn", 4, 4, 1)
    spec.folder.mkdir(parents=True)
    spec.note_failure(1, ["<script>alert(1)</script>"])
    text = write_report(tmp_path, [spec], [summary_row(spec)], {}, {"x": "</pre>"}).read_text()
    assert "<script>alert" not in text
    assert "<b>" not in text
    assert text.count("</pre>") == 2


def test_gpus_are_handed_out_in_turn(fake):
    specs = [GridRun(fake, "digits_resnet", "rtn", 4, 4, seed) for seed in range(1, 7)]
    LocalEngine(2, [3, 5]).run(specs, lambda spec: None)
    assert {spec.record()["gpu"] for spec in specs} <= {"3", "5"}
    LocalEngine(1, [7]).run([GridRun(fake, "digits_resnet", "rtn", 4, 4, 9)], lambda spec: None)
    assert GridRun(fake, "digits_resnet", "rtn", 4, 4, 9).record()["gpu"] == "7"


def test_two_processes_never_run_the_same_spec(fake, monkeypatch):
    """The second waits for the first and finds its result."""
    monkeypatch.setenv("FAKE_SECONDS", "0.5")
    spec = GridRun(fake, "digits_resnet", "rtn", 4, 4, 1)
    LocalEngine(2).run([spec, spec], lambda done: None)
    assert starts(fake) == 1
    execute(spec, {})
    assert starts(fake) == 1


def test_an_interruption_ends_the_runs_and_calls_none_failed(fake, monkeypatch):
    monkeypatch.setenv("FAKE_SECONDS", "30")
    specs = [GridRun(fake, "digits_resnet", "rtn", 4, 4, seed) for seed in range(1, 5)]
    local = LocalEngine(2)
    start = time.monotonic()

    def interrupt(signum, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 1.5)
    try:
        with pytest.raises(KeyboardInterrupt):
            local.run(specs, lambda spec: None)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - start < 15
    assert {spec.state() for spec in specs} == {"open"}
    assert all(process.poll() is not None for process in local.processes)


def sweep_process(fake: Path, seeds: str, seconds: float) -> subprocess.Popen:
    """A sweep in a process of its own, whose runs take the given time."""
    code = (
        f"import sys; sys.path.insert(0, {str(PROJECT)!r}); import run_script; "
        f"from sweeps import engine; from pathlib import Path; "
        f"engine.MAIN_SCRIPT = Path({str(engine.MAIN_SCRIPT)!r}); "
        f"sys.exit(run_script.main({[*own_flags(fake, seeds)]!r}))"
    )
    environment = {**os.environ, "FAKE_SECONDS": str(seconds)}
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )


def own_flags(fake: Path, seeds: str) -> list[str]:
    flags = ["--methods", "rtn", "--bits", "4,4", "--seeds", *seeds, "--output_dir", str(fake)]
    return ["digits_resnet", *flags]


def wait_for_starts(fake: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while starts(fake) < count and time.monotonic() < deadline:
        time.sleep(0.05)


def test_a_killed_sweep_is_finished_by_the_same_command(fake):
    """SIGKILL in the middle: runs under way end by themselves and are not run again."""
    with sweep_process(fake, "123456", 0.7) as process:
        wait_for_starts(fake, 3)
        process.kill()
    assert run_script.main(own_flags(fake, "123456")) == 0
    assert starts(fake) == 6
    assert {row["status"] for row in rows_of(fake / "sweep_summary.csv")} == {"finished"}


def test_a_sweep_that_is_asked_to_end_leaves_no_run(fake):
    number = signal.SIGTERM
    with sweep_process(fake, "123", 60) as process:
        wait_for_starts(fake, 2)
        process.send_signal(number)
        assert process.stderr is not None
        lines = process.stderr.read().splitlines()
        assert process.wait(30) == 128 + number
    assert [line for line in lines if " INFO " not in line] == [
        "interrupted; files already finished stay valid; "
        "the same command goes on with the other runs"
    ]
    commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline")]
    assert not [command for command in commands if str(fake).encode() in command]
    assert not list(fake.rglob("failed.json"))


def test_two_sweeps_at_once_share_the_runs(fake):
    with sweep_process(fake, "123", 0.5) as other:
        wait_for_starts(fake, 1)
        assert run_script.main(own_flags(fake, "123")) == 0
    assert other.returncode == 0
    assert starts(fake) == 3
    assert {row["status"] for row in rows_of(fake / "sweep_summary.csv")} == {"finished"}
    names = {path.name for path in fake.iterdir() if path.is_file()}
    assert names == {
        ".written.json",
        "report.html",
        "sweep_summary.csv",
        "sweep_table.csv",
        "sweep_table.md",
    }


def test_records_of_other_flags_do_not_count(fake):
    spec = GridRun(fake, "digits_resnet", "rtn", 4, 4, 1)
    execute(spec, {})
    assert spec.state() == "finished"
    path = spec.folder / "rtn" / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "argv": ["other"]}))
    assert spec.state() == "open"
    path.write_text("[")
    assert spec.state() == "open"


@pytest.mark.parametrize(
    "text", ["3", "{}", '{"argv": 1}', '{"argv": [], "figures": [], "seconds": 3}', "\ud800"]
)
def test_what_is_no_record_and_no_failure_is_run_again(fake, text):
    spec = GridRun(fake, "digits_resnet", "rtn", 4, 4, 1)
    content = text.replace("[]", json.dumps(spec.flags), 1).encode("utf-8", "surrogatepass")
    execute(spec, {})
    (spec.folder / "rtn" / "run.json").write_bytes(content)
    (spec.folder / "failed.json").write_bytes(content)
    assert spec.state() == "open"
    assert summary_row(spec)["quantized_top1"] is None
    execute(spec, {})
    assert spec.state() == "finished"


def test_a_changed_figure_is_run_again(fake):
    spec = GridRun(fake, "digits_resnet", "rtn", 4, 4, 1)
    execute(spec, {})
    path = spec.folder / "rtn" / "run.json"
    write_record(path, json.loads(path.read_text()))
    assert spec.state() == "finished"
    path.write_text(path.read_text().replace("75.0", "76.0"))
    assert spec.state() == "open"


def test_a_run_that_could_not_save_everything_is_run_again(fake):
    flags = ["--methods", "rtn", "--bits", "4,4", "--seeds", "1", "--output_dir", str(fake)]
    fake.mkdir()
    (fake / "full").touch()
    for count in (1, 2):
        assert run_script.main(["digits_resnet", *flags]) == 1
        assert starts(fake) == count
    assert rows_of(fake / "sweep_summary.csv")[0]["status"] == "failed"
    (fake / "full").unlink()
    assert run_script.main(["digits_resnet", *flags]) == 0
    assert rows_of(fake / "sweep_summary.csv")[0]["status"] == "finished"


def test_what_a_kill_left_unwritten_is_written(fake):
    assert run_script.main(own_flags(fake, "12")) == 0
    before = {path.name: path.read_bytes() for path in fake.iterdir() if path.is_file()}
    for lost in ("sweep_summary.csv", "sweep_table.md", "report.html"):
        (fake / lost).unlink()
        assert run_script.main(own_flags(fake, "12")) == 0
        assert starts(fake) == 2
        after = {path.name: path.read_bytes() for path in fake.iterdir() if path.is_file()}
        assert after == before


def test_tables_of_the_user_are_not_replaced(fake, capsys):
    fake.mkdir()
    (fake / "sweep_table.md").write_text("mine")
    assert run_script.main(own_flags(fake, "1")) == 2
    assert "sweep_table.md: must be a file that this suite wrote" in capsys.readouterr().err
    assert starts(fake) == 0
    assert (fake / "sweep_table.md").read_text() == "mine"
    assert run_script.main([*own_flags(fake, "1"), "--force"]) == 0
    assert (fake / "sweep_table.md").read_text() != "mine"


def test_a_log_of_the_user_is_not_replaced(fake, capsys):
    folder = GridRun(fake, "digits_resnet", "rtn", 2, 4, 2).folder
    folder.mkdir(parents=True)
    (folder / "log.txt").write_text("mine")
    assert sweep(fake) == 2
    assert "log.txt: must be a file that this suite wrote" in capsys.readouterr().err
    assert starts(fake) == 0
    assert (folder / "log.txt").read_text() == "mine"


def test_two_networks_with_one_folder_are_refused(fake, capsys):
    archs = ["timm/resnet10t", "timm_resnet10t"]
    runs = Grid(archs, ("rtn",), ((4, 4),), (1,)).runs(fake, ())
    wanted = r"architectures must differ in letters.* got timm/resnet10t and timm_resnet10t"
    with pytest.raises(InputError, match=wanted):
        require_own_folders(runs, force=False)


def test_numbers_are_passed_on_with_all_their_digits(fake):
    values = {"alpha_list": (0.12345678, 0.2, 1.0)}
    (run,) = Grid(["resnet18"], ("rtn",), ((4, 4),), (1,), values).runs(fake, ())
    where = run.flags.index("--alpha_list")
    assert run.flags[where + 1 : where + 4] == ["0.12345678", "0.2", "1"]


def test_a_cell_that_a_spreadsheet_would_compute_is_text():
    rows = [{"name": "=1+1", "number": -2.5}, {"name": "plain", "number": None}]
    assert as_csv(rows, ("name", "number")) == "name,number\n'=1+1,-2.5\nplain,\n"


def test_tables_of_unfinished_settings_are_empty():
    row = dict.fromkeys(("arch", "method", "n_bits_w", "n_bits_a", "status"), "x")
    (found,) = table_rows([row])
    assert (found["n"], found["quantized"]) == (0, None)
    assert "| 0 | - | - | - | - |" in as_markdown([found])
    assert spread([1.0, None]) == (1.0, None)


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--bits", "4"], "bits must be W,A"),
        (["--gpus", "x"], "invalid int value: 'x'"),
        (["--", "--seed", "3"], "--seed must be left out after --"),
        (["--", "-b", "3"], "-b must be left out after --"),
        (["--", "--n-bits-w=3"], "--n-bits-w must be left out after --"),
        (["--", "--num-bits", "3"], "--num-bits must be left out after --"),
        (["--sweep", "bits"], "methods must be left out with --sweep"),
        (["--ray_address", "auto"], "ray_address must be left out without --engine ray"),
        (["--engine", "ray", "--gpus", "1"], "gpus must be left out with --engine ray"),
        (["--config", "nothing.yaml"], "config must be a readable YAML file"),
        (["--methods", "rtm"], "quant_method must be a known name, got 'rtm'; closest: rtn"),
        (["--", "--batchsize", "3"], "flag must be a known name, got"),
        (["--", "--batch_size", "0"], "argument -bs/--batch_size: must be at least 1, got 0"),
        (["--dry_run", "--methods", "rtm"], "quant_method must be a known name, got 'rtm'"),
        (["--dry_run", "--", "--batchsize", "3"], "flag must be a known name, got"),
    ],
)
def test_bad_usage_is_one_line(fake, flags, text, capsys):
    assert sweep(fake, *flags) == 2
    error = capsys.readouterr().err
    assert text in error
    assert error.count("\n") == 1
    assert not fake.exists()


def test_a_file_says_what_to_run(fake, tmp_path):
    (tmp_path / "s.yaml").write_text("methods: [rtn]\nbits: ['4,4']\nseeds: [5]\n")
    command = ["digits_resnet", "--config", str(tmp_path / "s.yaml"), "--output_dir", str(fake)]
    assert run_script.main(command) == 0
    assert starts(fake) == 1
