"""train_any_precision.py on digits: configuration, files, tags, resumption."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import yaml

import train_any_precision
from any_precision import training
from any_precision.config import Resolver
from any_precision.flags import resolve
from any_precision.settings import RANDOM, Config, Optimizer, from_dict
from common.errors import InputError
from common.marks import MARK
from loaders import ImageSet
from tests.conftest import PROJECT
from train_any_precision import main

COUNT = ("--num_test_configs", "2")
QUICK = ["--epochs", "3", *COUNT, "--gpu", "-1"]


def run(root: Path, name: str, *flags: str, without: Sequence[str] = ()) -> Path:
    quick = [flag for flag in QUICK if flag not in without]
    assert main([*quick, "--experiments_dir", str(root), "--run_name", name, *flags]) == 0
    return root / name


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as handle:
        return list(csv.DictReader(handle))


def without_seconds(path: Path) -> list[dict[str, str]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in table(path)]


def first(images: ImageSet, count: int) -> ImageSet:
    return images.subset(range(count))


@pytest.fixture(scope="module", autouse=True)
def few_images():
    """Few of the digits, so that an epoch takes less than a second."""
    load = train_any_precision.load_images

    def load_few(config, download):
        images = load(config, download)
        parts = {"train": 128, "val": 64, "test": 64}
        few = {name: first(getattr(images, name), count) for name, count in parts.items()}
        return dataclasses.replace(images, **few)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_any_precision, "load_images", load_few)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    return run(tmp_path_factory.mktemp("runs"), "whole", "--num_bitwidths", "2")


def test_a_run_leaves_its_files(finished):
    history = table(finished / "bitwidth_history.csv")
    assert [row["epoch"] for row in history] == ["1", "2", "3"]
    assert history[-1]["knee"] in ("2.0", "4.0", "8.0", "2", "4", "8")  # an anchor
    configs = table(finished / "bitwidth_configs.csv")
    kinds = [(row["epoch"], row["phase"], row["kind"]) for row in configs]
    assert kinds.count(("1", "val", "random")) == 2
    assert [k for k in kinds if k[2] == "anchor" and k[1] == "val"] == [("3", "val", "anchor")] * 3
    assert sum(phase == "test" for _, phase, _ in kinds) == 5
    assert all(len(row["bits"].split("-")) == 8 for row in configs)
    summary = json.loads((finished / "summary.json").read_text())
    assert (summary["status"], summary["epochs"]) == ("completed", 3)
    assert summary["test"]["num_configs"] == 2
    assert summary["interpretation"][0].startswith("(few points) trend: ")
    names = {path.name for path in (finished / "plots").iterdir()} - {MARK}
    assert names == {"bitwidth_vs_accuracy_epoch003.png", "bitwidth_vs_accuracy_test.png"}
    assert from_dict(json.loads((finished / "config.json").read_text())).optimizer.epochs == 3


def test_the_log_holds_every_line(finished):
    lines = (finished / "logs" / "train_quantization.log").read_text().splitlines()
    figures = r"Acc=[01]\.[0-9]{4}, Loss=[0-9]+\.[0-9]{4}, Avg Bitwidth=[0-9]+\.[0-9]{2}$"
    pattern = rf"Config [0-9]+/2: {figures}"
    assert sum(bool(re.search(pattern, line)) for line in lines) == 3 * 2 + 2
    for text in ("Accuracy - Mean:", "Loss - Mean:", "Bitwidth - Mean:", "Correlation (bitwidth"):
        assert sum(text in line for line in lines) == 4  # three epochs and the test


def test_tensorboard_holds_every_tag(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(finished / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    tags = events.Tags()
    for kind in ("mean", "std", "min", "max"):
        for tag in (f"Bitwidth/{kind}_bitwidth", f"Validation/{kind}_acc"):
            assert [event.step for event in events.Scalars(tag)] == [0, 1, 2]
    for tag in ("Loss/train", "Loss/val", "Accuracy/train", "Accuracy/val", "Learning_Rate"):
        assert [event.step for event in events.Scalars(tag)] == [0, 1, 2]
    for tag in ("Bitwidth/knee", *(f"Validation/acc_uniform_{b}bit" for b in (2, 4, 8))):
        assert [event.step for event in events.Scalars(tag)] == [2]
    assert "Train/Batch_Loss" in tags["scalars"]
    history = table(finished / "bitwidth_history.csv")
    found = [event.value for event in events.Scalars("Validation/mean_acc")]
    assert found == pytest.approx([float(row["mean_acc"]) for row in history])
    assert tags["images"] == ["Bitwidth_Analysis/bitwidth_vs_accuracy"]
    steps = [event.step for event in events.Images("Bitwidth_Analysis/bitwidth_vs_accuracy")]
    assert steps == [2]


@pytest.mark.parametrize(("epochs", "steps"), [(10, [4, 9]), (7, [4, 6]), (3, [2])])
def test_figures_every_fifth_epoch_and_at_the_end(epochs, steps, tmp_path, monkeypatch, real_plots):
    """The schedule of the figures, with an epoch that trains nothing."""

    def no_training(self, epoch):
        self.optimizer.step()
        return 1.0, 0.5

    monkeypatch.setattr(training.Trainer, "_train", no_training)
    monkeypatch.setattr(training.Trainer, "_evaluate", lambda self, network, images: (0.5, 1.0))
    flags = ["--epochs", str(epochs), "--experiments_dir", str(tmp_path), "--run_name", "r"]
    assert main([*flags, "--gpu", "-1", "--test_mode", "off", "--no_tensorboard"]) == 0
    names = sorted(path.name for path in (tmp_path / "r" / "plots").glob("*.png"))
    assert names == [f"bitwidth_vs_accuracy_epoch{step + 1:03d}.png" for step in steps]
    anchors = {
        row["epoch"]
        for row in table(tmp_path / "r" / "bitwidth_configs.csv")
        if row["kind"] == "anchor"
    }
    assert anchors == {str(step + 1) for step in steps}
    assert not (tmp_path / "r" / "tensorboard").exists()


def test_the_same_seed_gives_the_same_tables(finished, tmp_path):
    again = run(tmp_path, "again", "--num_bitwidths", "2")
    for name in ("bitwidth_history.csv", "bitwidth_configs.csv"):
        assert without_seconds(finished / name) == without_seconds(again / name)


def test_validation_does_not_disturb_training(finished, tmp_path):
    other = run(tmp_path, "other", "--num_bitwidths", "5", "--anchors", "always")
    losses = [
        [row["train_loss"] for row in table(p / "bitwidth_history.csv")] for p in (finished, other)
    ]
    assert losses[0] == losses[1]
    knees = table(other / "bitwidth_configs.csv")
    assert sum(row["kind"] == "anchor" and row["phase"] == "val" for row in knees) == 9


def test_fixed_configurations_are_those_of_every_epoch(tmp_path):
    folder = run(tmp_path, "fixed", "--fixed_val_configs", "--test_mode", "off", without=COUNT)
    bits: dict[str, list[str]] = {}
    for row in table(folder / "bitwidth_configs.csv"):
        if row["kind"] == "random":
            bits.setdefault(row["epoch"], []).append(row["bits"])
    assert bits["1"] == bits["2"] == bits["3"]


def test_an_interrupted_run_goes_on_to_the_same_end(finished, tmp_path, monkeypatch, capsys):
    train, epochs = training.Trainer._train, []

    def interrupted(self, epoch):
        epochs.append(epoch)
        if len(epochs) > 1:
            raise KeyboardInterrupt
        return train(self, epoch)

    monkeypatch.setattr(training.Trainer, "_train", interrupted)
    flags = [*QUICK, "--num_bitwidths", "2", "--experiments_dir", str(tmp_path)]
    assert main([*flags, "--run_name", "cut"]) == 130
    monkeypatch.undo()
    folder = tmp_path / "cut"
    assert json.loads((folder / "summary.json").read_text())["status"] == "interrupted"
    last = str(folder / "models" / "last_epoch.pth")
    assert main([*flags, "--resume", last, "--lr", "0.1"]) == 2
    assert "must be" in capsys.readouterr().err
    assert main([*flags, "--resume", last]) == 0
    for name in ("bitwidth_history.csv", "bitwidth_configs.csv"):
        assert without_seconds(folder / name) == without_seconds(finished / name)
    assert json.loads((folder / "summary.json").read_text())["status"] == "completed"


def test_evaluating_a_checkpoint_gives_its_test_again(finished, tmp_path):
    flags = ["--eval_only", str(finished / "models" / "best_model.pth"), "--gpu", "-1"]
    flags += ["--experiments_dir", str(tmp_path), "--run_name", "e", "--num_test_configs", "2"]
    assert main(flags) == 0
    mine = json.loads((tmp_path / "e" / "summary.json").read_text())["test"]
    theirs = json.loads((finished / "summary.json").read_text())["test"]
    assert mine == theirs
    rows = table(tmp_path / "e" / "bitwidth_configs.csv")
    assert [row["kind"] for row in rows if row["phase"] == "test"].count("random") == 2


def test_a_checkpoint_of_another_network_is_refused(finished, tmp_path, capsys):
    path = finished / "models" / "best_model.pth"
    content = torch.load(path, weights_only=True)
    content["config"]["model_variant"] = "resnet20"
    torch.save(content, tmp_path / "x.pth")
    flags = ["--eval_only", str(tmp_path / "x.pth"), "--gpu", "-1"]
    assert main([*flags, "--experiments_dir", str(tmp_path), "--run_name", "e"]) == 1
    assert "missing: blocks.3" in capsys.readouterr().err
    torch.save({"a": 1}, tmp_path / "y.pth")
    assert main(["--eval_only", str(tmp_path / "y.pth")]) == 2
    assert "must be a checkpoint of train_any_precision.py" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["dorefa", "pact", "lsq"])
def test_every_method_trains(method, tmp_path):
    flags = ["--quantization_method", method, "--epochs", "1", "--test_mode", "off"]
    folder = run(tmp_path, method, *flags, without=COUNT)
    stored = torch.load(folder / "models" / "best_model.pth", weights_only=True)
    assert stored["bitwidth_options"] == [4, 8]
    assert set(stored["bitwidth_assignment"].values()) <= {4, 8}
    assert float(table(folder / "bitwidth_history.csv")[0]["train_loss"]) < 2.5


def test_one_bitwidth_alone(tmp_path, capsys):
    flags = ["--training_method", "vanilla_single_precision_training", "--epochs", "1"]
    folder = run(tmp_path, "one", *flags, "--bitwidth_options", "8")
    row = table(folder / "bitwidth_history.csv")[0]
    assert (row["mean_bitwidth"], row["std_bitwidth"], row["corr_pearson"]) == ("8.0", "0.0", "")
    assert "n/a (all bitwidths equal)" in (folder / "logs" / "train_quantization.log").read_text()
    assert (folder / "plots" / "bitwidth_vs_accuracy_epoch001.png").is_file()
    assert main([*flags, "--bitwidth_options", "4", "8"]) == 2
    assert "needs exactly one bitwidth option, got [4, 8]" in capsys.readouterr().err


def test_distillation_and_simple_validation(tmp_path):
    flags = ["--epochs", "1", "--distillation", "recursive"]
    folder = run(tmp_path, "d", *flags, "--validation_function", "simple_validation", without=COUNT)
    assert not (folder / "bitwidth_configs.csv").exists()
    assert "accuracy" in json.loads((folder / "summary.json").read_text())["test"]


def test_training_without_quantization(tmp_path):
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"quantization": {"enable": False}}))
    folder = run(tmp_path, "plain", "--yaml_path", str(path), "--epochs", "1")
    assert not (folder / "bitwidth_configs.csv").exists()
    stored = torch.load(folder / "models" / "best_model.pth", weights_only=True)
    assert not any("banks" in key for key in stored["model_state_dict"])


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        training, "make_criterion", lambda name: lambda z, y: z.sum() * float("nan")
    )
    flags = [*QUICK, "--experiments_dir", str(tmp_path), "--run_name", "n"]
    assert main(flags) == 1
    assert "loss must be finite, got nan in epoch 1, batch 1, bits " in capsys.readouterr().err
    summary = json.loads((tmp_path / "n" / "summary.json").read_text())
    assert summary["status"] == "failed"
    assert "loss must be finite" in summary["error"]


def resolved(content, flags=None, method="any_precision"):
    resolver = Resolver()
    return resolver.resolve(content, flags or {}, method), resolver.warnings


def test_the_shipped_configuration_is_the_built_in_one():
    content = yaml.safe_load((PROJECT / "configs" / "digits.yaml").read_text())
    for method in ("any_precision", "dorefa", "pact", "lsq"):
        assert resolved(content, method=method) == resolved({}, method=method)
    config, warnings = resolved({})
    assert config == Config(switchable_bn="own")
    assert warnings == []
    assert config.optimizer == Optimizer()


def test_precedence_and_aliases():
    content = {"random_bitwidths": {"num_bitwidths": 3}, "batch_size": 32}
    assert resolved(content)[0].validation.num_bitwidths == 3
    assert (
        resolved({"quantization": {"random_bitwidths": {"number_of_configs": 3}}})[
            0
        ].validation.num_bitwidths
        == 3
    )
    config, _ = resolved(content, {"num_bitwidths": 7, "batch_size": 16, "start_lr": 0.5})
    assert (config.validation.num_bitwidths, config.batch_size, config.optimizer.start_lr) == (
        7,
        16,
        0.5,
    )
    nested = {"joint_quantization": {"joint_quantization_batch_size": 3}}
    own = {"bitwidth_options": [4, 2], "joint_quantization_batch_size": 5, "switchable_bn": False}
    config, _ = resolved({"quantization": {**nested, "mine": own}}, method="mine")
    assert (config.joint_quantization_batch_size, config.switchable_bn) == (5, "off")
    assert config.bitwidth_options == (2, 4)
    assert resolved({"quantization": nested})[0].joint_quantization_batch_size == 3
    sat = {
        "bitwidth_options": [4],
        "sat_weight_normalization": True,
        "weight_quantization": "lsqplus",
    }
    config, warnings = resolved({"quantization": {"mine": sat}}, method="mine")
    assert (config.weight_scale, config.weight_quantization) == ("sat", "lsq")
    assert "lsqplus is lsq" in warnings[0]


BAD = [
    (
        {"random_bitwidths": {"num_bitwidths": 3, "number_of_configs": 4}},
        "must be the same, got 3 and 4",
    ),
    (
        {"random_bitwidths": {"num_bitwidths": 3}, "quantization": {"random_bitwidths": {}}},
        "must be given once",
    ),
    ({"quantization": {"any_precision": {"bitwidth_options": []}}}, "at least one bitwidth"),
    ({"quantization": {"any_precision": {"bitwidth_options": [1]}}}, "2..16 or 32, got 1"),
    ({"quantization": {"any_precision": {"bitwidth_options": 4}}}, "must be lists"),
    ({"quantization": {"any_precision": {"bitwidth_options": [4], "Conv": "X"}}}, "not supported"),
    ({"random_bitwidths": {"bitwidth_options": [3]}}, r"must be among \[2, 4, 8\], got \[3\]"),
    ({"vehicle_classification": {}}, "set dataset: digits"),
    ({"quantization": 4}, "quantization must map keys to values, got 4"),
    ({"batch_size": "many"}, "batch_size must be a whole number"),
    ({"batch_size": True}, "batch_size must be a whole number"),
    ({"ResNet": {"optimizer": {"name": "LBFGS"}}}, "optimizer must be a known name"),
    ({"ResNet": {"lr_scheduler": {"train_epochs": 0}}}, "epochs must be a whole number from 1"),
    ({"quantization": {"enable": "yes"}}, "enable must be True or False"),
    ({RANDOM: {"fixed_val_configs": "no"}}, "fixed_val_configs must be True or False, got 'no'"),
    (
        {"quantization": {"any_precision": {"sat_weight_normalization": "no"}}},
        "sat_weight_normalization must be True or False, got 'no'",
    ),
    ({RANDOM: {"bitwidth_options": [[2]]}}, r"must be among \[2, 4, 8\], got \[\[2\]\]"),
    ({RANDOM: {"bitwidth_options": 3}}, r"must be among \[2, 4, 8\], got 3"),
    ({"dataset": 3}, "dataset must be text, got 3"),
    ({"data_root": None}, "data_root must be text, got None"),
    ({"ResNet": {"model_variant": [1]}}, r"model_variant must be text, got \[1\]"),
    ({"ResNet": {"lr_scheduler": {"milestones": ["a"]}}}, "milestones must be whole numbers"),
]


@pytest.mark.parametrize(("content", "text"), BAD)
def test_bad_configurations_are_named(content, text):
    with pytest.raises(InputError, match=text):
        resolved(content)


UNKNOWN = [
    ({"quantisation": {}}, "the configuration", "quantisation", "quantization"),
    ({"learning_rate": 3}, "the configuration", "learning_rate", None),
    ({"quantization": {"random_bitwidhts": {}}}, "quantization", "random_bitwidhts", RANDOM),
    ({"quantization": {"pcat": {"weight_scale": "sat"}}}, "quantization", "pcat", "pact"),
    (
        {"quantization": {"pact": {"bitwidth_option": [4]}}},
        "quantization.pact",
        "bitwidth_option",
        "bitwidth_options",
    ),
    (
        {"quantization": {"mine": {"bitwidth_options": [4], "bitwidht_allocation": 1}}},
        "quantization.mine",
        "bitwidht_allocation",
        "bitwidth_options",
    ),
    (
        {"quantization": {"joint_quantization": {"batch_size": 2}}},
        "joint_quantization",
        "batch_size",
        "joint_quantization_batch_size",
    ),
    ({RANDOM: {"num_bitwidth": 3}}, RANDOM, "num_bitwidth", "num_bitwidths"),
    ({"ResNet": {"dropout": 0.5}}, "ResNet", "dropout", "dropout_ratio"),
    ({"ResNet": {"optimizer": {"lr": 0.1}}}, "ResNet.optimizer", "lr", "start_lr"),
    ({"ResNet": {"lr_scheduler": {"epochs": 2}}}, "ResNet.lr_scheduler", "epochs", "train_epochs"),
    ({3: 4}, "the configuration", "3", None),
]


@pytest.mark.parametrize(("content", "where", "key", "closest"), UNKNOWN)
def test_unknown_keys_are_refused_everywhere(content, where, key, closest):
    """Those of methods that are not chosen included."""
    text = f"key in {where} must be a known name, got '{key}'; closest: {closest or ''}"
    with pytest.raises(InputError, match=re.escape(text)):
        resolved(content)


def test_a_section_changes_a_built_in_method():
    config, _ = resolved({"quantization": {"pact": {"weight_scale": "sat"}}}, method="pact")
    assert (config.weight_scale, config.activation_quantization) == ("sat", "pact")
    assert config.bitwidth_options == (4, 8)
    with pytest.raises(InputError, match=r"quantization_method must be a known name, got 'x'.*dor"):
        resolved({}, method="x")


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("c.yaml", "batch_size: 8\nbatch_size: 9\n", "key 'batch_size' must be given once"),
        ("c.json", '{"seed": 1, "seed": 2}', "key 'seed' must be given once, got it again"),
        ("c.yaml", "bach_size: 8\n", "got 'bach_size'; closest: batch_size"),
        ("c.yaml", "- 8\n", "yaml_path must map keys to values, got a list in"),
    ],
)
def test_bad_configuration_files_end_in_one_line(name, content, text, tmp_path, capsys):
    (tmp_path / name).write_text(content)
    for flags in ([], ["--strict_config"]):
        assert main(["--yaml_path", str(tmp_path / name), "--dry_run", "--gpu", "-1", *flags]) == 2
        error = capsys.readouterr().err
        assert text in error and error.count("\n") == 1


def test_yaml_needs_pyyaml_and_json_nothing(tmp_path, monkeypatch, capsys):
    (tmp_path / "c.yaml").write_text("batch_size: 8")
    (tmp_path / "c.json").write_text('{"batch_size": 8}')
    monkeypatch.setitem(sys.modules, "yaml", None)
    assert main(["--yaml_path", str(tmp_path / "c.yaml")]) == 2
    assert "YAML needs PyYAML" in capsys.readouterr().err
    monkeypatch.undo()
    assert main(["--yaml_path", str(tmp_path / "c.json"), "--dry_run", "--gpu", "-1"]) == 0
    assert "batch_size: 8" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--model", "VGG"], "model must be a known name"),
        (["--quantization_method", "x"], "quantization_method must be a known name"),
        (["--run_name", "a/b"], "run_name must be the name of a folder"),
        (["--yaml_path", "nothing.yaml"], "yaml_path must be a readable"),
        (["--threads", "0"], "threads must be at least 1"),
        (["--num_test_configs", "0"], "num_test_configs must be at least 1"),
        (["--resume", "nothing.pth"], "resume must be the folder of a run, or models/last_epoch"),
        (["--eval_only", "nothing.pth"], "must be an existing file"),
        (["--dataset", "svhn"], "dataset must be a known name"),
        (["--seed", "-1"], "seed must be a whole number from 0"),
    ],
)
def test_bad_requests_are_one_line(flags, text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["--gpu", "-1", *flags]) == 2
    error = capsys.readouterr().err
    assert text in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


CHANGES = {
    "epochs": "7",
    "batch_size": "5",
    "joint_quantization_batch_size": "3",
    "num_bitwidths": "9",
    "lr": "0.5",
    "weight_decay": "0.25",
    "clip_grad": "2.5",
    "optimizer": "SGD",
    "bitwidth_options": "5",
    "validation_function": "simple_validation",
    "weight_quantization": "lsq",
    "activation_quantization": "pact",
    "switchable_bn": "off",
    "distillation": "recursive",
    "sampling": "spread",
    "anchors": "never",
    "weighting": "params",
    "bin_width": "0.25",
    "knee_tolerance": "0.25",
    "plot_every": "2",
    "seed": "8",
    "loss": "label_smoothing_ce",
    "model_variant": "resnet20",
    "data_root": "elsewhere",
    "dataset": "cifar10",
    "experiments_dir": "runs",
}


def flat(settings: dict) -> dict:
    """Sections as dotted keys."""
    found = {}
    for key, value in settings.items():
        inner = flat(value) if isinstance(value, dict) else {"": value}
        found |= {f"{key}.{name}": part for name, part in inner.items()}
    return found


@pytest.mark.parametrize("flag", CHANGES)
def test_every_flag_changes_its_field_and_nothing_else(flag):
    parser = train_any_precision.build_parser()
    options = parser.parse([f"--{flag}", CHANGES[flag]])
    plain = flat(resolve(parser.parse([])).as_dict())
    found = flat(resolve(options).as_dict())
    changed = {key for key in plain if plain[key] != found[key]}
    assert len(changed) == 1, changed
    assert str(found[changed.pop()]).strip("[]") == CHANGES[flag]


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--eval_only", "x.pth", "--lr", "0.1"], "lr must be left out with --eval_only"),
        (["--eval_only", "x.pth", "--resume", "y.pth"], "resume must be left out with --eval_only"),
        (["--resume", "x.pth", "--run_name", "a"], "run_name must be left out with --resume"),
        (["--test_mode", "off", "--num_test_configs", "3"], "num_test_configs must be left out"),
        (["--device", "cpu", "--gpu", "1"], "gpu must be left out with --device"),
        (
            ["--validation_function", "simple_validation", "--sampling", "spread"],
            "sampling must be",
        ),
        (
            ["--distillation", "recursive", "--joint_quantization_batch_size", "3"],
            "must be left out",
        ),
        (["--download", "--gpu", "-1"], "download must be left out for dataset digits"),
        (
            ["--eval_only", "x.pth", "--num_test_configs", "0"],
            "num_test_configs must be at least 1",
        ),
    ],
)
def test_flags_that_do_not_apply_are_refused(flags, text, capsys):
    assert main(flags) == 2
    assert text in capsys.readouterr().err


WITHOUT_PACKAGES = """
import dataclasses, sys
sys.modules["torchvision"] = sys.modules["yaml"] = None
import train_any_precision as t

