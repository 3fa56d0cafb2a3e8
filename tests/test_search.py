"""The search: what it finds, that it sees no evaluation image, and that a kill changes nothing."""

from __future__ import annotations

import builtins
import csv
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import yaml

import main_imagenet
import run_script
from common.console import EXIT_FAILED
from common.errors import RunError
from plots.search import importance_figure
from quant import QuantizationManager
from quant.network.model import FLOAT_SPEC, make_chain
from sweeps import engine
from sweeps.search import bench as bench_module
from sweeps.search import command
from sweeps.search.bench import Bench, held_out
from sweeps.search.importance import importances, share_between
from sweeps.search.records import COMPLETE, Ended
from sweeps.search.report import compared, paired_difference
from sweeps.search.space import DEFAULT_SPACE, Candidate, Space, read_space
from sweeps.search.specs import Worker
from sweeps.search.study import Limits, Study, covered_seconds, repair_tail
from tests.conftest import PROJECT, captured_once

optuna = pytest.importorskip("optuna")

SPACE = """
methods:
  rtn: {init_wmode: minmax}
  gpfq: {scalar: {low: 0.5, high: 1.5}}
"""
SEED = 2  # with which rtn, of which the space has one setting, comes three times
FLAGS = ["--bits", "2,4", "--jobs", "1", "--seeds", str(SEED)]
QUICK = ["--", "--num_samples", "16", "--init_amode", "minmax", "--no-correction", "--no-plots"]
TRIALS = 6
FOLDER = f"search_digits_resnet_w2a4_seed{SEED}"


@contextmanager
def inline() -> Iterator[None]:
    """Run the processes of a search in this one."""

    def execute(spec, environment, on_start):
        spec.folder.mkdir(parents=True, exist_ok=True)
        script = run_script if isinstance(spec, Worker) else main_imagenet
        status = script.main(spec.flags)
        if status == 130:
            raise KeyboardInterrupt
        if status != 0:
            spec.note_failure(status, ["error: as told"])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "execute", execute)
        patch.setattr(bench_module, "capture", captured_once)
        yield


@pytest.fixture
def here():
    with inline():
        yield


@pytest.fixture
def no_finals(monkeypatch):
    """No configuration is evaluated in the end."""
    monkeypatch.setattr(command, "final_runs", lambda *arguments: [])


def space_file(folder: Path, text: str = SPACE) -> Path:
    path = folder / "space.yaml"
    path.write_text(text)
    return path


def search(
    root: Path,
    *flags: str,
    trials: int = TRIALS,
    text: str = SPACE,
    quick: Sequence[str] = QUICK,
    archs: Sequence[str] = ("digits_resnet",),
) -> int:
    root.mkdir(exist_ok=True)
    own = [*archs, "--search", str(trials), *FLAGS, "--output_dir", str(root)]
    own += ["--search_space", str(space_file(root, text))]
    return run_script.main([*own, *flags, *quick])


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as handle:
        return list(csv.DictReader(handle))


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> Path:
    """The folder of a finished search; tests must not change it."""
    root = tmp_path_factory.mktemp("found")
    with inline():
        assert search(root) == 0
    return root / FOLDER


def test_the_ranking_holds_every_trial_and_the_best_is_no_worse_than_the_defaults(found):
    rows = rows_of(found / "ranking.csv")
    assert sorted(int(row["trial"]) for row in rows) == list(range(TRIALS))
    assert [int(row["rank"]) for row in rows] == list(range(1, TRIALS + 1))
    scores = [float(row["kl"]) for row in rows if row["state"] == "complete"]
    assert scores == sorted(scores)
    defaults = {row["method"]: row for row in rows if row["default"] == "True"}
    assert {name: int(row["trial"]) for name, row in defaults.items()} == {"rtn": 0, "gpfq": 1}
    assert all(row["settings"] == "" for row in defaults.values())
    assert scores[0] <= min(float(row["kl"]) for row in defaults.values())
    others = [json.loads(row["settings"]) for row in rows if row["default"] == "False"]
    assert all(0.5 <= values.get("scalar", 1.0) <= 1.5 for values in others)


