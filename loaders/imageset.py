"""Sets of labelled images: decoded pixels in memory, or files that are decoded when read.

Letters: N images, B images in a batch, H x W pixels.
"""

from __future__ import annotations

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from common.console import progress
from common.errors import InputError
from common.files import lock_of, locked
from common.reading import regular_bytes, require_regular
from common.sealed import read_array, write_array
from loaders.pictures import read_picture, read_size
from loaders.transforms import Preprocess, augment_small, image_transform

MEMORY_LIMIT = 2 << 30  # bytes; larger sets are not kept in memory but decoded in every pass

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
Batch = tuple[Tensor, Tensor]  # (B, 3, H, W) float32 network input, (B,) int64 labels


class ImageSet(ABC):
    """A fixed sequence of labelled images.

    Attributes:
        ids: names of the images, starting with the split: ``val/cat/0001.jpg``, ``train/000017``.
        labels: (N,) int64.
        preprocess: transform of pixels to network input.
    """

    ids: list[str]
    labels: np.ndarray
    preprocess: Preprocess

    def __len__(self) -> int:
        return len(self.ids)

    @abstractmethod
    def subset(self, indices: Sequence[int] | np.ndarray) -> ImageSet:
        """The images at ``indices``, in that order."""

    @abstractmethod
    def loaded(self, cache: Path | None = None) -> ImageSet:
        """Decode the images into memory, if they fit in ``MEMORY_LIMIT``.

        Args:
            cache: folder that keeps decoded files for later runs; None keeps nothing.
        """

    @abstractmethod
    def augmented(self, seed: int) -> ImageSet:
        """The images with one random training augmentation each, fixed by the seed."""

    @abstractmethod
    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Yield all images in order."""

    @abstractmethod
    def digest(self) -> str:
        """SHA-256 over the images, their order and their labels (files: by name and content)."""


@dataclass(frozen=True)
class MemoryImages(ImageSet):
    """Decoded images.

    Attributes:
        pixels: (N, 3, H, W) uint8, from 0 to ``white``.
        crop_padding, flip: padding (pixels) before the random crop, and whether to mirror at
            random, in the training augmentation.
    """

    pixels: Tensor
    labels: np.ndarray
    ids: list[str]
    preprocess: Preprocess
    white: int = 255
    crop_padding: int = 4
    flip: bool = True

    def subset(self, indices: Sequence[int] | np.ndarray) -> MemoryImages:
        chosen = np.asarray(indices, dtype=np.int64)
        return replace(
            self,
            pixels=self.pixels[torch.from_numpy(chosen)],
            labels=self.labels[chosen],
            ids=[self.ids[index] for index in chosen],
        )

    def loaded(self, cache: Path | None = None) -> MemoryImages:
        return self

    def augmented(self, seed: int) -> MemoryImages:
        generator = torch.Generator().manual_seed(seed)
        return replace(
            self, pixels=augment_small(self.pixels, self.crop_padding, self.flip, generator)
        )

    def batches(self, batch_size: int) -> Iterator[Batch]:
        labels = torch.from_numpy(self.labels)
        for start in range(0, len(self), batch_size):
            chosen = slice(start, start + batch_size)
            yield self.preprocess.normalise(self.pixels[chosen], self.white), labels[chosen]

    def digest(self) -> str:
        digest = hashlib.sha256("\n".join(self.ids).encode())
        digest.update(self.labels.tobytes())
        digest.update(self.pixels.numpy().tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class FileImages(ImageSet):
    """Image files, each decoded when it is read.

    Attributes:
        root: folder that the ids are relative to.
        skip_bad: leave out unreadable images, with a warning, instead of raising an error.
        threads: number of files decoded in parallel.
        augment_seed: seed of the random training augmentation; None: no augmentation.
    """

    root: Path
    labels: np.ndarray
    ids: list[str]
    preprocess: Preprocess
    skip_bad: bool = False
    threads: int = 2
    augment_seed: int | None = None

    def subset(self, indices: Sequence[int] | np.ndarray) -> FileImages:
        chosen = np.asarray(indices, dtype=np.int64)
        return replace(self, labels=self.labels[chosen], ids=[self.ids[index] for index in chosen])

    def loaded(self, cache: Path | None = None) -> ImageSet:
        if cache is None:
            return self._decode_all()
        origin = self._origin()
        entry = cache / f"images_{origin[:16]}.npy"
        with locked(lock_of(entry)):
            pixels = read_array(entry, origin, in_place=True)
            kept = read_array(_kept_file(entry), origin)
            if pixels is not None and kept is not None:
                return self._in_memory(torch.from_numpy(pixels), kept)
            decoded = self._decode_all()
            self._keep(decoded, entry, origin)
            return decoded

    def _origin(self) -> str:
        """SHA-256 over everything that the pixels depend on: files, their order, the decoding."""
        digest = hashlib.sha256(f"{self.preprocess} {self.augment_seed} {self.skip_bad}".encode())
        for name in self.ids:
            path = self.root / name
            digest.update(f"{path.resolve()} {_identity(path)}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()

    def _keep(self, decoded: ImageSet, entry: Path, origin: str) -> None:
        if not isinstance(decoded, MemoryImages):  # too large for memory
            return
        place = {name: index for index, name in enumerate(self.ids)}
        kept = np.array([place[name] for name in decoded.ids])
        try:
            write_array(entry, decoded.pixels.numpy(), origin)
            write_array(_kept_file(entry), kept, origin)
        except OSError as error:
            logger.warning("decoded images are not kept for later runs: %s", error)

    def _decode_all(self) -> ImageSet:
        pixels: Tensor | None = None
        kept: list[int] = []
        for index, image in progress(self._decoded(range(len(self))), "decoding", len(self)):
            if image is None:
                continue
            if pixels is None:
                if image.numel() * len(self) > MEMORY_LIMIT:
                    return self._with_readable_headers()
                pixels = torch.empty((len(self), *image.shape), dtype=torch.uint8)
            pixels[len(kept)] = self._same_size(image, pixels.shape[1:], index)
            kept.append(index)
        if pixels is None:
            raise InputError(
                f"{self.root}: must hold at least one readable image among those chosen"
            )
        return self._in_memory(pixels[: len(kept)], np.array(kept))

    def _in_memory(self, pixels: Tensor, kept: np.ndarray) -> MemoryImages:
        """An image set from the decoded pixels of the images at the indices ``kept``."""
        return MemoryImages(
            pixels,
            self.labels[kept],
            [self.ids[index] for index in kept],
            self.preprocess,
            crop_padding=max(1, pixels.shape[-1] // 8),
        )

    def augmented(self, seed: int) -> ImageSet:
        if self.preprocess.crop:
            return replace(self, augment_seed=seed)
        return self.loaded().augmented(seed)

    def batches(self, batch_size: int) -> Iterator[Batch]:
        for start in range(0, len(self), batch_size):
            span = range(start, min(start + batch_size, len(self)))
            decoded = [(index, image) for index, image in self._decoded(span) if image is not None]
            if not decoded:
                continue
            shape = decoded[0][1].shape
            images = [self._same_size(image, shape, index) for index, image in decoded]
            labels = torch.from_numpy(self.labels[[index for index, _ in decoded]])
            yield self.preprocess.normalise(torch.stack(images)), labels

    def digest(self) -> str:
        digest = hashlib.sha256(self.labels.tobytes())
        paths = [self.root / name for name in self.ids]
        with ThreadPoolExecutor(self.threads) as pool:
            contents = pool.map(lambda path: _content_digest(path, _identity(path)), paths)
            for name, content in zip(self.ids, contents, strict=True):
                digest.update(f"{name} {content}\n".encode())
        return digest.hexdigest()

    def _decoded(self, indices: range) -> Iterator[tuple[int, Tensor | None]]:
        """Yield index and (3, H, W) uint8 pixels in order; None for a bad image that is skipped."""
        if self.augment_seed is not None:
            yield from ((index, self._decode(index)) for index in indices)
            return
        with ThreadPoolExecutor(self.threads) as pool:
            window = 4 * self.threads
            for start in range(indices.start, indices.stop, window):
                part = range(start, min(start + window, indices.stop))
                yield from zip(part, pool.map(self._decode, part), strict=True)

    def _with_readable_headers(self) -> FileImages:
        """Drop or refuse files that are not images now rather than in the middle of a run.

        Only headers are checked; damaged pixel data is found when the file is read.
        """
        with ThreadPoolExecutor(self.threads) as pool:
            checks = pool.map(lambda index: self._readable(index, read_size), range(len(self)))
            sizes = list(progress(checks, "checking files", len(self)))
        return self.subset([index for index, size in enumerate(sizes) if size is not None])

    def _readable(self, index: int, read: Callable[[Path], Result]) -> Result | None:
        """What ``read`` makes of the file of an image, or None for a bad one that is skipped."""
        from PIL import Image

        path = self.root / self.ids[index]
        try:
            return read(require_regular(path))
        except InputError as error:
            problem = str(error)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            problem = f"must be a readable image, got {type(error).__name__}: {error}"
        if not self.skip_bad:
            raise InputError(f"{path}: {problem} (--skip_bad_images leaves it out)")
        logger.warning("skipped unreadable image %s: %s", path, problem)
        return None

    def _decode(self, index: int) -> Tensor | None:
        picture = self._readable(index, read_picture)
        if picture is None:
            return None
        if self.augment_seed is None:
            return image_transform(self.preprocess, False)(picture)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.augment_seed * 1_000_003 + index)
            return image_transform(self.preprocess, True)(picture)

    def _same_size(self, image: Tensor, shape: torch.Size, index: int) -> Tensor:
        if image.shape != shape:
            raise InputError(
                f"{self.root / self.ids[index]}: image must be {shape[2]} x {shape[1]} pixels "
                f"like the first, got {image.shape[2]} x {image.shape[1]}"
            )
        return image


def _kept_file(entry: Path) -> Path:
    """The file beside the pixels in a cache that says which images they are of."""
    return entry.with_name(f"{entry.stem}_kept.npy")


def _identity(path: Path) -> str:
    """What tells a file from another one and from itself after a change, without reading it.

    The word missing for a link that leads nowhere.
    """
    try:
        status = path.stat()
    except OSError:
        return "missing"
    return f"{status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"


@cache
def _content_digest(path: Path, identity: str) -> str:
    """Digest of the bytes of a file, read once while its ``identity`` stays the same."""
    return identity if identity == "missing" else hashlib.blake2b(regular_bytes(path)).hexdigest()
