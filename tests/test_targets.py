"""Networks quantized for a runtime: what its integer kernels compute, by hand."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import main_imagenet
from common.errors import InputError
from export import judging, runtimes, tools
from export.report_table import report_table
from export.reporting import ExportJob, export_and_verify
from export.runtimes import Kernels, kernels_of, network_of
from export.settings import ExportSettings
from export.verification import wrong_integers
from export.writing import write_onnx
from quant import QuantizationManager, QuantModel
from quant.arithmetic.range_search import Grid, Sample, full_qparams, quantization_error
from quant.arithmetic.ranges import weight_qparams
from quant.arithmetic.spec import MAX_LEVEL, QuantSpec
from quant.network.layers import ActivationQuantizer
from quant.network.model import activation_quantizers, quant_layers
from quant.network.targets import fit_to_target_
from tests.conftest import QUICK, TAG, chain_of

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
TARGETS = ["onnxruntime"]
if importlib.util.find_spec("openvino") is not None:
    TARGETS.append("openvino")
pytestmark = pytest.mark.usefixtures("one_operator_table", "ranges_searched_once")


@pytest.fixture(params=TARGETS)
def target(request) -> str:
    return request.param


def stored(path: Path) -> dict[str, np.ndarray]:
    graph = onnx.load(str(path)).graph
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}


def set_layer(layer, levels: Tensor, scale: Tensor, bias: Tensor) -> None:
    """Give a layer these integers, one scale per channel, and this bias."""
    middle = torch.full(scale.shape, 64.0)
    layer.set_codes((levels + 64).to(torch.uint8), scale, middle, torch.tensor(7))
    layer.bias = bias


def quantized(network: nn.Module, images: Tensor, target: str, **settings) -> QuantModel:
    """A network at W8A8 for a target, with the ranges of its values."""
    ranges = {"init_wmode": "minmax", "init_amode": "minmax", "num_samples": len(images)}
    method = QuantizationManager().get_quantization_method(
        "rtn", n_bits_w=8, n_bits_a=8, quant_target=target, **ranges, **settings
    )
    return method.quantize_model(network.eval(), None, [images])


def job_of(model: QuantModel, images: Tensor) -> ExportJob:
    """The export of a model, checked on images without labels."""
    batches = [(images, torch.zeros(len(images), dtype=torch.int64))]
    return ExportJob(model, None, model.image_shape, batches, {"checked_on": "noise"})


class Pointwise(nn.Module):
    """Two convolutions of single pixels, so that every sum is written in a line."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 2, 1), nn.Conv2d(2, 2, 1)

    def forward(self, x):
        return self.second(self.first(x).relu()).flatten(1)


VALUES = [[1.0, -3.0, 4.2], [100.0, 0.74, -0.3], [-1.0, 126.5, 127.0]]


def pointwise(target: str) -> QuantModel:
    model = chain_of(Pointwise().eval(), QuantSpec(8, 8, target=target), size=1)
    first, second = quant_layers(model).values()
    levels = torch.tensor([[[[3]], [[-2]], [[64]]], [[[-64]], [[5]], [[1]]]])
    scale = torch.tensor([0.25, 0.5]).reshape(2, 1, 1, 1)
    set_layer(first, levels, scale, torch.tensor([0.3, -0.7]))
    set_layer(second, torch.eye(2).reshape(2, 2, 1, 1), torch.ones(2, 1, 1, 1), torch.zeros(2))
    image, between, *sums = activation_quantizers(model).values()
    image.set_qparams(torch.tensor(0.5), torch.tensor(2.0))
    between.set_qparams(torch.tensor(0.75), torch.tensor(3.0))
    assert sums == []
    fit_to_target_(model.named_units(), model.spec)
    return model


