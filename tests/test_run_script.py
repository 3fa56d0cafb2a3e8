"""The sweeps: their log, their figures, and that no finished point is run again."""

import csv
import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

import main_imagenet
import run_script
from common.errors import InputError
from models import get_entry, load_model, load_quantized
from plots.sweep import sweep_figure
from quant import zero_share
from sweeps import engine, gpfq
from sweeps.gpfq_log import COLUMNS, append_row, read_log

SPECIFIED = """Model Name, Dataset, Quantization Batch Size, Original Top1 Accuracy, Quantized Top1
Accuracy, Original Top5 Accuracy, Quantized Top5 Accuracy, Bits, MLP_Alphabet_Scalar,
CNN_Alphabet_Scalar, MLP_Percentile, CNN_Percentile, Stochastic Quantization, Regularizer, Lambda,
Original Sparsity, Quantized Sparsity, Retain_rate, Fusion, Seed"""
QUICK = "-- --num_samples 32 --alpha 1 --num_clusters 4 --pca_dim 2 --no-plots".split()
QUICK += ["--correction_samples", "100"]


OTHERS = ["--seed", "7", "--regularizer", "L1", "--lambda", "0.01"]


@contextmanager
def short_sweeps() -> Iterator[list[list[str]]]:
    """Runs the main script in this process, with three points per sweep; the commands so far."""
    commands: list[list[str]] = []

    def execute(spec, environment, on_start):
        commands.append(spec.flags)
        spec.folder.mkdir(parents=True, exist_ok=True)
        status = main_imagenet.main(spec.flags)
        if status != 0:
            spec.note_failure(status, ["error: as told"])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "execute", execute)
        for name, values in (("bits", (2, 3, 4)), ("scalar", (1.0, 1.05, 1.1))):
            short = dataclasses.replace(gpfq.ANALYSES[name], values=values)
            patch.setitem(gpfq.ANALYSES, name, short)
        yield commands


@pytest.fixture
def runs():
    with short_sweeps() as commands:
        yield commands


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> Path:
    """The root of a finished sweep; tests must not change it."""
    root = tmp_path_factory.mktemp("swept")
    with short_sweeps() as commands:
        assert sweep(root, *OTHERS) == 0
    assert len(commands) == 3
    return root


def sweep(tmp_path: Path, *flags: str, name: str = "bits") -> int:
    own = ["digits_resnet", "--sweep", name, "--jobs", "1", "--output_dir", str(tmp_path)]
    return run_script.main([*own, *QUICK, *flags])


def test_a_sweep_logs_and_draws_and_runs_no_point_twice(swept, runs):
    log = swept / "Quantization_Log_Bit.csv"
    with log.open(newline="") as handle:
        header, *rows = list(csv.reader(handle))
    assert ", ".join(header) == f"{' '.join(SPECIFIED.split())}, Seconds"
    assert [row[header.index("Bits")] for row in rows] == ["2", "3", "4"]
    with Image.open(swept / "image" / "digits_resnet_accuracy_bits.png") as image:
        assert image.width > 500
    assert sweep(swept, *OTHERS) == 0
    assert len(runs) == 0 and len(read_log(log)) == 3


def test_a_row_holds_what_the_run_measured(swept):
    row = read_log(swept / "Quantization_Log_Bit.csv")[1]
    folder = swept / "sweep_bits" / "digits_resnet" / "3" / "gpfq"
    record = json.loads((folder / "run.json").read_text())
    top1 = record["figures"]["quantized"]["top1_pct"] / 100
    assert float(row["Quantized Top1 Accuracy"]) == pytest.approx(top1, abs=5e-5)
    assert (row["Bits"], row["Seed"], row["Regularizer"], row["Lambda"]) == ("3", "7", "L1", "0.01")
    assert (row["Dataset"], row["Fusion"], row["Retain_rate"]) == ("digits", "True", "1.0")
    model, _ = load_quantized(
        folder / "run_digits_resnet_w3bit_a32bit_seed7" / "quantized_model.pt"
    )
    assert float(row["Quantized Sparsity"]) == pytest.approx(zero_share(model), abs=5e-5)
    network = load_model("digits_resnet").network
    assert float(row["Original Sparsity"]) == pytest.approx(zero_share(network), abs=5e-5)


