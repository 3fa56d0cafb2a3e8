"""Label files of flat image folders, such as ImageNet's validation images as distributed.

The file has one line per image: ``NAME LABEL`` or ``NAME,LABEL`` (a tab or semicolon works as well;
bounding boxes after the label, as in Kaggle's file, are ignored), or only ``LABEL``, in the order
of the sorted names. A name may lack its extension. A label is the name of a class, or its index
from 0 among the class names in their order.

Names are compared in composed Unicode.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np

from common.errors import InputError
from common.reading import limited_text
from loaders.class_order import in_order, names_a_file, read_names
from loaders.names import composed

HEADERS = {"imageid", "image_id", "image", "filename", "file", "name"}
ILSVRC_CLASSES = 1000
MAX_DIGITS = 6
SEPARATORS = re.compile(r"[,;\t]")
BOXES = re.compile(r"(\S+)( \d+){4}( \S+( \d+){4})*")  # LOC_val_solution.csv
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)


@dataclass(frozen=True)
class Labels:
    """Labels of images.

    Attributes:
        classes: names in order; numbers if the file holds numbers and nothing names the classes.
        labels: (N,) int64, in the order of the images.
        origin: text that states where the classes come from.
    """

    classes: list[str]
    labels: np.ndarray
    origin: str


@dataclass(frozen=True)
class KnownClasses:
    """The names of the classes in their order, and what gives them, for error texts."""

    names: list[str]
    source: str


def read_labels(
    path: Path, names: Sequence[str], classes: list[str] | None, class_order: str | None = None
) -> Labels:
    """Read the labels of images.

    Args:
        names: file names of the images, sorted.
        classes: classes of the train folder in their order; None takes those in the file of
            ``class_order``, else those in the file of labels.
        class_order: as in ``loaders.class_order.in_order``.

    Raises:
        InputError: the file is unreadable, does not hold one label per image, or holds an unknown
            class, or ``class_order`` has no effect.
    """
    texts = _texts(path, [composed(name) for name in names])
    known = None if classes is None else KnownClasses(classes, "folders of train")
    if known is None and class_order is not None and names_a_file(class_order):
        known = KnownClasses(read_names(class_order), f"names in {Path(class_order).name}")
    numeric = [text for text in texts if NUMBER.fullmatch(text)]
    if not numeric:
        return _from_names(path, [composed(text) for text in texts], known, class_order)
    odd = next((text for text in texts if not re.fullmatch(rf"\d{{1,{MAX_DIGITS}}}", text)), None)
    if odd is not None:
        raise InputError(
            f"{path}: labels must be all names or all whole numbers from 0 to "
            f"{10**MAX_DIGITS - 1}, got {odd[:40]!r}"
        )
    if known is None and class_order is not None:
        raise InputError(
            f"class_order must be a file of names or left out where {path.name} holds numbers and "
            f"there is no train folder, got {class_order}"
        )
    return _from_numbers(path, np.array(texts, dtype=np.int64), known)


def _from_names(
    path: Path, texts: list[str], known: KnownClasses | None, class_order: str | None
) -> Labels:
    if known is None:
        names = in_order(sorted(set(texts)), class_order, path.name)
        known = KnownClasses(names, f"names in {path.name}")
    index = {name: position for position, name in enumerate(known.names)}
    unknown = next((text for text in texts if text not in index), None)
    if unknown is not None:
        raise InputError(
            f"{path}: labels must be {known.source}, got {unknown!r}, "
            f"which is none of the {len(known.names)}"
        )
    labels = np.array([index[text] for text in texts], dtype=np.int64)
    return Labels(known.names, labels, known.source)


def _from_numbers(path: Path, numbers: np.ndarray, known: KnownClasses | None) -> Labels:
    distinct, largest = len(np.unique(numbers)), int(numbers.max())
    if distinct == largest and int(numbers.min()) == 1:
        text = f"{path}: labels must be numbers from 0, got 1 to {largest}"
        if largest == ILSVRC_CLASSES:
            text += (
                " (the numbers of ILSVRC's ground truth do not follow the order of the class "
                "folders either: give a file with the synsets, n01440764 ..., instead)"
            )
        raise InputError(text)
    if known is None:
        names = [str(number) for number in range(largest + 1)]
        return Labels(names, numbers, f"numbers in {path.name}, the largest {largest}")
    classes = known.names
    if largest >= len(classes):
        raise InputError(
            f"{path}: labels must be below {len(classes)}, the {known.source}, got {largest}"
        )
    misplaced = next((n for i, n in enumerate(classes) if n.isdecimal() and int(n) != i), None)
    if misplaced is not None:
        raise InputError(
            f"{path}: labels must be unambiguous, got numbers where {misplaced!r} of the "
            f"{known.source} is number {classes.index(misplaced)} in order"
        )
    return Labels(classes, numbers, known.source)


def _texts(path: Path, names: Sequence[str]) -> list[str]:
    """The text of the label of each image."""
    rows = _rows(path)
    if all(len(row) == 1 for row in rows):
        if len(rows) != len(names):
            raise InputError(
                f"{path}: labels without names must be one for each of the {len(names)} images in "
                f"val, got {len(rows)}"
            )
        return [row[0] for row in rows]
    short = next((row for row in rows if len(row) == 1), None)
    if short is not None:
        raise InputError(f"{path}: lines must all be NAME LABEL or all LABEL, got {short[0]!r}")
    labels: dict[str, str] = {}
    for row in rows:
        key = composed(PurePath(row[0]).name)
        if key in labels:
            raise InputError(f"{path}: names must occur once, got {key!r} again")
        labels[key] = row[1]
    stems = Counter(PurePath(name).stem for name in names)
    texts = [labels.pop(_key(path, name, stems, labels)) for name in names]
    if labels:
        raise InputError(
            f"{path}: labels must be those of the {len(names)} images in val, got {len(labels)} of "
            f"other images, {next(iter(labels))!r} first"
        )
    return texts


def _key(path: Path, name: str, stems: Counter[str], labels: dict[str, str]) -> str:
    """The name of an image in the file: its full name, or its stem if no other image shares it."""
    if name in labels:
        return name
    stem = PurePath(name).stem
    if stems[stem] > 1:
        raise InputError(
            f"{path}: names must identify images, got no line for {name!r}, "
            "whose stem other images share"
        )
    if stem not in labels:
        raise InputError(
            f"{path}: labels must be given for every image in val, got none for {name!r}"
        )
    return stem


def _rows(path: Path) -> list[list[str]]:
    """Name and label, or only the label, of each line."""
    try:
        lines = limited_text(path, "utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"val_labels must be a readable text file, got {path}: {error}") from None
    rows = [_cells(line.strip()) for line in lines if line.strip()]
    if rows and rows[0][0].lower() in HEADERS:
        rows = rows[1:]
    if not rows:
        raise InputError(f"{path}: must hold a label per image, got an empty file")
    return rows


def _cells(line: str) -> list[str]:
    separator = SEPARATORS.search(line)
    if separator is None:
        return line.split(None, 1)
    (cells,) = csv.reader([line], delimiter=separator.group())
    boxes = BOXES.fullmatch(cells[1].strip())
    return [cells[0].strip(), boxes.group(1) if boxes else cells[1].strip()]
