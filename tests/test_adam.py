"""The optimiser of the engine against torch's."""

from __future__ import annotations

import pytest
import torch

from quant.arithmetic.optim import FusedAdam


@pytest.mark.parametrize("as_tensor", [False, True])
def test_every_step_is_that_of_torch_bit_for_bit(as_tensor):
    shapes = [(7, 3, 3), (), (5,)]
    start = [torch.randn(shape, generator=torch.Generator().manual_seed(1)) for shape in shapes]
    ours = [value.clone().requires_grad_() for value in start]
    theirs = [value.clone().requires_grad_() for value in start]
    adam = FusedAdam(ours, torch.tensor(0.01) if as_tensor else 0.01)
    rate = torch.tensor(0.01) if as_tensor else 0.01
    reference = torch.optim.Adam(theirs, lr=rate, fused=True)
    generator = torch.Generator().manual_seed(2)
    for step in range(40):
        gradients = [torch.randn(shape, generator=generator) for shape in shapes]
        for group, values in ((adam, ours), (reference, theirs)):
            group.zero_grad()
            for value, gradient in zip(values, gradients, strict=True):
                if step % 3 or value.dim() != 1:  # one has no gradient in every third step
                    value.grad = gradient.clone()
            group.step()
        adam.set_lr(0.01 * 0.9**step)
        if as_tensor:
            reference.param_groups[0]["lr"].fill_(0.01 * 0.9**step)
        else:
            reference.param_groups[0]["lr"] = 0.01 * 0.9**step
        for mine, other in zip(ours, theirs, strict=True):
            assert torch.equal(mine, other), step
