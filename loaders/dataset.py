"""A data set: its classes, its training images where it has them, and its evaluation images."""

from __future__ import annotations

from dataclasses import dataclass

from loaders.imageset import ImageSet


@dataclass(frozen=True)
class Dataset:
    """A labelled data set; ``train`` is None where only evaluation images exist.

    ``origin`` says in words where the number of classes comes from, where that is not a matter of course.
    """

    name: str
    classes: list[str]
    train: ImageSet | None
    val: ImageSet
    origin: str = ""