def test_equal_configurations_are_measured_once(found):
    rows = rows_of(found / "ranking.csv")
    again = [row for row in rows if row["same_as"]]
    assert len(again) == 2
    by_trial = {row["trial"]: row for row in rows}
    for row in again:
        first = by_trial[row["same_as"]]
        assert (row["kl"], row["method"]) == (first["kl"], first["method"])
        assert int(row["same_as"]) < int(row["trial"])


def test_the_best_configuration_is_evaluated_once_and_its_file_repeats_it(found, tmp_path):
    best, default = rows_of(found / "evaluation.csv")
    assert (best["configuration"], default["configuration"]) == ("best", "default")
    for row in (best, default):
        (path,) = (found / "runs" / row["configuration"]).glob("*/run.json")
        figures = json.loads(path.read_text())["figures"]
        share = float(row["quantized_top1"]) / 100
        assert figures["quantized"]["top1_pct"] == float(row["quantized_top1"])
        error = 100 * (share * (1 - share) / int(row["images"])) ** 0.5
        assert float(row["quantized_error"]) == pytest.approx(error, abs=1e-6)
    config = found / "best.yaml"
    arguments = ["--config", str(config), "--output_dir", str(tmp_path)]
    assert main_imagenet.main(arguments) == 0
    (path,) = tmp_path.glob("*/run.json")
    repeated = json.loads(path.read_text())["figures"]["quantized"]
    assert repeated["top1_pct"] == float(best["quantized_top1"])
    assert repeated["kl_to_fp"] == float(best["kl_to_fp"])
    assert not {"output_dir", "cache_dir"} & set(yaml.safe_load(config.read_text()))


def test_a_finished_search_is_not_run_again(found, here, monkeypatch, capsys):
    def never(*arguments):
        raise AssertionError

    before = (found / "ranking.csv").read_bytes()
    monkeypatch.setattr(Bench, "score", never)
    monkeypatch.setattr(main_imagenet, "main", never)
    assert search(found.parent) == 0
    assert (found / "ranking.csv").read_bytes() == before
    assert "best - default: " in capsys.readouterr().out


def test_a_search_that_is_not_over_evaluates_nothing(found, here, tmp_path, monkeypatch, capsys):
    root = tmp_path / "copy"
    shutil.copytree(found.parent, root)
    shutil.rmtree(root / FOLDER / "runs")
    monkeypatch.setattr(command, "_run_workers", lambda *arguments: None)
    monkeypatch.setattr(Study, "is_over", lambda self: False)
    assert search(root) == EXIT_FAILED
    assert f"the search is not over: {TRIALS} trials have ended" in capsys.readouterr().err
    assert not (root / FOLDER / "runs").exists()