def test_integers_of_a_network_by_hand(target, tmp_path):
    """Image 0.5 (q - 2), weights 0.25 and 0.5 times integers, output 0.75 (q - 3)."""
    model = pointwise(target)
    write_onnx(model, tmp_path / "m.onnx", (3, 1, 1), target=target)
    tensors = stored(tmp_path / "m.onnx")
    # Biases in steps of 0.5 * 0.25 and 0.5 * 0.5: round(2.4) and round(-2.8).
    assert tensors["units.0.first.bias.codes"].tolist() == [2, -3]
    assert tensors["units.0.first.bias.codes"].dtype == np.int32
    assert quant_layers(model)["units.0.first"].bias.tolist() == [0.25, -0.75]
    assert tensors["units.0.first.codes"].dtype == np.int8
    assert not tensors["units.0.first.zero_point"].any()
    values = np.array(VALUES, np.float32)
    codes = np.clip(np.round(values / 0.5) + 2, 0, 255).astype(int)
    assert codes.tolist() == [[4, 0, 10], [202, 3, 1], [0, 255, 255]]
    # The accumulators, by hand: sums of (code - 2) * weight, plus the bias.
    sums = [
        [3 * 2 - 2 * -2 + 64 * 8 + 2, -64 * 2 + 5 * -2 + 8 - 3],
        [3 * 200 - 2 * 1 + 64 * -1 + 2, -64 * 200 + 5 * 1 - 1 - 3],
        [3 * -2 - 2 * 253 + 64 * 253 + 2, -64 * -2 + 5 * 253 + 253 - 3],
    ]
    # Requantization: times 0.5 * 0.25 / 0.75 and 0.5 * 0.5 / 0.75, rounded, 3 added, clamped.
    out = [
        [np.clip(round(max(one, 0) / 6) + 3, 0, 255), np.clip(round(max(two, 0) / 3) + 3, 0, 255)]
        for one, two in sums
    ]
    assert out == [[90, 3], [92, 3], [255, 255]]
    logits = network_of(tmp_path / "m.onnx", target)(torch.tensor(values).reshape(3, 3, 1, 1))
    assert np.array_equal(np.round(logits.numpy() / 0.75) + 3, out)
    with torch.no_grad():
        assert torch.equal(logits, model(torch.tensor(values).reshape(3, 3, 1, 1)))


def test_the_largest_products_do_not_overflow(target, tmp_path):
    """64 channels of 255 times 64 or -64, which 16 bits hold in pairs and 32 bits in all."""
    network = nn.Sequential(nn.Conv2d(64, 16, 3, padding=1), nn.Flatten(), nn.Linear(256, 4))
    with torch.no_grad():
        model = quantized(network, torch.rand(4, 64, 4, 4), target)
        layer = quant_layers(model)["units.0.0"]
        signs = torch.where(torch.arange(16).reshape(16, 1, 1, 1) % 2 == 0, 1, -1)
        levels = (MAX_LEVEL * signs).expand(layer.codes.shape).clamp(max=63)
        set_layer(layer, levels, layer.scale, layer.bias)
        write_onnx(model, tmp_path / "m.onnx", (64, 4, 4), target=target)
        white = torch.full((1, 64, 4, 4), 9.0)
        expected = model(white)
        found = network_of(tmp_path / "m.onnx", target)(white)
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("size", [3, 5])
def test_products_of_depthwise_convolutions_keep_eight_bits(target, size, tmp_path):
    network = nn.Sequential(
        nn.Conv2d(3, 32, 1), nn.ReLU(), nn.Conv2d(32, 32, size, groups=32), nn.Flatten()
    )
    images = torch.rand(4, 3, 6, 6, generator=torch.Generator().manual_seed(4))
    model = quantized(network, images, target)
    first, second = quant_layers(model).values()
    assert (int(first.bits), int(second.bits)) == (7, 8)
    second.codes = torch.full_like(second.codes, 255)
    write_onnx(model, tmp_path / "m.onnx", (3, 6, 6), target=target)
    white = torch.full((1, 3, 6, 6), 9.0)
    with torch.no_grad():
        expected = model(white)
    found = network_of(tmp_path / "m.onnx", target)(white)
    assert torch.allclose(found, expected, atol=1e-5 * float(expected.abs().max()))
    fit_to_target_(model.named_units(), model.spec)


