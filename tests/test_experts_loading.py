"""Checkpoints are loaded exactly or not at all."""

from __future__ import annotations

import pytest
import torch

from common.errors import InputError
from experts.checkpoints import find_checkpoint, load_expert
from models.expert import Expert
from recompute_logits import main


@pytest.fixture
def state(lab):
    return torch.load(lab.folder / "best_ce_baseline.pth", weights_only=True)["model_state_dict"]


def saved(tmp_path, content):
    path = tmp_path / "x.pth"
    torch.save(content, path)
    return path


FOREIGN = {
    "bare": lambda s: s,
    "module.": lambda s: {f"module.{k}": v for k, v in s.items()},
    "_orig_mod. under net": lambda s: {"net": {f"_orig_mod.{k}": v for k, v in s.items()}},
    "under state_dict": lambda s: {"state_dict": s, "epoch": 3},
    "temperature of shape []": lambda s: {**s, "temperature": s["temperature"].reshape(())},
    "head named linear": lambda s: {k.replace("fc.", "linear."): v for k, v in s.items()},
    "no backbone. and classifier": lambda s: {
        k.removeprefix("backbone.").replace("fc.", "classifier."): v for k, v in s.items()
    },
}


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_forms_are_loaded_exactly(name, state, tmp_path, capsys):
    path = saved(tmp_path, FOREIGN[name](state))
    loaded = load_expert(path, 10)
    assert loaded.tensors == 201
    for key, value in loaded.expert.state_dict().items():
        assert torch.equal(value.reshape(-1), state[key].reshape(-1)), key
    assert main(["--inspect", str(path)]) == 0
    out = capsys.readouterr().out
    assert "tensors: 201" in out
    assert "verdict: accepted as cifar_resnet32, 201/201 tensors" in out


def test_a_missing_temperature_is_one(state, tmp_path):
    del state["temperature"]
    assert float(load_expert(saved(tmp_path, state), 10).expert.temperature) == 1.0


def test_other_names_are_refused(state, tmp_path, capsys):
    path = saved(tmp_path, {k.replace("backbone.", "net."): v for k, v in state.items()})
    with pytest.raises(InputError) as error:
        load_expert(path, 10)
    text = str(error.value)
    assert "checkpoint does not fit cifar_resnet32: 3 of 201 tensors found; missing (198)" in text
    assert "backbone.conv1.weight" in text
    assert "unexpected (198): net.conv1.weight" in text
    assert main(["--inspect", str(path)]) == 1
    assert "verdict: not accepted" in capsys.readouterr().out
    path = saved(tmp_path, {f"other.{k}": v for k, v in state.items()} | {"n": torch.ones(1)})
    with pytest.raises(InputError, match="0 of 201 tensors found"):
        load_expert(path, 10)


def test_two_names_for_one_tensor_are_refused(state, tmp_path):
    state["linear.weight"] = state["fc.weight"]
    with pytest.raises(InputError, match=r"unexpected \(1\): linear.weight"):
        load_expert(saved(tmp_path, state), 10)


@pytest.mark.parametrize(
    ("shape", "texts"),
    [
        ((10, 512), ("[10, 512]", "[10, 64]", "resnet18", "cifar_resnet32 (64)")),
        ((100, 64), ("checkpoint has 100 classes, dataset has 10",)),
        ((10, 77), ("features of 77 are of no known backbone",)),
    ],
)
def test_other_shapes_are_explained(shape, texts, state, tmp_path):
    state["fc.weight"] = torch.zeros(shape)
    with pytest.raises(InputError) as error:
        load_expert(saved(tmp_path, state), 10)
    for text in texts:
        assert text in str(error.value)


def test_broken_values_are_refused(state, tmp_path):
    state["backbone.bn1.bias"][3] = float("nan")
    with pytest.raises(InputError, match=r"got NaN or Inf in 'backbone.bn1.bias'"):
        load_expert(saved(tmp_path, state), 10)
    state["backbone.bn1.bias"][3] = 0.0
    state["temperature"][0] = -2.0
    with pytest.raises(InputError, match="temperature must be positive, got -2"):
        load_expert(saved(tmp_path, state), 10)


class Pickled:
    pass


