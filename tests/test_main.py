"""The main script on digits: what a run writes, that it repeats, and every line of bad input."""

from __future__ import annotations

import json
import logging
import math
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
import verify_logits
from common.errors import InputError
from common.files import sha256_file
from common.torch_setup import pick_device
from correction import ClusterAffineCorrection
from evaluation.inference import infer_logits
from loaders import load_dataset
from logits_io import LogitsAnalyzer
from main_imagenet import main
from models import get_entry, list_archs, load_model
from pipeline import RunOptions
from pipeline import networks as inference
from pipeline.command import read_command
from pipeline.flags import build_parser
from pipeline.method import make_method
from pipeline.options import CorrectionOptions
from pipeline.record import replaced_run
from quant import QuantizationManager
from quant.registry import method_settings
from tests.conftest import FEW, GRID, PROJECT, QUICK, RANGES, TAG, write_cifar10

METHODS = QuantizationManager().list_available_methods()
LAST = "alpha1.0_clusters4_pca5_digits_resnet_w4bit_a4bit"


def files_below(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): sha256_file(path)
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def read(argv: list[str]) -> RunOptions:
    return read_command(build_parser(), argv).options


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, str]:
    """The root of a finished run on digits and what it printed."""
    import contextlib
    import io

    root = tmp_path_factory.mktemp("run")
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(io.StringIO()):
        assert main([*QUICK, "--plots", "--output_dir", str(root), "--chunk_size", "200"]) == 0
    return root / "rtn", text.getvalue()


def test_a_run_writes_the_folders_given(finished):
    root, _ = finished
    names = sorted(path.name for path in root.iterdir())
    results = [
        f"results_alpha{a}_clusters{k}_pca{d}_digits_resnet_w4bit_a4bit"
        for a, k, d in (("0.5", 4, 2), ("0.5", 4, 5), ("1.0", 1, 1), ("1.0", 4, 2), ("1.0", 4, 5))
    ]
    assert names == sorted(
        [
            ".written.json",
            f"initial_logits_{TAG}",
            f"logits_summary_{TAG}",
            f"run_{TAG}",
            "run.json",
            *results,
        ]
    )
    inside = sorted(path.name for path in (root / f"run_{TAG}").iterdir())
    assert inside == [
        ".written.json",
        "calibration_ids.json",
        "config.yaml",
        "correction.npz",
        "evaluation_ids.csv",
        "quantized_model.pt",
        "report.html",
        "run.json",
        "run.log",
        "state",
        "tensorboard",
    ]


def test_saved_logits_are_those_of_the_networks(finished):
    root, _ = finished
    saved = LogitsAnalyzer(root).load(f"initial_logits_{TAG}")
    entry = get_entry("digits_resnet")
    data = load_dataset("digits", None, entry.preprocess)
    device = pick_device("auto")
    model = load_model("digits_resnet").network.to(device)
    result = infer_logits({"fp": model}, data.val.batches(64), device)
    assert np.array_equal(saved.logits["fullprecision"], result.logits["fp"])
    assert np.array_equal(saved.targets, data.val.labels)
    assert len(list((root / f"initial_logits_{TAG}").glob("*_quantized_chunk*_of_003.csv"))) == 3


def test_the_summary_compares_with_full_precision(finished):
    root, _ = finished
    folder = root / f"logits_summary_{TAG}"
    assert {path.name for path in folder.glob("*.png")} == {
        "accuracy_grid.png",
        "cluster_map.png",
        "logit_scatter.png",
        "per_class_change.png",
        "reliability.png",
    }
    table = pd.read_csv(folder / f"{folder.name}.csv")
    compared = pd.read_csv(folder / f"{folder.name}_comparison.csv").set_index("logits")
    assert compared.top1_pct["quantized"] == pytest.approx(table.top1_pct[1])
    assert compared.top1_pct["corrected"] == pytest.approx(table[table.selected].top1_pct.iloc[0])
    per_class = pd.read_csv(folder / f"{folder.name}_per_class.csv")
    assert len(per_class) == 30


