"""Computes the logits of trained experts on the splits of a data set.

Each file of logits gets a side file that records its checkpoint, split and settings.

Letters: n samples of a split, C classes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from common.errors import InputError, RunError
from common.files import sha256_file, written_alone
from common.marks import listed
from common.provenance import utc_now
from common.sealed import write_record
from evaluation.inference import Inference, infer_logits
from experts.checkpoints import Found, LoadedExpert, load_expert
from experts.images import Choice, Sources, network_input
from experts.splits import list_digest
from loaders import ImageSet
from loaders.transforms import Preprocess
from logits_io import LogitsAnalyzer
from logits_io.naming import FULL_PRECISION, QUANTIZED
from logits_io.npz import SIDE_FORMAT_VERSION, npz_path, read_npz, read_side, side_path, write_npz
from models import get_entry, load_quantized
from models.expert import input_in

VAL_TOLERANCE = 0.005  # largest difference of the accuracy on val from that in the checkpoint

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """A checkpoint of an expert, or a quantized model, whose logits are computed.

    Attributes:
        prefix: requested prefix of the checkpoint; None for a quantized model.
        apply_temperature: divide the logits by the temperature of the checkpoint.
    """

    name: str
    found: Found
    prefix: str | None
    apply_temperature: bool

    @property
    def quantized(self) -> bool:
        return self.prefix is None


@dataclass(frozen=True)
class Candidate:
    """A network that is ready to run, with its preprocessing and metadata."""

    source: Source
    network: nn.Module
    preprocess: Preprocess
    backbone: str
    temperature: float
    sha256: str
    tensors: int
    metadata: Mapping[str, Any]


@dataclass(frozen=True)
class Request:
    """The settings that hold for all experts."""

    choice: Choice
    indices: Mapping[str, Sequence[int]]
    output_dir: Path
    device: torch.device
    batch_size: int
    dtype: str
    auto_batch: bool
    backbone: str | None
    unsafe: bool
    skip_existing: bool
    csv: bool
    command: str

    @property
    def num_classes(self) -> int:
        return self.choice.splits.num_classes


@dataclass
class Images:
    """The images of the splits, decoded once for every input size."""

    choice: Choice
    download: bool
    workers: int | None
    sources: dict[tuple, Sources] = field(default_factory=dict)
    decoded: dict[tuple, ImageSet] = field(default_factory=dict)

    def open(self, preprocess: Preprocess) -> Sources:
        key = (preprocess.resize, preprocess.crop, preprocess.interpolation)
        if key not in self.sources:
            self.sources[key] = self.choice.open(preprocess, self.download, self.workers)
        return self.sources[key]

    def of(self, split: str, indices: Sequence[int], preprocess: Preprocess) -> ImageSet:
        """The images of a split with the preprocessing of a network."""
        key = (split, preprocess.resize, preprocess.crop, preprocess.interpolation)
        if key not in self.decoded:
            self.decoded[key] = self.open(preprocess).images(split, indices)
        return replace(self.decoded[key], preprocess=preprocess)  # type: ignore[type-var]


def load_candidate(source: Source, request: Request) -> Candidate:
    """Load the network of a source onto the device of the request.

    Raises:
        InputError: it does not fit exactly, or belongs to another data set.
    """
    loaded = _load_quantized if source.quantized else _load_expert
    candidate = loaded(source, request)
    candidate.network.to(request.device)
    return candidate


def _load_expert(source: Source, request: Request) -> Candidate:
    path = source.found.path
    loaded: LoadedExpert = load_expert(path, request.num_classes, request.backbone, request.unsafe)
    expert, metadata = loaded.expert, loaded.metadata
    splits = request.choice.splits
    if metadata:
        _require_its_own(source, metadata, request)
        trained = metadata["splits_sha256"]["train"]
        recorded = splits.recorded("train", "indices_sha256")
        if recorded is not None and trained != recorded:
            logger.warning(
                "expert %r was trained on another train split than this one", source.name
            )
    preprocess = network_input(request.choice.dataset, expert.backbone_name)
    return Candidate(
        source,
        expert,
        input_in(metadata) if metadata else preprocess,
        expert.backbone_name,
        float(expert.temperature),
        loaded.sha256,
        loaded.tensors,
        metadata,
    )


def _require_its_own(source: Source, metadata: Mapping[str, Any], request: Request) -> None:
    """Check that the metadata of a checkpoint match its name and the data set.

    Raises:
        InputError: it belongs to another expert or another data set.
    """
    path, slug = source.found.path, request.choice.splits.slug
    if metadata["dataset"]["slug"] != slug:
        raise InputError(f"{path}: must be trained on {slug}, got {metadata['dataset']['slug']}")
    if metadata["expert_name"] != source.name:
        raise InputError(f"{path}: must be of {source.name}, got {metadata['expert_name']}")
    if metadata["arch"]["num_classes"] != request.num_classes:
        raise InputError(
            f"{path}: must have {request.num_classes} classes, got "
            f"{metadata['arch']['num_classes']}"
        )


def _load_quantized(source: Source, request: Request) -> Candidate:
    path = source.found.path
    network, metadata = load_quantized(path)
    if metadata["num_classes"] != request.num_classes:
        raise InputError(
            f"{path}: must have the {request.num_classes} classes of {request.choice.dataset}, got "
            f"{metadata['num_classes']}"
        )
    if metadata.get("dataset", request.choice.dataset) != request.choice.dataset:
        raise InputError(
            f"{path}: must be quantized on {request.choice.dataset}, got {metadata['dataset']}"
        )
    stored = metadata.get("preprocess")
    preprocess = (
        Preprocess.from_values(stored) if stored else get_entry(metadata["arch"]).preprocess
    )
    tensors = len(network.state_dict())
    return Candidate(
        source, network, preprocess, metadata["arch"], 1.0, sha256_file(path), tensors, metadata
    )


def quantized_name(metadata: Mapping[str, Any]) -> str:
    """The default name of a quantized model among experts."""
    settings = metadata["settings"]
    bits = f"w{settings['n_bits_w']}a{settings['n_bits_a']}"
    return f"{metadata['arch']}_{metadata['method']}_{bits}_seed{settings['seed']}"


@dataclass(frozen=True)
class Written:
    """The result for one expert and split; ``kept``: it was up to date already."""

    expert: str
    split: str
    samples: int
    accuracy: float
    path: Path
    kept: bool = False


def compute_split(candidate: Candidate, split: str, images: Images, request: Request) -> Written:
    """Compute and write the logits of one split.

    Raises:
        InputError: an image cannot be read.
        RunError: logits are not finite, or the device has too little memory.
        OSError: the disk is full or not writable.
    """
    indices = request.indices[split]
    path = npz_path(request.output_dir, candidate.source.name, split)
    wanted = _identity(candidate, split, request)
    csv = request.csv or csv_folder(request.output_dir, candidate.source.name, split).is_dir()
    if request.skip_existing and (stored := _matching_side(path, wanted)) is not None:
        name = candidate.source.name
        if request.csv:
            stored_arrays = read_npz(path, len(indices), request.num_classes)
            _export_csv(candidate, split, stored_arrays, wanted, request)
        return Written(name, split, len(indices), stored["accuracy"], path, kept=True)
    batches = images.of(split, indices, candidate.preprocess)
    result, used = run_in_batches(candidate.network, batches, request)
    logits = result.logits["network"]
    if wanted["temperature_applied"]:
        logits = logits / np.float32(candidate.temperature)
    with np.errstate(over="ignore"):  # an overflow is found in the next line
        stored_logits = logits.astype(request.dtype)
    _require_finite(stored_logits, split)
    predictions = stored_logits.argmax(axis=1).astype(np.int64)
    arrays = {
        "logits": stored_logits,
        "targets": result.targets,
        "predictions": predictions,
        "indices": np.asarray(indices, dtype=np.int64),
    }
    accuracy = float((predictions == result.targets).mean())
    side = {**wanted, **_circumstances(candidate, request), "n": len(indices)}
    with listed(path):
        digest = write_npz(path, arrays)
    side |= {"batch_size_used": used, "accuracy": accuracy, "npz_sha256": digest}
    with listed(side_path(path)):
        write_record(side_path(path), side)
    if csv:  # an existing CSV folder would be stale
        _export_csv(candidate, split, arrays, wanted, request)
    _compare_with_training(candidate, split, accuracy, wanted["indices_sha256"])
    return Written(candidate.source.name, split, len(indices), accuracy, path)


def _identity(candidate: Candidate, split: str, request: Request) -> dict[str, Any]:
    """Everything that determines the logits, for the side file."""
    source, choice = candidate.source, request.choice
    return {
        "format_version": SIDE_FORMAT_VERSION,
        "expert": source.name,
        "split": split,
        "num_classes": request.num_classes,
        "dataset": choice.dataset,
        "slug": choice.splits.slug,
        "source": "train" if split == "train" else "test",
        "indices_sha256": list_digest(request.indices[split]),
        "checkpoint_file": str(source.found.path),
        "checkpoint_sha256": candidate.sha256,
        "checkpoint_prefix_requested": source.prefix,
        "temperature": candidate.temperature,
        "temperature_applied": source.apply_temperature,
        "backbone": candidate.backbone,
        "quantized": source.quantized,
        "dtype": request.dtype,
        "device": request.device.type,
    }


def _circumstances(candidate: Candidate, request: Request) -> dict[str, Any]:
    """Further entries of the side file, which do not determine the logits."""
    return {
        "dataset_choice": request.choice.reason,
        "checkpoint_val_accuracy": candidate.metadata.get("val_accuracy"),
        "torch_version": str(torch.__version__),
        "created_utc": utc_now(),
        "command": request.command,
    }


def _matching_side(path: Path, wanted: Mapping[str, Any]) -> dict[str, Any] | None:
    """The content of the side file if the logits are up to date, else None."""
    try:
        stored = read_side(path)
        if stored is None or sha256_file(path) != stored.get("npz_sha256"):
            return None
    except (InputError, OSError):
        return None
    same = all(stored.get(key) == value for key, value in wanted.items())
    return stored if same and isinstance(stored.get("accuracy"), float) else None


def run_in_batches(network: nn.Module, images: ImageSet, request: Request) -> tuple[Inference, int]:
    """Logits of all images, and the batch size that fits into memory.

    Raises:
        RunError: not even one image fits, or the batch must not be halved.
    """
    size = request.batch_size
    while True:
        try:
            total = -(-len(images) // size)
            batches = images.batches(size)
            return infer_logits(
                {"network": network}, batches, request.device, "logits", total
            ), size
        except torch.cuda.OutOfMemoryError:
            if not request.auto_batch or size == 1:
                raise RunError(
                    f"device must have memory for a batch of {size}, got out of memory; "
                    "--batch-size 64 or --device cpu needs less"
                ) from None
            torch.cuda.empty_cache()
            logger.warning("CUDA out of memory at batch size %d, retrying with %d", size, size // 2)
            size //= 2


def _require_finite(logits: np.ndarray, split: str) -> None:
    finite = np.isfinite(logits).all(axis=1)
    if not finite.all():
        raise RunError(
            f"logits must be finite, got NaN or Inf in sample {finite.argmin()} of {split}"
        )


def _compare_with_training(candidate: Candidate, split: str, accuracy: float, digest: str) -> None:
    """Warn if the accuracy on val differs from training: other weights or another preprocessing."""
    metadata = candidate.metadata
    known = metadata.get("splits_sha256", {}).get("val")
    if split == "val" and digest == known:
        stored = metadata["val_accuracy"]
        if abs(accuracy - stored) > VAL_TOLERANCE:
            logger.warning(
                "recomputed val accuracy %.4f differs from %.4f stored in the checkpoint",
                accuracy,
                stored,
            )


def csv_folder(root: Path, expert: str, split: str) -> Path:
    """Folder of the CSV logits of a split."""
    return root / expert / f"{split}_csv"


def _export_csv(
    candidate: Candidate,
    split: str,
    arrays: Mapping[str, np.ndarray],
    identity: Mapping[str, Any],
    request: Request,
) -> None:
    name = candidate.source.name
    kind = QUANTIZED if candidate.source.quantized else FULL_PRECISION
    metadata = {key: value for key, value in identity.items() if key != "num_classes"}
    folder = csv_folder(request.output_dir, name, split)
    LogitsAnalyzer(folder.parent).save_logits_to_csv(
        folder.name,
        f"logits_{name}_{split}",
        {kind: arrays["logits"].astype(np.float32)},
        arrays["targets"],
        metadata,
    )


def require_same_slug(names: Sequence[str], request: Request) -> None:
    """Check that no file that would be replaced belongs to another data set.

    Raises:
        InputError: one is.
    """
    for name in names:
        for split in request.indices:
            path = npz_path(request.output_dir, name, split)
            try:
                stored = read_side(path)
            except InputError as error:
                logger.warning("%s; it is replaced", error)
                continue
            slug = request.choice.splits.slug
            if stored is not None and stored.get("slug") != slug:
                raise InputError(
                    f"{path}: must be of {slug} to be replaced, got {stored.get('slug')}; choose "
                    "another --output-dir, or --force"
                )


def compute_all(
    sources: Sequence[Source],
    images: Images,
    request: Request,
    on_loaded: Callable[[Candidate], None],
    on_written: Callable[[Written], None],
    on_failed: Callable[[str, str | None, Exception], None],
    fail_fast: bool = False,
) -> None:
    """Compute all splits of all sources; after a failure continue with the next, or stop.

    Args:
        on_loaded: called with each network.
        on_written: called with each result.
        on_failed: called with the expert, the split (None: loading failed) and the error.
        fail_fast: stop at the first failure.
    """
    foreseen = (InputError, RunError, OSError)
    for source in sources:
        try:
            candidate = load_candidate(source, request)
            on_loaded(candidate)
        except foreseen as error:
            on_failed(source.name, None, error)
            if fail_fast:
                return
            continue
        with written_alone(request.output_dir / source.name):
            for split in request.indices:
                try:
                    on_written(compute_split(candidate, split, images, request))
                except foreseen as error:
                    on_failed(source.name, split, error)
                    if fail_fast:
                        return