class Unseen:
    """Images of which only the number is known; whoever looks at them fails."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def subset(self, indices):
        return Unseen(self.images.subset(indices))

    def __getattr__(self, name):
        raise AssertionError(f"{name} of the evaluation images")


def test_a_search_killed_and_continued_sees_no_evaluation_image_and_finds_the_same(
    found, here, tmp_path, monkeypatch, capsys
):
    prepare, score, calls = bench_module.prepare, Bench.score, []

    def blind(options):
        job = prepare(options)
        dataset = dataclasses.replace(job.dataset, val=Unseen(job.dataset.val))
        plan = dataclasses.replace(job.plan, evaluation=Unseen(job.plan.evaluation))
        return dataclasses.replace(job, dataset=dataset, plan=plan)

    def killed(self, candidate, on_part):
        calls.append(candidate)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return score(self, candidate, on_part)

    monkeypatch.setattr(bench_module, "prepare", blind)
    monkeypatch.setattr(Bench, "score", killed)
    assert search(tmp_path / "a") == 130
    assert "goes on" in capsys.readouterr().err
    assert search(tmp_path / "a") == 0
    assert calls.count(calls[2]) == 2  # begun again
    again = tmp_path / "a" / FOLDER
    assert (again / "ranking.csv").read_bytes() == (found / "ranking.csv").read_bytes()
    kept = [line for line in (again / "journal.log").read_text().splitlines() if line]
    assert len(kept) > len((found / "journal.log").read_text().splitlines())


def test_other_commands_and_changed_files_are_refused(found, here, tmp_path, capsys):
    root = tmp_path / "copy"
    shutil.copytree(found.parent, root)
    folder = root / FOLDER

    def refused(*flags, **options) -> str:
        capsys.readouterr()
        assert search(root, *flags, **options) == 2
        return capsys.readouterr().err.splitlines()[-1]

    text = refused(trials=TRIALS + 1)
    assert f"search must be {TRIALS} as in the search in {folder}, got {TRIALS + 1}" in text
    text = refused(text=SPACE.replace("1.5", "1.6"))
    assert "search_space must be" in text and "another --output_dir" in text
    assert "flags after -- must be" in refused(quick=[*QUICK, "--workers", "1"])
    journal = folder / "journal.log"
    lines = journal.read_text()
    kl = rows_of(folder / "ranking.csv")[0]["kl"]
    value = next(part for part in lines.split('"kl":')[1:] if part.startswith(kl[:5]))
    journal.write_text(lines.replace(f'"kl":{value[:8]}', '"kl":0.000001'))
    assert "journal.log must hold trials as they were written, got a changed one" in refused()
    journal.write_text(lines.replace("\n", "\n\0\n", 3))
    assert "journal.log must be a journal as Optuna wrote it, got: " in refused()
    (folder / "search.json").write_text("{}")
    assert "search.json must be as it was written" in refused()
    (folder / "search.json").unlink()
    assert "must be beside its search.json" in refused()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("methods: {rtm: {}}", "method must be a known name, got 'rtm'; closest: rtn"),
        ("methods: {rtn: {lr_round: 1}}", "setting of rtn must be a known name, got 'lr_round'"),
        ("methods: {rtn: {init_wmode: [mse, max]}}", "init_wmode must be one of"),
        ("methods: {rtn: {init_wmode: {low: 1, high: 2}}}", "rtn.init_wmode must be a value or"),
        ("methods: {gpfq: {scalar: {low: 0, high: 2}}}", "scalar must be above 0"),
        ("methods: {gpfq: {scalar: {low: 2.0, high: 1.0}}}", "low of gpfq.scalar must be at most"),
        ("methods: {gpfq: {scalar: {low: 1.0}}}", "gpfq.scalar must have low and high, got no"),
        ("methods: {gpfq: {scalar: {low: 1, high: 2, lgo: true}}}", "known: high, log, low, step"),
        ("methods: {gpfq: {scalar: {low: 1, high: 2, step: 0.3}}}", "must divide"),
        ("methods: {gpfq: {scalar: 3e-1}}", "scalar must be of type float, got '3e-1'"),
        ("methods: {gpfq: {scalar: []}}", "gpfq.scalar must have 1 to 100 values, got 0"),
        ("methods: {gpfq: {scalar: [1.0, 1.0]}}", "each value once, got 1.0 again"),
        ("methods: {adaround: {iters_w: [1.5]}}", "iters_w must be of type int, got 1.5"),
        ("methods: {adaround: {lr: {low: 0, high: 1, log: true}}}", "above 0 with log"),
        ("methods: {adaround: {iters_w: {low: 1, high: 9, step: 0.5}}}", "of type int above 0"),
        ("methods: {pd_quant: {T: [null, 2.0]}}", "T must be a value, got none"),
        ("methods: {rtn: {n_bits_w: [2, 3]}}", "must be given once for the whole search"),
        ("methods: {rtn: [mse]}", "rtn must map names to values"),
        ("methods: {gpfq: {regularizer: L1}}", "regularizer and lambda must be given together"),
        ("correction: {alpha: [0.5, 2]}", "alpha must be between 0 and 1, got 2"),
        ("correction: {num_clusters: 0}", "num_clusters must be at least 1, got 0"),
        ("correction: {shrinkage: .inf}", "shrinkage must be finite, got inf"),
        ("correction: {beta: 1}", "setting of correction must be a known name"),
        ("method: {rtn: {}}", "entry must be a known name, got 'method'"),
        ("", "must have methods or correction, got neither"),
        ("methods: {rtn: {init_wmode: mse, init_wmode: mse}}", "must be given once"),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused_in_one_line(tmp_path, capsys, text, problem):
    assert search(tmp_path, text=text) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and problem in lines[0] and "space.yaml" in lines[0]
    assert [path.name for path in tmp_path.iterdir()] == ["space.yaml"]


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["lenet"], "arch must be one architecture with --search, got digits_resnet lenet"),
        (["--bits", "2,4", "4,4"], "bits must be one pair, as in --bits 2,4, with --search"),
        (["--seeds", "1", "2"], "seeds must be one seed with --search, got 1 2"),
        (["--methods", "rtn", "rtm"], "quant_method must be a known name, got 'rtm'"),
        (["--search", "1"], "search must be at least 2, a trial for the defaults of each method"),
        (["--search_minutes", "nan"], "must be a number above 0, got nan"),
        (["--sweep", "bits"], "search must be left out with --sweep, got 6"),
        (["--alpha_list", "0.5"], "alpha_list must be left out with --search"),
        (["--", "--seed", "3"], "--seed must be left out after --"),
        (["--", "--iters_w", "10"], "--iters_w must be left out for rtn"),
        (["--", "--init_wmode", "mse"], "init_wmode must be left out after --, because"),
        (["--", "--load_correction", "x.npz"], "load_correction must be left out after --"),
        (["--", "--dry_run"], "dry_run must be left out after -- with --search"),
        (["--search_worker", "0"], "search_worker must be of a search, got none in"),
        (["--report_only"], "report_only must have a search to report, got none"),
    ],
)
def test_flags_that_do_not_fit_a_search_are_refused(tmp_path, capsys, flags, problem):
    flags = flags if "--" in flags else [*flags, *QUICK]
    own = ["digits_resnet", *flags[:1]] if flags[0] == "lenet" else ["digits_resnet"]
    assert search(tmp_path, *flags[len(own) - 1 :], quick=[], archs=own) == 2
    assert problem in capsys.readouterr().err.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["space.yaml"]


def test_flags_of_a_search_are_refused_without_it(tmp_path, capsys):
    flags = ["--search_space", str(space_file(tmp_path)), "--output_dir", str(tmp_path)]
    assert run_script.main(["digits_resnet", *flags]) == 2
    assert "search_space must be left out without --search" in capsys.readouterr().err


def test_a_correction_is_searched_unless_flags_set_it(tmp_path, capsys):
    text = "methods: {rtn: {}}\ncorrection: {alpha: [0.5, 1.0]}"
    for quick, problem in (
        (["--no-correction"], "correction must be left out of the search space"),
        (["--alpha", "1"], "alpha_list must be left out after --"),
        (["--shrinkage", "3"], "shrinkage must be left out after --"),
    ):
        assert search(tmp_path, text=text, quick=["--", *quick]) == 2
        assert problem in capsys.readouterr().err
    space = "methods: {rtn: {}}\ncorrection: {num_clusters: {low: 1, high: 5000}}"
    few = ["--", "--num_samples", "32", "--correction_samples", "40"]
    assert search(tmp_path, text=space, quick=few) == 2
    assert "num_clusters must be between 1 and" in capsys.readouterr().err.splitlines()[-1]
    both = "methods: {rtn: {init_wmode: minmax}}\ncorrection: {num_clusters: [1, 2], pca_dim: 3}"
    assert search(tmp_path, "--dry_run", text=both, quick=few) == 0
    shown = capsys.readouterr().out
    assert "24 calibrate, 8 score, " in shown and "pca_dim: 3" in shown
    assert [path.name for path in tmp_path.iterdir()] == ["space.yaml"]


def test_a_searched_correction_is_part_of_the_score(tmp_path, here, no_finals):
    """The correction is fitted with the trial's settings, on other images than those that score."""
    text = (
        "methods: {rtn: {init_wmode: minmax, init_amode: minmax}}\n"
        "correction: {alpha: [1.0], num_clusters: [1], pca_dim: [1], shrinkage: [0.5]}"
    )
    few = ["--", "--num_samples", "32", "--correction_samples", "300", "--no-plots"]
    seen = []

    class Halved:
        """A grid whose selected correction halves the logits."""

        def selected_correction(self):
            return self

        def transform(self, logits):
            return logits / 2

    def spy(q_logits, fp_logits, request):
        seen.append((len(q_logits), request))
        return Halved()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench_module, "fit_grid", spy)
        assert search(tmp_path, "--report_only", text=text, trials=2, quick=few) == 2
        assert search(tmp_path, text=text, trials=2, quick=few) == 0
    assert [request.alphas for _, request in seen] == [None, (1.0,)]
    assert (seen[1][1].num_clusters, seen[1][1].shrinkage) == ((1,), 0.5)
    assert {count for count, _ in seen} <= set(range(292, 301))  # without the held-out images
    rows = {row["trial"]: row for row in rows_of(tmp_path / FOLDER / "ranking.csv")}
    assert json.loads(rows["1"]["correction"])["shrinkage"] == 0.5
    text = text[: text.index("correction")]
    assert search(tmp_path / "plain", text=text, trials=2, quick=few) == 0
    plain = {row["trial"]: row for row in rows_of(tmp_path / "plain" / FOLDER / "ranking.csv")}
    assert all(float(rows[trial]["kl"]) > 1.2 * float(plain[trial]["kl"]) for trial in "01")


