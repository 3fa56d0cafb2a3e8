"""Networks of the user's: by file, by module, by timm's name, held in Python; and their weights."""

from __future__ import annotations

import json
import math
import sys

import pytest
import torch
from torch import nn

from common.errors import InputError
from loaders.transforms import Preprocess
from logits_io.naming import file_name
from main_imagenet import main
from models import get_entry, load_model, load_quantized
from models.own import read_arch_args
from pipeline import (
    CorrectionOptions,
    DataOptions,
    InputOptions,
    OutputOptions,
    RunOptions,
    prepare,
    run,
)
from pipeline.belonging import doubt_of_labels, doubt_of_size
from tests.conftest import QUICK, RANGES, TinyResNet

BARE = ["--quant_method", "rtn", "--num_samples", "64", *RANGES, "--no-plots", "--no-correction"]

NETS = """
import torch
from torch import nn
import neighbour

class Net(nn.Module):
    def __init__(self, width=6, classes=10):
        super().__init__()
        torch.manual_seed(neighbour.SEED)
        self.body = nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, width, 3))
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))

    @classmethod
    def wide(cls):
        return cls(12)

class Two(Net):
    def forward(self, x):
        logits = super().forward(x)
        return {"aux": logits[:, :3], "logits": logits}

def broken():
    raise ValueError("no such depth")

def nothing():
    return 3

def leaving():
    raise SystemExit(4)

CONSTANT = 7
"""


