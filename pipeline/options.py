"""The options of a run as one value, made from the command line or in Python."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.errors import InputError, require_known
from correction import ClusterAffineCorrection, GridRequest
from export.settings import ONNX_FLAG, ExportSettings
from loaders.transforms import INTERPOLATIONS, Preprocess
from models import PLAIN
from pipeline.bitwidth_flags import SweepSettings

DEFAULT_ARCH = "digits_resnet"
DEFAULT_METHOD = "adaround"
DEFAULT_SHRINKAGE = 10.0
MOST_PIXELS = 10_000  # of an image side
OF_FITTING = (
    "alpha_list",
    "num_clusters_list",
    "pca_dim_list",
    "shrinkage",
    "correction_samples",
)


@dataclass(frozen=True)
class NetworkOptions:
    """The float network.

    Attributes:
        arch: a known name, ``timm/NAME``, ``package.module:callable`` or ``file.py:callable``.
        arch_args: ``KEY=VALUE`` arguments of the function that makes the network.
        output: name or index of the logits, if the network returns several tensors.
        checkpoint: file with a state_dict; None: the shipped weights if any, else random ones.
        checkpoint_format: naming scheme of the checkpoint's tensors.
        checkpoint_key: where the state_dict is in the file; None: at a known place.
        weights: "DEFAULT" for the published weights of torchvision or timm.
    """

    arch: str = DEFAULT_ARCH
    arch_args: tuple[str, ...] = ()
    output: str | None = None
    checkpoint: Path | None = None
    checkpoint_format: str = PLAIN
    checkpoint_key: str | None = None
    weights: str | None = None


@dataclass(frozen=True)
class InputOptions:
    """The input of the network where it differs from what its entry says; None: as its entry says.

    Attributes:
        input_size: pixels of the square image: ``crop``, with ``resize`` in the entry's ratio.
        resize: pixels of the short side; 0 leaves the size as it is.
        crop: pixels of the square in the centre; 0 leaves the image whole.
        mean, std: of the three channels, of pixels from 0 to 1.

    Raises:
        InputError: a value is out of range.
    """

    input_size: int | None = None
    resize: int | None = None
    crop: int | None = None
    interpolation: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("resize", "crop", "input_size"):
            low, value = int(name == "input_size"), getattr(self, name)
            if value is not None and not low <= value <= MOST_PIXELS:
                raise InputError(f"{name} must be from {low} to {MOST_PIXELS}, got {value}")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if values is not None and (len(values) != 3 or not all(map(math.isfinite, values))):
                raise InputError(f"{name} must be 3 finite numbers, got {values}")
        if self.std is not None and min(self.std) <= 0:
            raise InputError(f"std must be above 0, got {min(self.std):g}")
        if self.interpolation is not None:
            require_known("interpolation", self.interpolation, INTERPOLATIONS)
        if self.input_size is not None and (self.crop, self.resize) != (None, None):
            raise InputError("input_size must be given without resize and crop, got both")

    def applied(self, entry: Preprocess) -> Preprocess:
        """The input transform of an entry with these changes."""
        given = {name: value for name, value in vars(self).items() if value is not None}
        size = given.pop("input_size", None)
        if size is not None:
            ratio = entry.resize / entry.crop if entry.resize and entry.crop else 1.0
            given |= {"crop": size, "resize": round(size * ratio)}
        for name in {"resize", "crop"} & set(given):
            given[name] = given[name] or None
        return dataclasses.replace(entry, **given)


@dataclass(frozen=True)
class DataOptions:
    """The images.

    Attributes:
        class_order: ``text``, ``natural`` or a file of names; None: text, where that is clear.
        batch_size: images per forward pass.
        workers: image files decoded in parallel; None: one for each core.
        calibration_list: file with the ids of the calibration images; None: drawn with the seed.
    """

    dataset: str = "auto"
    data_path: Path | None = None
    val_labels: Path | None = None
    class_order: str | None = None
    download: bool = False
    skip_bad_images: bool = False
    batch_size: int = 64
    workers: int | None = None
    calibration_list: Path | None = None
    augment_calibration: bool = False


@dataclass(frozen=True)
class CorrectionOptions:
    """The correction of the logits; None stands for a default that adapts to the data.

    Raises:
        InputError: a value is given that the other values make useless.

    Attributes:
        correction: whether the logits are corrected.
        shrinkage: pseudo-count that shrinks a cluster's line towards the line of all samples.
        correction_source: ``train``, ``train_aug`` or ``val:FRACTION``; only the last if nothing is
            fitted. Without a train folder the fraction of val also calibrates.
        load_correction: correction file of an earlier run, applied unchanged.
    """

    correction: bool = True
    alpha_list: tuple[float, ...] | None = None
    num_clusters_list: tuple[int, ...] | None = None
    pca_dim_list: tuple[int, ...] | None = None
    shrinkage: float | None = None
    correction_samples: int | None = None
    correction_source: str | None = None
    load_correction: Path | None = None

    def __post_init__(self) -> None:
        if not self.correction:
            self._refuse_fitting("with --no-correction")
            self._refuse(("load_correction",), "with --no-correction")
        elif self.load_correction is not None:
            self._refuse_fitting("with --load_correction, which fits nothing")

    def _refuse_fitting(self, why: str) -> None:
        """Refuse what only a fit uses; images set aside from val also calibrate."""
        self._refuse(OF_FITTING, why)
        source = self.correction_source
        if source is not None and not source.startswith("val:"):
            raise InputError(f"correction_source must be val:FRACTION {why}, got {source!r}")

    def _refuse(self, names: Sequence[str], why: str) -> None:
        for name in names:
            value = getattr(self, name)
            if value is not None:
                raise InputError(f"{name} must be left out {why}, got {_plain(value)}")

    @property
    def is_fitted(self) -> bool:
        """Whether a correction is fitted in this run."""
        return self.correction and self.load_correction is None

    def grid(self, seed: int) -> GridRequest:
        """The grid that is requested."""
        shrinkage = DEFAULT_SHRINKAGE if self.shrinkage is None else self.shrinkage
        return GridRequest(
            self.alpha_list, self.num_clusters_list, self.pca_dim_list, shrinkage, seed
        )

    def loaded(self, num_classes: int) -> ClusterAffineCorrection | None:
        """The correction from the file that is named, if any.

        Raises:
            InputError: the file is damaged, or for another number of classes.
        """
        path = self.load_correction
        return None if path is None else ClusterAffineCorrection.load(path, num_classes)


@dataclass(frozen=True)
class OutputOptions:
    """What is written, and where.

    Attributes:
        output_dir: root folder of all output.
        output_url: fsspec URL that the files are copied to at the end; None: nowhere.
        save_results: write ``all`` corrected logits or those of the ``selected`` correction;
            ``auto`` writes all if they take at most 2 GB.
        chunk_size: samples per file of logits.
        log_dir: folder of the TensorBoard files; None: in the run's folder.
        cache_dir: folder for data that other runs can reuse; None: only corrected inputs are kept.
    """

    output_dir: Path = Path("outputs")
    output_url: str | None = None
    save_results: str = "auto"
    chunk_size: int = 1000
    logits_format: tuple[str, ...] = ("csv",)
    compression: str = "none"
    plots: bool = True
    log_dir: Path | None = None
    cache_dir: Path | None = None


@dataclass(frozen=True)
class RunOptions:
    """All options of a run, with the defaults of ``main_imagenet.py``.

    Attributes:
        quant_method: name of the method.
        settings: the method's settings that are given, by name; the others keep their defaults.
        recipe: name of the published result to compare with.
        expect_top1: Top-1 in percent that the float network must have, to within a point.
        force: replace files in the run's folders that the suite did not write, and continue even if
            the float network is not as accurate as the recipe's.
        resume: continue an interrupted run.
        bitwidth: the evaluation at random bits per layer; None: skip it.
        export: the export to ONNX; None: skip it.
    """

    network: NetworkOptions = field(default_factory=NetworkOptions)
    inputs: InputOptions = field(default_factory=InputOptions)
    data: DataOptions = field(default_factory=DataOptions)
    quant_method: str = DEFAULT_METHOD
    settings: Mapping[str, Any] = field(default_factory=dict)
    correction: CorrectionOptions = field(default_factory=CorrectionOptions)
    output: OutputOptions = field(default_factory=OutputOptions)
    device: str = "auto"
    recipe: str | None = None
    expect_top1: float | None = None
    force: bool = False
    resume: bool = False
    bitwidth: SweepSettings | None = None
    export: ExportSettings | None = None

    def __post_init__(self) -> None:
        if (
            self.export is not None
            and self.export.with_correction
            and not self.correction.correction
        ):
            raise InputError("with_correction must be left out with --no-correction, got True")

    def as_flags(self) -> dict[str, Any]:
        """Flags and values in the form that ``--config`` reads, without the method's settings.

        Values of None and empty lists are left out.
        """
        groups = (self.network, self.inputs, self.data, self.correction, self.output)
        values = {name: value for group in groups for name, value in vars(group).items()}
        url = values.pop("output_url")
        values |= {"output_dir": url or values["output_dir"], "quant_method": self.quant_method}
        values |= {"device": self.device, "recipe": self.recipe}
        values |= {"expect_top1": self.expect_top1}
        if self.bitwidth is not None:
            values |= {f"bw_{name}": value for name, value in vars(self.bitwidth).items()}
            values["bitwidth_sweep"] = True
        if self.export is not None:
            values |= {**dataclasses.asdict(self.export), ONNX_FLAG: True}
        return {name: _plain(value) for name, value in values.items() if value not in (None, ())}


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value