def test_trials_that_fail_are_told_and_the_search_goes_on(tmp_path, here, no_finals, capsys):
    text = "methods: {gpfq: {regularizer: [L1, null], lambda: 0.01}}"
    assert search(tmp_path, text=text, trials=5) == 0
    rows = rows_of(tmp_path / FOLDER / "ranking.csv")
    failed = [row for row in rows if row["state"] == "failed"]
    assert failed and rows[-len(failed) :] == failed
    reason = "regularizer and lambda must be given together, got only lambda"
    assert {row["reason"] for row in failed} == {reason}
    assert f"{len(failed)} failed" in capsys.readouterr().out


def test_a_search_without_any_score_fails(tmp_path, here, monkeypatch, capsys):
    def fail(self, candidate, on_part):
        raise RunError("loss must be finite,\n got nan")

    monkeypatch.setattr(Bench, "score", fail)
    assert search(tmp_path, trials=2) == EXIT_FAILED
    text = "none of 2 trials gave a score: loss must be finite, got nan"
    assert text in capsys.readouterr().err


def test_the_end_of_a_process_is_the_end_of_its_trial(tmp_path, here, no_finals, monkeypatch):
    score, calls = Bench.score, []

    def die(self, candidate, on_part):
        calls.append(candidate)
        if len(calls) == 2:
            raise SystemExit  # as if the process had been killed for memory
        return score(self, candidate, on_part)

    execute = engine.execute

    def outlive(spec, environment, on_start):
        try:
            execute(spec, environment, on_start)
        except SystemExit:
            spec.note_failure(-9, ["killed"])

    monkeypatch.setattr(Bench, "score", die)
    monkeypatch.setattr(engine, "execute", outlive)
    assert search(tmp_path, trials=3) == 0
    rows = {row["trial"]: row for row in rows_of(tmp_path / FOLDER / "ranking.csv")}
    assert rows["1"]["state"] == "failed" and rows["1"]["method"] == "gpfq"
    assert rows["1"]["reason"] == "its process ended in status -9: killed"
    assert len(rows) == 3


