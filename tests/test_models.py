"""Networks by name and strict loading of their weights."""

from __future__ import annotations

import pickle

import pytest
import torch

import models.zoo
from common.errors import InputError
from loaders.transforms import Preprocess
from models import get_entry, list_archs, load_model, load_quantized
from models.checkpoints import read_state_dict, state_digest
from models.cifar_resnet import CifarResNet
from models.digits import DIGITS_WEIGHTS
from quant import QuantizationManager

NAMES_GIVEN = ("resnet18", "resnet50", "mobilenetv2", "mnasnet", "regnetx_3200m", "regnetx_600m")


def save(path, content):
    torch.save(content, path)
    return path


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85)])
def test_cifar_resnets_have_the_sizes_of_the_paper(depth, millions):
    """He et al. 2016, table 6."""
    network = get_entry(f"cifar_resnet{depth}").build(10)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.006)
    layers = [m for m in network.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))]
    assert len(layers) == depth


def test_the_shortcut_subsamples_and_pads_with_zero_channels():
    block = CifarResNet(8).layer2[0]
    x = torch.randn(2, 16, 8, 8)
    shortcut = block.shortcut(x)
    assert shortcut.shape == (2, 32, 4, 4)
    assert torch.equal(shortcut[:, 8:24], x[:, :, ::2, ::2])
    assert not shortcut[:, :8].any()
    assert not shortcut[:, 24:].any()


@pytest.mark.parametrize("name", [*NAMES_GIVEN, "googlenet", "densenet121", "cifar_resnet44"])
def test_every_name_given_builds_a_network_of_the_asked_classes(name):
    entry = get_entry(name)
    network = entry.build(7).eval()
    size = entry.preprocess.crop or 32
    with torch.no_grad():
        assert network(torch.zeros(1, 3, min(size, 96), min(size, 96))).shape == (1, 7)


def test_regnetx_600m_has_the_parameters_of_the_paper():
    """6.2 million parameters, widths 48 to 528, depths 1, 3, 5, 7 (Radosavovic et al. 2020)."""
    network = get_entry("regnetx_600m").build(1000)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count / 1e6 == pytest.approx(6.2, abs=0.05)
    stages = list(network.trunk_output)
    assert [len(stage) for stage in stages] == [1, 3, 5, 7]
    assert [stage[0].proj[0].out_channels for stage in stages] == [48, 96, 240, 528]


def test_published_settings_belong_to_the_architecture():
    assert get_entry("mobilenetv2").method_defaults["weight"] == 0.1
    assert get_entry("mnasnet").method_defaults["weight"] == 0.2
    assert "weight" not in get_entry("resnet18").method_defaults
    assert get_entry("inception_v3").preprocess.crop == 299
    assert get_entry("resnet18").preprocess.resize == 256


def test_torchvisions_networks_are_listed_with_ours():
    names = list_archs()
    assert {"resnet18", "convnext_tiny", "vit_b_16", "digits_resnet", "cifar_resnet20"} <= set(
        names
    )


def test_the_shipped_network_is_small_and_good():
    assert DIGITS_WEIGHTS.stat().st_size < 500_000
    assert torch.load(DIGITS_WEIGHTS, weights_only=True)["top1"] >= 0.98
    model = load_model("digits_resnet")
    assert model.num_classes == 10
    assert not model.network.training


def test_an_unknown_arch_is_answered_with_the_closest():
    with pytest.raises(
        InputError, match="arch must be a known name, got 'resnt18'; closest: resnet18"
    ):
        get_entry("resnt18")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "top1": 0.5},
        lambda state: {"model": state},
        lambda state: {f"module.{key}": value for key, value in state.items()},
    ],
)
def test_every_common_wrapping_of_a_state_dict_loads(tmp_path, wrap):
    source = CifarResNet(20, num_classes=4)
    path = save(tmp_path / "a.pt", wrap(source.state_dict()))
    model = load_model("cifar_resnet20", path)
    assert model.num_classes == 4
    assert model.digest == state_digest(source)
    assert model.weights == str(path)


def test_the_step_counters_of_batch_norms_may_be_missing(tmp_path):
    source = CifarResNet(20)
    state = {k: v for k, v in source.state_dict().items() if "num_batches_tracked" not in k}
    assert len(state) == 97
    assert load_model("cifar_resnet20", save(tmp_path / "a.pt", state)).digest == state_digest(
        source
    )


def test_a_prefix_that_not_every_key_has_is_not_stripped(tmp_path):
    state = CifarResNet(20).state_dict()
    state["module.extra"] = torch.zeros(1)
    with pytest.raises(InputError, match=r"unexpected: module\.extra"):
        load_model("cifar_resnet20", save(tmp_path / "a.pt", state))


def test_a_mismatch_lists_missing_unexpected_and_misshapen_keys(tmp_path):
    state = CifarResNet(20).state_dict()
    state["conv9.weight"] = state.pop("conv1.weight")
    state["linear.weight"] = torch.zeros(10, 63)
    with pytest.raises(InputError) as caught:
        load_model("cifar_resnet20", save(tmp_path / "a.pt", state))
    text = str(caught.value)
    assert "missing: conv1.weight" in text
    assert "unexpected: conv9.weight" in text
    assert "misshapen: linear.weight (must be (10, 64), got (10, 63))" in text
    assert "\n" not in text