def test_an_interrupted_sweep_is_continued(tmp_path, runs):
    assert sweep(tmp_path, name="scalar") == 0
    log = tmp_path / "Quantization_Log_Scalar.csv"
    before = read_log(log)
    lost = tmp_path / "sweep_scalar" / "digits_resnet" / "1.05" / "gpfq" / "run.json"
    lost.unlink()
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:2]))
    runs.clear()
    assert sweep(tmp_path, name="scalar") == 0
    assert len(runs) == 1 and runs[0][runs[0].index("--scalar") + 1] == "1.05"
    drop = lambda row: {key: value for key, value in row.items() if key != "Seconds"}  # noqa: E731
    assert [drop(row) for row in read_log(log)] == [drop(row) for row in before]


def test_other_flags_are_another_point(tmp_path, runs, monkeypatch):
    point = dataclasses.replace(gpfq.ANALYSES["bits"], values=(2,))
    monkeypatch.setitem(gpfq.ANALYSES, "bits", point)
    assert sweep(tmp_path) == 0
    assert sweep(tmp_path, "--seed", "8") == 0
    assert len(runs) == 2
    seeds = [row["Seed"] for row in read_log(tmp_path / "Quantization_Log_Bit.csv")]
    assert seeds == ["1005", "8"]


def test_a_failed_run_is_told_and_the_others_go_on(tmp_path, runs, monkeypatch, capsys):
    short = dataclasses.replace(gpfq.ANALYSES["bits"], values=(9, 3))
    monkeypatch.setitem(gpfq.ANALYSES, "bits", short)
    run = main_imagenet.main
    monkeypatch.setattr(main_imagenet, "main", lambda argv: 2 if "9" in argv else run(argv))
    assert sweep(tmp_path) == 1
    assert "bits = 9 ended in status 2: error: as told" in capsys.readouterr().err
    assert len(read_log(tmp_path / "Quantization_Log_Bit.csv")) == 1
    assert sweep(tmp_path) == 1 and len(runs) == 2  # what failed is not run again
    assert "bits = 9 ended in status 2" in capsys.readouterr().err
    retry = ["digits_resnet", "--sweep", "bits", "--retry_failed", "--output_dir", str(tmp_path)]
    assert run_script.main([*retry, *QUICK]) == 1 and len(runs) == 3


def test_the_commands_of_an_analysis_can_be_printed(tmp_path, runs, capsys):
    flags = ["digits_resnet", "--sweep", "bits", "--dry_run", "--output_dir", str(tmp_path)]
    assert run_script.main([*flags, *QUICK]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and not runs and not list(tmp_path.iterdir())
    assert lines[0].startswith("python3 main_imagenet.py --quant_method gpfq --n_bits_w 2")


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ([], "arch must be at least one architecture, got none"),
        (["digits_resnet", "--sweep", "bit"], "invalid choice: 'bit'"),
        (["digits_resnet", "--sweep", "bits", "--jobs", "0"], "must be at least 1, got 0"),
        (
            ["digits_resnet", "--sweep", "bits", "--", "--n_bits_w=3"],
            "--n_bits_w must be left out after --, because the sweep sets it",
        ),
    ],
)
def test_bad_usage_is_one_line(flags, text, capsys):
    assert run_script.main(flags) == 2
    error = capsys.readouterr().err
    assert text in error and error.count("\n") == 1


def test_a_foreign_log_is_not_overwritten(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="must have the columns of this log, got"):
        append_row(path, dict.fromkeys(COLUMNS, "1"))
    assert path.read_text() == "a,b\n1,2\n"


def test_the_figure_shows_every_point_the_float_line_and_the_best():
    figure = sweep_figure([3, 1, 2], [80.0, 10.0, 80.0], 88.0, 0.5, "bits", "title")
    line, points, best = figure.axes[0].lines
    assert list(line.get_ydata()) == [88.0, 88.0]
    assert line.get_label() == "full precision 88.00 ± 0.50 %"
    (band,) = figure.axes[0].patches
    assert (band.get_y(), band.get_height()) == (87.5, 1.0)
    assert list(points.get_xdata()) == [1, 2, 3] and list(points.get_ydata()) == [10, 80, 80]
    assert (list(best.get_xdata()), list(best.get_ydata())) == ([2], [80.0])


def test_the_sweeps_are_those_asked_for():
    assert gpfq.ANALYSES["bits"].values == tuple(range(1, 9))
    scalars = gpfq.ANALYSES["scalar"].values
    assert (scalars[0], scalars[1], scalars[-1], len(scalars)) == (1.0, 1.05, 2.0, 21)


def test_the_networks_of_the_gpfq_scripts():
    import torch

    small = get_entry("cifar_resnet18").build(10)
    assert small(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert small.conv1.stride == (1, 1) and small.conv1.kernel_size == (3, 3)
    for size in (28, 32):
        assert get_entry("lenet").build(10)(torch.zeros(2, 3, size, size)).shape == (2, 10)
