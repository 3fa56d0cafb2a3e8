"""Weights of other people's files: prefixes, several state dicts, small types, wrapped networks."""

from __future__ import annotations

import itertools
import logging

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import main_imagenet
from common.errors import InputError
from experts.checkpoints import load_expert
from models import load_model, state_digest
from models.expert import Expert
from pipeline import CorrectionOptions, DataOptions, OutputOptions, RunOptions, prepare, run
from quant import QuantizationManager
from quant.network.own_copy import own_copy

PREFIXES = ("module.", "_orig_mod.")


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return dict(load_model("digits_resnet").network.state_dict())


def saved(path, content):
    torch.save(content, path / "c.pt")
    return path / "c.pt"


def require_equal(network: nn.Module, state) -> None:
    own = network.state_dict()
    assert list(own) == list(state)
    for name, value in own.items():
        assert value.dtype == torch.float32 or name.endswith("num_batches_tracked")
        assert torch.equal(value, state[name].to(value.dtype)), name


@pytest.mark.parametrize(
    "prefix",
    ["".join(parts) for count in (1, 2, 3) for parts in itertools.product(PREFIXES, repeat=count)],
)
def test_prefixes_in_any_order_and_number_are_removed(tmp_path, state, prefix):
    content = {prefix + name: value for name, value in state.items()}
    for wrapped in (content, {"state_dict": content, "epoch": 3}):
        model = load_model("digits_resnet", saved(tmp_path, wrapped))
        require_equal(model.network, state)


def test_a_prefix_of_some_names_stays(tmp_path, state):
    content = {("module." if name == "linear.bias" else "") + name: v for name, v in state.items()}
    with pytest.raises(
        InputError, match=r"missing: linear\.bias; unexpected: module\.linear\.bias"
    ):
        load_model("digits_resnet", saved(tmp_path, content))


def test_tensors_beside_the_network_in_a_lightning_module_are_left_out(tmp_path, state, caplog):
    content = {f"model.{name}": value for name, value in state.items()}
    content["criterion.weight"] = torch.ones(10)
    with caplog.at_level(logging.INFO):
        path = saved(tmp_path, {"state_dict": content})
        require_equal(load_model("digits_resnet", path).network, state)
    assert caplog.messages == [f"{path}: names below 'model.' taken; left out: criterion.weight"]
    both = {**content, **state}
    with pytest.raises(InputError, match=r"unexpected: model\.conv1\.weight"):
        load_model("digits_resnet", saved(tmp_path, both))


def test_all_keys_of_a_file_are_counted_when_the_asked_one_is_none(tmp_path, state):
    content = {"state_dict": state, **{f"key{number}": number for number in range(6)}}
    with pytest.raises(InputError, match=r"keys 'state_dict', 'key0', 'key1', .* and 2 more"):
        load_model("digits_resnet", saved(tmp_path, content), checkpoint_key="foo")


@pytest.mark.parametrize("second", ["state_dict_ema", "ema"])
def test_the_state_dict_that_is_taken_is_logged_and_a_key_picks(tmp_path, state, second, caplog):
    other = {name: value + 1 for name, value in state.items()}
    path = saved(tmp_path, {"epoch": 3, second: other, "state_dict": state})
    with caplog.at_level(logging.INFO):
        require_equal(load_model("digits_resnet", path).network, state)
    assert caplog.messages == [
        f"{path}: weights of 'state_dict' taken; the file also holds {second!r} (--checkpoint_key)"
    ]
    caplog.clear()
    chosen = load_model("digits_resnet", path, checkpoint_key=second)
    require_equal(chosen.network, other)
    assert caplog.messages == []


def test_the_one_that_fits_is_taken_and_logged(tmp_path, state, caplog):
    content = {"model": {"teacher.weight": torch.ones(2, 2)}, "state_dict_ema": state}
    path = saved(tmp_path, content)
    with caplog.at_level(logging.INFO):
        require_equal(load_model("digits_resnet", path).network, state)
    assert caplog.messages == [
        f"{path}: weights of 'state_dict_ema' taken; the file also holds 'model' (--checkpoint_key)"
    ]


def test_experts_log_the_state_dict_too(tmp_path, caplog):
    weights = dict(Expert(10, "cifar_resnet32").state_dict())
    path = saved(tmp_path, {"state_dict": weights, "state_dict_ema": weights})
    with caplog.at_level(logging.INFO):
        load_expert(path, 10)
    assert "weights of 'state_dict' taken; the file also holds 'state_dict_ema'" in caplog.text


def test_torchvisions_average_of_weights_is_read(tmp_path, state):
    average = AveragedModel(load_model("digits_resnet").network)
    content = {"model": state, "model_ema": dict(average.state_dict())}
    assert "n_averaged" in content["model_ema"]
    path = saved(tmp_path, content)
    require_equal(
        load_model("digits_resnet", path, checkpoint_key="model_ema").network,
        {name: state[name] for name in average.module.state_dict()},
    )


