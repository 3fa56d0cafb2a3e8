"""What is what in files of logits that another program wrote: the mapping of ``--schema``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.configs import read_config
from common.errors import InputError, require_known

LABEL_NAMES = ("label", "labels", "target", "targets")
ID_NAMES = ("id", "ids", "image", "image_id", "image_ids", "file", "filename", "path", "row")
VALUES = ("logits", "probabilities")
LISTS = ("logits", "quantized", "fullprecision")
TRUTHS = {"true": True, "yes": True, "false": False, "no": False}


@dataclass(frozen=True)
class Schema:
    """Which columns of a CSV file, or arrays of an npz file, hold what; None: found by their names.

    Attributes:
        logits: columns (names, positions from 0, ``FIRST:END`` positions as in Python, patterns
            with ``*``) or one array; empty: all columns that are neither labels nor ids, or the
            array ``logits``.
        quantized, fullprecision: the same for one of the two, where a file holds both.
        labels: column or array of the classes, from 0.
        ids: column or array of what identifies a sample.
        files: pattern of the names of the files to read in a folder.
        delimiter: between the columns of CSV.
        header: whether the first line of CSV names the columns.
        values: ``logits``, or ``probabilities``, whose logarithms are taken.
    """

    logits: tuple[str, ...] = ()
    quantized: tuple[str, ...] = ()
    fullprecision: tuple[str, ...] = ()
    labels: str | None = None
    ids: str | None = None
    files: str | None = None
    delimiter: str | None = None
    header: bool | None = None
    values: str = VALUES[0]

    def of(self, kind: str) -> tuple[str, ...]:
        """The columns or the array of a kind of logits; empty: found by their names."""
        return getattr(self, kind, ()) or self.logits

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys that are given."""
        fields = dataclasses.fields(self)
        return tuple(f.name for f in fields if getattr(self, f.name) != f.default)


KEYS = tuple(field.name for field in dataclasses.fields(Schema))


def read_schema(words: Sequence[str]) -> Schema:
    """Read a schema: one YAML or JSON file, or words ``KEY=VALUE``.

    Raises:
        InputError: the file cannot be read, or a key or value is none of a schema.
    """
    if len(words) == 1 and "=" not in words[0]:
        return make_schema(read_config(Path(words[0]), "schema"))
    content: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise InputError(f"schema must be one file, or words KEY=VALUE, got {word!r}")
        if key in content:
            raise InputError(f"schema must give each key once, got {key} again")
        content[key] = value.split(",") if key in LISTS else value
    return make_schema(content)


def make_schema(content: Mapping[Any, Any]) -> Schema:
    """Make a schema from keys and values.

    Raises:
        InputError: a key is unknown, or a value is not of its kind.
    """
    values: dict[str, Any] = {}
    for key, value in content.items():
        require_known("key of schema", str(key), KEYS)
        values[key] = _lists(key, value) if key in LISTS else _text(key, value)
    if "header" in values:
        values["header"] = _truth(values["header"])
    if "values" in values:
        require_known("values in schema", values["values"], VALUES)
    if {"/", "\\"} & set(values.get("files", "")):
        raise InputError(f"files in schema must be a pattern of names, got {values['files']!r}")
    if len(values.get("delimiter", ",")) != 1:
        raise InputError(f"delimiter in schema must be one letter, got {values['delimiter']!r}")
    return Schema(**values)


def _lists(key: str, value: Any) -> tuple[str, ...]:
    found = tuple(_text(key, item) for item in (value if isinstance(value, list) else [value]))
    if not found:
        raise InputError(f"{key} in schema must name a column or array, got an empty list")
    return found


def _text(key: str, value: Any) -> str:
    if isinstance(value, bool):
        value = str(value).lower()
    if not isinstance(value, str | int) or value == "":
        raise InputError(f"{key} in schema must be a name or number, got {value!r}")
    return str(value)


def _truth(text: str) -> bool:
    require_known("header in schema", text.lower(), TRUTHS)
    return TRUTHS[text.lower()]
