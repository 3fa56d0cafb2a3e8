"""The methods by name, and the checks that let their settings share one command line.

Every setting of a method is a flag of ``main_imagenet.py``, and several methods may share a
setting. Therefore a setting of one name must mean the same in all methods, and no setting may have
the name of a flag of the script itself.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from common.errors import require_known
from common.names import require_name
from quant.base import BaseQuantizationMethod
from quant.settings import RESERVED_NAMES, TYPES, flag_name, type_text

_METHODS: dict[str, type[BaseQuantizationMethod]] = {}


def register_method(cls: type[BaseQuantizationMethod]) -> type[BaseQuantizationMethod]:
    """Register a method under its ``name``; for use as a class decorator.

    Raises:
        ValueError: the name is taken or cannot be that of a folder, or a setting cannot be a flag;
            the text names both.
    """
    require_name("name of a method", cls.name)
    if cls.name in _METHODS:
        raise ValueError(f"method name {cls.name!r} is taken by {_METHODS[cls.name].__name__}")
    for field in dataclasses.fields(cls.settings_class):
        _require_usable(cls.name, field)
        for other, known in method_settings().get(field.name, {}).items():
            _require_same_meaning(cls.name, field, other, known)
    _METHODS[cls.name] = cls
    return cls


def _require_usable(method: str, field: dataclasses.Field) -> None:
    """Check that a setting can be a flag.

    Raises:
        ValueError: its help text or type does not fit, or its name is reserved for the script.
    """
    where = f"setting {field.name!r} of method {method!r}"
    if "help" not in field.metadata:
        raise ValueError(f"{where} must be made by quant.settings.setting(default, help), got none")
    if not isinstance(field.type, str):
        raise ValueError(
            f"{where} must have its type as text: begin the file with "
            f"'from __future__ import annotations', got {field.type!r}"
        )
    if type_text(field) not in TYPES:
        raise ValueError(
            f"{where} must be of type {', '.join(TYPES)} or one of these with '| None', "
            f"got {field.type!r}"
        )
    if flag_name(field.name) in RESERVED_NAMES:
        raise ValueError(f"{where} must not have the name of a flag of main_imagenet.py, got one")


def _require_same_meaning(
    method: str, field: dataclasses.Field, other: str, known: dataclasses.Field
) -> None:
    """Check that a setting means the same in two methods.

    Raises:
        ValueError: its type, choices or help text differ.
    """
    facts = {
        "type": (type_text(field), type_text(known)),
        "help text": (field.metadata["help"], known.metadata["help"]),
    }
    choices, others = (set(part.metadata["choices"] or ()) for part in (field, known))
    if not (choices <= others or others <= choices):
        facts["choices"] = (sorted(map(str, choices)), sorted(map(str, others)))
    for what, (mine, theirs) in facts.items():
        if mine != theirs:
            raise ValueError(
                f"setting {field.name!r} of method {method!r} must have the {what} that it has in "
                f"{other!r}, {theirs!r}, got {mine!r}; another meaning needs another name"
            )


def method_settings() -> dict[str, dict[str, dataclasses.Field]]:
    """Map the name of every setting to its field in each method that has it."""
    found: dict[str, dict[str, Any]] = {}
    for name in sorted(_METHODS):
        for field in dataclasses.fields(_METHODS[name].settings_class):
            found.setdefault(field.name, {})[name] = field
    return found


class QuantizationManager:
    """Looks up and creates quantization methods."""

    def list_available_methods(self) -> list[str]:
        """Names of all methods, sorted."""
        return sorted(_METHODS)

    def get_method_class(self, name: str) -> type[BaseQuantizationMethod]:
        """The class registered under ``name``.

        Raises:
            InputError: unknown; the text names the known ones.
        """
        return _METHODS[require_known("quant_method", name, _METHODS)]

    def get_quantization_method(self, name: str, **settings: Any) -> BaseQuantizationMethod:
        """Create a method with the given settings; others have their defaults.

        Raises:
            InputError: unknown method or setting, or a value out of range.
        """
        return self.get_method_class(name)(**settings)
