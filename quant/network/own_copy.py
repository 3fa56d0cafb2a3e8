"""A copy of the user's network that can be captured: checked, in evaluation mode, without hooks."""

from __future__ import annotations

import copy
import keyword
from typing import Any

import torch
from torch import Tensor, fx, nn

from common.errors import InputError, first_line

WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)
COMPILED = "_orig_mod"  # the network inside the result of torch.compile
NESTED = 4  # levels of lists and dicts in which modules may keep tensors


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside the wrappers of data parallelism and of ``torch.compile``."""
    while isinstance(model, WRAPPERS) or COMPILED in getattr(model, "_modules", {}):
        model = model.module if isinstance(model, WRAPPERS) else getattr(model, COMPILED)
    return model


def device_of(model: nn.Module) -> torch.device:
    """The device of the first tensor of a network that has any."""
    return next(tensor.device for tensor in (*model.parameters(), *model.buffers()))


def own_copy(model: nn.Module) -> nn.Module:
    """A copy of ``model`` in evaluation mode, without gradients.

    Raises:
        InputError: not a module of float32 weights, compiled by TorchScript, not copyable, or a
            weight is NaN or infinite.
    """
    model = unwrapped(model)
    _require_usable(model)
    try:
        copied = copy.deepcopy(model, _computed_tensors(model)).eval()
    except Exception as error:
        reason = first_line(error)
        raise InputError(f"network must be copyable by copy.deepcopy, got: {reason}") from error
    return copied.requires_grad_(False)


def attributes_of(model: nn.Module) -> dict[nn.Module, dict[str, Any]]:
    """The attributes of each module, before a forward pass sets others."""
    return {module: dict(vars(module)) for module in model.modules()}


def _require_usable(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise InputError(f"network must be a torch.nn.Module, got {type(model).__name__}")
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise InputError(
                "network must be an nn.Module with its Python code, got one compiled by "
                f"TorchScript{f' in {path!r}' if path else ''}"
            )
        _require_names(path, module)
    if next(model.parameters(), None) is None and next(model.buffers(), None) is None:
        raise InputError(f"network must have weights, got none in {type(model).__name__}")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if nn.parameter.is_lazy(tensor) or tensor.is_meta:
            raise InputError(f"weights must have values, got none in {name!r}")
        if not (tensor.is_floating_point() or tensor.is_complex()):
            continue
        if tensor.dtype != torch.float32:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise InputError(
                f"weights must be float32, got {kind} in {name!r}: convert with network.float()"
            )
        if not torch.isfinite(tensor).all():
            raise InputError(f"weights must be finite, got NaN or Inf in {name!r}")


def _require_names(path: str, module: nn.Module) -> None:
    """Check that no child has a name with which torch.fx cannot work."""
    for name in module._modules:
        if keyword.iskeyword(name) or (not path and name in dir(fx.GraphModule)):
            raise InputError(
                f"submodules must have other names than those of torch.fx, got {name!r}"
            )


def _computed_tensors(model: nn.Module) -> dict[int, Any]:
    """Copies of the tensors of modules that were computed, which ``deepcopy`` refuses to copy."""
    found: dict[int, Any] = {}
    waiting: list[Any] = [vars(module) for module in model.modules()]
    for _ in range(NESTED):
        inner: list[Any] = []
        for holder in waiting:
            for value in holder.values() if isinstance(holder, dict) else holder:
                if isinstance(value, Tensor) and not value.is_leaf:
                    found[id(value)] = value.detach().clone()
                elif isinstance(value, (dict, list, tuple)):
                    inner.append(value)
        waiting = inner
    return found


def settle_attributes(model: nn.Module, before: dict[nn.Module, dict[str, Any]]) -> None:
    """Prepare tensors that are plain attributes of modules, which a forward pass sets.

    Weights that hooks set become buffers, because torch.export refuses assignments to attributes
    that are not registered. Activations that a module keeps are forgotten.

    Args:
        model: has run once.
        before: of ``attributes_of`` before that.
    """
    for module in model.modules():
        known = before[module]
        for name, value in list(vars(module).items()):
            if not isinstance(value, Tensor):
                continue
            if module._forward_pre_hooks:
                delattr(module, name)
                module.register_buffer(name, value.detach(), persistent=False)
            elif name not in known:
                delattr(module, name)
            elif not isinstance(known[name], Tensor):
                setattr(module, name, known[name])
