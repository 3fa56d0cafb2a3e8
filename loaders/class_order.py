"""The order of the classes, which must be that of the network's outputs.

As text, 10 comes before 2: this is the order of torchvision's ``ImageFolder``. In the natural order
numbers inside of names are compared as numbers. A file may list the classes in any order.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.errors import InputError
from common.reading import limited_text
from loaders.names import composed

TEXT, NATURAL = "text", "natural"
NUMBER = re.compile(r"([0-9]+)")
SHOWN = 3

logger = logging.getLogger(__name__)


def names_a_file(order: str | None) -> bool:
    return order not in (None, TEXT, NATURAL)


def in_order(names: Sequence[str], order: str | None, where: str) -> list[str]:
    """The names of the classes in the order of the network's outputs.

    Args:
        names: in composed Unicode, in the order of their text.
        order: ``text``, ``natural``, a file of names, or None for text; where the natural order
            is another one, None is refused for whole numbers, and warned of for other names.
        where: what holds the names, for error texts.

    Raises:
        InputError: the order must be given, or the file does not name exactly these classes.
    """
    if order is not None and names_a_file(order):
        return _same_names(read_names(order), names, where, order)
    natural = sorted(names, key=natural_key)
    if order == NATURAL:
        return natural
    if order is None and natural != list(names):
        _doubt(names, natural, where)
    return list(names)


def natural_key(name: str) -> tuple[Any, ...]:
    """A key that sorts the whole numbers in names as numbers, and what lies between as text."""
    parts = NUMBER.split(name)
    digits = [part.lstrip("0") for part in parts[1::2]]
    parts[1::2] = [(len(part), part) for part in digits]
    return (parts, name)


def _doubt(names: Sequence[str], natural: Sequence[str], where: str) -> None:
    first = next(i for i, name in enumerate(names) if name != natural[i])
    part = slice(max(0, first - 1), max(0, first - 1) + SHOWN)
    as_text, as_numbers = (", ".join(order[part]) for order in (names, natural))
    if all(NUMBER.fullmatch(name) for name in names):
        raise InputError(
            f"class_order must be given where the classes are numbers whose orders differ (text, "
            f"natural, or a file with the names in the order of the network's outputs), got none "
            f"for {where}: {as_text} as text, {as_numbers} as numbers"
        )
    logger.warning(
        "classes of %s are in the order of their text: %s (--class_order natural: %s)",
        where,
        as_text,
        as_numbers,
    )


def read_names(path: str) -> list[str]:
    """The names in a file, one on each line, in composed Unicode.

    Raises:
        InputError: it cannot be read, is empty, or holds a name twice.
    """
    try:
        lines = limited_text(Path(path), "utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(
            f"class_order must be text, natural or a readable text file of class names, got "
            f"{path!r}: {error}"
        ) from None
    names = [composed(line.strip()) for line in lines if line.strip()]
    if not names:
        raise InputError(f"{path}: must name a class on each line, got an empty file")
    repeated = next((name for name, count in Counter(names).items() if count > 1), None)
    if repeated is not None:
        raise InputError(f"{path}: must name each class once, got {repeated!r} again")
    return names


def _same_names(listed: list[str], names: Sequence[str], where: str, path: str) -> list[str]:
    unknown, missing = sorted(set(listed) - set(names)), sorted(set(names) - set(listed))
    if unknown or missing:
        sides = ((unknown, f"not in {where}"), (missing, "not in the file"))
        texts = [f"{', '.join(some[:SHOWN])} {side}" for some, side in sides if some]
        raise InputError(
            f"{path}: must name exactly the {len(names)} classes of {where}, got {len(listed)} "
            f"names: {'; '.join(texts)}"
        )
    return listed