def test_without_optuna_the_error_says_what_to_install(tmp_path, monkeypatch, capsys):
    real = builtins.__import__

    def no_optuna(name, *arguments, **options):
        if name == "optuna":
            raise ImportError("No module named 'optuna'")
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", no_optuna)
    assert search(tmp_path) == 2
    text = "search needs Optuna (pip install -r requirements-search.txt)"
    assert text in capsys.readouterr().err


def test_the_default_space_has_every_method_and_its_page_names_every_entry():
    space = read_space(None, None, lambda method: ())
    assert sorted(space.methods) == QuantizationManager().list_available_methods()
    page = (PROJECT / "docs" / "sweeps.md").read_text()
    content = yaml.safe_load(DEFAULT_SPACE.read_text())
    for group in (*content["methods"].values(), content["correction"]):
        for name in group:
            assert f"`{name}`" in page, name
    for method, entries in space.methods.items():
        cls = QuantizationManager().get_method_class(method)
        settings = cls().settings
        held = [name for name, entry in entries.items() if entry.holds(getattr(settings, name))]
        missing = set(entries) - set(held)
        assert missing <= {"dropout_rate"}, f"{method}: the defaults of {missing} are no point"


def test_a_given_setting_leaves_the_default_space_and_limits_cut_it():
    space = read_space(None, ["gpfq"], lambda method: {"scalar"})
    assert "scalar" not in space.methods["gpfq"] and "act_order" in space.methods["gpfq"]
    cut = space.fitted_to(40, 10).plain()["correction"]
    assert (cut["num_clusters"]["high"], cut["pca_dim"]["high"]) == (20, 10)