class Joined(nn.Module):
    """A concatenation between layers."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1), nn.Conv2d(4, 5, 1)

    def forward(self, x):
        return self.c(torch.cat([self.a(x).relu(), self.b(x)], 1)).mean((2, 3))


def test_values_are_quantized_before_a_concatenation_and_give_the_same_integers(target, tmp_path):
    torch.manual_seed(1)
    images = torch.randn(8, 3, 4, 4)
    model = quantized(Joined(), images, target)
    path = tmp_path / "m.onnx"
    write_onnx(model, path, (3, 4, 4), target=target)
    graph = onnx.load(str(path)).graph
    made = {name: node for node in graph.node for name in node.output}
    (join,) = [node for node in graph.node if node.op_type == "Concat"]
    parts = [made[name] for name in join.input]
    assert [part.op_type for part in parts] == ["DequantizeLinear"] * 2
    assert len({tuple(part.input[1:]) for part in parts}) == 1
    assert all(made[part.input[0]].op_type == "QuantizeLinear" for part in parts)
    (behind,) = [node for node in graph.node if join.output[0] in node.input]
    assert behind.op_type == "QuantizeLinear"
    assert tuple(behind.input[1:]) == tuple(parts[0].input[1:])
    # ONNX Runtime merges a ReLU only if the zero point is 0, and gives integers alone.
    assert kernels_of(path, target, model) == Kernels(3 if target == "openvino" else 1, 3)
    assert wrong_integers(path, model) == []
    with torch.no_grad():
        expected = model(images)
    found = network_of(path, target)(images)
    assert torch.allclose(found, expected, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize(("vnni", "bits"), [(False, 7), (True, 8)])
def test_weights_of_eight_bits_have_seven_without_vnni_and_it_is_said(
    vnni, bits, tiny_network, caplog
):
    caplog.set_level("INFO")
    model = quantized(tiny_network, torch.randn(8, 3, 8, 8), "openvino", target_vnni=vnni)
    assert {int(layer.bits) for layer in quant_layers(model).values()} == {bits}
    assert ("weights have at most 7 bits" in caplog.text) == (not vnni)


def dead(model: QuantModel) -> None:
    """A channel of zero weights, which has the least scale, and a bias."""
    layer = quant_layers(model)["units.0.first"]
    layer.codes[0] = 64
    layer.scale[0] = 1e-8


def tiny(model: QuantModel) -> None:
    """A channel whose weights are nothing beside its bias."""
    quant_layers(model)["units.0.first"].scale[0] = 1e-11


def one_scale(model: QuantModel) -> None:
    layer = quant_layers(model)["units.0.first"]
    layer.scale, layer.zero_point = layer.scale[:1] * 1e-9, layer.zero_point[:1]


def no_bits(model: QuantModel) -> None:
    """A channel of 0 bits, whose only code is 0 and means one step."""
    layer = quant_layers(model)["units.0.first"]
    layer.bits = torch.tensor([0, 7]).reshape(2, 1, 1, 1)
    layer.codes[0], layer.zero_point[0], layer.scale[0] = 0, -1.0, 1e-10


@pytest.mark.parametrize("change", [dead, tiny, one_scale, no_bits])
def test_biases_beyond_32_bits_are_kept(target, change, tmp_path):
    """The scales of such weights grow, so that no runtime drops the bias."""
    model = pointwise(target)
    change(model)
    first = quant_layers(model)["units.0.first"]
    first.bias = torch.tensor([60.0, -0.75])
    with torch.no_grad():
        images = torch.randn(4, 3, 1, 1, generator=torch.Generator().manual_seed(0))
        expected = model(images)
        fit_to_target_(model.named_units(), model.spec)
        assert torch.allclose(model(images), expected, atol=1e-5)
    assert float(first.bias[0]) == pytest.approx(60.0, rel=1e-6)
    write_onnx(model, tmp_path / "m.onnx", (3, 1, 1), target=target)
    codes = stored(tmp_path / "m.onnx")["units.0.first.bias.codes"]
    assert abs(int(codes[0])) <= 1.001 * 2**30
    assert wrong_integers(tmp_path / "m.onnx", model) == []
    found = network_of(tmp_path / "m.onnx", target)(images)
    assert torch.allclose(found, expected, atol=1e-5) and bool((found[:, 0] > 50).all())


class Averaged(nn.Module):
    """A convolution that reads an average, and a head that reads one."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Linear(4, 3)

    def forward(self, x):
        x = nn.functional.avg_pool2d(self.a(x).relu(), 2)
        return self.head(self.b(x).relu().mean((2, 3)))


