"""Configuration files, YAML or JSON: of limited size, each key once, nothing unfolded unchecked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from common.errors import InputError, first_line

MAX_BYTES = 1_000_000  # of a file


def read_config(path: Path, name: str) -> dict[Any, Any]:
    """Read the mapping in a configuration file: JSON if its name ends so, else YAML.

    Args:
        name: the flag that gives the file, for error texts.

    Raises:
        InputError: the file is missing, too large, damaged, has a key twice or holds no mapping.
    """
    kind, parse = ("JSON", parse_json) if path.suffix == ".json" else ("YAML", parse_yaml)
    try:
        with path.open("rb") as handle:
            content = handle.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES} bytes")
        found = parse(content.decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        reason = first_line(error)
        raise InputError(f"{name} must be a readable {kind} file, got {path}: {reason}") from None
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise InputError(f"{name} must map keys to values, got a {type(found).__name__} in {path}")
    return found


def parse_json(text: str) -> Any:
    """Parse a JSON text.

    Raises:
        ValueError: the text is not valid JSON, or a mapping has a key twice.
    """
    return json.loads(text, object_pairs_hook=_once)


def parse_yaml(text: str) -> Any:
    """Parse a YAML text.

    Raises:
        InputError: PyYAML is missing.
        ValueError: the text is not valid YAML, a mapping has a key twice, or there is more than
            the limits allow.
    """
    try:
        import yaml

        from common.limited_yaml import LimitedLoader
    except ImportError:
        raise InputError("YAML needs PyYAML (pip install PyYAML), got none installed") from None
    if len(text) > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES} bytes")
    try:
        return yaml.load(text, LimitedLoader)
    except yaml.YAMLError as error:
        raise ValueError(_one_line(error)) from None
    except (LookupError, AttributeError, TypeError, ArithmeticError) as error:
        # PyYAML, of a value that is not of the type of its tag
        raise ValueError(f"a value that its tag does not fit ({error!r})") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"key {key!r} must be given once, got it again")
        found[key] = value
    return found


def _one_line(error: Exception) -> str:
    """What is wrong with a YAML text, and in which line."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None)
    if mark is None or not problem:
        return first_line(error)
    return f"{problem}, line {mark.line + 1}"
