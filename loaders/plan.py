"""Choice of the images for calibration, for fitting the correction, and for evaluation.

The evaluation images never overlap the others: images that calibration or correction take from
``val`` are not evaluated.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.errors import InputError
from common.reading import limited_text
from loaders.dataset import Dataset
from loaders.imageset import ImageSet
from loaders.names import Positions

DEFAULT_CORRECTION_SAMPLES = 10_000
DEFAULT_VAL_FRACTION = 0.2  # taken from val if there is no train

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PlanRequest:
    """The requested choice; None selects the default, which depends on the available images.

    Attributes:
        augment_calibration: apply a random training augmentation to the calibration images.
        calibration_list: file of image ids, one per line or as a JSON list.
        correction_source: ``train``, ``train_aug`` or ``val:FRACTION``.
        fit_correction: whether to choose images to fit a correction on.
    """

    seed: int
    num_samples: int | None = None
    calibration_list: Path | None = None
    correction_samples: int | None = None
    correction_source: str | None = None
    augment_calibration: bool = False
    fit_correction: bool = True


@dataclass(frozen=True)
class DataPlan:
    """The image sets of a run.

    Attributes:
        correction: images to fit the correction on; None if none is fitted.
        correction_source: source of these images, as in ``PlanRequest``.
    """

    calibration: ImageSet
    correction: ImageSet | None
    evaluation: ImageSet
    correction_source: str

    def decoded(self, cache: Path | None = None) -> DataPlan:
        """The same plan with each image set decoded into memory, if it fits there.

        Args:
            cache: as in ``ImageSet.loaded``.

        Raises:
            InputError: an image cannot be read.
        """
        return DataPlan(
            self.calibration.loaded(cache),
            None if self.correction is None else self.correction.loaded(cache),
            self.evaluation.loaded(cache),
            self.correction_source,
        )


def parse_source(text: str) -> tuple[str, float]:
    """Kind (``train``, ``train_aug`` or ``val``) and fraction of a correction source.

    Raises:
        InputError: another kind, or a fraction that is not inside (0, 1).
    """
    kind, _, number = text.partition(":")
    if kind in ("train", "train_aug") and not number:
        return kind, 0.0
    try:
        fraction = float(number)
    except ValueError:
        fraction = 0.0
    if kind != "val" or not 0.0 < fraction < 1.0:
        raise InputError(
            "correction_source must be train, train_aug or val:FRACTION with 0 < FRACTION < 1, "
            f"got {text!r}"
        )
    return kind, fraction


def split_val(count: int, fraction: float, seed: int) -> np.ndarray:
    """The indices of the val images to set aside, in the order in which they are used.

    Args:
        count: number of all val images.
    """
    order = np.random.RandomState(seed).permutation(count)
    return order[: round(fraction * count)]


def make_plan(dataset: Dataset, request: PlanRequest, default_num_samples: int) -> DataPlan:
    """Choose the images of a run; random choices depend only on the seed.

    Raises:
        InputError: more images are requested than available, an id is unknown, or no image is left
            for evaluation.
    """
    source = request.correction_source or _default_source(dataset)
    kind, fraction = parse_source(source)
    if kind != "val" and dataset.train is None:
        raise InputError(
            f"correction_source {source!r} must have a train folder, got a data set with only val"
        )
    val_part = split_val(len(dataset.val), fraction, request.seed)
    calibration, used_val = _choose_calibration(dataset, request, default_num_samples, val_part)
    correction = None
    if request.fit_correction:
        correction = _choose_correction(dataset, request, kind, len(calibration), val_part)
    left = np.setdiff1d(np.arange(len(dataset.val)), np.union1d(val_part, used_val))
    if len(left) == 0:
        raise InputError(
            "evaluation set must keep at least one image, got all of val used for calibration"
        )
    if len(left) < len(dataset.val):
        logger.info(
            "%d of %d val images are set aside and not evaluated",
            len(dataset.val) - len(left),
            len(dataset.val),
        )
    if request.augment_calibration:
        calibration = calibration.augmented(request.seed)
    if kind == "train_aug" and correction is not None:
        correction = correction.augmented(request.seed)
    return DataPlan(calibration, correction, dataset.val.subset(left), source)


def _default_source(dataset: Dataset) -> str:
    if dataset.train is not None:
        return "train"
    logger.info("no train folder: calibration and correction use %g of val", DEFAULT_VAL_FRACTION)
    return f"val:{DEFAULT_VAL_FRACTION:g}"


def _choose_calibration(
    dataset: Dataset, request: PlanRequest, default_num_samples: int, val_part: np.ndarray
) -> tuple[ImageSet, np.ndarray]:
    """The calibration images, and the indices of the val images set aside for them."""
    if request.calibration_list is not None:
        return _listed_images(dataset, request.calibration_list, request.num_samples)
    if dataset.train is not None:
        count = _count(
            "num_samples",
            request.num_samples,
            default_num_samples,
            len(dataset.train),
            "training images",
        )
        order = np.random.RandomState(request.seed).permutation(len(dataset.train))
        return dataset.train.subset(order[:count]), np.empty(0, dtype=np.int64)
    if len(val_part) == 0:
        raise InputError(
            "calibration must have a train folder, --calibration_list or --correction_source "
            "val:FRACTION"
        )
    count = _count(
        "num_samples",
        request.num_samples,
        default_num_samples,
        len(val_part),
        "val images set aside",
    )
    return dataset.val.subset(val_part[:count]), val_part


def _count(name: str, asked: int | None, default: int, available: int, what: str) -> int:
    if asked is not None and asked > available:
        raise InputError(f"{name} must be at most {available} (the {what}), got {asked}")
    if asked is None and default > available:
        logger.info("%s: all %d %s (default %d)", name, available, what, default)
    return min(asked or default, available)


def _listed_images(
    dataset: Dataset, path: Path, num_samples: int | None
) -> tuple[ImageSet, np.ndarray]:
    ids = read_id_list(path)
    wanted = len(ids) if num_samples is None else num_samples
    if wanted > len(ids):
        raise InputError(f"num_samples must be at most {len(ids)} (the list {path}), got {wanted}")
    for part in (dataset.train, dataset.val):
        positions = Positions([] if part is None else part.ids)
        if part is None or positions.get(ids[0]) is None:
            continue
        found = [positions.get(name) for name in ids]
        if None in found:
            unknown = ids[found.index(None)]
            raise InputError(f"{path}: ids must all be of one split, got {unknown!r}")
        chosen = np.array(found[:wanted], dtype=np.int64)
        used_val = chosen if part is dataset.val else np.empty(0, dtype=np.int64)
        return part.subset(chosen), used_val
    raise InputError(f"{path}: ids must name images of the data set, got {ids[0]!r}")


def read_id_list(path: Path) -> list[str]:
    """Read image ids from a JSON list or a text file with one id per line.

    Raises:
        InputError: the file is missing, empty, or not such a list.
    """
    try:
        text = limited_text(path)
        ids = json.loads(text) if text.lstrip().startswith("[") else text.split("\n")
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"calibration_list must be a readable list of image ids, got {path}: {error}"
        ) from None
    ids = [str(name).strip() for name in ids if str(name).strip()]
    if not ids:
        raise InputError(
            f"calibration_list must name at least one image, got an empty list in {path}"
        )
    return ids


def _choose_correction(
    dataset: Dataset, request: PlanRequest, kind: str, calibrated: int, val_part: np.ndarray
) -> ImageSet:
    """Images to fit the correction on; training images used for calibration come last."""
    if kind == "val" or dataset.train is None:
        count = _count(
            "correction_samples",
            request.correction_samples,
            len(val_part),
            len(val_part),
            "val images set aside",
        )
        return dataset.val.subset(val_part[:count])
    available = len(dataset.train)
    count = _count(
        "correction_samples",
        request.correction_samples,
        DEFAULT_CORRECTION_SAMPLES,
        available,
        "training images",
    )
    order = np.roll(np.random.RandomState(request.seed).permutation(available), -calibrated)
    return dataset.train.subset(np.sort(order[:count]))
