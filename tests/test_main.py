"""The main script on digits: what a run writes, that it can be repeated, and every line of bad input."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

import main_imagenet
import pipeline
from common import InputError
from evaluation import infer_logits
from files import sha256_file
from loaders import load_dataset
from logits_io import LogitsAnalyzer
from main_imagenet import build_parser, main
from models import get_entry, load_model
from models.cifar_resnet import CifarResNet
from tests.conftest import PROJECT

GRID = ["--alpha_list", "0.5", "1", "--num_clusters_list", "4", "--pca_dim_list", "2", "5"]
QUICK = ["--quant_method", "rtn", "--num_samples", "64", *GRID]
TAG = "digits_resnet_w4bit_a4bit_seed1005"


def files_below(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): sha256_file(path)
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, str]:
    """The root of a finished run on digits and what it printed."""
    import contextlib
    import io

    root = tmp_path_factory.mktemp("run")
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(io.StringIO()):
        assert main([*QUICK, "--output_dir", str(root), "--chunk_size", "200"]) == 0
    return root / "rtn", text.getvalue()


def test_a_run_writes_the_folders_given(finished):
    root, _ = finished
    names = sorted(path.name for path in root.iterdir())
    results = [
        f"results_alpha{a}_clusters{k}_pca{d}_digits_resnet_w4bit_a4bit"
        for a, k, d in (("0.5", 4, 2), ("0.5", 4, 5), ("1.0", 1, 1), ("1.0", 4, 2), ("1.0", 4, 5))
    ]
    assert names == sorted(
        [f"initial_logits_{TAG}", f"logits_summary_{TAG}", f"run_{TAG}", "run.json", *results]
    )
    inside = sorted(path.name for path in (root / f"run_{TAG}").iterdir())
    assert inside == [
        *("calibration_ids.json", "config.yaml", "quantized_model.pt"),
        *("run.json", "run.log", "state", "tensorboard"),
    ]


def test_saved_logits_are_those_of_the_networks(finished):
    root, _ = finished
    saved = LogitsAnalyzer(root).load(f"initial_logits_{TAG}")
    entry = get_entry("digits_resnet")
    data = load_dataset("digits", None, entry.preprocess)
    model = load_model("digits_resnet").network
    result = infer_logits({"fp": model}, data.val.batches(64), torch.device("cpu"))
    assert np.array_equal(saved.logits["fullprecision"], result.logits["fp"])
    assert np.array_equal(saved.targets, data.val.labels)
    assert len(list((root / f"initial_logits_{TAG}").glob("*_quantized_chunk*_of_003.csv"))) == 3


def test_the_summary_agrees_with_the_saved_logits(finished):
    root, _ = finished
    table = pd.read_csv(root / f"logits_summary_{TAG}" / f"logits_summary_{TAG}.csv")
    kinds = ["fullprecision", "identity", "global_line", "ridge_map", *["cluster_affine"] * 4]
    assert table.logits.tolist() == kinds
    assert table.selected.sum() == table.oracle.sum() == 1
    saved = LogitsAnalyzer(root).load("results_alpha1.0_clusters4_pca5_digits_resnet_w4bit_a4bit")
    row = table[(table.alpha == 1) & (table.num_clusters == 4) & (table.pca_dim == 5)].iloc[0]
    top1 = 100 * (saved.logits["corrected"].argmax(1) == saved.targets).mean()
    assert row.top1_pct == pytest.approx(top1)
    same = saved.logits["corrected"].argmax(1) == saved.logits["fullprecision"].argmax(1)
    assert row.agreement_pct == pytest.approx(100 * same.mean())
    chosen = table[table.logits.isin(["identity", "global_line", "cluster_affine"])]
    assert chosen.loc[chosen.heldout_kl.idxmin()].selected


def test_the_record_traces_every_number(finished):
    root, _ = finished
    record = json.loads((root / "run.json").read_text())
    assert record == json.loads((root / f"run_{TAG}" / "run.json").read_text())
    assert record["config"]["num_samples"] == 64
    assert record["data"]["calibration"]["images"] == 64
    assert record["data"]["evaluated"] == 500
    assert record["unsaved"] == []
    assert set(record["figures"]) == {"fullprecision", "quantized", "corrected"}
    stages = ["decode images", "quantize", "run networks", "save logits", "fit correction"]
    assert list(record["seconds"])[:5] == stages
    assert record["model"]["digest"] == load_model("digits_resnet").digest


def test_stdout_holds_the_table_and_nothing_else(finished):
    _, text = finished
    lines = text.strip().split("\n")
    assert lines[0].split()[:4] == ["logits", "alpha", "clusters", "pca"]
    assert len(lines) == 9
    assert sum("selected" in line for line in lines) == 1
    assert sum("oracle (best Top-1)" in line for line in lines) == 1


def test_tensorboard_holds_the_units_and_the_accuracies(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    root, _ = finished
    events = EventAccumulator(str(root / f"run_{TAG}" / "tensorboard")).Reload()
    losses = events.Scalars("reconstruction/loss")
    assert [event.step for event in losses] == [0, 1, 2, 3, 4]
    assert all(event.value > 0 for event in losses)
    for name in ("loss_nearest", "flipped", "seconds"):
        assert len(events.Scalars(f"reconstruction/{name}")) == 5
    record = json.loads((root / "run.json").read_text())
    for name in ("fullprecision", "quantized", "corrected"):
        value = events.Scalars(f"accuracy/top1_{name}")[0].value
        assert value == pytest.approx(record["figures"][name]["top1_pct"])


def test_the_same_command_gives_the_same_csv_and_model_bytes(finished, tmp_path, capsys):
    root, text = finished
    assert main([*QUICK, "--output_dir", str(tmp_path), "--chunk_size", "200"]) == 0
    assert capsys.readouterr().out == text
    first, second = files_below(root), files_below(tmp_path / "rtn")
    endings = (".csv", "model.pt", "ids.json")  # the stored units hold times
    repeatable = [name for name in first if name.endswith(endings)]
    assert len(repeatable) > 40
    assert {n: first[n] for n in repeatable} == {n: second[n] for n in repeatable}


def test_a_run_can_be_repeated_from_its_configuration(finished, tmp_path):
    root, _ = finished
    config = root / f"run_{TAG}" / "config.yaml"
    assert main(["--config", str(config), "--output_dir", str(tmp_path)]) == 0
    name = f"logits_summary_{TAG}/logits_summary_{TAG}.csv"
    assert (tmp_path / "rtn" / name).read_bytes() == (root / name).read_bytes()


def test_the_saved_model_gives_the_saved_logits_in_a_new_process(finished):
    root, _ = finished
    code = f"""
