"""Networks on a GPU, told without one: fake tensors have a device, shapes and types alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from models import load_model
from quant import QuantizationManager, QuantModel
from quant.network.capture import LARGEST, _exported
from quant.network.operations import operation

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


def quantized(arch: str) -> QuantModel:
    method = QuantizationManager().get_quantization_method(
        "rtn", num_samples=2, init_wmode="minmax", init_amode="minmax"
    )
    return method.quantize_model(network(arch), None, [torch.randn(IMAGES.shape)])


@pytest.mark.parametrize("arch", NAMES)
def test_a_quantized_network_that_is_moved_takes_all_its_tensors_along(arch):
    moved = quantized(arch)
    with FakeTensorMode(allow_non_fake_inputs=True):
        moved.to_empty(device="cuda")
        assert moved(torch.empty(IMAGES.shape, device="cuda")).device.type == "cuda"
        with pytest.raises(RuntimeError, match="device"):
            moved(torch.empty(IMAGES.shape))


def test_more_images_than_a_batch_norm_of_a_gpu_takes_run_through_the_graph(tiny_network):
    graph = _exported(tiny_network, torch.zeros(2, 3, 8, 8), None)
    assert graph(torch.zeros(LARGEST + 1, 3, 1, 1).expand(-1, -1, 8, 8)).shape[0] == LARGEST + 1