def test_the_summary_holds_the_bits_of_every_channel(tmp_path):
    flags = ["--n_bits_w", "3", "--per_channel_act", *FEW, "--no-plots"]
    assert main([*flags, "--quant_method", "aciq_mix", *GRID, "--output_dir", str(tmp_path)]) == 0
    tag = TAG.replace("w4bit", "w3bit")
    path = tmp_path / "aciq_mix" / f"logits_summary_{tag}" / f"logits_summary_{tag}.json"
    bits = json.loads(path.read_text())["bits"]
    weights, activations = bits["weights"], bits["activations"]
    first, *inner, last = weights.values()
    assert first == last == 8
    assert all(sum(row) <= 3 * len(row) for row in inner)
    assert {type(value) for value in activations.values()} == {int, list}


def test_the_saved_correction_is_the_selected_one(finished, tmp_path, capsys):
    root, _ = finished
    path = root / f"run_{TAG}" / "correction.npz"
    saved = LogitsAnalyzer(root).load(f"initial_logits_{TAG}")
    record = json.loads((root / "run.json").read_text())["figures"]["corrected"]
    corrected = ClusterAffineCorrection.load(path).transform(saved.logits["quantized"])
    assert 100 * (corrected.argmax(1) == saved.targets).mean() == pytest.approx(record["top1_pct"])
    flags = ["--quant_method", "rtn", "--num_samples", "64", *RANGES, "--no-plots"]
    flags += ["--output_dir", str(tmp_path)]
    assert main([*flags, "--load_correction", str(path)]) == 0
    table = capsys.readouterr().out.split("\n\n")[1].splitlines()
    assert [line.split()[0] for line in table] == ["logits", "full", "quantized", "cluster_affine"]
    again = json.loads((tmp_path / "rtn" / "run.json").read_text())
    assert again["figures"]["corrected"]["top1_pct"] == pytest.approx(record["top1_pct"])
    assert again["warning_signs"] == {}


@pytest.mark.parametrize(
    "flags", [["--logits_format", "parquet", "npz", "hdf5"], ["--compression", "zstd"]]
)
def test_other_formats_hold_the_same_logits(finished, tmp_path, flags):
    root, _ = finished
    assert main([*QUICK, "--chunk_size", "200", *flags, "--output_dir", str(tmp_path)]) == 0
    for folder in (f"initial_logits_{TAG}", f"results_{LAST}"):
        first, second = (LogitsAnalyzer(r).load(folder) for r in (root, tmp_path / "rtn"))
        for kind, logits in first.logits.items():
            assert second.logits[kind].tobytes() == logits.tobytes()
    assert verify_logits.main(["--csv-dir", str(tmp_path)]) == 0


def test_networks_run_once_whatever_the_number_of_settings(tmp_path, monkeypatch):
    calls = []
    original = inference.infer_logits

    def counting(networks, loader, *arguments):
        for network in networks.values():
            network.register_forward_hook(lambda *_: calls.append(1))
        return original(networks, loader, *arguments)

    monkeypatch.setattr(inference, "infer_logits", counting)
    counts = []
    base = ["--quant_method", "rtn", "--num_samples", "64", "--correction_samples", "128"]
    base += [*RANGES, "--no-plots", "--num_clusters_list", "2", "4"]
    for grid in (["--alpha", "1"], ["--alpha_list", "0.2", "0.6", "1", "--pca_dim_list", "1", "2"]):
        calls.clear()
        assert (
            main([*base, *grid, "--save_results", "selected", "--output_dir", str(tmp_path)]) == 0
        )
        counts.append(len(calls))
    assert counts[0] == counts[1] > 0


def test_the_summary_agrees_with_the_saved_logits(finished):
    root, _ = finished
    table = pd.read_csv(root / f"logits_summary_{TAG}" / f"logits_summary_{TAG}.csv")
    kinds = ["fullprecision", "identity", "global_line", "ridge_map", *["cluster_affine"] * 4]
    assert table.logits.tolist() == kinds
    assert table.selected.sum() == table.oracle.sum() == 1
    saved = LogitsAnalyzer(root).load(f"results_{LAST}")
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
    stages = ["decode images", "float network", "quantize", "run networks and save logits"]
    assert list(record["seconds"])[:4] == stages
    assert record["model"]["digest"] == load_model("digits_resnet").digest


