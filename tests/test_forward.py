"""Forward passes in batches, and front to back with a stop at every quantizer."""

from __future__ import annotations

import weakref

import pytest
import torch

from evaluation.batches import MOST_VALUES, forward_batches
from evaluation.inference import infer_logits
from quant.arithmetic.primitives import choose_qparams
from quant.arithmetic.spec import QuantSpec
from quant.network.forward import run_front_to_back, run_unit
from quant.network.model import activation_quantizers
from quant.network.observe import input_of
from tests.conftest import chain_of

CPU = torch.device("cpu")


@pytest.mark.parametrize(("image", "expected"), [((3, 32, 32), 64), ((3, 224, 224), 6)])
def test_batches_on_the_cpu_hold_few_values(image, expected):
    inputs = torch.zeros(1).expand(100, *image)
    batches = forward_batches(inputs, CPU, 64)
    assert len(batches[0]) == expected
    assert sum(map(len, batches)) == 100
    assert len(forward_batches(inputs, torch.device("meta"), 64)[0]) == 64


def test_an_image_larger_than_a_batch_is_a_batch():
    inputs = torch.zeros(1).expand(3, 2 * MOST_VALUES)
    assert list(map(len, forward_batches(inputs, CPU, 64))) == [1, 1, 1]


def test_large_images_are_evaluated_in_parts_with_the_same_logits(tiny_network, monkeypatch):
    images = torch.randn(10, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    sizes: list[int] = []
    network = torch.nn.Sequential(tiny_network)
    network.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    batches = [(images[:6], torch.arange(6)), (images[6:], torch.arange(6, 10))]
    whole = infer_logits({"a": network}, batches, CPU)
    monkeypatch.setattr("evaluation.batches.MOST_VALUES", 4 * images[0].numel())
    seen: list[int] = []
    parts = infer_logits(
        {"a": network}, batches, CPU, on_batch=lambda logits, _: seen.append(len(logits["a"]))
    )
    assert (sizes, seen) == ([6, 4, 4, 2, 4], [6, 4])
    assert parts.targets.tolist() == list(range(10))
    assert abs(parts.logits["a"] - whole.logits["a"]).max() <= 1e-5


def test_front_to_back_each_quantizer_is_reached_with_everything_before_it_set(
    tiny_network, tiny_images, monkeypatch
):
    monkeypatch.setattr("quant.network.forward.MOST_IMAGES", 20)
    model = chain_of(tiny_network, QuantSpec(3, 2))
    inputs, found = tiny_images, []
    for unit in model.units:

        def reach(quantizer, batches, unit=unit, inputs=inputs):
            values = torch.cat(batches)
            assert len(batches) == 3
            assert torch.equal(values, input_of(quantizer, unit, inputs))
            quantizer.set_qparams(*choose_qparams(values.amin(), values.amax(), 2))
            found.append(quantizer)

        output = run_front_to_back(unit, inputs, CPU, reach)
        assert torch.equal(output, run_unit(unit, inputs, CPU))
        inputs = output
    assert found == list(activation_quantizers(model).values())
    assert len(inputs.unique()) > len(inputs)


def test_front_to_back_keeps_no_value_longer_than_it_is_used(tiny_network, tiny_images):
    model = chain_of(tiny_network, QuantSpec(3, 2))
    seen: list[weakref.ref] = []

    def reach(quantizer, batches):
        assert all(value() is None for value in seen)
        seen.extend(map(weakref.ref, batches))

    inputs = tiny_images
    for unit in model.units:
        inputs = run_front_to_back(unit, inputs, CPU, reach)
    assert len(seen) == len(activation_quantizers(model)) > 3
