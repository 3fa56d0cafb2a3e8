"""The methods by name."""

from __future__ import annotations

from typing import Any

from common.errors import require_known
from quant.base import BaseQuantizationMethod

_METHODS: dict[str, type[BaseQuantizationMethod]] = {}


def register_method(cls: type[BaseQuantizationMethod]) -> type[BaseQuantizationMethod]:
    """Class decorator: make a method known under its ``name``.

    Raises:
        ValueError: the name is taken.
    """
    if cls.name in _METHODS:
        raise ValueError(f"method name {cls.name!r} is taken by {_METHODS[cls.name].__name__}")
    _METHODS[cls.name] = cls
    return cls


class QuantizationManager:
    """Looks up and creates quantization methods."""

    def list_available_methods(self) -> list[str]:
        """Names of all methods, sorted."""
        return sorted(_METHODS)

    def get_method_class(self, name: str) -> type[BaseQuantizationMethod]:
        """The class registered under ``name``.

        Raises:
            InputError: unknown; the text gives the known names.
        """
        return _METHODS[require_known("quant_method", name, _METHODS)]

    def get_quantization_method(self, name: str, **settings: Any) -> BaseQuantizationMethod:
        """A method with the given settings, the others at their defaults.

        Raises:
            InputError: unknown method or setting, or a value out of range.
        """
        return self.get_method_class(name)(**settings)
