"""QDrop: its mixings at 0, 0.5 and 1, and the names under which they are asked for."""

from __future__ import annotations

import pytest
import torch

from common.errors import InputError
from quant import QuantizationManager
from quant.arithmetic.spec import QuantSpec
from quant.methods.qdrop import QDropSettings
from quant.network.chain import Task, UnitData, nearest, walk_chain
from quant.network.model import FLOAT_SPEC, activation_quantizers
from quant.reconstruction.buffers import StepInput
from quant.reconstruction.step import UnitStep
from quant.reconstruction.trainable import TrainableUnit
from tests.conftest import chain_of

pytestmark = pytest.mark.usefixtures("ranges_searched_once")
QUICK = {"iters_w": 20, "lr_round": 0.15, "batch_size_recon": 16}


def make(name="qdrop", **settings):
    return QuantizationManager().get_quantization_method(name, **settings)


def state(network, images, name="qdrop", **settings):
    return make(name, **QUICK, **settings).quantize_model(network, None, [images]).state_dict()


def same(first, second):
    return all(torch.equal(first[key], second[key]) for key in first)


def test_defaults_are_the_published_ones():
    settings = QDropSettings()
    assert (settings.prob, settings.input_prob, settings.lr_round) == (0.5, 0.5, 1e-3)


def test_num_bits_and_dropout_rate_are_short_forms():
    settings = make(num_bits=2, dropout_rate=0.3).settings
    assert (settings.n_bits_w, settings.n_bits_a) == (2, 2)
    assert settings.prob == settings.input_prob == 1 - 0.3


def test_a_configuration_written_out_is_accepted_again():
    parameters = make(num_bits=3, dropout_rate=0.3, iters_w=5000).get_quantization_params()
    assert make(**parameters).get_quantization_params() == parameters


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"num_bits": 3, "n_bits_w": "x"}, "n_bits_w must be of type int, got 'x'"),
        ({"num_bits": 3.0}, r"num_bits must be of type int, got 3\.0"),
        ({"dropout_rate": "half"}, "dropout_rate must be of type float, got 'half'"),
        ({"dropout_rate": 0.5, "prob": 1.5}, r"prob must be at most 1, got 1\.5"),
        ({"stochastic": 0}, "stochastic must be of type bool, got 0"),
    ],
)
def test_an_unusable_short_form_is_named(settings, text):
    with pytest.raises(InputError, match=text):
        make(**settings)


def test_without_dropping_it_is_adaround(tiny_network, tiny_images):
    plain = state(tiny_network, tiny_images, "adaround", n_bits_w=2, n_bits_a=2)
    for off in ({"stochastic": False}, {"dropout_rate": 0}, {"prob": 1.0, "input_prob": 1.0}):
        assert same(plain, state(tiny_network, tiny_images, num_bits=2, **off))


def test_dropout_rate_is_one_minus_the_published_probability(tiny_network, tiny_images):
    first = state(tiny_network, tiny_images, dropout_rate=0.25)
    assert same(first, state(tiny_network, tiny_images, prob=0.75, input_prob=0.75))
    assert not same(first, state(tiny_network, tiny_images, prob=0.25, input_prob=0.25))


def unit_step(network, images, index=1, **settings):
    """The step of one unit, made trainable, whose batch is all images in order."""
    options = QDropSettings(
        iters_w=1000, lr_round=3e-3, batch_size_recon=len(images), n_bits_a=2, **settings
    )
    seen: list[UnitData] = []
    model = chain_of(network, QuantSpec(2, 2))
    reference = chain_of(network, FLOAT_SPEC)
    walk_chain(Task(model, reference, network, images), nearest("mse", "mse"), seen.append)
    data = seen[index]
    trainable = TrainableUnit(data.unit).__enter__()
    step = UnitStep(data, trainable, options, torch.Generator().manual_seed(0))
    step.load(StepInput(torch.arange(len(images)), None, 0.0))
    return step, data


def unit_inputs(step, data):
    """What the unit and each of its quantizers get and give in one evaluation of the loss."""
    seen = []
    handle = data.unit.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    handles = [
        quantizer.register_forward_hook(lambda _, given, out: seen.append((given[0], out)))
        for quantizer in activation_quantizers(data.unit).values()
    ]
    step.loss(False)
    for hook in (handle, *handles):
        hook.remove()
    step.trainable.__exit__(None, None, None)
    return seen[0], seen[1:]


@pytest.mark.parametrize("prob", [0.0, 0.5, 1.0])
def test_the_input_mixes_quantized_and_float_prefix(tiny_network, tiny_images, prob):
    step, data = unit_step(tiny_network, tiny_images, input_prob=prob, prob=1.0)
    mixed, _ = unit_inputs(step, data)
    is_quantized, is_float = mixed == data.quant_input, mixed == data.float_input
    assert (is_quantized | is_float).all()
    differ = data.quant_input != data.float_input
    share = is_quantized[differ].float().mean().item()
    assert share == pytest.approx(prob, abs=0.0 if prob in (0.0, 1.0) else 0.03)


@pytest.mark.parametrize("prob", [0.0, 0.5, 1.0])
def test_quantizers_inside_let_elements_pass(tiny_network, tiny_images, prob):
    step, data = unit_step(tiny_network, tiny_images, input_prob=1.0, prob=prob)
    _, quantizers = unit_inputs(step, data)
    assert len(quantizers) == 2
    for (given, out), quantizer in zip(
        quantizers, activation_quantizers(data.unit).values(), strict=True
    ):
        quantized = quantizer(given)
        assert ((out == quantized) | (out == given)).all()
        differ = quantized != given
        share = (out == quantized)[differ].float().mean().item()
        assert share == pytest.approx(prob, abs=0.0 if prob in (0.0, 1.0) else 0.03)


def test_every_step_draws_anew(tiny_network, tiny_images):
    step, _ = unit_step(tiny_network, tiny_images)
    first = step.buffers.masks.flat.clone(), step.buffers.input_masks.flat.clone()
    step.load(StepInput(torch.arange(len(tiny_images)), None, 0.0))
    assert not torch.equal(first[0], step.buffers.masks.flat)
    assert not torch.equal(first[1], step.buffers.input_masks.flat)
