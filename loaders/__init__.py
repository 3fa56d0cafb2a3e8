"""Loading of data sets by name."""

from __future__ import annotations

from pathlib import Path

from common.errors import InputError, require_known
from loaders.dataset import Dataset
from loaders.digits import load_digits_data
from loaders.imagefolder import load_folder
from loaders.imageset import ImageSet
from loaders.plan import DataPlan, PlanRequest, make_plan
from loaders.torchvision_sets import LAYOUTS, load_torchvision_set
from loaders.transforms import Preprocess

__all__ = [
    "DATASETS",
    "DataPlan",
    "Dataset",
    "ImageSet",
    "PlanRequest",
    "load_dataset",
    "make_plan",
    "resolve_dataset",
]

DATASETS = ("digits", "imagenet", *LAYOUTS)
DEFAULT_ROOT = Path("data")  # folder of CIFAR and MNIST if no data_path is given


def resolve_dataset(name: str, data_path: Path | None) -> tuple[str, Path | None, str]:
    """Resolve ``auto`` to a data set; other names are checked and kept.

    With a path ``auto`` is the data set whose layout is found there. Without a path it is CIFAR-100
    if its files are below ``data``, else the embedded digits.

    Returns:
        Name, path and the reason for the choice.

    Raises:
        InputError: unknown name, or ``auto`` and a path where no known layout is found.
    """
    if name != "auto":
        require_known("dataset", name, (*DATASETS, "auto"))
        return name, data_path, "as given"
    if data_path is None:
        cifar100 = DEFAULT_ROOT / LAYOUTS["cifar100"].folder
        if all((cifar100 / part).is_file() for part in ("train", "test", "meta")):
            return "cifar100", DEFAULT_ROOT, f"found {cifar100}"
        return "digits", None, f"embedded; no CIFAR-100 under {DEFAULT_ROOT}/"
    if not data_path.is_dir():
        raise InputError(f"data_path must be an existing folder, got {str(data_path)!r}")
    for known, layout in LAYOUTS.items():
        if (data_path / layout.folder).is_dir():
            return known, data_path, f"found {layout.folder}"
    if (data_path / "val").is_dir():
        return "imagenet", data_path, "found val/"
    folders = ", ".join(["val", *(layout.folder for layout in LAYOUTS.values())])
    raise InputError(
        f"data_path must hold one of {folders}, got {str(data_path)!r} with none of them"
    )


def load_dataset(
    name: str,
    data_path: Path | None,
    preprocess: Preprocess,
    *,
    download: bool = False,
    skip_bad: bool = False,
    threads: int = 2,
    val_labels: Path | None = None,
    class_order: str | None = None,
) -> Dataset:
    """Read or list a data set.

    Args:
        name: one of ``DATASETS``.
        data_path: folder of the data; None: CIFAR and MNIST are in ``data``, ``digits`` needs none.
        download: download the files first (CIFAR, MNIST).
        skip_bad: leave out unreadable image files instead of raising an error.
        threads: number of image files decoded in parallel.
        val_labels: file with the labels of a flat ``val`` folder (image folders).
        class_order: ``text``, ``natural`` or a file of names (image folders).

    Raises:
        InputError: unknown name, an argument that the data set does not use, missing or empty
            folder, damaged files, classes whose order is unclear.
    """
    require_known("dataset", name, DATASETS)
    unused = {
        "data_path": data_path is not None and name == "digits",
        "download": download and name not in LAYOUTS,
        "skip_bad_images": skip_bad and name != "imagenet",
        "val_labels": val_labels is not None and name != "imagenet",
        "class_order": class_order is not None and name != "imagenet",
    }
    for flag, is_unused in unused.items():
        if is_unused:
            raise InputError(f"{flag} must be left out for dataset {name}, which does not use it")
    if name == "digits":
        return load_digits_data(preprocess)
    if name in LAYOUTS:
        return load_torchvision_set(name, data_path or DEFAULT_ROOT, preprocess, download)
    if data_path is None:
        raise InputError(f"data_path must be given for dataset {name}, got none")
    return load_folder(data_path, preprocess, skip_bad, threads, val_labels, class_order)