def make_study(folder: Path, text: str = SPACE, minutes: float | None = None, slot=0) -> Study:
    folder.mkdir(exist_ok=True)
    space = read_space(space_file(folder, text), None, lambda method: ())
    manager = QuantizationManager()
    defaults = {name: manager.get_method_class(name)().settings for name in space.methods}
    limits = Limits(None if minutes else 30, minutes)
    return Study(folder, space, defaults, limits, seed=1, slot=slot)


def end(study: Study, asked, kl: float, parts: dict[int, float] | None = None) -> Ended:
    trial, index, candidate = asked
    for done, value in (parts or {}).items():
        trial.report(value, done)
    ended = dataclasses.replace(study.ending(index, candidate, ""), state=COMPLETE, kl=kl)
    study.tell(trial, ended)
    return ended


def test_a_trial_above_the_median_of_its_method_is_pruned(tmp_path):
    study = make_study(tmp_path, "methods: {gpfq: {scalar: {low: 0.5, high: 1.5}}}")
    for value in (1.0, 2.0, 3.0, 4.0):
        end(study, study.ask(), value, {2: value})
    assert study.behind("gpfq", 2, 9.0) == ""  # too few to judge
    end(study, study.ask(), 5.0, {2: 5.0})
    assert study.behind("gpfq", 2, 3.0) == ""
    assert study.behind("gpfq", 4, 9.0) == "" and study.behind("rtn", 2, 9.0) == ""
    text = "KL 3.1 with 2 units quantized, above the median 3 of 5 trials"
    assert study.behind("gpfq", 2, 3.1) == text


def test_lost_trials_are_begun_again_in_their_place(tmp_path):
    study = make_study(tmp_path)
    asked = [study.ask() for _ in range(4)]
    assert [index for _, index, _ in asked] == [0, 1, 2, 3]
    end(study, asked[3], 0.3)
    other = make_study(tmp_path, slot=1)
    assert other.give_up(frozenset({1})) == 0
    assert other.ask()[1] == 4
    assert make_study(tmp_path).give_up(frozenset({0})) == 3
    again = [study.ask() for _ in range(3)]
    assert [index for _, index, _ in again] == [0, 1, 2]
    assert [candidate for _, _, candidate in again] == [c for _, _, c in asked[:3]]
    assert study.ask()[1] == 5


def test_a_budget_of_minutes_ends_after_the_defaults(tmp_path, monkeypatch):
    study = make_study(tmp_path, minutes=1)
    monkeypatch.setattr(study, "seconds", lambda: 60.0)
    for _ in range(2):
        end(study, study.ask(), 0.5)
    assert study.ask() is None and study.is_over()
    monkeypatch.setattr(study, "seconds", lambda: 59.0)
    assert study.ask()[1] == 2 and not study.is_over()


def test_running_time_counts_overlaps_once():
    start = datetime(2026, 1, 1)
    spans = [(0, 10), (5, 8), (9, 14), (20, 21)]
    times = [(start + timedelta(seconds=a), start + timedelta(seconds=b)) for a, b in spans]
    assert covered_seconds(times) == 15
    assert covered_seconds([]) == 0


def test_a_writer_killed_in_a_line_spoils_no_journal(tmp_path):
    study, other = make_study(tmp_path), make_study(tmp_path, slot=1)
    end(study, study.ask(), 0.5)
    with (tmp_path / "journal.log").open("a") as handle:
        handle.write('{"op_code": 4, "wor')
    end(other, other.ask(), 0.25)
    for one in (study, other, make_study(tmp_path)):
        assert [(ended.index, ended.kl) for ended in one.ended()] == [(0, 0.5), (1, 0.25)]


def test_an_unfinished_line_is_cut(tmp_path):
    path = tmp_path / "journal.log"
    for before, after in ((b"a\nb\nhalf", b"a\nb\n"), (b"half", b""), (b"a\n", b"a\n"), (b"", b"")):
        path.write_bytes(before)
        repair_tail(path)
        assert path.read_bytes() == after


