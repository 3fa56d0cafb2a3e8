"""The method of a run, with the given settings, the architecture's defaults, and its own."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

from common.errors import InputError
from models import get_entry
from pipeline.options import RunOptions
from quant import BaseQuantizationMethod, QuantizationManager
from quant.registry import method_settings
from quant.settings import check_setting, flag_name

# The two settings of an optional loss term: giving either one switches the term on.
TERM_PARTNERS = {"T": "lamb_r", "lamb_c": "bn_lr"}

logger = logging.getLogger(__name__)


def make_method(options: RunOptions) -> BaseQuantizationMethod:
    """Make the method; given settings win over the architecture's defaults, these over its own.

    Raises:
        InputError: unknown method, a setting that it does not use, or a value out of range.
    """
    cls = QuantizationManager().get_method_class(options.quant_method)
    _refuse_unused(cls, options.settings)
    arch = options.network.arch
    defaults = _arch_defaults(cls, arch, options.settings)
    for key in sorted(set(defaults) - set(options.settings)):
        logger.info("%s = %s, the default for %s", key, defaults[key], arch)
    return cls(**{**defaults, **options.settings})


def require_settings(options: RunOptions) -> None:
    """Check the method and each of the given settings, without making the method.

    Raises:
        InputError: unknown method, a setting that it does not use, or a value out of range.
    """
    cls = QuantizationManager().get_method_class(options.quant_method)
    _refuse_unused(cls, options.settings)
    for field in dataclasses.fields(cls.settings_class):
        if field.name in options.settings:
            check_setting(field, options.settings[field.name])


def _refuse_unused(cls: type[BaseQuantizationMethod], given: Mapping[str, Any]) -> None:
    """Refuse settings that a method does not have; the error names those to use instead.

    Raises:
        InputError: one is given.
    """
    own = {field.name for field in dataclasses.fields(cls.settings_class)}
    unused = [name for name in given if name not in own]
    if not unused:
        return
    name, value = unused[0], given[unused[0]]
    flags = ", ".join(f"--{flag_name(key)}" for key in unused)
    users = list(method_settings()[name])
    hint = f"--{flag_name(name)} is a flag of {', '.join(users)}"
    instead = [key for key in _stands_for(users[0], name, value) if key in own]
    if instead:
        hint += f"; {cls.name} takes {', '.join(f'--{flag_name(key)}' for key in instead)}"
    raise InputError(
        f"{flags} must be left out for {cls.name}, which does not use it, got {value} ({hint})"
    )


def _stands_for(method: str, name: str, value: Any) -> list[str]:
    """The settings that a short form of a method stands for; empty for any other setting."""
    forms = QuantizationManager().get_method_class(method).short_forms
    return list(forms[name](value)) if name in forms else []


def _arch_defaults(
    cls: type[BaseQuantizationMethod], arch: str, given: Mapping[str, Any]
) -> dict[str, Any]:
    """The architecture's defaults for the method; they never switch on an optional loss term."""
    fields = {field.name: field for field in dataclasses.fields(cls.settings_class)}
    return {
        key: value
        for key, value in get_entry(arch).method_defaults.items()
        if key in fields and (fields[key].default is not None or TERM_PARTNERS.get(key) in given)
    }


def configuration(options: RunOptions, method: BaseQuantizationMethod) -> dict[str, Any]:
    """Every flag with its value in this run, sorted, in the form that ``--config`` reads.

    A default of ``num_samples`` is left out: it adapts to the data, while a value in a
    configuration is a requirement.
    """
    values = options.as_flags()
    settings = method.get_quantization_params()
    if "num_samples" not in method.given:
        del settings["num_samples"]
    values |= {flag_name(name): value for name, value in settings.items()}
    return dict(sorted(values.items()))
