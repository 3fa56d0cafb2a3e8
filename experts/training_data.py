"""The images that experts are trained, selected and calibrated on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from experts.images import Choice, network_input
from experts.splits import list_digest
from experts.stored_splits import StoredSplits, check_indices
from loaders import ImageSet
from loaders.transforms import Preprocess


@dataclass(frozen=True)
class TrainingData:
    """The images for training, for choosing the epoch and for fitting the temperature.

    Attributes:
        calibration_split: name of the split that the temperature is fitted on.
        digests: SHA-256 of the index lists of train and val.
    """

    splits: StoredSplits
    preprocess: Preprocess
    train: ImageSet
    val: ImageSet
    calibration: ImageSet
    calibration_split: str
    digests: Mapping[str, str]


def read_training_data(
    choice: Choice,
    backbone: str,
    calibration: str = "val",
    download: bool = False,
    workers: int | None = None,
) -> TrainingData:
    """Read the images of the splits with the preprocessing of a backbone.

    Args:
        calibration: split that the temperature is fitted on.
        workers: as in ``experts.images.open_sources``.

    Raises:
        InputError: the data set or its splits are unusable.
    """
    preprocess = network_input(choice.dataset, backbone)
    sources = choice.open(preprocess, download, workers)
    names = list(dict.fromkeys(["train", "val", calibration]))
    indices = check_indices(choice.splits, names, sources.sizes, allow_mismatch=False)
    images = {name: sources.images(name, indices[name]) for name in names}
    digests = {name: list_digest(indices[name]) for name in ("train", "val")}
    return TrainingData(
        choice.splits,
        preprocess,
        images["train"],
        images["val"],
        images[calibration],
        calibration,
        digests,
    )
