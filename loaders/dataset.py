"""A data set: its classes, its training images if it has any, and its evaluation images."""

from __future__ import annotations

from dataclasses import dataclass

from loaders.imageset import ImageSet


@dataclass(frozen=True)
class Dataset:
    """A labelled data set; ``train`` is None if only evaluation images exist.

    ``origin`` states where the classes come from, empty if they are fixed by the data set.
    """

    name: str
    classes: list[str]
    train: ImageSet | None
    val: ImageSet
    origin: str = ""