import numpy as np, torch
from loaders import load_dataset
from evaluation import infer_logits
from logits_io import LogitsAnalyzer
from models import get_entry, load_quantized
torch.set_num_threads(1)
model, metadata = load_quantized({str(root / f"run_{TAG}" / "quantized_model.pt")!r})
data = load_dataset("digits", None, get_entry(metadata["arch"]).preprocess)
result = infer_logits({{"q": model}}, data.val.batches(64), torch.device("cpu"))
saved = LogitsAnalyzer({str(root)!r}).load("initial_logits_{TAG}").logits["quantized"]
print(np.array_equal(result.logits["q"], saved), metadata["method"], metadata["settings"]["n_bits_w"])
"""
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT)
    assert result.stdout.strip() == "True rtn 4", result.stderr


def test_adaround_runs_end_to_end(tmp_path, capsys):
    flags = ["--iters_w", "30", "--lr_round", "0.1", "--num_samples", "64", "--n_bits_w", "2"]
    assert main([*flags, *GRID, "--output_dir", str(tmp_path), "--save_results", "selected"]) == 0
    assert "fullprecision" in capsys.readouterr().out
    assert len(list((tmp_path / "adaround").glob("results_*"))) <= 1


def test_dry_run_prints_the_plan_and_writes_nothing(tmp_path, capsys):
    assert main([*QUICK, "--output_dir", str(tmp_path / "new"), "--dry_run"]) == 0
    text = capsys.readouterr().out
    assert "64 calibrate, 1297 fit the correction, 500 evaluate" in text
    assert "rtn W4A4, seed 1005" in text
    assert not list(tmp_path.iterdir())


def test_print_config_can_be_read_back(tmp_path, capsys):
    flags = [*QUICK, "--n_bits_a", "8", "--no-channel_wise", "--correction_source", "val:0.2"]
    assert main([*flags, "--print_config"]) == 0
    text = capsys.readouterr().out
    config = yaml.safe_load(text)
    assert (config["n_bits_a"], config["channel_wise"]) == (8, False)
    assert config["alpha_list"] == [0.5, 1.0]
    (tmp_path / "c.yaml").write_text(text)
    assert main(["--config", str(tmp_path / "c.yaml"), "--print_config"]) == 0
    assert capsys.readouterr().out == text
    assert main(["--config", str(tmp_path / "c.yaml"), "--n-bits-a", "2", "--print_config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["n_bits_a"] == 2


def test_a_single_value_on_the_command_line_replaces_the_list_of_the_file(tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("alpha_list: [0.2, 0.4]\nquant_method: rtn\n")
    assert main(["--config", str(tmp_path / "c.yaml"), "--alpha", "1", "--print_config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["alpha_list"] == [1.0]


def test_settings_of_the_architecture_stand_between_flags_and_defaults(capsys):
    assert main(["--arch", "mobilenetv2", "--data_path", "x", "--print_config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["weight"] == 0.1
    flags = ["--arch", "mobilenetv2", "--data_path", "x", "--weight", "0.3", "--print_config"]
    assert main(flags) == 0
    assert yaml.safe_load(capsys.readouterr().out)["weight"] == 0.3
    assert main(["--print_config"]) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert (config["iters_w"], config["weight"], config["arch"]) == (1000, 0.01, "digits_resnet")


def test_the_flags_given_by_the_user_exist():
    given = """n_bits_w n_bits_a channel_wise disable_8bit_head_stem num_samples iters_w weight keep_cpu
    b_start b_end warmup lr init_wmode init_amode prob input_prob lamb_r T bn_lr lamb_c alpha alpha_list
    num_clusters num_clusters_list pca_dim pca_dim_list correction_samples correction_source arch
    checkpoint weights data_path dataset download skip_bad_images quant_method config print_config
    dry_run device output_dir log_dir seed lr_round"""
    assert set(given.split()) <= set(build_parser().flags())


def test_help_names_methods_and_defaults(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "adaround, pd_quant, qdrop, rtn" in text
    assert "optimisation steps per unit (default 20000; adaround, pd_quant, qdrop)" in text


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--arch", "mobilenetv2", "--quant_method", "pd_quant"], (1.0, 0.1, 0.005)),
        (["--arch", "mnasnet", "--quant_method", "pd_quant", "--T", "3"], (3.0, 0.1, 0.001)),
        (["--arch", "regnetx_600m", "--quant_method", "pd_quant"], (4.0, 0.1, 0.01)),
        (["--arch", "resnet18", "--quant_method", "pd_quant"], (4.0, 0.1, 0.02)),
        (["--arch", "mobilenetv2", "--quant_method", "qdrop"], (None, None, None)),
        (["--arch", "mobilenetv2", "--quant_method", "qdrop", "--lamb_r", "1"], (1.0, 1.0, None)),
    ],
)
def test_terms_of_pd_quant_take_the_defaults_of_the_architecture(flags, expected):
    options = main_imagenet.read_options([*flags, "--data_path", "."])
    settings = main_imagenet.make_method(options).settings
    assert (settings.T, settings.lamb_r, settings.lamb_c) == expected


def test_first_lines_of_the_docstring_are_commands_that_parse():
    lines = [line.strip() for line in main_imagenet.__doc__.replace("\\\n", " ").split("\n")]
    commands = [line.split()[2:] for line in lines if line.startswith("python main_imagenet.py")]
    assert len(commands) == 3
    for command in commands:
        main_imagenet.read_options(command)


def test_correction_from_val_leaves_the_figures(tmp_path):
    flags = [*QUICK, "--correction_source", "val:0.3", "--output_dir", str(tmp_path)]
    assert main(flags) == 0
    record = json.loads((tmp_path / "rtn" / "run.json").read_text())
    assert record["data"]["correction"]["images"] == 150
    assert record["data"]["evaluated"] == 350


def test_a_stored_calibration_list_repeats_the_model(finished, tmp_path):
    root, _ = finished
    ids = str(root / f"run_{TAG}" / "calibration_ids.json")
    flags = [
        "--quant_method",
        "rtn",
        *GRID,
        "--calibration_list",
        ids,
        "--output_dir",
        str(tmp_path),
    ]
    assert main(flags) == 0
    name = f"run_{TAG}/quantized_model.pt"
    first, second = (torch.load(p / name, weights_only=True) for p in (root, tmp_path / "rtn"))
    for key, value in first["state_dict"].items():
        assert torch.equal(value, second["state_dict"][key])


def test_what_cannot_be_saved_is_reported_and_the_run_goes_on(tmp_path, monkeypatch, capsys):
    original = LogitsAnalyzer.save_logits_to_csv

    def full(self, folder, *arguments, **options):
        if folder.startswith("results_alpha1.0_clusters4_pca5"):
            raise OSError("disk full")
        return original(self, folder, *arguments, **options)

    monkeypatch.setattr(LogitsAnalyzer, "save_logits_to_csv", full)
    assert main([*QUICK, "--output_dir", str(tmp_path)]) == 3
    captured = capsys.readouterr()
    assert "could not save results_alpha1.0_clusters4_pca5" in captured.err
    assert "Traceback" in captured.err
    assert "fullprecision" in captured.out
    record = json.loads((tmp_path / "rtn" / "run.json").read_text())
    assert len(record["unsaved"]) == 1


def test_an_unfinished_run_has_no_record(finished, tmp_path, monkeypatch):
    flags = [*QUICK, "--output_dir", str(tmp_path)]
    assert main(flags) == 0

    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "fit_grid", interrupt)
    assert main(flags) == 130
    root = tmp_path / "rtn"
    assert not (root / "run.json").exists()
    assert not (root / f"run_{TAG}" / "run.json").exists()
    assert (root / f"run_{TAG}" / "quantized_model.pt").exists()
    assert (root / f"initial_logits_{TAG}").exists()


def test_the_example_runs_and_stays_short(tmp_path):
    script = PROJECT / "example_quantization_usage.py"
    code = [line for line in script.read_text().split("\n") if line.strip()]
    assert len(code) < 40
    command = [sys.executable, str(script)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "corrected" in result.stdout


# --- bad input: one line, status 2, nothing written


@pytest.fixture
def folder(tmp_path) -> Path:
    """An image folder of two classes."""
    random = np.random.RandomState(0)
    for split, count in (("train", 8), ("val", 4)):
        for name in ("a", "b"):
            path = tmp_path / "images" / split / name
            path.mkdir(parents=True)
            for i in range(count):
                pixels = random.randint(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(path / f"{i}.png")
    return tmp_path / "images"


def refused(flags: list[str], tmp_path: Path, capsys) -> str:
    """Run the script; it must refuse in one line and write nothing. Returns the line."""
    output = tmp_path / "must_not_exist"
    assert main([*flags, "--output_dir", str(output), "--quiet"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert not output.exists()
    lines = captured.err.strip().split("\n")
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1
    assert lines[-1] == errors[0]
    return errors[0]


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (
            ["--arch", "resnt18", "--data_path", "."],
            "arch must be a known name, got 'resnt18'; closest: resnet18",
        ),
        (
            ["--quant_method", "adaruond"],
            "got 'adaruond'; closest: adaround; known: adaround, pd_quant, qdrop, rtn",
        ),
        (
            ["--dataset", "cifar11", "--arch", "resnet18"],
            "dataset must be a known name, got 'cifar11'; closest: cifar1",
        ),
        (["--n_bits_w", "0"], "n_bits_w must be between 1 and 16, or 32 (not quantized), got 0"),
        (["--n_bits_a", "20"], "n_bits_a must be between 1 and 16, or 32 (not quantized), got 20"),
        (["--n_bits_a", "four"], "argument --n_bits_a: invalid int value: 'four'"),
        (["--alpha", "1.5"], "alpha must be between 0 and 1, got 1.5"),
        (["--alpha_list", "0.2", "-0.1"], "alpha must be between 0 and 1, got -0.1"),
        (
            ["--num_clusters", "1100"],
            "num_clusters must be between 1 and 1038 (1297 fitting samples, 259 of",
        ),
        (
            ["--pca_dim_list", "5", "11"],
            "pca_dim must be between 1 and 10 (10 classes, 1038 fitting samples), got 11",
        ),
        (
            ["--quant_method", "rtn", "--iters_w", "5"],
            "--iters_w must be left out for rtn, which does not use it, got 5",
        ),
        (["--lamb_r", "0"], "lamb_r must be above 0 (1e-9..1e9), got 0.0"),
        (["--T", "-1e-3"], "T must be above 0 (1e-9..1e9), got -0.001"),
        (
            ["--dc_steps", "10"],
            "dc_steps must be left out while the distribution correction is off",
        ),
        (
            ["--quant_method", "qdrop", "--num_bits", "3", "--n_bits_w", "4"],
            "n_bits_w must be left out or agree with num_bits = 3, got 4",
        ),
        (
            ["--quant_method", "qdrop", "--dropout_rate", "0.3", "--prob", "0.3"],
            "prob must be left out or agree with dropout_rate = 0.3, got 0.3",
        ),
        (
            ["--quant_method", "qdrop", "--no-stochastic", "--input_prob", "0.5"],
            "input_prob must be left out or agree with stochastic = False, got 0.5",
        ),
        (
            ["--quant_method", "qdrop", "--no-stochastic", "--dropout_rate", "0.5"],
            "dropout_rate must be left out or agree with stochastic = False, got 0.5",
        ),
        (
            ["--quant_method", "qdrop", "--dropout_rate", "1.5"],
            "dropout_rate must be at most 1, got 1.5",
        ),
        (
            ["--quant_method", "qdrop", "--num_bits", "99"],
            "num_bits must be between 1 and 16, or 32",
        ),
        (["--alpha", "-1e-3"], "alpha must be between 0 and 1, got -0.001"),
        (["--alpha", "-inf"], "alpha must be between 0 and 1, got -inf"),
        (["--lr_round", "1e300"], "lr_round must be at most 1000, got 1e+300"),
        (["--correction_samples", "2"], "correction must have at least 3 fitting samples, got 2"),
        (
            ["--arch", "vit_b_16", "--dataset", "digits"],
            "arch must be a CNN of Conv2d and Linear layers, got the vision",
        ),
        (
            ["--arch", "alexnet", "--dataset", "digits"],
            "arch must take images of 3x8x8, got alexnet:",
        ),
        (["--log_dir", "/dev/null/x"], "output folder must be writable, got '/dev/null/x'"),
        (
            ["--num_samples", "5000"],
            "num_samples must be at most 1297 (the training images), got 5000",
        ),
        (
            ["--correction_source", "test"],
            "correction_source must be train, train_aug or val:FRACTION",
        ),
        (["--batch_size", "0"], "argument --batch_size: must be at least 1, got 0"),
        (["--device", "tpu"], "device must be auto, cpu, cuda or cuda:i, got 'tpu'"),
        (["--nbits_w", "4"], "flag must be a known name, got 'nbits_w'; closest: n_bits_w"),
        (["adaround"], "arguments must be flags and their values, got 'adaround'"),
        (
            ["--alpha", "1", "--alpha_list", "1"],
            "argument --alpha_list: not allowed with argument --alpha",
        ),
        (["--config", "nothing.yaml"], "config must be a readable YAML file, got nothing.yaml"),
        (["--checkpoint", "nothing.pt"], "nothing.pt: must be an existing file"),
        (
            ["--calibration_list", "nothing"],
            "calibration_list must be a readable list of image ids",
        ),
        (["--dataset", "digts"], "dataset must be a known name, got 'digts'; closest: digits"),
        (["--data_path", "."], "arch must be given together with data_path or dataset, got none"),
        (
            ["--data_path", "nowhere", "--arch", "resnet18"],
            "data_path must be an existing folder, got 'nowhere'",
        ),
        (
            ["--dataset", "cifar10", "--arch", "cifar_resnet20"],
            "data_path must be given for dataset cifar10",
        ),
        (["--seed", "-1"], "seed must be between 0 and 2^32 - 1, got -1"),
        (["--config"], "argument --config: expected one argument"),
        (["--lr", "nan"], "lr must be finite, got nan"),
        (["--shrinkage", "-1"], "shrinkage must be at least 0, got -1.0"),
    ],
)
def test_bad_flags(flags, text, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert text in refused(flags, tmp_path, capsys)


def test_bad_config_files(tmp_path, capsys):
    path = tmp_path / "c.yaml"
    for content, text in (
        ("n_bits: 4", f"flag in {path} must be a known name, got 'n_bits'; closest: num_bits"),
        ("n_bits_w: 0", "n_bits_w must be between 1 and 16, or 32 (not quantized), got 0"),
        ("seed: 2026-99-99", f"config must be a readable YAML file, got {path}"),
        ("a: " + "[" * 5000, f"config must be a readable YAML file, got {path}"),
        ("alpha_list: [1, --seed, 3]", "alpha_list in the config must be a list of values, got"),
        ("- a", f"config must map flags to values, got a list in {path}"),
        ("a: [", f"config must be a readable YAML file, got {path}"),
        ("channel_wise: 3", "channel_wise in the config must be true or false, got 3"),
    ):
        path.write_text(content)
        assert text in refused(["--config", str(path)], tmp_path, capsys)


def test_missing_or_empty_data_folder(folder, tmp_path, capsys):
    flags = ["--arch", "cifar_resnet20", "--data_path"]
    assert "must hold one of val, cifar-10" in refused([*flags, str(tmp_path)], tmp_path, capsys)
    for path in (folder / "val" / "a").iterdir():
        path.unlink()
    text = refused([*flags, str(folder)], tmp_path, capsys)
    assert f"{folder / 'val' / 'a'} must hold at least one image, got none" in text


def test_class_count_of_data_and_model(folder, tmp_path, capsys):
    checkpoint = tmp_path / "a.pt"
    torch.save(CifarResNet(20, 10).state_dict(), checkpoint)
    flags = [
        "--arch",
        "cifar_resnet20",
        "--data_path",
        str(folder),
        "--checkpoint",
        str(checkpoint),
    ]
    text = refused(flags, tmp_path, capsys)
    assert "model and data must have the same number of classes, got 10 in cifar_resnet20" in text
    assert "and 2 in imagenet" in text


def test_unusable_checkpoints(tmp_path, capsys):
    path = tmp_path / "a.pt"
    state = torch.load(get_entry("digits_resnet").shipped_weights, weights_only=True)["state_dict"]
    flags = ["--checkpoint", str(path)]
    torch.save(state, path)
    path.write_bytes(path.read_bytes()[:-1000])
    assert "a.pt: must be a whole torch.save file" in refused(flags, tmp_path, capsys)
    torch.save(CifarResNet(8), path)
    assert "a.pt: must hold tensors and plain values only" in refused(flags, tmp_path, capsys)
    torch.save({"epoch": 3}, path)
    assert "a.pt: must hold a state_dict (names to tensors)" in refused(flags, tmp_path, capsys)
    torch.save(CifarResNet(20).state_dict(), path)
    assert "weights must fit CifarResNet, got unexpected: layer1.1." in refused(
        flags, tmp_path, capsys
    )
    torch.save({1: state["conv1.weight"]}, path)
    assert "must hold a state_dict (names to tensors)" in refused(flags, tmp_path, capsys)
    torch.save({**state, "linear.weight": state["linear.weight"].to_sparse()}, path)
    assert "weights must be ordinary real tensors, got" in refused(flags, tmp_path, capsys)
    torch.save({**state, "linear.weight": torch.tensor(1.0)}, path)
    assert "got misshapen: linear.weight (must be" in refused(flags, tmp_path, capsys)
    torch.save({**state, "linear.weight": state["linear.weight"] * 1e38}, path)
    text = refused(flags, tmp_path, capsys)
    assert "logits of digits_resnet" in text
    assert "must be finite, got NaN or infinity" in text
    state["conv1.weight"][0, 0, 0, 0] = float("nan")
    torch.save(state, path)
    assert "weights must be finite, got NaN or Inf in 'conv1.weight'" in refused(
        flags, tmp_path, capsys
    )


def test_an_unreadable_image_is_refused_or_skipped(folder, tmp_path, capsys):
    bad = folder / "val" / "b" / "2.png"
    bad.write_bytes(b"not an image")
    flags = [
        "--arch",
        "cifar_resnet20",
        "--data_path",
        str(folder),
        "--quant_method",
        "rtn",
        "--alpha",
        "1",
    ]
    flags += ["--num_clusters", "2", "--pca_dim", "2"]
    text = refused(flags, tmp_path, capsys)
    assert f"{bad}: must be a readable image, got UnidentifiedImageError" in text
    assert main([*flags, "--skip_bad_images", "--output_dir", str(tmp_path / "o")]) == 0
    record = json.loads((tmp_path / "o" / "rtn" / "run.json").read_text())
    assert record["data"]["evaluation"]["skipped"] == 1
    assert record["data"]["evaluated"] == 7


def test_an_output_folder_that_is_not_writable(tmp_path, capsys):
    blocker = tmp_path / "file"
    blocker.touch()
    assert main([*QUICK, "--output_dir", str(blocker)]) == 2
    assert "error: output folder must be writable, got" in capsys.readouterr().err


def test_names_that_are_no_utf8_are_refused(folder, tmp_path, capsys):
    import os

    name = os.fsdecode(b"\xff.png")
    (folder / "val" / "a" / "0.png").rename(folder / "val" / "a" / name)
    text = refused(["--arch", "cifar_resnet20", "--data_path", str(folder)], tmp_path, capsys)
    assert "names of images must be UTF-8, got b'val/a/\\xff.png'" in text


def test_a_full_disk_costs_the_files_and_not_the_run(tmp_path, capsys, monkeypatch):
    def full(content, path):
        raise RuntimeError("unexpected pos 64 vs 0")

    monkeypatch.setattr(torch, "save", full)
    assert main([*QUICK, "--output_dir", str(tmp_path)]) == 3
    captured = capsys.readouterr()
    assert "could not save the quantized model" in captured.err
    assert "unit 0 is not stored, --resume will redo it" in captured.err
    assert captured.out.startswith("logits ")
    record = json.loads((tmp_path / "rtn" / "run.json").read_text())
    assert record["unsaved"] == ["the quantized model"]


def test_results_are_never_linked_from_the_logits_of_a_former_run(tmp_path, monkeypatch):
    """The initial logits of the second run cannot be saved: those of the first are still there."""
    from logits_io import LogitsAnalyzer

    flags = [*QUICK, "--output_dir", str(tmp_path)]
    assert main(flags) == 0
    original = LogitsAnalyzer.save_logits_to_csv

    def fails_at_first(self, folder, *arguments, **named):
        if folder.startswith("initial_logits"):
            raise OSError("disk full")
        return original(self, folder, *arguments, **named)

    monkeypatch.setattr(LogitsAnalyzer, "save_logits_to_csv", fails_at_first)
    assert main([*flags, "--init_wmode", "minmax", "--init_amode", "minmax"]) == 3
    analyzer = LogitsAnalyzer(tmp_path / "rtn")
    first = analyzer.load(next(path.name for path in (tmp_path / "rtn").glob("initial_*")))
    for path in (tmp_path / "rtn").glob("results_*"):
        second = analyzer.load(path.name)
        assert not np.array_equal(first.logits["quantized"], second.logits["quantized"])


def test_val_alone_runs_and_says_where_calibration_comes_from(folder, tmp_path, capsys):
    import shutil

    shutil.rmtree(folder / "train")
    flags = ["--arch", "cifar_resnet20", "--data_path", str(folder), "--quant_method", "rtn"]
    flags += ["--correction_source", "val:0.5", "--pca_dim", "1", "--num_clusters", "1"]
    assert main([*flags, "--output_dir", str(tmp_path / "o")]) == 0
    assert "4 of 8 val images are set aside and in no figure" in capsys.readouterr().err


def test_quiet_silences_all_but_warnings(tmp_path, capsys):
    assert main([*QUICK, "--output_dir", str(tmp_path), "--quiet"]) == 0
    assert "INFO" not in capsys.readouterr().err
    assert main([*QUICK, "--output_dir", str(tmp_path), "--verbose"]) == 0
    assert logging.getLogger().level == logging.DEBUG


def test_input_errors_are_value_errors_for_library_users():
    assert issubclass(InputError, ValueError)