def test_stdout_says_what_came_out_in_parts(finished):
    root, text = finished
    first, table, files, steps = text.strip().split("\n\n")
    record = json.loads((root / "run.json").read_text())["figures"]
    top1 = {name: row["top1_pct"] for name, row in record.items()}
    error = 100 * math.sqrt(top1["quantized"] / 100 * (1 - top1["quantized"] / 100) / 500)
    assert first.startswith(
        f"digits_resnet rtn W4A4 seed 1005: Top-1 float {top1['fullprecision']:.2f} %, quantized "
        f"{top1['quantized']:.2f} ± {error:.2f} % "
        f"({top1['quantized'] - top1['fullprecision']:+.2f})"
    )
    lines = table.split("\n")
    assert lines[0].split()[:4] == ["logits", "alpha", "clusters", "pca"]
    assert sum("selected" in line.replace("never selected", "") for line in lines) == 1
    assert sum("oracle (best Top-1 that could be chosen" in line for line in lines) == 1
    assert sum("best baseline" in line for line in lines) == 1
    shown = len(lines) - 2
    assert lines[-1] == f"({8 - shown} more corrections: --table full, or the summary below)"
    paths = [Path(line.split(":", 1)[1].strip()) for line in files.split("\n")[1:]]
    assert len(paths) == 4 and all(path.exists() for path in paths)
    assert steps.startswith("next:\n")


def test_the_full_table_has_every_correction_and_a_warning_is_said_again(tmp_path, capsys):
    arch = ["--arch", "cifar_resnet20", "--dataset", "digits"]  # random weights
    flags = [*QUICK, *arch, "--table", "full", "--output_dir", str(tmp_path), "--no_plots"]
    assert main(flags) == 0
    out = capsys.readouterr().out
    table = out.split("\n\n")[1].split("\n")
    assert len(table) == 9
    assert sum("for comparison, never selected" in line for line in table) == 1
    warnings = out.split("warnings:\n")[1]
    assert "RANDOM weights" in warnings


def test_no_correction_is_one_run_of_both_networks(tmp_path, capsys):
    flags = ["--quant_method", "rtn", "--num_samples", "64", *RANGES]
    flags += ["--output_dir", str(tmp_path)]
    assert main([*flags, "--no_correction"]) == 0
    out = capsys.readouterr().out
    assert "corrected" not in out and "may not carry over" not in out
    table = [line.split() for line in out.split("\n\n")[1].split("\n")]
    assert table[0] == "logits Top-1 % Top-5 % agree % KL MSE".split()
    assert [row[:-5] for row in table[1:]] == [["full", "precision"], ["quantized"]]
    root = tmp_path / "rtn"
    record = json.loads((root / "run.json").read_text())
    assert record["figures"]["corrected"] is None and record["data"]["correction"] is None
    assert (
        not list(root.glob("results_*")) and not (root / f"run_{TAG}" / "correction.npz").exists()
    )
    names = {path.name for path in (root / f"logits_summary_{TAG}").glob("*.png")}
    assert names == {"logit_scatter.png", "per_class_change.png", "reliability.png"}
    stages = list(record["seconds"])
    assert "score logits" in stages and not any("correction" in stage for stage in stages)
    assert main([*flags, "--no-correction", "--dry_run"]) == 0
    plan = capsys.readouterr().out.replace(str(tmp_path), "")
    assert "64 calibrate, 500 evaluate" in plan and "correct" not in plan
    assert main([*flags, "--no-correction", "--alpha", "1"]) == 2
    assert "alpha_list must be left out with --no-correction, got [1.0]" in capsys.readouterr().err
    assert main([*flags, "--no-correction", "--correction_source", "train"]) == 2
    assert "must be val:FRACTION with --no-correction, got 'train'" in capsys.readouterr().err
    fraction = ["--correction_source", "val:0.6"]
    assert main([*flags, "--no-correction", *fraction, "--dry_run"]) == 0
    assert "64 calibrate, 200 evaluate" in capsys.readouterr().out


def test_a_loaded_correction_leaves_the_choice_of_how_many_images_of_val_calibrate(tmp_path):
    loaded = {"load_correction": tmp_path / "correction.npz"}
    assert not CorrectionOptions(**loaded, correction_source="val:0.3").is_fitted
    with pytest.raises(InputError, match="must be val:FRACTION with --load_correction, which fits"):
        CorrectionOptions(**loaded, correction_source="train_aug")


