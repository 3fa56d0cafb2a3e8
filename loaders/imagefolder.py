"""An ImageNet-style folder: ``train/<class>/*`` and ``val/<class>/*``; ``val`` alone is enough."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from common import InputError
from loaders.dataset import Dataset
from loaders.imageset import FileImages
from loaders.transforms import Preprocess

EXTENSIONS = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp"}


def load_folder(root: Path, preprocess: Preprocess, skip_bad: bool, threads: int) -> Dataset:
    """List the images below ``root``; classes are the sorted sub-folders of ``val``.

    Raises:
        InputError: a folder is missing or empty, or the classes of ``train`` and ``val`` differ.
    """
    if not root.is_dir():
        raise InputError(f"data_path must be an existing folder, got {str(root)!r}")
    classes = _class_names(root / "val")
    val = _list_images(root, "val", classes, preprocess, skip_bad, threads)
    train = None
    if (root / "train").is_dir():
        if _class_names(root / "train") != classes:
            raise InputError(
                f"classes of train and val must be the same, got {_difference(root, classes)}"
            )
        train = _list_images(root, "train", classes, preprocess, skip_bad, threads)
    return Dataset("imagenet", classes, train, val)


def _class_names(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise InputError(
            f"data_path must hold {folder.name}/<class>/ folders, got no folder {str(folder)!r}"
        )
    names = sorted(
        entry.name
        for entry in folder.iterdir()
        if entry.is_dir() and not entry.name.startswith(".")
    )
    if not names:
        raise InputError(f"{folder} must hold a folder per class, got none")
    return names


def _difference(root: Path, classes: list[str]) -> str:
    different = sorted(set(_class_names(root / "train")) ^ set(classes))
    return f"{', '.join(different[:5])} in one of them only"


def _utf8(name: str) -> str:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InputError(f"names of images must be UTF-8, got {os.fsencode(name)!r}") from None
    return name


def _list_images(
    root: Path, split: str, classes: list[str], preprocess: Preprocess, skip_bad: bool, threads: int
) -> FileImages:
    ids: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        files = sorted(
            path for path in (root / split / name).iterdir() if path.suffix.lower() in EXTENSIONS
        )
        if not files:
            raise InputError(f"{root / split / name} must hold at least one image, got none")
        ids += [_utf8(path.relative_to(root).as_posix()) for path in files]
        labels += [label] * len(files)
    return FileImages(root, np.array(labels, dtype=np.int64), ids, preprocess, skip_bad, threads)
