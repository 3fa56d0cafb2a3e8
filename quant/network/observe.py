"""Observation of the tensors that pass through modules while a network runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Note = Callable[[nn.Module, Tensor], None]


@contextmanager
def watch(modules: Iterable[nn.Module], note: Note, outputs: bool = False) -> Iterator[None]:
    """Call ``note`` with each of the modules that runs in the block, and its input tensor.

    Args:
        outputs: pass the output tensor instead of the input.
    """

    def note_input(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        note(module, arguments[0])

    def note_output(module: nn.Module, _: tuple[Any, ...], output: Tensor) -> None:
        note(module, output)

    handles = [
        module.register_forward_hook(note_output)
        if outputs
        else module.register_forward_pre_hook(note_input)
        for module in modules
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Reached(Exception):
    """Raised when the module is reached, because the rest of the unit need not run."""


@torch.no_grad()
def input_of(module: nn.Module, unit: nn.Module, inputs: Tensor) -> Tensor:
    """The input of ``module`` when its unit runs on ``inputs``; nothing after it is run."""
    seen: list[Tensor] = []

    def stop(_: nn.Module, tensor: Tensor) -> None:
        seen.append(tensor)
        raise _Reached

    with watch([module], stop):
        try:
            unit(inputs)
        except _Reached:
            pass
    return seen[0]