def test_an_average_that_a_convolution_reads_is_quantized(target, tmp_path):
    torch.manual_seed(3)
    images = torch.randn(64, 3, 10, 10)
    model = quantized(Averaged(), images, target)
    names = [name.split(".")[-1] for name in activation_quantizers(model)]
    assert "quantizer_avg_pool2d" in names and "quantizer_mean" not in names
    write_onnx(model, tmp_path / "m.onnx", (3, 10, 10), target=target)
    with torch.no_grad():
        expected = model(images)
    found = network_of(tmp_path / "m.onnx", target)(images)
    step = float((found - expected).abs().mean()) / float(expected.abs().mean())
    assert step < 1e-5


def test_what_kernels_do_not_compute_with_is_refused():
    model = pointwise("openvino")
    layer = quant_layers(model)["units.0.first"]
    layer.codes[0, 0] = 130
    text = r"weight '.*first' must be from -64 to 64 with .* got -64 to 66"
    with pytest.raises(InputError, match=text):
        fit_to_target_(model.named_units(), model.spec)
    layer.codes[0, 0] = 3
    layer.offset = torch.zeros(2, 1, 1, 1)
    with pytest.raises(InputError, match=r"'.*first' must be integers times a scale"):
        fit_to_target_(model.named_units(), model.spec)
    layer.offset = None
    for quantizer in activation_quantizers(model).values():
        assert isinstance(quantizer, ActivationQuantizer)
        quantizer.bits = torch.tensor(4)
    with pytest.raises(
        InputError, match="must have one scale and 8 bits with quant_target openvino"
    ):
        fit_to_target_(model.named_units(), model.spec)


@pytest.mark.parametrize("mode", ["mse", "minmax", "minmax_scale"])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("sign", [0, 1, -1])
def test_symmetric_ranges(mode, bits, sign):
    weight = torch.randn(5, 40, generator=torch.Generator().manual_seed(2))
    weight = weight.abs() * sign if sign else weight
    scale, zero_point = weight_qparams(weight, bits, True, mode, symmetric=True)
    assert torch.equal(zero_point, torch.full((5, 1), 2.0 ** (bits - 1)))
    ends = weight_qparams(weight, bits, True, "minmax", symmetric=True)
    low, high = -(2 ** (bits - 1)) * ends[0], (2 ** (bits - 1) - 1) * ends[0]
    assert (weight >= low * (1 + 1e-6)).all()
    assert (weight <= high * (1 + 1e-6)).all() or bits == 1
    if mode == "mse" and sign == 0 and bits > 1:
        widest = full_qparams(Sample(weight), Grid(bits, symmetric=True))
        errors = [
            quantization_error(Sample(weight), *(part.flatten() for part in pair), Grid(bits))
            for pair in ((scale, zero_point), widest)
        ]
        assert (errors[0] <= errors[1] * (1 + 1e-5)).all()


@pytest.mark.parametrize(
    ("method", "settings", "text"),
    [
        ("rtn", {"n_bits_a": 4}, "n_bits_a must be 8 with quant_target openvino, got 4"),
        ("rtn", {"n_bits_w": 9}, "n_bits_w must be at most 8 with quant_target openvino, got 9"),
        (
            "aciq_mix",
            {"bias_correction": True},
            "bias_correction must be off with quant_target, got",
        ),
        (
            "lapq",
            {"bias_correction": True},
            "bias_correction must be off with quant_target, got on",
        ),
        ("aciq_mix", {"per_channel_act": True}, "per_channel_act must be off with quant_target"),
        ("aciq_mix", {"act_points": "outputs"}, "act_points must be inputs with quant_target"),
        (
            "gpfq",
            {"regularizer": "L0", "lambda_": 0.1},
            "regularizer must not be L0 with quant_target, got L0",
        ),
        ("gpfq", {"n_bits_a": 32}, "n_bits_a must be 8 with quant_target openvino, got 32"),
        (
            "rtn",
            {"quant_target": "none", "target_vnni": True},
            "target_vnni must be given with quant_target, got it alone",
        ),
        ("rtn", {"quant_target": "tensorrt"}, "quant_target must be one of none, openvino, onnx"),
    ],
)
def test_settings_that_a_target_does_not_take(method, settings, text):
    given = {"n_bits_w": 8, "n_bits_a": 8, "quant_target": "openvino", **settings}
    with pytest.raises(InputError, match=text):
        QuantizationManager().get_quantization_method(method, **given)