def test_the_difference_of_two_accuracies_is_paired():
    first = np.array([True] * 6 + [False] * 4)
    second = np.array([True] * 4 + [False] * 6)
    mean, error = paired_difference(first, second)
    gain = np.array([0] * 4 + [1] * 2 + [0] * 4)
    assert mean == pytest.approx(20) and error == pytest.approx(100 * gain.std() / 10**0.5)
    assert paired_difference(first, first) == (0, 0)


def test_importances_find_the_setting_that_decides(tmp_path):
    text = "methods: {gpfq: {scalar: {low: 0.5, high: 1.5}, cnn_percentile: [1.0, 0.9]}}"
    study = make_study(tmp_path, text)
    for _ in range(20):
        asked = study.ask()
        end(study, asked, (asked[2].settings.get("scalar", 1.16) - 0.7) ** 2)
    shares = importances(study)["gpfq"]
    assert shares["scalar"] > 0.8 > 0.2 > shares["cnn_percentile"]
    figure = importance_figure({"gpfq": shares}, "t")
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()][-1] == "scalar"
    assert importance_figure({}, "t").axes


def test_the_share_between_groups_is_that_of_the_means():
    assert share_between([("a", 1.0), ("a", 1.0), ("b", 3.0)]) == pytest.approx(1)
    assert share_between([("a", 1.0), ("a", 3.0), ("b", 1.0), ("b", 3.0)]) == 0
    assert share_between([("a", 1.0), ("b", 1.0)]) == 0


class Ids:
    def __init__(self, ids):
        self.ids = ids

    def __len__(self):
        return len(self.ids)

    def subset(self, indices):
        return Ids([self.ids[i] for i in indices])


def test_a_quarter_of_the_calibration_images_is_held_out_by_the_seed():
    images = Ids(list(range(40)))
    one, two = held_out(images, 1).ids, held_out(images, 2).ids
    assert len(one) == 10 and one != two and one == held_out(images, 1).ids == sorted(one)


def test_a_method_tells_the_model_whose_later_units_are_float(tiny_network, tiny_images):
    """After each unit the model computes quantized units, then float ones."""
    seen = []

    def look(model, report):
        x = tiny_images
        for index, unit in enumerate(reference.units):
            x = (model.units[index] if index <= report.index else unit)(x)
        seen.append((model(tiny_images) - x).abs().max().item())

    method = QuantizationManager().get_quantization_method("rtn", n_bits_w=2, n_bits_a=4)
    reference = make_chain(captured_once(tiny_network, tiny_images), FLOAT_SPEC)
    method.quantize_model(tiny_network, None, [tiny_images], on_model=look)
    assert len(seen) == len(reference.units) and max(seen) < 1e-5


def test_flags_of_a_candidate_are_those_of_its_settings():
    candidate = Candidate("gpfq", {"lambda_": 0.1, "act_order": True}, {"alpha": 0.5})
    assert candidate.flags() == {"lambda": 0.1, "act_order": True, "alpha": 0.5}
    assert candidate.describe() == "act_order=True alpha=0.5 lambda=0.1"
    assert Space({}, {}).names() == []


@pytest.mark.slow
def test_two_processes_killed_go_on_with_the_same_command(tmp_path):
    words = [sys.executable, "run_script.py", "digits_resnet", "--search", str(TRIALS)]
    words += ["--bits", "2,4", "--jobs", "2", "--seeds", str(SEED)]
    words += ["--output_dir", str(tmp_path), "--search_space", str(space_file(tmp_path)), *QUICK]
    journal = tmp_path / FOLDER / "journal.log"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        words, cwd=PROJECT, start_new_session=True, env=environment, stderr=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            if journal.exists() and journal.read_text().count('"result"') >= 2:
                break
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
    before = journal.read_text().count('"result"')
    assert 2 <= before < TRIALS
    assert subprocess.run(words, cwd=PROJECT, env=environment, check=False).returncode == 0
    rows = rows_of(tmp_path / FOLDER / "ranking.csv")
    assert sorted(int(row["trial"]) for row in rows) == list(range(TRIALS))


def test_the_difference_names_the_accuracies_that_it_is_of():
    assert compared([True, True]) == "corrected Top-1"
    assert compared([True, False]) == "Top-1, corrected where it is"
    assert compared([False, False]) == "Top-1"
