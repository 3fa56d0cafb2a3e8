"""ONNX files of quantized models: their integers, and what onnxruntime makes of them."""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from common.errors import InputError
from correction import ClusterAffineCorrection
from export import tools
from export.containers import per_channel, stored_weight
from export.verification import LEVELS, OnnxNetwork, verify, wrong_integers
from export.writing import write_onnx
from quant import QuantizationManager, QuantModel
from quant.arithmetic.spec import QuantSpec
from quant.network.model import activation_quantizers, quant_layers
from tests.conftest import TinyResNet, chain_of, settle_norms

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytestmark = pytest.mark.usefixtures("one_operator_table", "ranges_searched_once")

IMAGE = (3, 8, 8)


def quantized(network, images, method="rtn", **settings) -> QuantModel:
    made = QuantizationManager().get_quantization_method(method, **settings)
    return made.quantize_model(network, None, [images])


def exact_model(weight_bits: Sequence[int], activation_bits: Sequence[int]) -> QuantModel:
    """Random small integers and powers of two, so that every sum is exact in float32.

    The inner layers and the activations take these bits in turn.
    """
    generator = torch.Generator().manual_seed(44)

    def integers(high: int, shape: torch.Size) -> torch.Tensor:
        return torch.randint(0, high, shape, generator=generator)

    model = chain_of(TinyResNet().eval(), QuantSpec(4, 4))
    weight_turn, activation_turn = cycle(weight_bits), cycle(activation_bits)
    for layer in quant_layers(model).values():
        bits = torch.tensor(8 if layer.is_end else next(weight_turn))
        top = 2 ** int(bits)
        codes = integers(top, layer.codes.shape).to(layer.codes.dtype)
        scale = 2.0 ** -(2 + integers(2, layer.scale.shape))
        zero_point = integers(top, layer.scale.shape).float()
        layer.set_codes(codes, scale / top, zero_point, bits)
        layer.bias = integers(9, (len(codes),)).float() / 8 - 0.5
    for quantizer in activation_quantizers(model).values():
        bits = torch.tensor(8 if quantizer.is_end else next(activation_turn))
        top = 2 ** int(bits)
        zero_point = integers(top // 2, torch.Size(())).float()
        quantizer.set_qparams(torch.tensor(4.0 / top), zero_point, bits)
    return model


def outputs(path: Path, images: torch.Tensor) -> dict[str, np.ndarray]:
    return {level: OnnxNetwork(path, level)(images).numpy() for level in LEVELS}


@pytest.fixture(scope="module")
def written(tmp_path_factory, one_operator_table) -> tuple[QuantModel, torch.Tensor, Path]:
    """A model of the tiny network at W4A4, images, and its file; tests must not change them."""
    torch.manual_seed(0)
    network = TinyResNet()
    settle_norms(network)
    network.eval()
    images = torch.randn(48, *IMAGE, generator=torch.Generator().manual_seed(1))
    model = quantized(network, images)
    path = tmp_path_factory.mktemp("written") / "m.onnx"
    write_onnx(model, path, IMAGE)
    return model, images, path


@pytest.fixture(
    scope="module",
    params=[((2, 3, 4, 5, 8), (2, 3, 6, 4), False), ((2, 4, 2, 8, 2), (2, 4, 8, 2), True)],
    ids=["int4", "int2"],
)
def exact(request, tmp_path_factory, one_operator_table) -> tuple[QuantModel, Path, bool]:
    """A model with exact sums, its file, and whether 2 bits are stored as such."""
    weight_bits, activation_bits, int2 = request.param
    model = exact_model(weight_bits, activation_bits)
    path = tmp_path_factory.mktemp("exact") / "m.onnx"
    write_onnx(model, path, IMAGE, int2=int2)
    return model, path, int2


def test_exact_sums_are_exactly_equal_at_every_optimisation_level(exact):
    model, path, _ = exact
    generator = torch.Generator().manual_seed(5)
    images = torch.randint(-8, 9, (32, *IMAGE), generator=generator).float() / 8
    with torch.no_grad():
        expected = model(images).numpy()
    assert len(np.unique(expected)) > 20
    for level, logits in outputs(path, images).items():
        np.testing.assert_array_equal(logits, expected, err_msg=level)


def weight_types(path: Path) -> dict[str, str]:
    return {
        tensor.name: onnx.TensorProto.DataType.Name(tensor.data_type)
        for tensor in onnx.load(str(path)).graph.initializer
        if tensor.name.endswith(".codes")
    }


@pytest.mark.parametrize(
    ("bits", "int2", "width"),
    [(2, False, 4), (2, True, 2), (3, False, 4), (4, True, 4), (5, False, 8)],
)
def test_weights_are_stored_in_the_narrowest_integers(bits, int2, width, tiny_network, tiny_images):
    model = quantized(tiny_network, tiny_images, n_bits_w=bits, n_bits_a=8)
    for name, layer in quant_layers(model).items():
        stored = stored_weight(name, layer, int2)
        assert stored.width == (8 if layer.is_end else width)
        levels = stored.codes - per_channel(stored.zero_point)
        own = layer.codes.numpy().astype(int) - layer.zero_point.numpy()
        assert np.array_equal(levels.reshape(own.shape), own)


def test_the_integers_of_the_file_have_these_types(exact):
    model, path, int2 = exact
    containers = {2: "INT2" if int2 else "INT4", 3: "INT4", 4: "INT4", 5: "INT8", 8: "INT8"}
    layers = quant_layers(model)
    expected = {f"{name}.codes": containers[int(layer.bits)] for name, layer in layers.items()}
    assert weight_types(path) == expected
    content = onnx.load(str(path))
    assert content.opset_import[0].version == (25 if int2 else 21)
    assert {entry.domain for entry in content.opset_import} == {""}


def test_every_layer_has_integers_of_its_own_and_no_weight_is_a_float(written):
    model, _, path = written
    graph = onnx.load(str(path)).graph
    parts = Counter(tensor.name.rsplit(".", 1)[-1] for tensor in graph.initializer)
    layers, activations = len(quant_layers(model)), len(activation_quantizers(model))
    assert parts["codes"] == layers
    assert parts["scale"] == parts["zero_point"] == layers + activations
    assert parts["bias"] == layers
    names = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    for name, quantizer in activation_quantizers(model).items():
        assert names[f"{name}.scale"] == [] and quantizer.scale.dim() == 0
    operators = Counter(node.op_type for node in graph.node)
    assert operators["QuantizeLinear"] == activations
    assert operators["DequantizeLinear"] == layers + activations
    assert operators["Conv"] == layers
    assert all(len(node.input) == 2 for node in graph.node if node.op_type == "Conv")
    assert not any(node.metadata_props for node in graph.node)
    assert not graph.value_info


CASES = {
    "aciq_mix": {"n_bits_w": 3, "n_bits_a": 8},
    "lapq": {"p_steps": 2, "gradient_steps": 2, "powell_maxiter": 1, "powell_maxfev": 5},
    "gpfq": {"n_bits_w": 3, "n_bits_a": 8, "alphabet": "published", "radius": "mean_max"},
}


def agrees(path: Path, model: QuantModel, images: torch.Tensor) -> dict:
    """What the check of a file finds, in which every argmax and every integer is the model's."""
    labels = torch.zeros(len(images), dtype=torch.int64)
    found = verify(path, model, [(images, labels)])
    assert found["wrong_integers"] == []
    assert found["agreement"] == 1.0
    return found


def is_the_same(path: Path, model: QuantModel, images: torch.Tensor) -> None:
    found = agrees(path, model, images)
    assert found["images"] == len(images)
    assert found["bytes"]["file"] == path.stat().st_size
    assert set(found["levels"]) == set(LEVELS)
    assert max(level["mean_difference"] for level in found["levels"].values()) < 1e-3


@pytest.mark.parametrize("method", CASES)
def test_a_method_s_model_is_the_same_elsewhere(method, tiny_network, tiny_images, tmp_path):
    model = quantized(tiny_network, tiny_images, method, **CASES[method])
    write_onnx(model, tmp_path / "m.onnx", IMAGE)
    is_the_same(tmp_path / "m.onnx", model, tiny_images)


def test_a_model_of_rtn_is_the_same_elsewhere(written):
    model, images, path = written
    is_the_same(path, model, images)


@pytest.fixture
def small_network() -> nn.Module:
    """Two convolutions and a linear layer, which are exported in half the time."""
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
    layers = (first, nn.ReLU(), second, nn.ReLU(), nn.Flatten(), nn.Linear(128, 5))
    return nn.Sequential(*layers).eval()


def test_channels_without_bits_emit_their_constant(small_network, tiny_images, tmp_path):
    model = quantized(small_network, tiny_images, n_bits_w=4, n_bits_a=32)
    for layer in quant_layers(model).values():
        bits = torch.full(layer.scale.shape, int(layer.bits))
        bits[:2] = 0
        codes, zero_point, scale = (
            layer.codes.clone(),
            layer.zero_point.clone(),
            layer.scale.clone(),
        )
        codes[:2], scale[:2] = 0, 0.25
        zero_point[0], zero_point[1] = -1, 1  # the weight is 0.25 everywhere, and -0.25
        layer.set_codes(codes, scale, zero_point, bits)
    write_onnx(model, tmp_path / "m.onnx", IMAGE, int2=True)
    assert wrong_integers(tmp_path / "m.onnx", model) == []
    with torch.no_grad():
        expected = model(tiny_images).numpy()
    for logits in outputs(tmp_path / "m.onnx", tiny_images).values():
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_channels_of_activations_with_scales_and_bits_of_their_own(
    tiny_network, tiny_images, tmp_path
):
    model = quantized(
        tiny_network, tiny_images, "aciq_mix", num_bits=2, per_channel_act=True, mix_acts=True
    )
    each = [
        q.bits.flatten().tolist() for q in activation_quantizers(model).values() if q.bits.dim()
    ]
    assert any(len(set(bits)) > 1 for bits in each)
    write_onnx(model, tmp_path / "m.onnx", IMAGE)
    assert wrong_integers(tmp_path / "m.onnx", model) == []
    with torch.no_grad():
        expected = model(tiny_images).numpy()
    for logits in outputs(tmp_path / "m.onnx", tiny_images).values():
        assert np.abs(logits - expected).mean() < 1e-3


def test_an_activation_channel_without_bits_is_its_constant(small_network, tiny_images, tmp_path):
    model = quantized(small_network, tiny_images, n_bits_w=32, n_bits_a=3)
    quantizer = next(iter(activation_quantizers(model).values()))
    shape = (1, 8, 1, 1)
    scale, bits = torch.full(shape, 0.125), torch.full(shape, 3)
    zero_point = torch.arange(8.0).view(shape)
    zero_point[0, :2, 0, 0], bits[0, :2] = torch.tensor([-1.0, 1.0]), 0
    quantizer.set_qparams(scale, zero_point, bits)
    write_onnx(model, tmp_path / "m.onnx", IMAGE)
    with torch.no_grad():
        expected = model(tiny_images).numpy()
    for logits in outputs(tmp_path / "m.onnx", tiny_images).values():
        assert np.abs(logits - expected).mean() < 1e-4


def test_a_gap_around_zero_is_kept(small_network, tiny_images, tmp_path):
    model = quantized(small_network, tiny_images, "rtn", n_bits_w=4, n_bits_a=32)
    for layer in quant_layers(model).values():
        layer.gap = torch.full_like(layer.scale, 0.05)
    write_onnx(model, tmp_path / "m.onnx", IMAGE)
    with torch.no_grad():
        expected = model(tiny_images).numpy()
    for logits in outputs(tmp_path / "m.onnx", tiny_images).values():
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


class HiddenLinear(nn.Module):
    """Linear layers between quantizers, one of them over rows of vectors."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 3, padding=1, padding_mode="reflect")
        self.mix = nn.Linear(12, 12)
        self.hidden = nn.Linear(12, 20)
        self.head = nn.Linear(20, 5)

    def forward(self, x):
        x = F.relu(self.conv(x)).permute(0, 2, 3, 1)
        x = F.relu(self.mix(x)).mean((1, 2))
        return self.head(F.relu(self.hidden(x)))


def test_hidden_linear_layers_are_not_rounded_by_the_optimiser(tiny_images, tmp_path):
    torch.manual_seed(0)
    model = quantized(HiddenLinear().eval(), tiny_images, n_bits_w=2, n_bits_a=4)
    write_onnx(model, tmp_path / "m.onnx", IMAGE)
    with torch.no_grad():
        expected = model(tiny_images).numpy()
    for logits in outputs(tmp_path / "m.onnx", tiny_images).values():
        assert np.abs(logits - expected).mean() < 1e-4 * np.abs(expected).mean()


def test_channels_of_vectors_may_have_scales_and_bits_of_their_own(tiny_images, tmp_path):
    torch.manual_seed(0)
    model = quantized(HiddenLinear().eval(), tiny_images, n_bits_w=4, n_bits_a=4)
    quantizer = list(activation_quantizers(model).values())[-1]
    bits = (torch.arange(20) % 8).view(1, 20)
    scale = torch.full((1, 20), 0.01)
    quantizer.set_qparams(scale, torch.where(bits == 0, -1.0, 0.0), bits)
    write_onnx(model, tmp_path / "m.onnx", IMAGE)
    with torch.no_grad():
        expected = model(tiny_images).numpy()
    for logits in outputs(tmp_path / "m.onnx", tiny_images).values():
        assert np.abs(logits - expected).mean() < 1e-4 * np.abs(expected).mean()


def test_any_number_of_images_goes_in(written):
    _, images, path = written
    network = OnnxNetwork(path)
    assert [network(images[:count]).shape for count in (1, 7)] == [(1, 5), (7, 5)]


def names_of_the_model(path: Path) -> set[str]:
    names = (tensor.name for tensor in onnx.load(str(path)).graph.initializer)
    return {name for name in names if "units." in name}


@pytest.mark.parametrize("alpha", [0.0, 0.7])
def test_the_correction_becomes_part_of_the_graph_and_changes_no_name(
    alpha, written, tiny_network, tmp_path
):
    model, images, path = written
    with torch.no_grad():
        q_logits, fp_logits = model(images).numpy(), 3 * tiny_network(images).numpy() - 1
    correction = ClusterAffineCorrection(4, 3, alpha=alpha).fit(q_logits, fp_logits)
    write_onnx(model, tmp_path / "m.onnx", IMAGE, correction=correction)
    expected = correction.transform(q_logits)
    assert (np.abs(expected - q_logits).max() > 0.5) == (alpha > 0)
    for logits in outputs(tmp_path / "m.onnx", images).values():
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
    assert names_of_the_model(path) == names_of_the_model(tmp_path / "m.onnx") != set()


@pytest.mark.parametrize("part", ["codes", "scale", "zero_point"])
def test_an_integer_that_is_not_the_model_s_is_found(part, written, tmp_path):
    model, _, path = written
    content = onnx.load(str(path))
    victim = next(t for t in content.graph.initializer if t.name.endswith(f"conv1.{part}"))
    victim.raw_data = bytes([victim.raw_data[0] ^ 1]) + victim.raw_data[1:]
    onnx.save(content, str(tmp_path / "bad.onnx"))
    assert wrong_integers(tmp_path / "bad.onnx", model) == [victim.name.rsplit(".", 1)[0]]


def test_more_bits_than_onnx_has_are_refused(small_network, tiny_images, tmp_path):
    model = quantized(small_network, tiny_images, n_bits_a=12, init_amode="minmax")
    with pytest.raises(InputError, match="activations must have at most 8 bits in ONNX, got 12"):
        write_onnx(model, tmp_path / "m.onnx", IMAGE)
    assert list(tmp_path.iterdir()) == []
    wide = quantized(small_network, tiny_images, n_bits_w=12, n_bits_a=8, init_wmode="minmax")
    write_onnx(wide, tmp_path / "m.onnx", IMAGE)
    assert wrong_integers(tmp_path / "m.onnx", wide) == []


def test_without_the_packages_it_is_said_how_to_install_them(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxscript" else found(name)
    )
    text = "pip install -r requirements-export.txt), got no onnxscript"
    with pytest.raises(InputError, match=re.escape(text)):
        tools.require_export_tools()


class Inverted(nn.Module):
    """MobileNet's block: a wide depthwise layer with ReLU6 inside a sum."""

    def __init__(self):
        super().__init__()
        self.wide = nn.Sequential(nn.Conv2d(8, 16, 1), nn.BatchNorm2d(16), nn.ReLU6())
        self.deep = nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.ReLU6())
        self.narrow = nn.Conv2d(16, 8, 1)

    def forward(self, x):
        return x + self.narrow(self.deep(self.wide(x)))


