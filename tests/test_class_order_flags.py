"""The order of the classes in the scripts beside the main one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import create_splits_fixed
import export_onnx
import main_imagenet
import recompute_logits
import train_any_precision
import train_experts
import verify_logits
from any_precision.data import load_images
from any_precision.settings import Config
from common.errors import InputError
from experts.splits import order_digest
from tests.conftest import RANGES

NUMBERS = [str(number) for number in range(1, 13)]
MUST = "class_order must be given where the classes are numbers"


@pytest.fixture(scope="module")
def numbered(tmp_path_factory) -> Path:
    """12 folders that are numbers, with 4 training and 10 evaluation images each."""
    root, random = tmp_path_factory.mktemp("numbered"), np.random.RandomState(0)
    for split, count in (("train", 4), ("val", 10)):
        for name in NUMBERS:
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.randint(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def splits(numbered, tmp_path_factory) -> Path:
    """Splits of these images in their natural order."""
    folder = tmp_path_factory.mktemp("splits") / "s"
    argv = ["--dataset", "imagenet", "--data_root", str(numbered), "--output", str(folder)]
    argv += ["--imb_factor", "2"]
    assert create_splits_fixed.main(argv) == 2
    assert create_splits_fixed.main([*argv, "--class_order", "natural"]) == 0
    return folder


def last_error(capsys) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_splits_record_an_order_that_is_not_that_of_the_text(splits):
    info = json.loads((splits / "split_info.json").read_text())
    assert info["classes_sha256"] == order_digest(NUMBERS)
    assert order_digest(sorted(NUMBERS)) is None
    assert order_digest(NUMBERS) != order_digest(NUMBERS[::-1])


SCRIPTS = {
    "train": (train_experts, ["--dry_run", "--expert", "ce"]),
    "recompute": (recompute_logits, ["--dry_run", "--experts", "ce"]),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_experts_take_the_order_of_their_splits_only(name, numbered, splits, tmp_path, capsys):
    script, flags = SCRIPTS[name]
    argv = ["--dataset", "imagenet", "--data_root", str(numbered), "--splits_dir", str(splits)]
    argv += [*flags, "--backbone", "cifar_resnet32", "--output_dir", str(tmp_path / "out")]
    assert script.main(argv) == 2
    assert MUST in last_error(capsys)
    assert script.main([*argv, "--class_order", "text"]) == 2
    assert last_error(capsys) == (
        f"error: class_order must be that of the splits in {splits}, the one recorded in "
        "split_info.json, got 1, 10, 11 ..."
    )
    status = script.main([*argv, "--class_order", "natural"])
    shown = capsys.readouterr()
    if name == "train":
        assert status == 0 and "expert" in shown.out
    else:  # the images are accepted; there is no expert
        assert status != 0 and "no checkpoint found" in shown.err
    assert "class_order" not in shown.err


def test_splits_without_a_record_are_in_the_order_of_the_text(numbered, tmp_path, capsys):
    folder = tmp_path / "s"
    argv = ["--dataset", "imagenet", "--data_root", str(numbered)]
    made = [*argv, "--output", str(folder), "--imb_factor", "2", "--class_order", "text"]
    assert create_splits_fixed.main(made) == 0
    assert "classes_sha256" not in json.loads((folder / "split_info.json").read_text())
    argv += ["--splits_dir", str(folder), "--dry_run", "--output_dir", str(tmp_path / "out")]
    assert train_experts.main([*argv, "--class_order", "text"]) == 0
    assert train_experts.main([*argv, "--class_order", "natural"]) == 2
    assert last_error(capsys) == (
        f"error: class_order must be that of the splits in {folder}, the one of their text, got "
        "1, 2, 3 ..."
    )


def test_verification_compares_labels_in_the_order_of_the_splits(numbered, splits, capsys):
    from experts.images import Choice, read_source_labels
    from experts.stored_splits import read_splits

    stored = read_splits(splits, "imagenet")
    labels = read_source_labels(Choice("imagenet", numbered, "", stored, "natural"))
    assert labels["test"].tolist() == [label for label in range(12) for _ in range(10)]
    with pytest.raises(InputError, match="class_order must be that of the splits"):
        read_source_labels(Choice("imagenet", numbered, "", stored, "text"))


def test_an_order_without_effect_is_refused(lab, tmp_path, capsys):
    assert lab.recompute(tmp_path, "--experts", "ce", "--quiet") == 0
    assert lab.verify(tmp_path, "--class-order", "text", "--against-data", "no") == 2
    assert "class_order must be left out with --against-data no, got text" in last_error(capsys)
    assert lab.verify(tmp_path, "--class-order", "text") == 2
    assert "class_order must be left out for dataset digits" in last_error(capsys)
    assert verify_logits.main(["--csv_dir", str(tmp_path), "--class_order", "text"]) == 2
    assert "class_order must be left out with --csv-dir, got text" in last_error(capsys)


def test_any_precision_training_takes_the_order_from_flag_and_file(numbered, tmp_path, capsys):
    argv = ["--dataset", "imagenet", "--data_root", str(numbered), "--model_variant", "resnet8"]
    argv += ["--dry_run", "--device", "cpu"]
    assert train_any_precision.main(argv) == 2
    assert MUST in last_error(capsys)
    assert train_any_precision.main([*argv, "--class_order", "natural"]) == 0
    assert "class_order: natural" in capsys.readouterr().out
    (tmp_path / "c.json").write_text(json.dumps({"class_order": "text"}))
    assert train_any_precision.main([*argv, "--yaml_path", str(tmp_path / "c.json")]) == 0
    assert "class_order: text" in capsys.readouterr().out
    (tmp_path / "c.json").write_text(json.dumps({"class_order": 3}))
    assert train_any_precision.main([*argv, "--yaml_path", str(tmp_path / "c.json")]) == 2
    assert last_error(capsys) == "error: class_order must be text, got 3"
    config = Config(dataset="imagenet", data_root=str(numbered), class_order="natural")
    images = load_images(config, download=False)
    assert [name.split("/")[1] for name in images.test.ids[::10]] == NUMBERS


@pytest.mark.usefixtures("one_operator_table")
def test_an_export_is_checked_in_the_order_of_the_run(numbered, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    argv = ["--arch", "cifar_resnet20", "--data_path", str(numbered), "--class_order", "natural"]
    argv += ["--quant_method", "rtn", "--no-correction", "--no-plots", *RANGES]
    argv += ["--output_dir", str(tmp_path)]
    assert main_imagenet.main([*argv, "--n_bits_w", "8", "--n_bits_a", "8"]) == 0
    assert "--class_order natural" in capsys.readouterr().out
    (model,) = tmp_path.glob("rtn/run_*/quantized_model.pt")
    argv = [str(model), "--data_path", str(numbered), "--output_dir", str(tmp_path / "onnx")]
    argv += ["--export_images", "20", "--min_agreement", "0"]
    assert export_onnx.main(argv) == 2
    assert MUST in last_error(capsys)
    assert export_onnx.main([*argv, "--class_order", "natural"]) == 0
    assert export_onnx.main([str(model), "--noise", "--class_order", "text"]) == 2
    assert "class_order must be left out with --noise, got text" in last_error(capsys)
