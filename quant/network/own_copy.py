"""A copy of the user's network that can be captured: checked, in evaluation mode, without hooks."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import InputError

WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside the wrappers of data parallelism."""
    while isinstance(model, WRAPPERS):
        model = model.module
    return model


def own_copy(model: nn.Module) -> nn.Module:
    """A copy of ``model`` in evaluation mode, without gradients.

    Raises:
        InputError: not a module of float32 weights, compiled by TorchScript, or a weight is NaN or
            infinite.
    """
    model = unwrapped(model)
    _require_usable(model)
    copied = copy.deepcopy(model, _computed_tensors(model)).eval()
    return copied.requires_grad_(False)


def constants_of(model: nn.Module) -> dict[nn.Module, set[str]]:
    """Names of the plain tensors of each module, before a forward pass sets others."""
    return {module: _plain_tensors(module) for module in model.modules()}


def _plain_tensors(module: nn.Module) -> set[str]:
    return {name for name, value in vars(module).items() if isinstance(value, Tensor)}


def _require_usable(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise InputError(f"network must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError(
            "network must be an nn.Module with its Python code, got one compiled by TorchScript"
        )
    if next(model.parameters(), None) is None and next(model.buffers(), None) is None:
        raise InputError(f"network must have weights, got none in {type(model).__name__}")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if not (tensor.is_floating_point() or tensor.is_complex()):
            continue
        if tensor.dtype != torch.float32:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise InputError(
                f"weights must be float32, got {kind} in {name!r}: convert with network.float()"
            )
        if not torch.isfinite(tensor).all():
            raise InputError(f"weights must be finite, got NaN or Inf in {name!r}")


def _computed_tensors(model: nn.Module) -> dict[int, Any]:
    """Copies of tensors that hooks computed from parameters, which ``deepcopy`` refuses to copy."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    return memo


def settle_attributes(model: nn.Module, constants: dict[nn.Module, set[str]]) -> None:
    """Prepare tensors that are plain attributes of modules, which a forward pass sets.

    Weights that hooks set become buffers, because torch.export refuses assignments to attributes
    that are not registered. Activations that a module keeps are deleted.

    Args:
        model: has run once.
        constants: of ``constants_of`` before that.
    """
    for module in model.modules():
        for name in _plain_tensors(module):
            value = getattr(module, name)
            if module._forward_pre_hooks:
                delattr(module, name)
                module.register_buffer(name, value.detach(), persistent=False)
            elif name not in constants[module]:
                delattr(module, name)
