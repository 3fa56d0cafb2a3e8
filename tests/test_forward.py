"""Forward passes in batches, and front to back with a stop at every quantizer."""

from __future__ import annotations

import weakref

import pytest
import torch

from quant.arithmetic.primitives import choose_qparams
from quant.arithmetic.spec import QuantSpec
from quant.network.forward import MOST_VALUES, forward_batches, run_front_to_back, run_unit
from quant.network.model import activation_quantizers
from quant.network.observe import input_of
from tests.conftest import chain_of

CPU = torch.device("cpu")


@pytest.mark.parametrize(("image", "expected"), [((3, 32, 32), 64), ((3, 224, 224), 6)])
def test_batches_on_the_cpu_hold_few_values(image, expected):
    inputs = torch.zeros(1).expand(100, *image)
    batches = forward_batches(inputs, CPU)
    assert len(batches[0]) == expected
    assert sum(map(len, batches)) == 100
    assert len(forward_batches(inputs, torch.device("meta"))[0]) == 64


def test_an_image_larger_than_a_batch_is_a_batch():
    inputs = torch.zeros(1).expand(3, 2 * MOST_VALUES)
    assert list(map(len, forward_batches(inputs, CPU))) == [1, 1, 1]


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