@pytest.fixture
def nets(tmp_path, monkeypatch):
    """A folder with the user's file, as the working directory."""
    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "neighbour.py").write_text("SEED = 5\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in ("nets", "neighbour", "own_network_nets"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("arch", ["nets.py:Net", "nets:Net", "./nets.py:Net.wide", "nets:Net.wide"])
def test_a_function_or_class_of_the_user_makes_the_network(nets, arch):
    model = load_model(arch, num_classes=10)
    assert model.network.body[0].out_channels == (12 if arch.endswith("wide") else 6)
    assert not model.network.training
    assert model.weights == f"those of {arch}"


def test_arguments_are_yaml(nets):
    arguments = read_arch_args(["width=9", "classes=4"])
    assert load_model("nets.py:Net", arch_args=arguments).network.head.weight.shape == (4, 9)
    assert read_arch_args(["a=[1, 2]", "b=true", "c=text"]) == {"a": [1, 2], "b": True, "c": "text"}


@pytest.mark.parametrize(
    ("arch", "text"),
    [
        ("nets.py:Nett", "callable of nets.py must be a known name, got 'Nett'; closest: Net"),
        ("nets.py:CONSTANT", "must name a function or class of nets.py, got 'CONSTANT'"),
        ("nets.py:broken", "must return a network, got ValueError: no such depth"),
        ("nets.py:leaving", "must return a network, got SystemExit: 4"),
        ("nets.py:nothing", "must return a torch.nn.Module, got int"),
        ("missing.py:Net", "must name a Python file that exists, got missing.py"),
        (
            "no_such_package.nets:Net",
            "must be importable, got no_such_package.nets: ModuleNotFound",
        ),
    ],
)
def test_code_that_makes_no_network_is_refused(nets, arch, text):
    with pytest.raises(InputError, match=text):
        load_model(arch)


def test_an_argument_that_the_function_does_not_take_is_named(nets):
    with pytest.raises(InputError, match="unexpected keyword argument 'depth'"):
        load_model("nets.py:Net", arch_args={"depth": 3})
    for bad in (["width"], ["width=1", "width=2"], ["=3"], ["a=["], ["a=2026-13-45"]):
        with pytest.raises(InputError, match="arch_args must"):
            read_arch_args(bad)
    with pytest.raises(InputError, match="arch_args must be left out for lenet"):
        load_model("lenet", arch_args={"width": 3})


def test_the_users_network_goes_all_the_way(nets, capsys):
    """Run, folder, report, reload in a process without its code, and the same bytes from Python."""
    arguments = ["--arch", "nets.py:Net", "--arch_args", "width=8", "--dataset", "digits"]
    assert main([*QUICK, *arguments, "--output_dir", "out"]) == 0
    tag = "nets.py_Net_w4bit_a4bit_seed1005"
    folder = nets / "out" / "rtn" / f"run_{tag}"
    record = json.loads((folder / "run.json").read_text())
    assert record["config"]["arch"] == "nets.py:Net"
    assert record["config"]["arch_args"] == ["width=8"]
    assert f"summary: out/rtn/logits_summary_{tag}" in capsys.readouterr().out
    (nets / "nets.py").unlink()
    quantized, metadata = load_quantized(folder / "quantized_model.pt")
    assert metadata["arch"] == "nets.py:Net"
    assert quantized(torch.zeros(2, 3, 8, 8)).shape == (2, 10)


def test_the_job_runs_on_a_network_that_is_held_in_python(tmp_path):
    torch.manual_seed(0)
    network = TinyResNet(10)
    options = RunOptions(
        data=DataOptions(dataset="digits"),
        quant_method="rtn",
        settings={"num_samples": 32, "init_wmode": "minmax", "init_amode": "minmax"},
        correction=CorrectionOptions(correction=False),
        output=OutputOptions(output_dir=tmp_path, plots=False),
    )
    job = prepare(options, network=network)
    run(job)
    assert network.training, "the user's network is left alone"
    assert job.name.tag == "python_TinyResNet_w4bit_a4bit_seed1005"
    assert (job.folder / "quantized_model.pt").is_file()


def test_one_of_several_outputs_is_chosen_by_a_flag(nets, capsys):
    flags = [*BARE, "--arch", "nets.py:Two", "--dataset", "digits", "--output_dir", "out"]
    assert main([*flags, "--output", "logits"]) == 0
    assert main([*flags, "--output", "aux"]) == 2
    text = "must have the shape (images, 10 classes of digits), got (2, 3)"
    assert text in capsys.readouterr().err
    assert main(flags) == 2
    text = "got 2 outputs: aux (2, 3), logits (2, 10); choose one with --output"
    assert text in capsys.readouterr().err


def test_names_of_files_hold_no_separator():
    assert file_name("timm/convnext_atto.d2_in1k") == "timm_convnext_atto.d2_in1k"
    assert file_name("../my/nets.py:Net") == "my_nets.py_Net"
    assert file_name("digits_resnet") == "digits_resnet"


def test_input_flags_change_what_the_entry_says():
    entry = Preprocess((0.1,) * 3, (0.2,) * 3, resize=256, crop=224)
    assert InputOptions().applied(entry) == entry
    sized = InputOptions(input_size=112, interpolation="bicubic").applied(entry)
    assert (sized.resize, sized.crop, sized.interpolation) == (128, 112, "bicubic")
    whole = InputOptions(resize=0, crop=0, mean=(0.5,) * 3).applied(entry)
    assert (whole.resize, whole.crop, whole.mean, whole.std) == (None, None, (0.5,) * 3, (0.2,) * 3)
    for bad, text in (
        ({"input_size": 8, "crop": 4}, "without resize and crop"),
        ({"std": (1.0, 0.0, 1.0)}, "std must be above 0, got 0"),
        ({"input_size": 0}, "input_size must be from 1 to 10000, got 0"),
        ({"mean": (math.nan, 1, 1)}, "mean must be 3 finite numbers"),
        ({"interpolation": "zz"}, "interpolation must be a known name"),
        ({"crop": -1}, "crop must be from 0 to 10000, got -1"),
    ):
        with pytest.raises(InputError, match=text):
            InputOptions(**bad)


def saved(path, network, wrap=None, prefix=""):
    state = {prefix + key: value for key, value in network.state_dict().items()}
    torch.save(state if wrap is None else {wrap: state, "epoch": 3}, path)
    return path


@pytest.mark.parametrize(
    ("wrap", "prefix"),
    [
        (None, "model."),
        ("state_dict", "model."),
        ("state_dict_ema", "module."),
        ("model", "_orig_mod.module.model."),
        ("net", "module._orig_mod."),
    ],
)
def test_wrappers_and_prefixes_are_peeled(tmp_path, wrap, prefix):
    reference = load_model("cifar_resnet20").network
    path = saved(tmp_path / "weights.pt", reference, wrap, prefix)
    loaded = load_model("cifar_resnet20", path).network
    pairs = zip(loaded.state_dict().values(), reference.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


class Wrapped(nn.Module):
    """A network whose own names all begin with a known prefix."""

    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 10))

    def forward(self, x):
        return self.model(x)


def test_a_prefix_that_belongs_to_the_network_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "Wrapped", Wrapped)
    path = saved(tmp_path / "weights.pt", Wrapped(), "state_dict")
    assert load_model(f"{__name__}:Wrapped", path, num_classes=10).weights == str(path)


def test_of_several_state_dicts_the_first_is_taken_and_a_key_picks(tmp_path, caplog):
    first, second = (load_model("cifar_resnet20").network.state_dict() for _ in range(2))
    first["linear.bias"] = torch.ones(10)
    second["linear.bias"] = torch.full((10,), 2.0)
    path = tmp_path / "both.pt"
    torch.save({"state_dict": first, "state_dict_ema": second}, path)
    with caplog.at_level("INFO"):
        assert load_model("cifar_resnet20", path).network.linear.bias[0] == 1
    assert "weights of 'state_dict' taken; the file also holds 'state_dict_ema'" in caplog.text
    chosen = load_model("cifar_resnet20", path, checkpoint_key="state_dict_ema")
    assert chosen.network.linear.bias[0] == 2
    with pytest.raises(InputError, match="checkpoint_key must be in the file, got 'ema'"):
        load_model("cifar_resnet20", path, checkpoint_key="ema")


