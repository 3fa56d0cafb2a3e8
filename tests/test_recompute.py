"""recompute_logits.py: files, temperature, failures, quantized models."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import main_imagenet
from common.marks import MARK
from common.sealed import SEAL, write_record
from common.torch_setup import pick_device
from evaluation.inference import infer_logits
from experts import recompute
from experts.checkpoints import load_expert
from logits_io import LogitsAnalyzer
from logits_io.npz import npz_path, read_npz, read_side
from models import load_quantized
from tests.conftest import FEW, RANGES
from tests.experts_lab import SLUG

SPLITS = ("val", "test", "tunev")


@pytest.fixture(scope="module")
def logits(lab, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("logits")
    assert lab.recompute(out, "--quiet") == 0
    return out


def arrays(root: Path, expert: str = "ce_baseline", split: str = "test") -> dict[str, np.ndarray]:
    return read_npz(root / expert / f"{split}_logits.npz")


def side(root: Path, expert: str = "ce_baseline", split: str = "test") -> dict:
    return json.loads((root / expert / f"{split}_logits.meta.json").read_text())


def test_every_expert_and_split_is_written(lab, logits):
    assert len(list(logits.glob("*/*.npz"))) == len(list(logits.glob("*/*.meta.json"))) == 12
    for split, size in (("val", 50), ("test", 400), ("tunev", 50)):
        found = arrays(logits, "decoupling_twostage", split)
        assert (found["logits"].shape, found["logits"].dtype) == ((size, 10), np.float32)
        assert {found[n].dtype for n in ("targets", "predictions", "indices")} == {
            np.dtype("int64")
        }
        assert found["indices"].tolist() == json.loads(
            (lab.splits / f"{split}_indices.json").read_text()
        )
        assert np.array_equal(found["predictions"], found["logits"].argmax(1))
        assert side(logits, "decoupling_twostage", split)["accuracy"] == float(
            (found["predictions"] == found["targets"]).mean()
        )


def test_logits_are_those_of_the_network(lab, logits):
    from experts.images import network_input, open_sources

    sources = open_sources("digits", None, network_input("digits", "cifar_resnet32"), False, None)
    found = arrays(logits)
    images = sources.images("test", found["indices"].tolist())
    expert = load_expert(lab.folder / "best_ce_baseline.pth", 10).expert
    device = pick_device("auto")
    result = infer_logits({"e": expert.to(device)}, images.batches(128), device)
    assert np.array_equal(result.logits["e"], found["logits"])
    assert np.array_equal(result.targets, found["targets"])


def test_the_side_file_says_where_they_are_from(lab, logits):
    stored = side(logits)
    assert set(stored) >= {
        "format_version",
        "expert",
        "split",
        "n",
        "num_classes",
        "dataset",
        "slug",
        "source",
        "indices_sha256",
        "checkpoint_file",
        "checkpoint_sha256",
        "checkpoint_prefix_requested",
        "checkpoint_val_accuracy",
        "temperature",
        "temperature_applied",
        "backbone",
        "dtype",
        "device",
        "batch_size_used",
        "accuracy",
        "npz_sha256",
        "torch_version",
        "created_utc",
        "command",
    }
    assert (stored["n"], stored["slug"], stored["source"]) == (400, SLUG, "test")
    assert stored["checkpoint_file"] == str(lab.folder / "best_ce_baseline.pth")
    assert (stored["temperature_applied"], stored["batch_size_used"]) == (False, 128)


def test_the_batch_size_does_not_matter(lab, logits, tmp_path):
    assert lab.recompute(tmp_path, "--experts", "ce", "--batch-size", "7", "--quiet") == 0
    mine, theirs = arrays(tmp_path), arrays(logits)
    assert np.array_equal(mine["predictions"], theirs["predictions"])
    assert np.abs(mine["logits"] - theirs["logits"]).max() < 1e-4


def test_a_second_run_gives_the_same_bytes(lab, logits, tmp_path):
    assert lab.recompute(tmp_path, "--experts", "ce", "--quiet") == 0
    for split in SPLITS:
        name = f"ce_baseline/{split}_logits.npz"
        assert (tmp_path / name).read_bytes() == (logits / name).read_bytes()


def test_the_temperature_is_applied_to_calibrated_experts(lab, logits, tmp_path):
    flags = ["--experts", "ce", "--checkpoint-prefix", "final_calibrated_", "--quiet"]
    assert lab.recompute(tmp_path, *flags) == 0
    stored = side(tmp_path)
    assert stored["temperature_applied"] is True
    assert stored["temperature"] != 1.0
    mine, raw = arrays(tmp_path), arrays(logits)
    assert np.abs(mine["logits"] * stored["temperature"] - raw["logits"]).max() < 1e-4
    assert np.array_equal(mine["predictions"], raw["predictions"])
    assert lab.recompute(tmp_path, *flags, "--apply-temperature", "no") == 0
    assert np.array_equal(arrays(tmp_path)["logits"], raw["logits"])
    assert side(tmp_path)["temperature_applied"] is False


def test_half_precision_is_stored_and_decides(lab, logits, tmp_path):
    assert lab.recompute(tmp_path, "--experts", "ce", "--dtype", "float16", "--quiet") == 0
    found = arrays(tmp_path)
    assert found["logits"].dtype == np.float16
    assert np.array_equal(found["logits"], arrays(logits)["logits"].astype(np.float16))
    assert np.array_equal(found["predictions"], found["logits"].argmax(1))


def test_the_training_split_is_there_when_asked_for(lab, tmp_path):
    assert lab.recompute(tmp_path, "--experts", "ce", "--splits", "train", "--quiet") == 0
    indices = json.loads((lab.splits / "train_indices.json").read_text())
    assert arrays(tmp_path, split="train")["logits"].shape == (len(indices), 10)
    assert side(tmp_path, split="train")["source"] == "train"


def test_a_missing_checkpoint_fails_that_expert_alone(lab, tmp_path, capsys):
    mine = lab.copy(tmp_path / "lab")
    (mine.folder / "best_ce_baseline.pth").unlink()
    out = tmp_path / "o"
    assert mine.recompute(out, "--experts", "ce_baseline", "balsoftmax_baseline") == 1
    captured = capsys.readouterr()
    assert "error: expert 'ce_baseline': no checkpoint found; tried" in captured.err
    assert captured.err.count("best_ce_baseline.pth") == 2
    assert "--checkpoint-prefix final_calibrated_ would work" in captured.err
    assert [path.name for path in out.iterdir()] == ["balsoftmax_baseline"]
    assert "FAILED" in captured.out
    assert "next:" not in captured.out
    assert mine.recompute(out, "--experts", "ce_baseline") == 2
    assert "nothing was computed" in capsys.readouterr().err
    assert mine.recompute(out, "--experts", "ce_baselin") == 2
    assert "did you mean ce_baseline?" in capsys.readouterr().err
    assert mine.recompute(out, "--dry-run", "--experts", "ce", "balsoftmax") == 2


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--train-epochs", "3"], "train_epochs must be left out without --train_experts"),
        (["--seed", "3"], "seed must be left out without --train_experts"),
        (["--batch-size", "0"], "batch_size must be at least 1, got 0"),
        (["--num-workers", "-1"], "num_workers must be at least 0, got -1"),
        (["--checkpoint-prefix", "worst_"], "checkpoint-prefix must be a known name"),
        (["--backbone", "vgg"], "backbone must be a known name"),
    ],
)
def test_bad_requests_are_one_line(lab, tmp_path, capsys, flags, text):
    assert lab.recompute(tmp_path / "o", *flags) == 2
    error = capsys.readouterr().err
    assert text in error
    assert error.count("\n") == 1
    assert not (tmp_path / "o").exists()


def test_inspecting_takes_nothing_else(lab, capsys):
    path = str(lab.folder / "best_ce_baseline.pth")
    assert lab.recompute(lab.root, "--inspect", path) == 2
    assert "must be left out with --inspect" in capsys.readouterr().err


def test_names_without_prefix_need_a_flag(lab, tmp_path, capsys):
    mine = lab.copy(tmp_path / "lab")
    (mine.folder / "best_ce_baseline.pth").rename(mine.folder / "ce_baseline.pth")
    flags = ["--experts", "ce", "--splits", "val"]
    assert mine.recompute(tmp_path / "o", *flags) == 2
    assert mine.recompute(tmp_path / "o", *flags, "--allow-fallback-names") == 0
    assert "taken from" in capsys.readouterr().err
    stored = side(tmp_path / "o", split="val")
    assert stored["checkpoint_prefix_requested"] == "best_"
    assert stored["checkpoint_file"].endswith("/ce_baseline.pth")


def test_default_experts_need_no_decoupling(lab, tmp_path, capsys):
    mine = lab.copy(tmp_path / "lab")
    (mine.folder / "best_decoupling_twostage.pth").unlink()
    assert mine.recompute(tmp_path / "o", "--dry-run") == 0
    assert "decoupling" not in capsys.readouterr().out
    assert not (tmp_path / "o").exists()


def test_a_checkpoint_that_does_not_fit_writes_nothing(lab, tmp_path, capsys):
    mine = lab.copy(tmp_path / "lab")
    path = mine.folder / "best_ce_baseline.pth"
    content = torch.load(path, weights_only=True)
    content["dataset"]["slug"] = "cifar10_lt_if100"
    torch.save(content, path)
    assert mine.recompute(tmp_path / "o", "--experts", "ce") == 1
    assert f"must be trained on {SLUG}, got cifar10_lt_if100" in capsys.readouterr().err
    content["dataset"]["slug"] = SLUG
    content["model_state_dict"]["fc.weight"] = torch.zeros(100, 64)
    torch.save(content, path)
    assert mine.recompute(tmp_path / "o", "--experts", "ce", "bal" + "softmax") == 1
    assert "checkpoint has 100 classes, dataset has 10" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "o").iterdir()] == ["balsoftmax_baseline"]
    assert mine.recompute(tmp_path / "p", "--experts", "ce", "balsoftmax", "--fail-fast") == 1
    assert not (tmp_path / "p").exists()


def test_other_accuracy_than_in_training_is_a_warning(lab, tmp_path, capsys):
    mine = lab.copy(tmp_path / "lab")
    path = mine.folder / "best_ce_baseline.pth"
    content = torch.load(path, weights_only=True)
    content["val_accuracy"] = 0.88
    torch.save(content, path)
    assert mine.recompute(tmp_path / "o", "--experts", "ce", "--splits", "val") == 0
    error = capsys.readouterr().err
    assert error.startswith("warning: recomputed val accuracy 0.")
    assert "differs from 0.8800 stored in the checkpoint" in error


def test_other_training_splits_are_a_warning(lab, tmp_path, capsys):
    mine = lab.copy(tmp_path / "lab")
    info = json.loads((mine.splits / "split_info.json").read_text())
    info["splits"]["train"]["indices_sha256"] = "0"
    del info[SEAL]
    (mine.splits / "split_info.json").write_text(json.dumps(info))
    assert mine.recompute(tmp_path / "o", "--experts", "ce", "--splits", "val") == 0
    assert "was trained on another train split" in capsys.readouterr().err


def out_of_memory_above(limit, monkeypatch):
    infer = recompute.infer_logits

    def limited(networks, batches, *arguments):
        first = next(iter(batches))
        if len(first[0]) > limit:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return infer(networks, limited.images.batches(len(first[0])), *arguments)

    run = recompute.run_in_batches

    def remember(network, images, request):
        limited.images = images
        return run(network, images, request)

    monkeypatch.setattr(recompute, "infer_logits", limited)
    monkeypatch.setattr(recompute, "run_in_batches", remember)


def test_batches_are_halved_when_memory_is_out(lab, logits, tmp_path, monkeypatch, capsys):
    out_of_memory_above(64, monkeypatch)
    flags = ["--experts", "ce", "--splits", "test"]
    assert lab.recompute(tmp_path, *flags) == 0
    assert (
        "warning: CUDA out of memory at batch size 128, retrying with 64" in capsys.readouterr().err
    )
    assert side(tmp_path)["batch_size_used"] == 64
    assert np.abs(arrays(tmp_path)["logits"] - arrays(logits)["logits"]).max() < 1e-4
    assert lab.recompute(tmp_path / "x", *flags, "--no-auto-batch") == 1
    assert "--batch-size 64 or --device cpu" in capsys.readouterr().err


def test_out_of_memory_for_one_image_is_an_error(lab, tmp_path, monkeypatch, capsys):
    out_of_memory_above(0, monkeypatch)
    assert lab.recompute(tmp_path, "--experts", "ce", "--splits", "val") == 1
    assert "must have memory for a batch of 1" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.npz"))


def test_broken_logits_are_not_written(lab, tmp_path, monkeypatch, capsys):
    infer = recompute.infer_logits

    def broken(*arguments):
        result = infer(*arguments)
        result.logits["network"][17, 3] = np.inf
        return result

    monkeypatch.setattr(recompute, "infer_logits", broken)
    assert lab.recompute(tmp_path, "--experts", "ce", "--splits", "val") == 1
    assert "got NaN or Inf in sample 17 of val" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.npz"))


def shortened(lab, name: str = "val"):
    path = lab.splits / f"{name}_indices.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values[:-1]))


def test_logits_too_large_for_half_precision_are_not_written(lab, tmp_path, monkeypatch, capsys):
    infer = recompute.infer_logits

    def large(*arguments):
        result = infer(*arguments)
        result.logits["network"] *= 1e6
        return result

    monkeypatch.setattr(recompute, "infer_logits", large)
    flags = ["--experts", "ce", "--splits", "val", "--dtype", "float16"]
    assert lab.recompute(tmp_path, *flags) == 1
    assert "got NaN or Inf in sample 0 of val" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.npz"))


def test_a_write_that_fails_leaves_the_former_pair(lab, tmp_path, monkeypatch, capsys):
    flags = ["--experts", "ce", "--splits", "val", "--quiet"]
    assert lab.recompute(tmp_path, *flags) == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("val*")}
    assert len(before) == 2

    def full(path, arrays):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(recompute, "write_npz", full)
    assert lab.recompute(tmp_path, *flags) == 1
    assert "No space left" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("val*")} == before


def test_indices_that_were_changed_by_hand_are_refused(lab, tmp_path, capsys):
    mine = lab.copy(tmp_path / "lab")
    path = mine.splits / "val_indices.json"
    path.write_text(json.dumps(json.loads(path.read_text())[::-1]))
    assert mine.recompute(tmp_path / "o", "--experts", "ce") == 2
    assert "must be what split_info.json describes, got other indices" in capsys.readouterr().err
    assert mine.train(tmp_path / "e", "--expert", "ce", "--epochs", "1") == 2


def test_an_expert_under_another_name_is_refused(lab, tmp_path, capsys):
    mine = lab.copy(tmp_path / "lab")
    path = mine.folder / "best_ce_baseline.pth"
    path.write_bytes((mine.folder / "best_balsoftmax_baseline.pth").read_bytes())
    assert mine.recompute(tmp_path / "o", "--experts", "ce") == 1
    assert "must be of ce_baseline, got balsoftmax_baseline" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"metadata": None},
        {"metadata": {"arch": "expert_cifar_resnet32"}},
        {"metadata": {"arch": "expert_cifar_resnet32", "num_classes": -1}},
        {"state_dict": {}},
        {"spec": {"a": 1}},
    ],
)
def test_damaged_quantized_models_are_one_line(lab, tmp_path, capsys, change):
    content = {"format": "ptq-quantized-model", "version": 1, "spec": {}, "state_dict": {}}
    torch.save({**content, **change}, tmp_path / "q.pt")
    assert lab.recompute(tmp_path / "o", "--quantized", f"q={tmp_path / 'q.pt'}") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("error: ")


def test_splits_of_another_size_are_refused(lab, tmp_path, capsys):
    mine = lab.copy(tmp_path / "lab")
    shortened(mine)
    assert mine.recompute(tmp_path / "o", "--experts", "ce") == 2
    assert "val has 49 samples, expected 50" in capsys.readouterr().err
    assert mine.recompute(tmp_path / "o", "--experts", "ce", "--allow-size-mismatch") == 0
    assert "warning: " in capsys.readouterr().err
    assert len(arrays(tmp_path / "o", split="val")["logits"]) == 49


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("{}", "must be a list of integers, got a dict"),
        ("[1, 2.5]", "must hold integers, got 2.5 at position 1"),
        ("[1, true]", "must hold integers, got True at position 1"),
        ("[3, 500]", "indices must be from 0 to 499, got 500 at position 1"),
        ("[3, 4, 3]", "indices must differ, got 3 again at position 2"),
        ("[]", "must hold at least one index"),
        ("[1", "must be a JSON file"),
        (None, "python3 create_splits_fixed.py"),
    ],
)
def test_damaged_splits_are_named(lab, tmp_path, capsys, content, text):
    mine = lab.copy(tmp_path / "lab")
    path = mine.splits / "test_indices.json"
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
    assert mine.recompute(tmp_path / "o", "--experts", "ce") == 2
    error = capsys.readouterr().err
    assert text in error
    assert "test_indices.json" in error
    assert not (tmp_path / "o").exists()


def test_splits_that_overlap_are_refused(lab, tmp_path, capsys):
    mine = lab.copy(tmp_path / "lab")
    (mine.splits / "tunev_indices.json").write_text((mine.splits / "val_indices.json").read_text())
    assert mine.recompute(tmp_path / "o", "--experts", "ce") == 2
    assert "splits must be disjoint, got index" in capsys.readouterr().err


def test_logits_of_another_data_set_are_not_replaced(lab, tmp_path, capsys):
    flags = ["--experts", "ce", "--splits", "val", "--quiet"]
    assert lab.recompute(tmp_path, *flags) == 0
    path = tmp_path / "ce_baseline" / "val_logits.meta.json"
    write_record(path, {**read_side(npz_path(tmp_path, "ce_baseline", "val")), "slug": "x_lt_if9"})
    (tmp_path / "ce_baseline" / MARK).unlink()
    before = (tmp_path / "ce_baseline" / "val_logits.npz").read_bytes()
    assert lab.recompute(tmp_path, *flags) == 2
    assert "choose another --output-dir" in capsys.readouterr().err
    assert (tmp_path / "ce_baseline" / "val_logits.npz").read_bytes() == before


def test_what_is_up_to_date_is_kept(lab, tmp_path, capsys):
    flags = ["--experts", "ce", "--skip-existing"]
    assert lab.recompute(tmp_path, *flags) == 0
    capsys.readouterr()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")}
    with (tmp_path / "ce_baseline" / "val_logits.npz").open("ab") as handle:
        handle.write(b"x")
    assert lab.recompute(tmp_path, *flags) == 2
    assert "val_logits.npz: must be a file that this suite wrote" in capsys.readouterr().err
    assert lab.recompute(tmp_path, *flags, "--force") == 0
    assert capsys.readouterr().out.count("(up to date)") == 2
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")}
    assert {path.name for path in before if before[path] != after[path]} == {"val_logits.npz"}
    assert lab.recompute(tmp_path, *flags, "--dtype", "float16") == 0
    assert "(up to date)" not in capsys.readouterr().out


def test_logits_as_csv(lab, logits, tmp_path):
    assert lab.recompute(tmp_path, "--experts", "ce", "--splits", "val", "--csv", "--quiet") == 0
    saved = LogitsAnalyzer(tmp_path / "ce_baseline").load("val_csv")
    assert np.array_equal(saved.logits["fullprecision"], arrays(logits, split="val")["logits"])
    assert np.array_equal(saved.targets, arrays(logits, split="val")["targets"])
    assert saved.metadata["checkpoint_sha256"] == side(tmp_path, split="val")["checkpoint_sha256"]


def test_csv_is_never_older_than_the_npz_beside_it(lab, tmp_path):
    flags = ["--experts", "ce", "--splits", "val", "--quiet", "--skip-existing"]
    assert lab.recompute(tmp_path, *flags) == 0
    assert lab.recompute(tmp_path, *flags, "--csv") == 0  # the npz is kept, the CSV was missing
    calibrated = [*flags, "--checkpoint-prefix", "final_calibrated_"]
    assert lab.recompute(tmp_path, *calibrated) == 0  # no --csv: what is there is renewed
    saved = LogitsAnalyzer(tmp_path / "ce_baseline").load("val_csv")
    assert np.array_equal(saved.logits["fullprecision"], arrays(tmp_path, split="val")["logits"])


def test_missing_experts_are_trained_when_asked_for(lab, tmp_path, capsys):
    where = ["--splits-dir", str(lab.splits), "--experts-dir", str(tmp_path / "e")]
    flags = ["--experts", "ce", "--train-experts", "--train-epochs", "1", "--train-lr", "0.02"]
    import recompute_logits

    assert recompute_logits.main([*where, *flags, "--output-dir", str(tmp_path / "o")]) == 0
    out = capsys.readouterr().out
    assert "Epoch   1/1:" in out
    assert "LR=0.02000" in out
    assert len(list((tmp_path / "o").rglob("*.npz"))) == 3


def test_a_quantized_expert_is_one_more_expert(lab, tmp_path, capsys):
    checkpoint = lab.folder / "best_ce_baseline.pth"
    command = ["--arch", "cifar_resnet32", "--checkpoint", str(checkpoint), "--quant_method", "rtn"]
    command += ["--output_dir", str(tmp_path / "q"), "--n_bits_w", "8", "--n_bits_a", "8"]
    command += ["--dataset", "digits"]
    command += [*FEW, *RANGES, "--alpha_list", "1", "--num_clusters_list", "4"]
    assert main_imagenet.main([*command, "--pca_dim_list", "2", "--no-plots"]) == 0
    model = next((tmp_path / "q").rglob("quantized_model.pt"))
    out = tmp_path / "o"
    assert lab.recompute(out, "--experts", "ce", "--quantized", f"ce_w8a8={model}") == 0
    assert side(out, "ce_w8a8")["quantized"] is True
    before, after = arrays(out), arrays(out, "ce_w8a8")
    assert (before["predictions"] == after["predictions"]).mean() > 0.95
    assert not np.array_equal(before["logits"], after["logits"])
    assert load_quantized(model)[1]["preprocess"]["mean"] == [0.3053] * 3
    assert lab.recompute(tmp_path / "p", "--quantized", str(model), "--quiet") == 0
    name = "expert_cifar_resnet32_rtn_w8a8_seed1005"
    assert np.array_equal(arrays(tmp_path / "p", name)["logits"], after["logits"])
    capsys.readouterr()
    assert lab.verify(out, "--experts", "ce", "ce_w8a8", "--min-accuracy", "0") in (0, 1)
    out_text = capsys.readouterr().out
    assert "ce_w8a8 / test" in out_text
    content = torch.load(model, weights_only=True)
    content["metadata"]["dataset"] = "cifar10"
    torch.save(content, tmp_path / "other.pt")
    assert lab.recompute(tmp_path / "z", "--quantized", f"x={tmp_path / 'other.pt'}") == 1
    assert "must be quantized on digits, got cifar10" in capsys.readouterr().err
    assert lab.recompute(out, "--quantized", f"a={model}", f"a={model}") == 2
    assert (
        "must differ in name (NAME=FILE) from all others, got 'a' twice" in capsys.readouterr().err
    )
