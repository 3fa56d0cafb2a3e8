"""The one output of a network that is its logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from common.errors import InputError


class OneOutput(nn.Module):
    """A network of several outputs, reduced to one of them.

    Args:
        network: returns tensors in tuples, lists or dicts.
        output: name of the output; outputs without a name have their index.
    """

    def __init__(self, network: nn.Module, output: str):
        super().__init__()
        self.network = network
        self.output = output

    def forward(self, x: Tensor) -> Tensor:
        return chosen_output(named_outputs(self.network(x)), self.output)


def named_outputs(value: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of nested tuples, lists and dicts by key or index, in the order of torch.export.

    A value that is none of these has the name "" (or ``prefix``).
    """
    if isinstance(value, Mapping):
        items = [(str(key), part) for key, part in value.items()]
    elif isinstance(value, (tuple, list)):
        fields = getattr(value, "_fields", map(str, range(len(value))))
        items = list(zip(fields, value, strict=True))
    else:
        return {prefix: value}
    found: dict[str, Any] = {}
    for key, part in items:
        found |= named_outputs(part, f"{prefix}.{key}" if prefix else key)
    return found


def chosen_output(outputs: Mapping[str, Any], output: str | None) -> Any:
    """The output named ``output``, or the only one.

    Raises:
        InputError: there are several and none is named, or none has that name.
    """
    if output is not None and output in outputs:
        return outputs[output]
    if output is None and len(outputs) == 1:
        return next(iter(outputs.values()))
    listed = ", ".join(f"{name} {_form(value)}" for name, value in outputs.items())
    if output is None:
        raise InputError(
            f"network must return one tensor of logits, got {len(outputs)} outputs: {listed}; "
            "choose one with --output"
        )
    raise InputError(f"output must be one of the outputs of the network ({listed}), got {output!r}")


def _form(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__