def test_a_run_that_replaces_one_of_other_settings_says_so(tmp_path, capsys):
    flags = ["--quant_method", "rtn", "--num_samples", "32", *RANGES, "--no-plots"]
    flags += ["--no-correction", "--output_dir", str(tmp_path)]
    assert main(flags) == 0
    assert "replaces the earlier run" not in capsys.readouterr().err
    assert main(flags) == 0
    assert "replaces the earlier run" not in capsys.readouterr().err
    assert main([*flags, "--num_samples", "48"]) == 0
    folder = tmp_path / "rtn" / f"run_{TAG}"
    line = f"INFO replaces the earlier run in {folder}, which had num_samples = 32 (now 48)\n"
    assert line in capsys.readouterr().err
    (folder / "run.json").write_text("[1]")
    assert replaced_run(folder, {}) is None


def test_without_network_data_and_method_the_example_has_few_bits(capsys):
    assert main(["--print_config", "--output_dir", "x"]) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert (config["n_bits_w"], config["n_bits_a"]) == (2, 1)
    assert main(["--print_config", "--quant_method", "adaround"]) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert (config["n_bits_w"], config["n_bits_a"]) == (4, 4)


@pytest.mark.parametrize(
    ("what", "line"),
    [
        ("archs", "resnet18"),
        ("methods", "rtn       round to nearest with searched ranges: the baseline"),
        ("recipes", "resnet18_qdrop_w4a4, published Top-1 69.13, float 71.06"),
    ],
)
def test_the_names_of_a_flag_can_be_listed(what, line, capsys):
    assert main([f"--list_{what}"]) == 0
    assert line in capsys.readouterr().out.split("\n")


def test_architectures_are_listed_in_groups_each_once(capsys):
    assert main(["--list_archs"]) == 0
    groups = [part.split("\n") for part in capsys.readouterr().out.strip().split("\n\n")]
    project, torchvision, aliases, others = groups
    assert project[0] == "this project:" and "digits_resnet" in project and "lenet" in project
    assert torchvision[0] == "torchvision:" and "vit_b_16" in torchvision
    assert aliases[0] == "aliases of torchvision's names:"
    assert "mobilenetv2 = mobilenet_v2" in aliases
    names = [line.split(" = ")[0] for group in groups[:3] for line in group[1:]]
    assert sorted(names) == list_archs()
    assert others[0] == "further networks:"
    assert [line.split()[0] for line in others[1:]] == ["timm/NAME", "file.py:NAME"]


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


def test_the_same_command_gives_the_same_csv_and_model_bytes(
    finished, tmp_path, capsys, real_plots
):
    root, text = finished
    assert main([*QUICK, "--plots", "--output_dir", str(tmp_path), "--chunk_size", "200"]) == 0
    parts = zip(capsys.readouterr().out.split("\n\n"), text.split("\n\n"), strict=True)
    assert [mine == theirs for mine, theirs in parts] == [True, True, False, False]  # paths differ
    first, second = files_below(root), files_below(tmp_path / "rtn")
    endings = (".csv", "model.pt", "ids.json")  # the stored units hold times
    repeatable = [name for name in first if name.endswith(endings)]
    assert len(repeatable) > 40
    assert {n: first[n] for n in repeatable} == {n: second[n] for n in repeatable}
    plots = list((tmp_path / "rtn" / f"logits_summary_{TAG}").glob("*.png"))
    assert len(plots) == 5
    for path in plots:
        with Image.open(path) as image:
            assert len(image.convert("RGB").getcolors(1 << 24)) > 10


def test_a_run_can_be_repeated_from_its_configuration(finished, tmp_path):
    root, _ = finished
    config = root / f"run_{TAG}" / "config.yaml"
    assert main(["--config", str(config), "--output_dir", str(tmp_path), "--no-plots"]) == 0
    name = f"logits_summary_{TAG}/logits_summary_{TAG}.csv"
    assert (tmp_path / "rtn" / name).read_bytes() == (root / name).read_bytes()