FLOATS = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu")


@pytest.mark.parametrize("name", [*FLOATS, "bfloat16", "float16", "float64"])
def test_small_and_large_floats_are_cast_to_float32(tmp_path, state, name):
    kind = getattr(torch, name)
    content = {key: v.abs().clamp_min(0.01).to(kind) for key, v in state.items() if v.dim()}
    model = load_model("digits_resnet", saved(tmp_path, content))
    for key, value in content.items():
        found = model.network.state_dict()[key]
        assert found.dtype == torch.float32
        assert torch.equal(found, value.to(torch.float32)), key


def test_packed_floats_of_4_bits_are_refused(tmp_path, state):
    if not hasattr(torch, "float4_e2m1fn_x2"):
        pytest.skip("this torch has no such type")
    packed = torch.zeros(10, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    path = saved(tmp_path, state | {"linear.bias": packed})
    with pytest.raises(InputError) as caught:
        load_model("digits_resnet", path)
    assert str(caught.value) == (
        f"{path}: weights must be ordinary real tensors, got torch.Float4_e2m1fn_x2Tensor in "
        "'linear.bias'"
    )


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("wrap", [None, "state_dict"])
def test_nan_in_the_last_bias_is_refused_in_one_line(tmp_path, state, kind, wrap, capsys):
    bias = state["linear.bias"].clone()
    bias[-1] = float("nan")
    content = state | {"linear.bias": bias.to(kind)}
    path = saved(tmp_path, content if wrap is None else {wrap: content})
    argv = ["--checkpoint", str(path), "--dry_run", "--output_dir", str(tmp_path / "out")]
    assert main_imagenet.main(argv) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert lines == [f"error: {path}: weights must be finite, got NaN or Inf in 'linear.bias'"]


@pytest.mark.parametrize("wrap", [lambda network: network, nn.DataParallel])
def test_nan_in_the_last_bias_of_a_network_in_python_is_refused(wrap):
    network = load_model("digits_resnet").network
    network.linear.bias.data[-1] = float("nan")
    method = QuantizationManager().get_quantization_method("rtn", n_bits_w=4, num_samples=8)
    with pytest.raises(InputError, match=r"must be finite, got NaN or Inf in 'linear\.bias'"):
        method.quantize_model(wrap(network), None, [torch.zeros(8, 3, 8, 8)])


WRAPPED = {
    "DataParallel": nn.DataParallel,
    "DataParallel twice": lambda network: nn.DataParallel(nn.DataParallel(network)),
    "compiled": lambda network: torch.compile(network, backend="eager"),
    "compiled in DataParallel": lambda n: nn.DataParallel(torch.compile(n, backend="eager")),
    "DataParallel compiled": lambda n: torch.compile(nn.DataParallel(n), backend="eager"),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_wrapped_networks_from_python_are_the_network(name):
    network = load_model("digits_resnet").network
    own = own_copy(WRAPPED[name](network))
    assert type(own) is type(network)
    assert state_digest(own) == state_digest(network)


def test_wrapped_networks_from_python_give_the_codes_of_the_network():
    network = load_model("digits_resnet").network
    images = torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    ranges = {"init_wmode": "minmax", "init_amode": "minmax"}
    method = QuantizationManager().get_quantization_method("rtn", num_samples=16, **ranges)
    with torch.no_grad():
        wrapped = WRAPPED["compiled in DataParallel"](network)  # on the GPU, where there is one
        plain = method.quantize_model(network, None, [images])
        images = images.to(plain.device)
        given = method.quantize_model(wrapped, None, [images])
        assert torch.equal(plain(images), given(images))


def test_a_whole_run_on_a_data_parallel_network_is_that_of_the_network(tmp_path):
    network, figures = load_model("digits_resnet").network, {}
    for name, given in (("plain", network), ("wrapped", nn.DataParallel(network))):
        options = RunOptions(
            data=DataOptions(dataset="digits"),
            quant_method="rtn",
            settings={"num_samples": 32, "init_wmode": "minmax", "init_amode": "minmax"},
            correction=CorrectionOptions(correction=False),
            output=OutputOptions(tmp_path / name, plots=False, logits_format=("npz",)),
        )
        job = prepare(options, network=given)
        assert job.name.tag == "python_CifarResNet_w4bit_a4bit_seed1005"
        figures[name] = run(job).results.quantized
    assert figures["plain"] == figures["wrapped"]
    files = [sorted((tmp_path / name / "rtn").glob("initial*/*.npz")) for name in figures]
    assert len(files[0]) == len(files[1]) > 0
    for one, other in zip(*files, strict=True):
        assert one.read_bytes() == other.read_bytes()
