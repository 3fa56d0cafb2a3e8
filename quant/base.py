"""What every quantization method is: a settings dataclass and ``quantize_model``."""

from __future__ import annotations

import dataclasses
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from common import InputError, require_known
from quant.chain import UnitReport, collect_images
from quant.graph import NOT_QUANTIZED, QuantSpec
from quant.model import FLOAT_SPEC, QuantModel
from quant.ranges import RANGE_MODES

logger = logging.getLogger(__name__)


def setting(
    default: Any,
    help_text: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: Sequence[Any] | None = None,
    must: str | None = None,
) -> Any:
    """A dataclass field with its help text and what its value must be; the CLI flags are made from
    these.

    Args:
        low, high: inclusive bounds.
        must: replaces the text made from bounds or choices in an error message.
    """
    metadata = {"help": help_text, "low": low, "high": high, "choices": choices, "must": must}
    return dataclasses.field(default=default, metadata=metadata)


def setting_type(field: dataclasses.Field) -> type:
    """The Python type of a setting; annotations are strings here."""
    return {"int": int, "float": float, "bool": bool, "str": str}[str(field.type)]


def check_setting(field: dataclasses.Field, value: Any) -> Any:
    """Return the value, an int made float where a float is expected.

    Raises:
        InputError: wrong type or outside what the field allows.
    """
    kind = setting_type(field)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise InputError(f"{field.name} must be of type {kind.__name__}, got {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{field.name} must be finite, got {value!r}")
    rules = field.metadata
    low, high, choices = rules["low"], rules["high"], rules["choices"]
    too_low = low is not None and not value >= low
    too_high = high is not None and not value <= high
    if too_low or too_high or (choices is not None and value not in choices):
        raise InputError(
            f"{field.name} must be {rules['must'] or _requirement(rules)}, got {value!r}"
        )
    return value


def _requirement(rules: Any) -> str:
    low, high, choices = rules["low"], rules["high"], rules["choices"]
    if choices is not None:
        return f"one of {', '.join(map(str, choices))}"
    if high is None:
        return f"at least {low:g}"
    if low is None:
        return f"at most {high:g}"
    return f"between {low:g} and {high:g}"


_BITS: dict[str, Any] = {
    "choices": (*range(1, 17), NOT_QUANTIZED),
    "must": "between 1 and 16, or 32 (not quantized)",
}


@dataclass(frozen=True)
class MethodSettings:
    """Settings that all methods share.

    Raises:
        InputError: a value is of the wrong type or out of range; the text names setting,
            requirement and value.
    """

    n_bits_w: int = setting(4, "bits of the weights, 1..16, or 32 for float", **_BITS)
    n_bits_a: int = setting(4, "bits of the activations, 1..16, or 32 for float", **_BITS)
    channel_wise: bool = setting(
        True, "one weight scale per output channel instead of one per layer"
    )
    disable_8bit_head_stem: bool = setting(
        False, "first and last layer at n_bits_w and n_bits_a instead of 8"
    )
    num_samples: int = setting(1024, "calibration images", low=1)
    init_wmode: str = setting("mse", "how weight ranges are chosen", choices=RANGE_MODES)
    init_amode: str = setting("mse", "how activation ranges are chosen", choices=RANGE_MODES)
    keep_cpu: bool = setting(False, "keep cached activations in host memory instead of on the GPU")
    seed: int = setting(
        1005, "seed of every random draw", low=0, high=2**32 - 1, must="between 0 and 2^32 - 1"
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, check_setting(field, getattr(self, field.name)))

    @property
    def spec(self) -> QuantSpec:
        return QuantSpec(
            self.n_bits_w, self.n_bits_a, self.channel_wise, not self.disable_8bit_head_stem
        )


class BaseQuantizationMethod(ABC):
    """One quantization method with its settings.

    A new method is one file: a subclass with ``name``, ``summary`` and ``settings_class``,
    ``_quantize``, and the ``register_method`` decorator.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    settings_class: ClassVar[type[MethodSettings]] = MethodSettings

    def __init__(self, **settings: Any):
        known = [field.name for field in dataclasses.fields(self.settings_class)]
        for key in settings:
            require_known(f"setting of {self.name}", key, known)
        self.settings: Any = self.settings_class(**settings)

    def get_method_name(self) -> str:
        return self.name

    def get_quantization_params(self) -> dict[str, Any]:
        """All settings with their values."""
        return dataclasses.asdict(self.settings)

    def quantize_model(
        self,
        model: nn.Module,
        fp_model: nn.Module | None,
        train_loader: Iterable,
        on_unit: Callable[[UnitReport], None] | None = None,
    ) -> QuantModel:
        """Quantize a copy of ``model``; neither ``model`` nor ``fp_model`` changes.

        Args:
            model: trained float network; the work happens on its device.
            fp_model: the float network whose outputs are the target; None means ``model`` itself.
            train_loader: gives (images, labels, ...) batches or image tensors; the first
                ``num_samples`` images calibrate, labels are not looked at.
            on_unit: called after each unit with its report.

        Raises:
            InputError: the network cannot be traced or cut, or the loader is empty.
        """
        device = next(model.parameters()).device
        images = collect_images(train_loader, self.settings.num_samples)
        if not self.settings.keep_cpu:
            images = images.to(device)
        elif device.type == "cpu":
            logger.info("keep_cpu changes nothing: the network is on the CPU")
        quantized = QuantModel(model, self.settings.spec).to(device)
        reference = QuantModel(model if fp_model is None else fp_model, FLOAT_SPEC).to(device)
        self._quantize(quantized, reference, images, on_unit)
        return quantized

    @abstractmethod
    def _quantize(
        self,
        model: QuantModel,
        reference: QuantModel,
        images: Tensor,
        on_unit: Callable[[UnitReport], None] | None,
    ) -> None:
        """Quantize ``model`` in place; ``reference`` is the float chain, ``images`` (N, channels,
        H, W).
        """


def generator_for(seed: int, index: int, device: torch.device) -> torch.Generator:
    """A generator that depends on the seed and the unit alone, so that any unit can be redone by
    itself.
    """
    return torch.Generator(device=device).manual_seed(seed * 1_000_003 + index)