def test_a_state_dict_is_found_beside_another_dict_and_types_must_fit(tmp_path):
    state = load_model("digits_resnet").network.state_dict()
    path = tmp_path / "odd.pt"
    torch.save({"model_state_dict": {"epoch": 3}, "state_dict": state}, path)
    assert load_model("digits_resnet", path).digest == load_model("digits_resnet").digest
    torch.save({key: value > 0 for key, value in state.items()}, path)
    with pytest.raises(InputError, match=r"of another type: conv1.weight \(must be torch.float32"):
        load_model("digits_resnet", path)
    torch.save(state | {"linear.bias": torch.full((10,), 1e300, dtype=torch.float64)}, path)
    with pytest.raises(InputError, match=r"must be finite, got NaN or Inf in 'linear.bias'"):
        load_model("digits_resnet", path)


def test_a_package_of_the_project_that_hides_the_users_is_named(tmp_path):
    (tmp_path / "mine.py").write_text("from models.resnet import ResNet18")
    with pytest.raises(InputError, match="this project has a package 'models', which hides yours"):
        load_model(f"{tmp_path / 'mine.py'}:ResNet18")


def test_safetensors_hold_the_same_weights(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    reference = load_model("digits_resnet").network
    path = tmp_path / "weights.safetensors"
    safetensors.save_file(reference.state_dict(), path)
    loaded = load_model("digits_resnet", path)
    assert loaded.digest == load_model("digits_resnet").digest
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="must be a whole safetensors file"):
        load_model("digits_resnet", path)


def test_published_weights_of_googlenet_normalise_their_input(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("models.zoo.sha256_file", lambda path: "1378be20" + 56 * "0")
    path = saved(tmp_path / "googlenet.pth", get_entry("googlenet").build(1000))
    assert load_model("googlenet", path).network.transform_input
    monkeypatch.setattr("models.zoo.sha256_file", lambda path: 64 * "0")
    assert not load_model("googlenet", path).network.transform_input
    assert "taken as weights without transform_input" in caplog.text
    stated = load_model("googlenet", path, arch_args={"transform_input": True})
    assert stated.network.transform_input


def test_timm_brings_its_input_and_names_the_closest():
    timm = pytest.importorskip("timm")
    entry = get_entry("timm/mobilenetv3_small_050")
    expected = timm.get_pretrained_cfg("mobilenetv3_small_050")
    assert entry.preprocess.crop == expected.input_size[-1]
    assert entry.preprocess.resize == int(expected.input_size[-1] / expected.crop_pct)
    assert entry.preprocess.mean == tuple(expected.mean)
    with pytest.raises(InputError, match="timm network must be a known name, got 'resnet18x'"):
        get_entry("timm/resnet18x")


def test_timm_that_is_missing_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match=r"needs timm \(pip install -r requirements-timm.txt\)"):
        get_entry("timm/resnet18")


def test_doubts_about_network_and_images():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(10, (200,), generator=generator)
    sure = 9.0 * nn.functional.one_hot(labels, 10).float().numpy()
    assert doubt_of_labels(sure, labels.numpy()) is None
    shifted = ((labels + 1) % 10).numpy()
    assert "mean confidence 99.89 %; likely reasons: labels in another" in doubt_of_labels(
        sure, shifted
    )
    noise = 0.01 * torch.randn(200, 10, generator=generator).numpy()
    assert "no better than chance" in doubt_of_labels(noise, labels.numpy())
    entry = get_entry("cifar_resnet20")
    assert doubt_of_size(entry, (3, 32, 32)) is None
    assert "made for 32 x 32; --input_size 32 resizes them" in doubt_of_size(entry, (3, 224, 224))
    assert doubt_of_size(get_entry("resnet18"), (3, 600, 600)) is None


def test_an_expected_accuracy_that_is_missed_stops_the_run(tmp_path, capsys):
    flags = [*BARE, "--output_dir", str(tmp_path)]
    assert main([*flags, "--expect_top1", "90"]) == 2
    assert (
        "must be within 1 point of --expect_top1 90, got 99.40 on 500 images"
        in capsys.readouterr().err
    )
    assert not list(tmp_path.rglob("quantized_model.pt"))
    assert main([*flags, "--expect_top1", "99"]) == 0