@pytest.mark.parametrize(
    ("settings", "quantized_for", "text"),
    [
        (
            ExportSettings(export_target="openvino"),
            "none",
            "quant_target must be openvino for export_target openvino, got none; quantize with",
        ),
        (ExportSettings(export_target="onnxruntime"), "openvino", "got openvino; quantize with"),
        (ExportSettings(int2=True), "onnxruntime", "int2 must be left out with export_target onnx"),
    ],
)
def test_files_that_a_model_cannot_become(settings, quantized_for, text):
    with pytest.raises(InputError, match=text):
        settings.target_for(quantized_for)


def test_without_openvino_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(tools.importlib.util, "find_spec", lambda name: name != "openvino" or None)
    assert ExportSettings().target_for("none") == "exact"
    with pytest.raises(InputError, match=r"pip install -r requirements-export.txt\), got no open"):
        ExportSettings().target_for("openvino")


def test_a_sweep_over_bits_is_refused(capsys, tmp_path):
    flags = ["--quant_target", "onnxruntime", "--n_bits_a", "8", "--bitwidth_sweep"]
    assert main_imagenet.main([*QUICK, *flags, "--output_dir", str(tmp_path)]) == 2
    text = "error: bitwidth_sweep must be left out with quant_target onnxruntime, got it"
    assert text in capsys.readouterr().err


def test_a_whole_run_for_a_runtime_and_its_report(target, capsys, tmp_path):
    flags = ["--quant_target", target, "--n_bits_w", "8", "--n_bits_a", "8", "--export_onnx"]
    flags += ["--benchmark", "--no-correction", "--output_dir", str(tmp_path)]
    assert main_imagenet.main([*_without_correction(QUICK), *flags]) == 0
    printed = capsys.readouterr().out
    folder = tmp_path / "rtn" / f"run_{TAG.replace('4bit', '8bit')}"
    report = json.loads((folder / "export_report.json").read_text())
    assert report["target"] == target and report["limit"] == 0.99 and report["problems"] == []
    assert report["agreement"] == 1 and report["wrong_integers"] == []
    assert ("VNNI" in report["hint"]) != runtimes.adds_in_32_bits()
    assert report["kernels"] == {"integers": 7, "layers": 8}  # the head reads means, in float
    assert report["top1_pct"]["file"] == report["top1_pct"]["simulation"]
    assert f"target:    {target}\n" in printed
    assert "integers:  7 of 8 layers ran in integers\n" in printed
    assert "weights:   7 bits at most\n" in printed and "logits:    differ by " in printed
    time = report["milliseconds"]
    assert time["ratio"] == pytest.approx(time["float"] / time["file"]) and time["threads"] == 1
    assert f"time:      {time['file']:.2f} ms, float {time['float']:.2f} ms: speed-up" in printed
    assert report["machine"] == runtimes.machine_flags()


def _without_correction(flags: list[str]) -> list[str]:
    """The quick flags of a run without those of its correction."""
    stop = flags.index("--alpha_list")
    kept = flags[:stop]
    place = kept.index("--correction_samples")
    return kept[:place] + kept[place + 2 :]


@pytest.mark.parametrize(("weight_bits", "layers"), [(4, 7), (32, 0)])
def test_an_exact_file_says_that_nothing_ran_in_integers_and_what_would(
    weight_bits, layers, tmp_path, tiny_network
):

    images = torch.randn(16, 3, 8, 8)
    method = QuantizationManager().get_quantization_method(
        "rtn", n_bits_w=weight_bits, n_bits_a=8, num_samples=16
    )
    model = method.quantize_model(tiny_network, None, [images])
    job = job_of(model, images)
    assert export_and_verify(job, ExportSettings(), tmp_path) == []
    kernels = json.loads((tmp_path / "export_report.json").read_text())["kernels"]
    assert kernels == {"integers": 0, "layers": layers}
    printed = report_table(tmp_path)
    assert f"0 of {layers} layers ran in integers\n" in printed
    assert f"weights:   {max(weight_bits, 8)} bits at most\n" in printed
    assert "note:      for integers quantize with --quant_target openvino" in printed


