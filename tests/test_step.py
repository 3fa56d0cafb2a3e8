"""One optimisation step against the same mathematics in plain autograd, and the ways to run it."""

from __future__ import annotations

import dataclasses
import gc
import logging
import weakref

import pytest
import torch

from quant import QuantizationManager
from quant.arithmetic.spec import QuantSpec
from quant.methods.qdrop import QDropSettings
from quant.network.chain import Task, UnitData, nearest, walk_chain
from quant.network.model import FLOAT_SPEC, quant_layers
from quant.reconstruction.buffers import StepInput
from quant.reconstruction.prediction import PredictionDifference, PredictionSettings
from quant.reconstruction.step import UnitStep, cosine
from quant.reconstruction.trainable import TrainableUnit
from tests.conftest import chain_of
from tests.test_primitives import reference as straight_through

pytestmark = pytest.mark.usefixtures("ranges_searched_once")
QUICK = {"iters_w": 40, "lr_round": 8e-2, "batch_size_recon": 16}
SETTINGS = QDropSettings(iters_w=1000, lr_round=3e-3, batch_size_recon=16, weight=0.3)


@pytest.fixture
def second_unit(tiny_network, tiny_images):
    """Unit 1 of the tiny network in W3A2, ready to be optimised, and the float chain."""
    seen: list[UnitData] = []
    model = chain_of(tiny_network, QuantSpec(3, 2))
    reference = chain_of(tiny_network, FLOAT_SPEC)
    walk_chain(
        Task(model, reference, tiny_network, tiny_images), nearest("mse", "mse"), seen.append
    )
    data = seen[1]
    with TrainableUnit(data.unit) as trainable:
        yield data, trainable, reference


def loaded_step(data, trainable, prediction=None):
    step = UnitStep(data, trainable, SETTINGS, torch.Generator().manual_seed(0), prediction)
    pick = torch.randint(48, (16,), generator=torch.Generator().manual_seed(1))
    step.load(StepInput(pick, 7.0, 1e-4))
    return step, pick


def plain_forward(quantizer, mask):
    def forward(x):
        top = 2**quantizer.num_bits - 1
        xhat = straight_through(x, quantizer.scale, quantizer.zero_point, top)
        return torch.where(mask > 0, xhat, x)

    return forward


def gradients(trainable):
    leaves = [rounding.logits for rounding in trainable.roundings]
    leaves += [quantizer.scale for quantizer in trainable.quantizers]
    found = [leaf.grad.clone() for leaf in leaves]
    for leaf in leaves:
        leaf.grad = None
    return found


@pytest.mark.parametrize("with_prediction", [False, True])
def test_loss_and_gradients_equal_those_of_plain_autograd(
    second_unit, monkeypatch, with_prediction
):
    data, trainable, reference = second_unit
    prediction = None
    if with_prediction:
        logits = torch.randn(48, 5, generator=torch.Generator().manual_seed(2))
        tail, settings = list(reference.units)[2:], PredictionSettings(4.0, 0.1)
        prediction = PredictionDifference(torch.softmax(logits / 4, 1), tail, settings)
    step, pick = loaded_step(data, trainable, prediction)
    ours = step.loss(True)
    ours.backward()
    our_gradients = gradients(trainable)

    for quantizer, mask in zip(trainable.quantizers, step.buffers.masks.masks, strict=True):
        monkeypatch.setattr(quantizer, "forward", plain_forward(quantizer, mask))
    quantized, full = data.quant_input[pick], data.float_input[pick]
    mixed = torch.where(step.buffers.input_masks.masks[0] > 0, quantized, full)
    output = data.unit(torch.cat([mixed, quantized]) if with_prediction else mixed)
    plain = (output[:16] - data.target[pick]).square().sum(1).mean()
    if prediction is not None:
        tail = output[16:]
        for unit in list(reference.units)[2:]:
            tail = unit(tail)
        p = torch.softmax(logits[pick] / 4, 1)
        plain = plain + 10 * (p * (p.log() - torch.log_softmax(tail / 4, 1))).sum(1).mean()
    for rounding in trainable.roundings:
        h = (torch.sigmoid(rounding.logits) * 1.2 - 0.1).clamp(0, 1)
        plain = plain + 0.3 * (1 - (2 * h - 1).abs() ** 7.0).sum()
    plain.backward()
    assert ours.item() == pytest.approx(plain.item(), rel=1e-5)
    for one, other in zip(our_gradients, gradients(trainable), strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-5 * float(other.abs().max()))


def test_learning_rate_is_torchs_cosine():
    parameter = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([parameter], lr=4e-5)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)
    for step in range(1, 21):
        assert cosine(step, 20, 4e-5) == pytest.approx(schedule.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        schedule.step()


def codes(network, images, **settings):
    method = QuantizationManager().get_quantization_method("qdrop", **QUICK, **settings)
    result = method.quantize_model(network, None, [images])
    return torch.cat([layer.codes.flatten().float() for layer in quant_layers(result).values()])


def test_a_compiler_that_fails_is_given_up_with_a_line(
    tiny_network, tiny_images, monkeypatch, caplog
):
    def broken(function, **options):
        def call(*arguments):
            raise RuntimeError("no compiler found\nmore")

        return call

    plain = codes(tiny_network, tiny_images)
    monkeypatch.setattr(torch, "compile", broken)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(codes(tiny_network, tiny_images, compile=True), plain)
    assert caplog.text.count("--compile given up for this unit: no compiler found") == 4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # of torch's compiler
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_compiled_steps_learn_what_plain_steps_learn(tiny_network, tiny_images, caplog):
    plain = codes(tiny_network, tiny_images)
    with caplog.at_level(logging.WARNING):
        compiled = codes(tiny_network, tiny_images, compile=True)
    assert "given up" not in caplog.text
    assert (plain != compiled).float().mean() < 0.02


def test_bf16_learns_nearly_what_float32_learns(tiny_network, tiny_images):
    plain = codes(tiny_network, tiny_images)
    assert (plain != codes(tiny_network, tiny_images, amp="bf16")).float().mean() < 0.1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("keep_cpu", [False, True])
def test_cuda_graphs_change_no_bit(tiny_network, tiny_images, keep_cpu, caplog):
    network = tiny_network.cuda()
    with caplog.at_level(logging.WARNING):
        graphed = codes(network, tiny_images, cuda_graph=True, keep_cpu=keep_cpu)
    assert "given up" not in caplog.text
    assert torch.equal(graphed, codes(network, tiny_images, cuda_graph=False))


def test_a_unit_that_is_done_is_not_kept_by_its_step(second_unit):
    data, trainable, _ = second_unit
    torch.compile(lambda: None)  # the first import of the compiler keeps its caller
    gc.disable()
    try:
        for settings in (SETTINGS, dataclasses.replace(SETTINGS, compile=True)):
            step = UnitStep(data, trainable, settings, torch.Generator())
            watched = weakref.ref(step)
            step.close()
            del step
            assert watched() is None
    finally:
        gc.enable()