def test_pickles_need_a_flag(state, tmp_path):
    path = saved(tmp_path, {"state_dict": state, "args": Pickled()})
    with pytest.raises(InputError, match="--unsafe-load reads it"):
        load_expert(path, 10)
    assert load_expert(path, 10, unsafe=True).tensors == 201
    path.write_bytes(b"nothing")
    for unsafe in (False, True):
        with pytest.raises(InputError, match=r"must (be|hold)"):
            load_expert(path, 10, unsafe=unsafe)


METADATA_DAMAGE = {
    "arch": [
        None,
        [],
        {},
        {"backbone": 3, "num_classes": 10},
        {"backbone": "vgg", "num_classes": 10},
    ],
    "dataset": [None, {}, {"slug": "a", "mean": [0.1], "std": [1.0] * 3}],
    "splits_sha256": [None, {}, {"train": 1, "val": "a"}],
    "epoch": [None, "3"],
    "val_accuracy": [None, "0.5", torch.tensor(0.5)],
    "expert_name": [None, 4],
    "format_version": [2, None],
}
CASES = [(key, value) for key, values in METADATA_DAMAGE.items() for value in values]


@pytest.mark.parametrize(("key", "value"), CASES)
def test_damaged_metadata_are_named(lab, tmp_path, key, value):
    content = torch.load(lab.folder / "best_ce_baseline.pth", weights_only=True)
    content[key] = value
    with pytest.raises(InputError, match=key if key != "arch" else "arch|backbone"):
        load_expert(saved(tmp_path, content), 10)
    del content[key]
    with pytest.raises(InputError, match=key):
        load_expert(saved(tmp_path, content), 10)


@pytest.mark.parametrize("std", [0.0, -1.0, float("inf"), float("nan"), "1", 1e30])
def test_inputs_that_make_no_sense_are_refused(lab, tmp_path, std):
    content = torch.load(lab.folder / "best_ce_baseline.pth", weights_only=True)
    content["dataset"]["std"] = [1.0, std, 1.0]
    with pytest.raises(InputError, match=r"dataset\.std must be three numbers"):
        load_expert(saved(tmp_path, content), 10)


def test_bytes_that_changed_in_the_archive_are_found(lab, tmp_path):
    path = tmp_path / "x.pth"
    content = bytearray((lab.folder / "best_ce_baseline.pth").read_bytes())
    place = content.find(
        torch.load(lab.folder / "best_ce_baseline.pth")["model_state_dict"]["fc.weight"]
        .numpy()
        .tobytes()
    )
    content[place + 100] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="must match its checksums, got changed bytes in"):
        load_expert(path, 10)


def test_what_is_no_checkpoint_is_said_to_be_none(tmp_path):
    with pytest.raises(InputError, match=r"not a checkpoint: .* the keys 'a', 'b'"):
        load_expert(saved(tmp_path, {"a": 1, "b": 2}), 10)


def test_the_backbone_is_that_of_the_checkpoint(lab):
    path = lab.folder / "best_ce_baseline.pth"
    assert load_expert(path, 10, "resnet32").expert.backbone_name == "cifar_resnet32"
    with pytest.raises(InputError, match="backbone must be that of the checkpoint, cifar_resnet32"):
        load_expert(path, 10, "resnet18")


def test_looking_a_checkpoint_up(tmp_path):
    expert = Expert(10).state_dict()
    (tmp_path / "slug").mkdir()
    torch.save(expert, tmp_path / "best_ce_baseline.pth")
    assert find_checkpoint("ce_baseline", "best_", tmp_path, "slug").path.parent == tmp_path
    torch.save(expert, tmp_path / "slug" / "best_ce_baseline.pth")
    assert find_checkpoint("ce_baseline", "best_", tmp_path, "slug").path.parent.name == "slug"
    with pytest.raises(InputError) as error:
        find_checkpoint("ce_baseline", "final_calibrated_", tmp_path, "slug")
    text = str(error.value)
    assert text.count("final_calibrated_ce_baseline.pth") == 2
    assert "there: best_ce_baseline.pth, best_ce_baseline.pth" in text
    assert text.endswith("--checkpoint-prefix best_ would work")
    torch.save(expert, tmp_path / "expert_other.pth")
    with pytest.raises(InputError, match="--allow-fallback-names would work"):
        find_checkpoint("other", "best_", tmp_path, "slug")
    found = find_checkpoint("other", "best_", tmp_path, "slug", fallback_names=True)
    assert (found.path.name, found.fallback) == ("expert_other.pth", True)
