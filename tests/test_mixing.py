"""Random masks: their share of ones, their independence, their repeatability."""

from __future__ import annotations

import pytest
import torch

from quant.reconstruction.mixing import RandomMasks

CPU = torch.device("cpu")


def drawn(shapes, prob, seed=0):
    masks = RandomMasks(
        [torch.Size(shape) for shape in shapes], prob, torch.Generator().manual_seed(seed), CPU
    )
    masks.draw()
    return masks


@pytest.mark.parametrize("prob", [0.0, 0.3, 0.5, 0.9, 1.0])
def test_the_share_of_ones_is_the_probability(prob):
    (mask,) = drawn([(200, 500)], prob).masks
    assert set(mask.unique().tolist()) <= {0.0, 1.0}
    assert mask.mean().item() == pytest.approx(prob, abs=0.01)
    if prob in (0.0, 1.0):
        assert mask.unique().tolist() == [prob]


@pytest.mark.parametrize("prob", [0.5, 0.3])
def test_places_in_the_64_bit_draw_are_independent(prob):
    (mask,) = drawn([(50_000, 8)], prob).masks
    assert torch.allclose(mask.mean(0), torch.full((8,), prob), atol=0.01)
    assert (torch.corrcoef(mask.T) - torch.eye(8)).abs().max() < 0.02


def test_masks_of_several_shapes_are_independent_and_do_not_overlap():
    first, second = drawn([(3, 5, 7), (100, 1000)], 0.5).masks
    assert first.shape == (3, 5, 7)
    second.zero_()
    assert first.sum() > 0


def test_every_draw_differs_and_the_same_seed_repeats_them():
    one, other = drawn([(64, 64)], 0.5, seed=9), drawn([(64, 64)], 0.5, seed=9)
    before = one.masks[0].clone()
    assert torch.equal(before, other.masks[0])
    one.draw()
    assert not torch.equal(before, one.masks[0])
    other.draw()
    assert torch.equal(one.masks[0], other.masks[0])


def test_masks_take_the_memory_format_of_their_tensors():
    shape = torch.Size((4, 3, 5, 5))
    generator = torch.Generator().manual_seed(0)
    masks = RandomMasks([shape, torch.Size((7, 2))], 0.5, generator, CPU, torch.channels_last)
    image, vector = masks.masks
    assert image.shape == shape
    assert image.is_contiguous(memory_format=torch.channels_last)
    assert vector.is_contiguous()


def test_no_shapes_need_no_draw():
    assert drawn([], 0.5).masks == []