@pytest.mark.parametrize(
    ("text", "flags", "in_32_bits"),
    [
        ("flags\t\t: fpu avx2 bmi2 avx512_vnni\n", ["avx2", "avx512_vnni"], True),
        ("processor: 0\nflags : avx avx2\nflags : amx_int8\n", ["avx2"], False),
        ("Features : fp asimd asimddp\n", ["asimddp"], True),
        ("model : none\n", [], False),
    ],
)
def test_instruction_sets_of_the_machine(text, flags, in_32_bits, monkeypatch, tmp_path):
    path = tmp_path / "cpuinfo"
    path.write_text(text)
    monkeypatch.setattr(runtimes, "CPU_INFO", path)
    assert runtimes.machine_flags() == flags
    assert runtimes.adds_in_32_bits() == in_32_bits
    path.unlink()
    assert runtimes.machine_flags() == []


def test_logits_that_differ_fail_even_if_the_class_is_the_same(target, tmp_path, monkeypatch):

    model = pointwise(target)
    images = torch.tensor(VALUES).reshape(3, 3, 1, 1)
    job = job_of(model, images)
    assert export_and_verify(job, ExportSettings(), tmp_path) == []
    kind = runtimes.OpenVinoNetwork if target == "openvino" else runtimes.OnnxNetwork
    plain = kind.forward
    monkeypatch.setattr(kind, "forward", lambda self, x: 1.05 * plain(self, x))
    (problem,) = export_and_verify(job, ExportSettings(), tmp_path)
    assert "mean difference of the logits to the simulation's must be at most" in problem


def test_a_network_that_the_runtime_refuses_is_one_line_and_leaves_no_file(tmp_path):
    pytest.importorskip("openvino")

    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), nn.Flatten(), nn.Linear(144, 3)
    )
    images = torch.randn(8, 3, 6, 6)
    model = quantized(network, images, "openvino")
    job = job_of(model, images)
    with pytest.raises(InputError, match="must be one that OpenVINO can run, got: ") as caught:
        export_and_verify(job, ExportSettings(), tmp_path)
    assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("vnni", [False, True])
def test_a_file_for_vnni_is_warned_of_where_there_is_none(
    vnni, target, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(judging, "adds_in_32_bits", lambda: False)
    model = pointwise(target)
    model.spec = QuantSpec(8, 8, target=target, target_vnni=vnni)
    images = torch.tensor(VALUES).reshape(3, 3, 1, 1)
    job = job_of(model, images)
    assert export_and_verify(job, ExportSettings(), tmp_path) == []
    assert ("sums of products overflow here" in caplog.text) == vnni
    assert ("overflow here" in report_table(tmp_path)) == vnni


def test_a_model_for_a_runtime_may_be_written_exactly(target, tmp_path):
    model = pointwise(target)
    job = job_of(model, torch.tensor(VALUES).reshape(3, 3, 1, 1))
    for asked, meant in ((None, target), ("exact", "exact"), (target, target)):
        assert export_and_verify(job, ExportSettings(export_target=asked), tmp_path) == []
        report = json.loads((tmp_path / "export_report.json").read_text())
        assert report["target"] == meant and report["milliseconds"] is None
        has_integers = "units.0.first.bias.codes" in stored(tmp_path / "quantized_model.onnx")
        assert has_integers == (meant != "exact")
        assert (report["hint"] == f"for integers use --export_target {target}") != has_integers


@pytest.mark.parametrize("flags", [["--export_target", "exact"], ["--benchmark"]])
def test_flags_of_an_export_without_an_export_are_refused(flags, capsys, tmp_path):
    assert main_imagenet.main([*QUICK, *flags, "--output_dir", str(tmp_path)]) == 2
    name = flags[0].removeprefix("--")
    assert f"error: {name} must be given with --export_onnx" in capsys.readouterr().err