class Shuffled(nn.Module):
    """ShuffleNet's block: channels split, half of them changed, joined and shuffled."""

    def __init__(self):
        super().__init__()
        self.branch = nn.Sequential(nn.Conv2d(4, 4, 3, 1, 1), nn.BatchNorm2d(4), nn.ReLU())

    def forward(self, x):
        kept, changed = x.chunk(2, dim=1)
        x = torch.cat((kept, self.branch(changed)), dim=1)
        count, channels, height, width = x.shape
        return x.view(count, 2, channels // 2, height, width).transpose(1, 2).reshape(x.shape)


class Mixed(nn.Module):
    """The operations of torchvision's networks."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        self.inverted, self.shuffled = Inverted(), Shuffled()
        self.last = nn.Sequential(nn.Conv2d(8, 12, 1), nn.ReLU())
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        x = self.shuffled(self.inverted(self.stem(x)))
        return self.head(self.last(x).mean((2, 3)))


def network_agrees(network: nn.Module, images: torch.Tensor, path: Path) -> None:
    network.train()
    with torch.no_grad():
        network(images)  # batch norms take statistics, so that activations have a size
    model = quantized(network.eval(), images, init_wmode="minmax", init_amode="minmax")
    write_onnx(model, path, tuple(images.shape[1:]))
    agrees(path, model, images)


def test_the_operations_of_torchvision_s_networks_agree(tmp_path):
    torch.manual_seed(0)
    images = torch.randn(24, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    network_agrees(Mixed(), images, tmp_path / "m.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["resnet18", "mobilenet_v2", "shufflenet_v2_x0_5"])
def test_torchvision_networks_agree(arch, tmp_path):
    from models import load_model

    torch.manual_seed(0)
    images = torch.randn(24, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    network_agrees(load_model(arch).network, images, tmp_path / "m.onnx")