def test_the_saved_model_gives_the_saved_logits_in_a_new_process(finished):
    """Before it loads the model, it reads the digits without torchvision and scikit-learn."""
    root, _ = finished
    code = f"""
import sys
from loaders import load_dataset
from models.digits import DIGITS_ENTRY
data = load_dataset("digits", None, DIGITS_ENTRY.preprocess)
print([name for name in ("torchvision", "sklearn") if name in sys.modules])
import numpy as np, torch
from common.torch_setup import pick_device
from evaluation.inference import infer_logits
from logits_io import LogitsAnalyzer
from models import load_quantized
torch.set_num_threads(1)
model, metadata = load_quantized({str(root / f"run_{TAG}" / "quantized_model.pt")!r})
device = pick_device("auto")
result = infer_logits({{"q": model.to(device)}}, data.val.batches(64), device)
saved = LogitsAnalyzer({str(root)!r}).load("initial_logits_{TAG}").logits["quantized"]
equal = np.array_equal(result.logits["q"], saved)
print(equal, metadata["arch"], metadata["method"], metadata["settings"]["n_bits_w"])
"""
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT)
    assert result.stdout.strip() == "[]\nTrue digits_resnet rtn 4", result.stderr


def test_adaround_runs_end_to_end(tmp_path, capsys):
    flags = ["--iters_w", "30", "--lr_round", "0.1", "--num_samples", "64", "--n_bits_w", "2"]
    flags += [*GRID, "--no-plots", "--save_results", "selected"]
    assert main([*flags, "--output_dir", str(tmp_path)]) == 0
    assert "full precision" in capsys.readouterr().out
    assert len(list((tmp_path / "adaround").glob("results_*"))) <= 1


def test_dry_run_refuses_a_network_that_the_settings_do_not_suit(tmp_path, capsys):
    flags = ["--arch", "digits_vit", "--dataset", "digits", "--quant_method", "aciq_mix"]
    flags += ["--act_points", "outputs", "--output_dir", str(tmp_path)]
    assert main([*flags, "--dry_run"]) == 2
    assert "error: act_points must be inputs, got outputs, which leaves" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_dry_run_prints_the_plan_and_writes_nothing(tmp_path, capsys):
    flags = ["--quant_method", "rtn", "--num_samples", "64", "--output_dir", str(tmp_path / "new")]
    assert main([*flags, "--dry_run"]) == 0
    text = capsys.readouterr().out
    assert "64 calibrate, 1297 fit the correction, 500 evaluate" in text
    assert "rtn W4A4, seed 1005" in text
    assert not list(tmp_path.iterdir())


def test_print_config_can_be_read_back(tmp_path, capsys):
    flags = [*QUICK, "--n_bits_a", "8", "--no-channel_wise", "--correction_source", "val:0.6"]
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
    given = """
    n_bits_w n_bits_a channel_wise disable_8bit_head_stem num_samples iters_w weight
    keep_cpu b_start b_end warmup lr init_wmode init_amode prob input_prob lamb_r T bn_lr
    lamb_c alpha alpha_list num_clusters num_clusters_list pca_dim pca_dim_list
    correction_samples correction_source arch checkpoint weights data_path dataset download
    skip_bad_images quant_method config print_config dry_run device output_dir log_dir seed
    lr_round
    """
    assert set(given.split()) <= set(build_parser().flags())


def test_the_command_of_the_gpfq_scripts(tmp_path, monkeypatch, capsys):
    (tmp_path / "data").mkdir()
    write_cifar10(tmp_path / "data", monkeypatch)
    monkeypatch.chdir(tmp_path)
    command = "--quant_method GPFQ -ds CIFAR10 -model {} -b 4 -bs 256 -s 1.16".split()
    resnet = [flag.format("ResNet18") for flag in command]
    assert main([*resnet, "--dry_run"]) == 0
    plan = capsys.readouterr().out
    assert "cifar_resnet18, 10 classes" in plan and "gpfq W4A32" in plan and "scalar=1.16" in plan
    lenet = [flag.format("LeNet") for flag in command]
    grid = ["--pca_dim", "2", "--num_clusters", "2", "--alpha", "1"]
    assert main([*lenet, *grid]) == 0
    record = json.loads((tmp_path / "outputs" / "gpfq" / "run.json").read_text())
    assert (record["config"]["batch_size"], record["config"]["arch"]) == (256, "lenet")


