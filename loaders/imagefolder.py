"""An ImageNet-style folder: ``train/<class>/*`` and ``val/<class>/*``; ``val`` alone is enough.

Images in folders below a class folder belong to the class, as for torchvision's ``ImageFolder``.
``val`` may also hold the images themselves, with their labels in a file.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from common.errors import InputError
from loaders.class_order import in_order
from loaders.dataset import Dataset
from loaders.imageset import FileImages
from loaders.label_file import Labels, read_labels
from loaders.names import composed
from loaders.transforms import Preprocess

EXTENSIONS = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp"}


logger = logging.getLogger(__name__)


def load_folder(
    root: Path,
    preprocess: Preprocess,
    skip_bad: bool,
    threads: int,
    val_labels: Path | None = None,
    class_order: str | None = None,
) -> Dataset:
    """List the images below ``root``; the classes are the sub-folders of ``train`` and of ``val``.

    Args:
        val_labels: file with the labels of the images of a ``val`` without sub-folders
            (``loaders.label_file``); the classes are then those of ``train`` or of the file.
        class_order: as in ``loaders.class_order.in_order``.

    Raises:
        InputError: a folder is missing or empty, the classes of ``train`` and ``val`` differ, their
            order is unclear, or the labels do not fit the images.
    """
    if not root.is_dir():
        raise InputError(f"data_path must be an existing folder, got {str(root)!r}")
    train_folders = _class_folders(root / "train") if (root / "train").is_dir() else None
    if val_labels is None:
        val_folders = _class_folders(root / "val")
        _require_same(train_folders, val_folders)
        classes = in_order(list(train_folders or val_folders), class_order, str(root / "val"))
        val_ids, found = _by_class(root, "val", val_folders, classes)
    else:
        names = _flat_images(root)
        val_ids = [f"val/{name}" for name in names]
        known = None
        if train_folders is not None:
            known = in_order(list(train_folders), class_order, str(root / "train"))
        found = read_labels(val_labels, names, known, class_order)

    def images(ids: list[str], labels: np.ndarray) -> FileImages:
        return FileImages(root, labels, ids, preprocess, skip_bad, threads)

    train = None
    if train_folders is not None:
        train_ids, train_found = _by_class(root, "train", train_folders, found.classes)
        train = images(train_ids, train_found.labels)
    val = images(val_ids, found.labels)
    return Dataset("imagenet", found.classes, train, val, found.origin)


def _class_folders(folder: Path) -> dict[str, str]:
    """The folders in ``folder``, sorted as text: composed name -> name on disk.

    Raises:
        InputError: there are none, or two are the same text in composed Unicode.
    """
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
        images = sum(_is_image(entry.name) for entry in folder.iterdir())
        hint = (
            f"{images} images and no folder (--val_labels FILE gives their labels)"
            if images
            else "none"
        )
        raise InputError(f"{folder} must hold a folder per class, got {hint}")
    found: dict[str, str] = {}
    for name in names:
        other = found.setdefault(composed(name), name)
        if other != name:
            raise InputError(
                f"{folder}: class folders must differ in composed Unicode (NFC), got {other!a} "
                f"and {name!a}"
            )
    return found


def _require_same(train: Mapping[str, str] | None, val: Mapping[str, str]) -> None:
    different = sorted(set(val if train is None else train) ^ set(val))
    if different:
        raise InputError(
            "classes of train and val must be the same, got "
            f"{', '.join(different[:5])} in only one of them"
        )


def _is_image(name: str) -> bool:
    stem, _, extension = name.rpartition(".")
    return stem != "" and f".{extension.lower()}" in EXTENSIONS


def _require_utf8(root: Path, ids: Sequence[str]) -> None:
    for name in ids:
        try:
            name.encode()
        except UnicodeEncodeError:
            raw = os.fsencode(root / name)
            raise InputError(f"names of images must be UTF-8, got {raw!r}") from None


def _flat_images(root: Path) -> list[str]:
    """Sorted names of the images in a ``val`` folder without sub-folders."""
    folder = root / "val"
    if not folder.is_dir():
        raise InputError(f"data_path must hold a folder val, got none in {str(root)!r}")
    with os.scandir(folder) as entries:
        names = sorted(e.name for e in entries if _is_image(e.name) and not e.is_dir())
    if not names:
        raise InputError(
            f"{folder} must itself hold images if --val_labels is given, got no image there"
        )
    _require_utf8(folder, names)
    return names


def _by_class(
    root: Path, split: str, folders: Mapping[str, str], classes: list[str]
) -> tuple[list[str], Labels]:
    """Ids and labels of the images below ``split/<class>``.

    Args:
        folders: class -> name of its folder.
    """
    ids: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        files = _images_below(str(root / split / folders[name]))
        if not files:
            raise InputError(
                f"{root / split / folders[name]} must hold at least one image, got none"
            )
        ids += [f"{split}/{folders[name]}/{file}" for file in files]
        labels += [label] * len(files)
    _require_utf8(root, ids)
    origin = f"folders of {split}, {classes[0]} to {classes[-1]}"
    return ids, Labels(classes, np.array(labels, dtype=np.int64), origin)


def _images_below(folder: str) -> list[str]:
    """Paths of the images in a folder and in those below it, relative to it.

    Their order is that of torchvision's ``make_dataset``.
    """
    return [
        f"{below}/{name}"[len(folder) + 1 :]
        for below, names in sorted(_walk(folder, frozenset()))
        for name in sorted(names)
        if _is_image(name)
    ]


def _walk(folder: str, above: frozenset[tuple[int, int]]) -> Iterator[tuple[str, list[str]]]:
    """Yield each folder with the names of its files; links to folders are followed.

    Args:
        above: device and inode of the folders above, into which no link is followed.
    """
    status = Path(folder).stat()
    itself = (status.st_dev, status.st_ino)
    if itself in above:
        logger.warning("left out %s: it links to a folder that it is in", folder)
        return
    with os.scandir(folder) as entries:
        found = [(entry.name, entry.is_dir()) for entry in entries]
    yield folder, [name for name, is_folder in found if not is_folder]
    for name, is_folder in found:
        if is_folder:
            yield from _walk(f"{folder}/{name}", above | {itself})