load, (folder, config, *few) = t.load_images, sys.argv[1:]

def load_few(*arguments):
    images = load(*arguments)
    names = ("train", "val", "test")
    parts = {name: getattr(images, name).subset(range(64)) for name in names}
    return dataclasses.replace(images, **parts)

t.load_images = load_few
common = ["--gpu", "-1", "--epochs", "1", "--experiments_dir", folder, *few]
assert t.main([*common, "--yaml_path", "nothing.yaml"]) == 2
sys.exit(t.main([*common, "--run_name", "r", "--yaml_path", config]))
"""


def test_nothing_needs_torchvision_or_pyyaml(tmp_path):
    (tmp_path / "c.json").write_text('{"batch_size": 32}')
    arguments = [str(tmp_path), str(tmp_path / "c.json")]
    command = [sys.executable, "-c", WITHOUT_PACKAGES, *arguments, *COUNT]
    result = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT, check=False)
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "r" / "config.json").read_text())["batch_size"] == 32
    assert not (tmp_path / "r" / "config.yaml").exists()


def test_simple_validation_tests_the_highest_bits(tmp_path):
    """Whatever bits the last pass of the best epoch had."""
    flags = ["--epochs", "1", "--validation_function", "simple_validation"]
    folder = run(tmp_path, "s", *flags, without=COUNT)
    first = json.loads((folder / "summary.json").read_text())["test"]
    path = folder / "models" / "best_model.pth"
    content = torch.load(path, weights_only=True)
    content["bitwidth_assignment"] = dict.fromkeys(content["bitwidth_assignment"], 2)
    torch.save(content, path)
    common = ["--eval_only", str(path), "--gpu", "-1", "--experiments_dir", str(tmp_path)]
    assert main([*common, "--run_name", "e"]) == 0
    assert json.loads((tmp_path / "e" / "summary.json").read_text())["test"] == first


def test_a_name_that_is_taken_is_refused(finished, capsys):
    flags = ["--experiments_dir", str(finished.parent), "--run_name", finished.name, "--gpu", "-1"]
    assert main(flags) == 2
    assert "run_name must be new" in capsys.readouterr().err


def test_without_cuda_one_warning(capsys, monkeypatch):
    monkeypatch.setattr(train_any_precision.torch.cuda, "is_available", lambda: False)
    assert main(["--dry_run"]) == 0
    captured = capsys.readouterr()
    assert captured.err == "warning: no CUDA device: running on the CPU\n"
    assert (
        "blocks.0.parts.0.conv: 2304 weights, 147456 multiply-adds, options 2, 4, 8" in captured.out
    )
