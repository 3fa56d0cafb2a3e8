"""Settings of the methods: dataclass fields that know their help text and what their value must
be.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.errors import InputError
from quant.arithmetic.ranges import RANGE_MODES
from quant.arithmetic.spec import NOT_QUANTIZED, QuantSpec

OPTIONAL = " | None"


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
    """The Python type of a setting that is not None; annotations are strings here."""
    name = str(field.type).removesuffix(OPTIONAL)
    return {"int": int, "float": float, "bool": bool, "str": str}[name]


def flag_name(name: str) -> str:
    """The flag of a setting; an underscore at the end keeps a name apart from a word of Python."""
    return name.rstrip("_")


def check_setting(field: dataclasses.Field, value: Any) -> Any:
    """Return the value, an int made float where a float is expected.

    Raises:
        InputError: wrong type or outside what the field allows.
    """
    if value is None and str(field.type).endswith(OPTIONAL):
        return None
    kind, name = setting_type(field), flag_name(field.name)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise InputError(f"{name} must be of type {kind.__name__}, got {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{name} must be finite, got {value!r}")
    rules = field.metadata
    low, high, choices = rules["low"], rules["high"], rules["choices"]
    required = None
    if choices is not None and value not in choices:
        required = f"one of {', '.join(map(str, choices))}"
    elif low is not None and not value >= low:
        required = f"at least {low:g}"
    elif high is not None and not value <= high:
        required = f"at most {high:g}"
    if required is not None:
        raise InputError(f"{name} must be {rules['must'] or required}, got {value!r}")
    return value


BITS: dict[str, Any] = {
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

    n_bits_w: int = setting(4, "bits of the weights, 1..16, or 32 for float", **BITS)
    n_bits_a: int = setting(4, "bits of the activations, 1..16, or 32 for float", **BITS)
    channel_wise: bool = setting(
        True, "one weight scale per output channel instead of one per layer"
    )
    disable_8bit_head_stem: bool = setting(
        False, "first and last layer at n_bits_w and n_bits_a instead of 8"
    )
    num_samples: int = setting(1024, "calibration images", low=1, high=10**9)
    keep_cpu: bool = setting(False, "keep cached activations in host memory instead of on the GPU")
    seed: int = setting(
        1005, "seed of every random draw", low=0, high=2**32 - 1, must="between 0 and 2^32 - 1"
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, check_setting(field, getattr(self, field.name)))

    @property
    def uses_labels(self) -> bool:
        """Whether the labels of the calibration images are looked at."""
        return False

    @property
    def spec(self) -> QuantSpec:
        return QuantSpec(
            self.n_bits_w, self.n_bits_a, self.channel_wise, not self.disable_8bit_head_stem
        )


ShortForms = Mapping[str, Callable[[Any], dict[str, Any]]]


def same_bits(value: int | None) -> dict[str, Any]:
    """What the short form ``num_bits`` sets."""
    return {} if value is None else {"n_bits_w": value, "n_bits_a": value}


def spelled_out(
    settings_class: type[MethodSettings], short_forms: ShortForms, given: dict[str, Any]
) -> dict[str, Any]:
    """The settings ``given`` with what the short forms among them stand for.

    Args:
        short_forms: name of a setting -> what a value of it sets.

    Raises:
        InputError: a short form is unusable or contradicts another setting.
    """
    fields = {field.name: field for field in dataclasses.fields(settings_class)}
    result, origin = dict(given), {key: key for key in given}
    for name in [name for name in short_forms if name in given]:
        value = check_setting(fields[name], given[name])
        for key, meant in short_forms[name](value).items():
            if not _equal(check_setting(fields[key], result.get(key, meant)), meant):
                raise InputError(
                    f"{origin[key]} must be left out or agree with {name} = {value}, got {given[origin[key]]}"
                )
            result[key], origin[key] = result.get(key, meant), origin.get(key, name)
    return result


def _equal(a: Any, b: Any) -> bool:
    return math.isclose(a, b, abs_tol=1e-9) if isinstance(b, float) else a == b


@dataclass(frozen=True)
class RangeSettings(MethodSettings):
    """Settings of the methods that choose ranges by searching them or by min and max."""

    init_wmode: str = setting("mse", "how weight ranges are chosen", choices=RANGE_MODES)
    init_amode: str = setting("mse", "how activation ranges are chosen", choices=RANGE_MODES)
