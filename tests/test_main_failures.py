"""The main script with bad input and bad luck: one line, the right status, nothing lost."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.errors import InputError
from logits_io import LogitsAnalyzer, writer
from main_imagenet import main
from models import get_entry
from models.cifar_resnet import CifarResNet
from pipeline import stages as pipeline
from quant import QuantizationManager
from tests.conftest import QUICK, RANGES, TAG

METHODS = QuantizationManager().list_available_methods()


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
            f"got 'adaruond'; closest: adaround; known: {', '.join(METHODS)}",
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
            "arch must take images of 3x8x8, got vit_b_16: Wrong image height! Expected 224",
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
        (["--batch_size", "0"], "argument -bs/--batch_size: must be at least 1, got 0"),
        (["--device", "tpu"], "device must be auto, cpu, cuda or cuda:i, got 'tpu'"),
        (["--nbits_w", "4"], "flag must be a known name, got '--nbits_w'; closest: --n_bits_w"),
        (["--n_bits", "4"], "got '--n_bits'; closest: --n_bits_w, --n_bits_a"),
        (["--no-corection"], "got '--no-corection'; closest: --no-correction"),
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
            "cifar10 must be in data/cifar-10-batches-py (--download fetches it), got no such "
            "folder",
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
        (
            "n_bits: 4",
            f"flag in {path} must be a known name, got 'n_bits'; closest: n_bits_w, n_bits_a",
        ),
        ("n_bits_w: 0", "n_bits_w must be between 1 and 16, or 32 (not quantized), got 0"),
        ("seed: 2026-99-99", f"config must be a readable YAML file, got {path}"),
        ("a: " + "[" * 5000, f"config must be a readable YAML file, got {path}"),
        ("alpha_list: [1, --seed, 3]", "alpha_list in the config must be a list of values, got"),
        ("- a", f"config must map keys to values, got a list in {path}"),
        ("a: [", f"config must be a readable YAML file, got {path}"),
        ("channel_wise: 3", "channel_wise in the config must be true or false, got 3"),
        ("seed: 1\nn_bits_w: 4\nseed: 2", "key 'seed' must be given once, got it in line 3"),
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


def test_the_digits_are_never_taken_for_the_images_of_another_network(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    torch.save(CifarResNet(20, 10).state_dict(), tmp_path / "a.pt")
    flags = ["--arch", "cifar_resnet20", "--checkpoint", str(tmp_path / "a.pt"), "--dry_run"]
    text = refused(flags, tmp_path, capsys)
    assert text == (
        "error: data_path must be given with arch cifar_resnet20, got none "
        "(--dataset digits runs it on the embedded digits)"
    )
    assert main([*flags, "--dataset", "digits"]) == 0
    assert main(["--arch", "digits_resnet", "--dry_run"]) == 0


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
    assert "a.pt: not a checkpoint: must hold a state_dict (names to tensors)" in refused(
        flags, tmp_path, capsys
    )
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
    assert "must be finite and at most 1e+15 in size, got inf" in text
    torch.save({**state, "linear.weight": state["linear.weight"] * 1e20}, path)
    assert "must be finite and at most 1e+15 in size, got" in refused(flags, tmp_path, capsys)
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
    flags += ["--num_clusters", "2", "--pca_dim", "2", *RANGES, "--no-plots"]
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
    assert "names of images must be UTF-8, got b'" in text and "val/a/\\xff.png'" in text


def test_a_full_disk_costs_the_files_and_not_the_run(tmp_path, capsys, monkeypatch):
    def full(content, path):
        raise RuntimeError("unexpected pos 64 vs 0")

    monkeypatch.setattr(torch, "save", full)
    assert main([*QUICK, "--output_dir", str(tmp_path)]) == 3
    captured = capsys.readouterr()
    assert "could not save the quantized model" in captured.err
    assert "unit 0 is not stored, --resume will redo it" in captured.err
    assert captured.out.startswith("digits_resnet rtn W4A4 seed 1005: ")
    assert "  could not save the quantized model" in captured.out.split("warnings:\n")[1]
    record = json.loads((tmp_path / "rtn" / "run.json").read_text())
    assert record["unsaved"] == ["the quantized model"]


def test_results_are_never_linked_from_the_logits_of_a_former_run(tmp_path, monkeypatch):
    """The initial logits of the second run cannot be saved: those of the first are still there."""

    flags = [*QUICK, "--output_dir", str(tmp_path)]
    assert main(flags) == 0
    original = writer.write_sealed

    def fails_at_first(path, record):
        if path.parent.name.startswith(".initial_logits"):
            raise OSError("disk full")
        original(path, record)

    monkeypatch.setattr(writer, "write_sealed", fails_at_first)
    assert main([*flags, "--n_bits_a", "4", "--init_amode", "minmax_scale"]) == 3
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
    flags += [*RANGES, "--no-plots"]
    assert main([*flags, "--output_dir", str(tmp_path / "o")]) == 0
    assert "4 of 8 val images are set aside and not evaluated" in capsys.readouterr().err


def test_input_errors_are_value_errors_for_library_users():
    assert issubclass(InputError, ValueError)


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
    assert captured.err.count("disk full") == 1 and "Traceback" not in captured.err
    assert "full precision" in captured.out
    record = json.loads((tmp_path / "rtn" / "run.json").read_text())
    assert len(record["unsaved"]) == 1


def test_an_unfinished_run_has_no_record(tmp_path, monkeypatch):
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
