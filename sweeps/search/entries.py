"""What one setting may be in a search: one of several values, or a number in a range."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from common.errors import InputError, require_known

RANGE_KEYS = ("low", "high", "log", "step")
MOST_VALUES = 100  # of a list
DIGITS = 4  # significant digits of a sampled float

Check = Callable[[Any], Any]  # returns the value in its type, or raises InputError


@dataclass(frozen=True)
class OneOf:
    """One of several values; a single one is fixed."""

    values: tuple[Any, ...]

    def suggest(self, trial: Any, name: str) -> Any:
        """The value in an Optuna trial."""
        return trial.suggest_categorical(name, self.values)

    def holds(self, value: Any) -> bool:
        """Whether the entry may take the value."""
        return any(type(value) is type(known) and value == known for known in self.values)

    @property
    def is_fixed(self) -> bool:
        """Whether there is nothing to choose."""
        return len(self.values) == 1

    def plain(self) -> Any:
        """The entry as it is written in a file."""
        return self.values[0] if self.is_fixed else list(self.values)


@dataclass(frozen=True)
class Range:
    """A number from ``low`` to ``high``.

    Attributes:
        log: whether its logarithm is sampled evenly.
        step: distance of the possible values from ``low`` on; None: all (whole numbers: 1).
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None

    @property
    def is_whole(self) -> bool:
        """Whether the values are whole numbers."""
        return isinstance(self.low, int)

    @property
    def is_fixed(self) -> bool:
        """Whether there is nothing to choose."""
        return self.low == self.high

    def suggest(self, trial: Any, name: str) -> Any:
        """The value in an Optuna trial; a float has ``DIGITS`` significant digits."""
        if self.is_whole:
            step = 1 if self.step is None else int(self.step)
            return trial.suggest_int(name, self.low, self.high, log=self.log, step=step)
        value = trial.suggest_float(name, self.low, self.high, log=self.log, step=self.step)
        return min(max(float(f"{value:.{DIGITS}g}"), self.low), self.high)

    def holds(self, value: Any) -> bool:
        """Whether the entry may take the value."""
        if type(value) is not type(self.low) or not self.low <= value <= self.high:
            return False
        steps = (value - self.low) / (self.step or 1)
        is_free = self.step is None and not self.is_whole
        return is_free or math.isclose(steps, round(steps), abs_tol=1e-8)

    def plain(self) -> Any:
        """The entry as it is written in a file."""
        found: dict[str, Any] = {"low": self.low, "high": self.high}
        if self.log:
            found["log"] = True
        return found if self.step is None else {**found, "step": self.step}


Entry = OneOf | Range


def read_entry(name: str, content: Any, kind: type, check: Check) -> Entry:
    """The entry that a file gives for a setting: a value, a list of values, or a range.

    Args:
        name: the setting, for error texts.
        kind: type of the setting.

    Raises:
        InputError: it is none of these, or a value is not allowed.
    """
    if isinstance(content, Mapping):
        return _read_range(name, content, kind, check)
    values = content if isinstance(content, list) else [content]
    if not 1 <= len(values) <= MOST_VALUES:
        raise InputError(f"{name} must have 1 to {MOST_VALUES} values, got {len(values)}")
    found: list[Any] = []
    for value in map(check, values):
        if OneOf(tuple(found)).holds(value):
            raise InputError(f"{name} must have each value once, got {value!r} again")
        found.append(value)
    return OneOf(tuple(found))


def _read_range(name: str, content: Mapping[Any, Any], kind: type, check: Check) -> Range:
    if kind not in (int, float):
        raise InputError(
            f"{name} must be a value or a list of values, as it is of type {kind.__name__}, "
            f"got {dict(content)}"
        )
    for key in content:
        require_known(f"entry of {name}", str(key), RANGE_KEYS)
    missing = [key for key in RANGE_KEYS[:2] if content.get(key) is None]
    if missing:
        raise InputError(f"{name} must have low and high, got no {missing[0]}")
    low, high = check(content["low"]), check(content["high"])
    log, step = content.get("log", False), content.get("step")
    if low > high:
        raise InputError(f"low of {name} must be at most high = {high}, got {low}")
    if not isinstance(log, bool):
        raise InputError(f"log of {name} must be true or false, got {log!r}")
    if log and low <= 0:
        raise InputError(f"low of {name} must be above 0 with log, got {low}")
    if step is None:
        return Range(low, high, log)
    if log:
        raise InputError(f"step of {name} must be left out with log, got {step!r}")
    return Range(low, high, False, _step(name, step, kind, high - low))


def _step(name: str, step: Any, kind: type, width: float) -> float:
    is_number = type(step) in (int, float) and (kind is float or type(step) is int)
    if not is_number or not 0 < step <= width:
        raise InputError(
            f"step of {name} must be a number of type {kind.__name__} above 0 and at most "
            f"high - low = {width:g}, got {step!r}"
        )
    count = width / step
    if not math.isclose(count, round(count), abs_tol=1e-8):
        raise InputError(f"step of {name} must divide high - low = {width:g}, got {step!r}")
    return kind(step)