def test_a_long_list_of_keys_is_cut(tmp_path):
    with pytest.raises(InputError, match=r"bn1\.running_var and 91 more"):
        load_model(
            "cifar_resnet20", save(tmp_path / "a.pt", {"linear.weight": torch.zeros(10, 64)})
        )


def test_a_value_that_is_not_finite_is_named(tmp_path):
    state = CifarResNet(20).state_dict()
    state["layer1.0.conv1.weight"][0, 0, 0, 0] = float("nan")
    with pytest.raises(
        InputError, match=r"weights must be finite, got NaN or Inf in 'layer1\.0\.conv1"
    ):
        load_model("cifar_resnet20", save(tmp_path / "a.pt", state))


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


def test_nothing_is_unpickled(tmp_path, capsys):
    for name, write in (
        ("torch.pt", lambda p: torch.save({"state_dict": Evil()}, p)),
        ("plain.pt", lambda p: p.write_bytes(pickle.dumps(Evil()))),
        ("module.pt", lambda p: torch.save(CifarResNet(8), p)),
    ):
        write(tmp_path / name)
        with pytest.raises(InputError, match="must hold tensors and plain values only"):
            read_state_dict(tmp_path / name)
    assert "executed" not in capsys.readouterr().out


def test_a_damaged_or_foreign_file_is_refused_in_one_line(tmp_path):
    whole = save(tmp_path / "a.pt", CifarResNet(8).state_dict()).read_bytes()
    cases = {
        "truncated": whole[: len(whole) // 2],
        "empty": b"",
        "text": b"not a checkpoint\n" * 50,
        "flipped": whole[:60] + bytes(200) + whole[260:],
    }
    for name, content in cases.items():
        path = tmp_path / f"{name}.pt"
        path.write_bytes(content)
        with pytest.raises(InputError, match=f"{name}.pt: must ") as caught:
            read_state_dict(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="must be an existing file"):
        read_state_dict(tmp_path / "nothing.pt")
    for content in ([1, 2], {"epoch": 3}, {}):
        with pytest.raises(InputError, match="must hold a state_dict"):
            read_state_dict(save(tmp_path / "b.pt", content))


def test_random_weights_take_the_classes_of_the_data_and_are_warned_of(caplog):
    model = load_model("cifar_resnet20", num_classes=3)
    assert model.num_classes == 3
    assert model.weights == "random"
    assert "RANDOM weights" in caplog.text


def test_published_weights_come_with_their_own_input(monkeypatch):
    entry = get_entry("resnet50")
    assert entry.preprocess.resize == 256
    assert entry.input_for("DEFAULT").resize == 232
    assert entry.input_for(None) == entry.preprocess

    def offline(*arguments, **options):
        raise OSError("no network")

    monkeypatch.setattr(models.zoo.import_torchvision().models, "get_model", offline)
    with pytest.raises(
        InputError, match=r"weights of resnet50 must be downloadable from https://.*no network"
    ):
        load_model("resnet50", weights="DEFAULT")


@pytest.mark.parametrize(
    ("arch", "options", "text"),
    [
        ("resnet18", {"weights": "BEST"}, "weights must be DEFAULT, got 'BEST'"),
        (
            "cifar_resnet20",
            {"weights": "DEFAULT"},
            "must be for a network with published weights, .* got arch",
        ),
        ("resnet18", {"weights": "DEFAULT", "checkpoint": "x"}, "must not both be given"),
    ],
)
def test_impossible_sources_of_weights(arch, options, text):
    with pytest.raises(InputError, match=text):
        load_model(arch, **options)


def test_a_quantized_model_of_a_known_architecture_loads_by_its_file_alone(tmp_path):
    network = load_model("digits_resnet").network
    images = torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    method = QuantizationManager().get_quantization_method("rtn", n_bits_w=3, num_samples=32)
    result = method.quantize_model(network, None, [images])
    result.save(tmp_path / "q.pt", {"arch": "digits_resnet", "num_classes": 10, "seed": 1})
    loaded, metadata = load_quantized(tmp_path / "q.pt")
    assert metadata["seed"] == 1
    with torch.no_grad():
        assert torch.equal(loaded(images), result(images))


def test_a_file_that_is_no_quantized_model_is_refused(tmp_path):
    path = save(tmp_path / "a.pt", CifarResNet(8).state_dict())
    with pytest.raises(InputError, match="must be a quantized model saved by this suite"):
        load_quantized(path)


def test_preprocess_normalises_by_hand():
    preprocess = Preprocess(mean=(0.5, 0.5, 0.5), std=(0.25, 0.5, 1.0))
    pixels = torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)
    assert preprocess.normalise(pixels).flatten().tolist() == [2.0, 1.0, 0.5]
    assert preprocess.normalise(torch.full_like(pixels, 16), 16).flatten().tolist() == [2, 1, 0.5]