def test_lambda_goes_through_the_configuration(tmp_path, capsys):
    flags = ["--quant_method", "gpfq", "--regularizer", "L1", "--lambda", "0.25"]
    assert main([*flags, "--print_config"]) == 0
    text = capsys.readouterr().out
    assert yaml.safe_load(text)["lambda"] == 0.25
    (tmp_path / "config.yaml").write_text(text)
    assert main(["--config", str(tmp_path / "config.yaml"), "--print_config"]) == 0
    assert capsys.readouterr().out == text
    assert main(["--quant_method", "rtn", "--lambda", "1"]) == 2
    assert "--lambda must be left out for rtn" in capsys.readouterr().err


def test_help_names_methods_and_defaults(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "aciq_mix, adaround, distill, gpfq, lapq, pd_quant, qdrop, rtn" in text
    assert "optimisation steps per unit (default 20000)" in text
    assert "number of calibration images (default 1024; lapq: 512)" in text


def test_the_first_screen_of_the_help_shows_the_first_flags(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    lines = capsys.readouterr().out.split("\n")
    assert lines[0] == "usage: main_imagenet.py [flags]"
    first = "\n".join(lines[:25])
    needed = ("--data_path", "--arch", "--checkpoint", "--quant_method", "--n_bits_w")
    assert all(f"\n  {flag}" in first for flag in needed)


def test_every_flag_of_a_method_is_in_a_group_that_names_it(capsys):
    groups = {group.title: group for group in build_parser()._action_groups}
    for name, fields in method_settings().items():
        users = ", ".join(fields)
        title = "method" if len(fields) == len(METHODS) else f"method: {users}"
        assert name in {action.dest for action in groups[title]._group_actions}


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
    settings = make_method(read([*flags, "--data_path", "."])).settings
    assert (settings.T, settings.lamb_r, settings.lamb_c) == expected


def test_first_lines_of_the_docstring_are_commands_that_parse():
    lines = [line.strip() for line in main_imagenet.__doc__.replace("\\\n", " ").split("\n")]
    commands = [line.split()[2:] for line in lines if line.startswith("python main_imagenet.py")]
    assert len(commands) == 3
    for command in commands:
        read(command)


def test_correction_from_val_leaves_the_figures(tmp_path):
    flags = [*QUICK, "--correction_source", "val:0.7", "--output_dir", str(tmp_path)]
    assert main(flags) == 0
    record = json.loads((tmp_path / "rtn" / "run.json").read_text())
    assert record["data"]["correction"]["images"] == 300
    assert record["data"]["evaluated"] == 150


def test_a_stored_calibration_list_repeats_the_model(finished, tmp_path):
    root, _ = finished
    ids = str(root / f"run_{TAG}" / "calibration_ids.json")
    flags = ["--quant_method", "rtn", *GRID, *RANGES, "--correction_samples", "300", "--no-plots"]
    assert main([*flags, "--calibration_list", ids, "--output_dir", str(tmp_path)]) == 0
    name = f"run_{TAG}/quantized_model.pt"
    first, second = (torch.load(p / name, weights_only=True) for p in (root, tmp_path / "rtn"))
    for key, value in first["state_dict"].items():
        assert torch.equal(value, second["state_dict"][key])


def test_the_example_runs_and_stays_short(tmp_path, monkeypatch, capsys):
    """Run as it is written but for the number of steps and images."""
    code = (PROJECT / "example_quantization_usage.py").read_text()
    assert len([line for line in code.split("\n") if line.strip()]) < 40
    quick = code.replace("iters_w=300, lr_round=1e-2", "iters_w=30, lr_round=0.1, num_samples=64")
    assert quick != code
    monkeypatch.chdir(tmp_path)
    exec(compile(quick, "example_quantization_usage.py", "exec"), {"__name__": "__main__"})
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("corrected      Top-1 ") for line in lines)
    assert next((tmp_path / "outputs" / "example").rglob("*.csv"), None) is not None


def test_quiet_silences_all_but_warnings(tmp_path, capsys):
    assert main([*QUICK, "--output_dir", str(tmp_path), "--quiet"]) == 0
    assert "INFO" not in capsys.readouterr().err
    assert main([*QUICK, "--output_dir", str(tmp_path), "--verbose", "--dry_run"]) == 0
    assert logging.getLogger().level == logging.DEBUG
