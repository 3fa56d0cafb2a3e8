"""Networks on a GPU, told without one: fake tensors have a device, shapes and types alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from main_imagenet import main
from models import load_model
from quant import (
    BaseQuantizationMethod,
    QuantizationManager,
    read_quantized_file,
    restore_quantized,
)
from quant.network import capture as captures
from quant.network.capture import _exported
from quant.network.operations import operation, place_
from tests.conftest import QUICK

IMAGES = torch.zeros(2, 3, 24, 24)
NAMES = ("cifar_resnet20", "squeezenet1_1")


def network(arch: str) -> nn.Module:
    return load_model(arch, num_classes=10).network.eval().requires_grad_(False)


def operations(model: nn.Module, images: torch.Tensor) -> list[str]:
    return [operation(node) or node.op for node in _exported(model, images, None).graph.nodes]


@pytest.mark.parametrize("arch", NAMES)
def test_a_network_on_a_gpu_is_captured_as_on_the_cpu(arch):
    model = network(arch)
    wanted = operations(copy.deepcopy(model), IMAGES)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cuda")
        images = torch.empty(IMAGES.shape, device="cuda")
    assert operations(model, images) == wanted


def rtn() -> BaseQuantizationMethod:
    return QuantizationManager().get_quantization_method(
        "rtn", num_samples=2, init_wmode="minmax", init_amode="minmax"
    )


@pytest.mark.parametrize("arch", NAMES)
def test_a_quantized_network_that_is_moved_takes_all_its_tensors_along(arch):
    moved = rtn().quantize_model(network(arch), None, [torch.randn(IMAGES.shape)])
    with FakeTensorMode(allow_non_fake_inputs=True):
        moved.to_empty(device="cuda")
        assert moved(torch.empty(IMAGES.shape, device="cuda")).device.type == "cuda"
        with pytest.raises(RuntimeError, match="device"):
            moved(torch.empty(IMAGES.shape))


class MadeInside(nn.Module):
    """Adds tensors that its code makes for each batch, on the device of the images."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

    def forward(self, x):
        ones = torch.ones(x.shape[0], 4, 1, 1, device=x.device)
        numbers = 0 * torch.arange(x.shape[0], device=x.device).view(-1, 1)
        return self.head((self.stem(x) + ones).mean((2, 3))) + numbers.to(x.device, torch.float32)


def test_tensors_that_a_network_makes_are_on_the_device_it_is_moved_to():
    network = MadeInside().eval()
    images = torch.randn(IMAGES.shape)
    model = rtn().quantize_model(network, None, [images])
    moved = copy.deepcopy(model)
    with FakeTensorMode(allow_non_fake_inputs=True):
        moved.to_empty(device="cuda")
        assert moved(torch.empty(IMAGES.shape, device="cuda")).device.type == "cuda"
    there = copy.deepcopy(model).to("meta")
    assert there(images.to("meta")).device.type == "meta"
    there.to_empty(device="cpu").load_state_dict(model.state_dict())
    assert torch.equal(there(images), model(images))


def test_a_network_saved_on_a_gpu_is_read_to_the_cpu(tmp_path):
    network = MadeInside().eval()
    images = torch.randn(IMAGES.shape)
    model = rtn().quantize_model(network, None, [images])
    wanted = model(images)
    for unit in model.units:
        place_(unit, torch.device("cuda"))
    model.save(tmp_path / "model.pt", {"arch": "own"})
    restored = restore_quantized(read_quantized_file(tmp_path / "model.pt"))
    assert torch.equal(restored(images), wanted)


def test_more_images_than_a_batch_norm_of_a_gpu_takes_run_through_the_graph(
    tiny_network, monkeypatch
):
    monkeypatch.setattr(captures, "LARGEST", 8)
    graph = _exported(tiny_network, torch.zeros(2, 3, 8, 8), None)
    assert graph(torch.zeros(9, 3, 8, 8)).shape[0] == 9


SWITCHES = (
    torch.backends.cudnn.conv,
    torch.backends.cudnn.rnn,
    torch.backends.cuda.matmul,
)


def precisions() -> list[str]:
    return [switch.fp32_precision for switch in SWITCHES]


@pytest.mark.parametrize("given", ["high", "highest"])
def test_a_network_is_quantized_in_full_float32_whatever_the_precision_of_products(given):
    seen = []

    class Watching(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(3 * 24 * 24, 4)

        def forward(self, x):
            seen.append("tf32" in precisions())
            return self.head(x.flatten(1))

    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision(given)
    before = precisions()
    assert ("tf32" in before) and (given == "highest") == (before[2] != "tf32")
    try:
        rtn().quantize_model(Watching().eval(), None, [torch.randn(IMAGES.shape)])
        assert seen and not any(seen)
        assert precisions() == before
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


def test_the_float_network_of_a_run_is_run_in_full_float32(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("pipeline.stages.early_doubts", lambda *a: seen.append(precisions()) or [])
    torch.backends.cudnn.allow_tf32 = True
    try:
        assert main([*QUICK, "--output_dir", str(tmp_path)]) == 0
        assert len(seen) == 1 and "tf32" not in seen[0]
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.backends.cudnn.allow_tf32 = False
