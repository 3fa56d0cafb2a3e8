"""Trains experts on the long-tailed split, each with its loss; the best epoch on ``val`` is kept.

The expert with two stages follows Kang et al. 2020, "Decoupling Representation and Classifier for
Long-Tailed Recognition", arXiv:1910.09217, section 4.1 (cRT).

Letters: N training images, C classes.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR

from common.errors import InputError, RunError, first_line
from common.files import read_torch_file, write_torch_file, written_alone
from common.marks import listed, replace_link
from common.torch_setup import seed_all
from evaluation.inference import infer_logits
from experts.calibration import calibrate
from experts.checkpoints import CALIBRATED, checkpoint_path, load_expert, save_expert
from experts.losses import DEFAULT_TAU, make_loss
from experts.metrics import class_groups, expert_figures
from experts.schedules import EXPERTS, GAMMA, MOMENTUM, TWO_STAGES, Schedule
from experts.training_data import TrainingData
from loaders import ImageSet
from models.expert import Expert

EVALUATION_BATCH = 256
BEST, STAGE1, LAST = "best_", "stage1_", "last_"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingOptions:
    """The settings of a training run.

    Attributes:
        folder: folder of the checkpoints.
        first: schedules of the first or only stage, by kind of expert.
        second: schedule of the second stage of two-stage experts.
        tau: strength of the logit adjustment.
        stage1_from: use the backbone of this expert's best checkpoint instead of a first stage.
        report: called with each line to print.
    """

    folder: Path
    backbone: str
    device: torch.device
    seed: int
    first: Mapping[str, Schedule]
    second: Schedule
    tau: float = DEFAULT_TAU
    stage1_from: str | None = None
    calibrate: bool = True
    resume: bool = False
    keep_last: bool = False
    force: bool = False
    report: Callable[[str], None] = logger.info


@dataclass(frozen=True)
class Stage:
    """One stage: trains everything, or only the head, with every class drawn equally often.

    Attributes:
        prefix: prefix of its checkpoint.
    """

    number: int
    prefix: str
    schedule: Schedule
    head_only: bool


def finished(options: TrainingOptions, expert: str) -> bool:
    """Whether all checkpoints of an expert exist and no interrupted training is left."""
    prefixes = (BEST, CALIBRATED) if options.calibrate else (BEST,)
    whole = all(checkpoint_path(options.folder, p, expert).is_file() for p in prefixes)
    return whole and not checkpoint_path(options.folder, LAST, expert).is_file()


def train_expert(name: str, data: TrainingData, options: TrainingOptions) -> None:
    """Train one expert and write its checkpoints; a finished one is kept unless ``force`` is set.

    Raises:
        InputError: a checkpoint to resume from, or the one with the backbone, does not fit.
        RunError: the loss is not finite.
        OSError: a checkpoint cannot be written.
    """
    with written_alone(options.folder / name):
        _train_alone(name, data, options)


def _train_alone(name: str, data: TrainingData, options: TrainingOptions) -> None:
    if finished(options, name) and not options.force:
        _report_kept(name, data, options)
        return
    last = checkpoint_path(options.folder, LAST, name)
    if last.is_file() and not options.resume:
        logger.warning(
            "%s is left from an interrupted training; it starts again (--resume would continue it)",
            last,
        )
    training = _Training(name, data, options)
    training.run()
    if options.calibrate:
        training.calibrate()
    if not options.keep_last:
        training.last.unlink(missing_ok=True)


def _report_kept(name: str, data: TrainingData, options: TrainingOptions) -> None:
    """Say that an expert is kept, after loading its checkpoints.

    Raises:
        InputError: one is damaged.
    """
    path = checkpoint_path(options.folder, BEST, name)
    stored = load_expert(path, data.splits.num_classes, options.backbone).metadata
    if options.calibrate:
        calibrated = checkpoint_path(options.folder, CALIBRATED, name)
        load_expert(calibrated, data.splits.num_classes, options.backbone)
    options.report(f"{name}: kept {path} (--force trains it again)")
    if stored.get("splits_sha256") != dict(data.digests):
        logger.warning("%s was trained on other splits", path)
    elif stored.get("hparams") != _hparams(name, options) or stored.get("seed") != options.seed:
        logger.warning("%s was trained with other settings", path)


def _hparams(name: str, options: TrainingOptions) -> dict[str, Any]:
    kind = EXPERTS[name]
    found: dict[str, Any] = {"stage1": _as_lists(options.first[kind])}
    if kind == TWO_STAGES:
        found |= {"stage2": _as_lists(options.second), "stage1_from": options.stage1_from}
    if kind == "logitadjust":
        found["tau"] = options.tau
    return found


def _as_lists(schedule: Schedule) -> dict[str, Any]:
    fields = dataclasses.asdict(schedule)
    return {**fields, "milestones": list(schedule.milestones)}


class _Training:
    """The training of one expert."""

    def __init__(self, name: str, data: TrainingData, options: TrainingOptions):
        self.name, self.data, self.options = name, data, options
        self.kind = EXPERTS[name]
        self.last = checkpoint_path(options.folder, LAST, name)
        self.groups = class_groups(data.splits.counts)
        seed_all(options.seed)
        self.generator = torch.Generator().manual_seed(options.seed)
        schedule = options.first[self.kind]
        self.dropout = schedule.dropout
        self.expert = Expert(data.splits.num_classes, options.backbone, schedule.dropout)
        self.expert.to(options.device)
        self.best_state: dict[str, Tensor] = {}
        self.best_metadata: dict[str, Any] = {}
        self.resumed = self._read_last() if options.resume and self.last.is_file() else None

    def run(self) -> None:
        """Run all stages, or those left by an interrupted run."""
        self.options.folder.mkdir(parents=True, exist_ok=True)
        for stage in self._stages():
            start = self.resumed["stage"] if self.resumed else 0
            if stage.number < start:
                continue
            if stage.head_only:
                self._take_backbone()
            self._run_stage(stage)
            self.resumed = None

    def _stages(self) -> list[Stage]:
        first = self.options.first[self.kind]
        if self.kind != TWO_STAGES:
            return [Stage(1, BEST, first, head_only=False)]
        second = Stage(2, BEST, self.options.second, head_only=True)
        return [second] if self.options.stage1_from else [Stage(1, STAGE1, first, False), second]

    def _take_backbone(self) -> None:
        """Load the trained backbone, freeze it, and initialise the head again."""
        source = self.options.stage1_from
        prefix, name = (BEST, source) if source else (STAGE1, self.name)
        path = checkpoint_path(self.options.folder, prefix, name)
        classes = self.data.splits.num_classes
        loaded = load_expert(path, classes, self.options.backbone)
        stored = loaded.metadata.get("splits_sha256")
        if stored is not None and stored != dict(self.data.digests):
            raise InputError(f"{path}: must be trained on these splits, got others")
        self.expert.load_state_dict(loaded.expert.state_dict())
        self.expert.backbone.requires_grad_(False)
        self.expert.reset_head()

    def _run_stage(self, stage: Stage) -> None:
        """Train over all epochs and save the best epoch on ``val`` at the end.

        Earlier checkpoints stay until then.
        """
        schedule = stage.schedule
        trained = self.expert.fc if stage.head_only else self.expert
        optimizer = SGD(
            [p for p in trained.parameters() if p.requires_grad],
            lr=schedule.lr,
            momentum=MOMENTUM,
            weight_decay=schedule.weight_decay,
        )
        scheduler = _scheduler(optimizer, schedule)
        loss_of = make_loss(self.kind, self.data.splits.counts, self.options.tau)
        loss_of.to(self.options.device)
        best, done = -1.0, 0
        if self.resumed is not None:
            best, done = self._restore(optimizer, scheduler)
        for epoch in range(done + 1, schedule.epochs + 1):
            lr = scheduler.get_last_lr()[0]
            loss = self._epoch(stage, optimizer, loss_of, epoch)
            scheduler.step()
            accuracy, line = self._validate()
            self.options.report(
                f"Epoch {epoch:3d}/{schedule.epochs}: Loss={loss:.4f}, {line}, LR={lr:.5f}"
            )
            if accuracy > best:
                best = accuracy
                self.best_state = _copied(self.expert)
                self.best_metadata = self._metadata(stage.prefix, epoch, accuracy)
            self._write_last(stage, epoch, best, optimizer, scheduler)
        if stage.prefix == BEST:  # the calibrated checkpoint holds the old weights
            checkpoint_path(self.options.folder, CALIBRATED, self.name).unlink(missing_ok=True)
        path = checkpoint_path(self.options.folder, stage.prefix, self.name)
        save_expert(path, self.best_state, self.best_metadata)

    def _epoch(self, stage: Stage, optimizer: SGD, loss_of: nn.Module, epoch: int) -> float:
        """Train for one epoch; returns the mean loss."""
        self.expert.train()
        if stage.head_only:
            self.expert.backbone.eval()
        total = torch.zeros((), dtype=torch.float64, device=self.options.device)
        count = 0
        for images, labels in self._batches(stage):
            images, labels = images.to(self.options.device), labels.to(self.options.device)
            optimizer.zero_grad()
            loss = loss_of(self.expert(images), labels)
            loss.backward()
            optimizer.step()
            total += loss.detach().double() * len(labels)
            count += len(labels)
        mean = float(total) / count
        if not math.isfinite(mean):
            raise RunError(
                f"loss must be finite, got {mean} in epoch {epoch}; --lr is probably too high"
            )
        return mean

    def _batches(self, stage: Stage) -> Iterator[tuple[Tensor, Tensor]]:
        """The augmented images of an epoch in random order, without an incomplete last batch."""
        size = stage.schedule.batch_size
        labels = torch.from_numpy(self.data.train.labels)
        if stage.head_only:
            order = balanced_order(labels, self.generator)
        else:
            order = torch.randperm(len(labels), generator=self.generator)
        if len(order) > size:
            order = order[: len(order) // size * size]
        seed = int(torch.randint(2**31, (), generator=self.generator))
        return self.data.train.subset(order.numpy()).augmented(seed).batches(size)

    def _validate(self) -> tuple[float, str]:
        logits, targets = self._logits(self.data.val)
        figures = expert_figures(logits, targets, self.data.splits.weights, self.groups)
        head, tail = (100 * (share or 0.0) for share in (figures.head, figures.tail))
        line = f"Val Acc={100 * figures.accuracy:.2f}%, Head={head:.1f}%, Tail={tail:.1f}%"
        return figures.accuracy, line

    def _logits(self, images: ImageSet) -> tuple[np.ndarray, np.ndarray]:
        self.expert.eval()
        batches = images.batches(EVALUATION_BATCH)
        result = infer_logits({self.name: self.expert}, batches, self.options.device, "val")
        return result.logits[self.name], result.targets

    def calibrate(self) -> None:
        """Fit the temperature of the best epoch and save it with the same weights.

        Raises:
            OSError: the checkpoint cannot be written.
        """
        best = checkpoint_path(self.options.folder, BEST, self.name)
        loaded = load_expert(best, self.data.splits.num_classes, self.options.backbone)
        self.expert = loaded.expert.to(self.options.device)
        logits, targets = self._logits(self.data.calibration)
        result = calibrate(logits, targets, self.data.calibration_split)
        self.options.report(result.describe())
        self.expert.set_temperature(result.temperature)
        record = {
            key: value for key, value in dataclasses.asdict(result).items() if key != "temperature"
        }
        metadata = {**loaded.metadata, "stage": "final_calibrated", "calibration": record}
        path = checkpoint_path(self.options.folder, CALIBRATED, self.name)
        save_expert(path, _copied(self.expert), metadata)

    def _metadata(self, prefix: str, epoch: int, accuracy: float) -> dict[str, Any]:
        splits, preprocess = self.data.splits, self.data.preprocess
        info = splits.info or {}
        return {
            "expert_name": self.name,
            "loss_type": self.kind,
            "stage": prefix.rstrip("_"),
            "arch": {
                "backbone": self.expert.backbone_name,
                "num_classes": splits.num_classes,
                "feature_dim": self.expert.fc.in_features,
                "dropout_rate": self.dropout,
                "in_channels": 3,
            },
            "dataset": {
                "name": splits.dataset,
                "slug": splits.slug,
                "imb_factor": info.get("imb_factor"),
                "mean": list(preprocess.mean),
                "std": list(preprocess.std),
            },
            "splits_sha256": dict(self.data.digests),
            "train_class_counts": list(splits.counts),
            "hparams": _hparams(self.name, self.options),
            "seed": self.options.seed,
            "epoch": epoch,
            "val_accuracy": accuracy,
            "calibration": None,
        }

    def _write_last(
        self, stage: Stage, epoch: int, best: float, optimizer: SGD, scheduler: LRScheduler
    ) -> None:
        """Write the checkpoint that --resume reads."""
        content = {
            **self._same_run(),
            "stage": stage.number,
            "epoch": epoch,
            "best": best,
            "best_state_dict": self.best_state,
            "best_metadata": self.best_metadata,
            "model_state_dict": self.expert.state_dict(),
            "optimizer_state_dict": optimizer.state_dict(),
            "scheduler_state_dict": scheduler.state_dict(),
            "rng_state": {
                "order": self.generator.get_state(),
                "torch": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            },
        }
        with listed(self.last):
            write_torch_file(self.last, content)

    def _read_last(self) -> dict[str, Any]:
        """Read the checkpoint of an interrupted run.

        Raises:
            InputError: it is damaged, or has other settings.
        """
        content = read_torch_file(self.last)
        for key, value in self._same_run().items():
            if not isinstance(content, dict) or content.get(key) != value:
                found = content.get(key) if isinstance(content, dict) else type(content).__name__
                raise InputError(
                    f"{self.last}: {key} must be as in the interrupted run, {found}, got {value}"
                )
        last = {stage.number: stage.schedule.epochs for stage in self._stages()}
        epoch = content.get("epoch")
        if not isinstance(epoch, int) or not 1 <= epoch <= last.get(content.get("stage"), 0):
            raise InputError(f"{self.last}: epoch must be one of the run, got {epoch!r}")
        return content

    def _same_run(self) -> dict[str, Any]:
        """The settings that must be equal to resume a run."""
        return {
            "hparams": _hparams(self.name, self.options),
            "seed": self.options.seed,
            "backbone": self.options.backbone,
            "splits_sha256": dict(self.data.digests),
        }

    def _restore(self, optimizer: SGD, scheduler: LRScheduler) -> tuple[float, int]:
        """Restore the state of an interrupted stage; returns its best accuracy and epochs done.

        Raises:
            InputError: the checkpoint of the interrupted run is damaged.
        """
        assert self.resumed is not None
        try:
            self.expert.load_state_dict(self.resumed["model_state_dict"])
            optimizer.load_state_dict(self.resumed["optimizer_state_dict"])
            scheduler.load_state_dict(self.resumed["scheduler_state_dict"])
            states = self.resumed["rng_state"]
            self.generator.set_state(states["order"])
            torch.set_rng_state(states["torch"])
            if states["cuda"] and torch.cuda.is_available():
                torch.cuda.set_rng_state_all(states["cuda"])
            self.best_state = dict(self.resumed["best_state_dict"])
            self.best_metadata = dict(self.resumed["best_metadata"])
            best = float(self.resumed["best"])
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            reason = first_line(error)
            raise InputError(f"{self.last}: must be a whole checkpoint, got: {reason}") from None
        self.options.report(f"{self.name}: resumed after epoch {self.resumed['epoch']}")
        return best, self.resumed["epoch"]


def _copied(expert: Expert) -> dict[str, Tensor]:
    """A copy of the weights, on the CPU."""
    return {key: value.detach().cpu().clone() for key, value in expert.state_dict().items()}


def _scheduler(optimizer: SGD, schedule: Schedule) -> LRScheduler:
    if schedule.milestones:
        return MultiStepLR(optimizer, list(schedule.milestones), gamma=GAMMA)
    return CosineAnnealingLR(optimizer, T_max=schedule.epochs)


def balanced_order(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Draw (N,) indices: each time a class uniformly, then one of its images, with replacement.

    Args:
        labels: (N,) int64.
    """
    by_class = torch.argsort(labels, stable=True)
    counts = torch.bincount(labels)
    present = counts.nonzero()[:, 0]
    starts = counts.cumsum(0) - counts
    drawn = present[torch.randint(len(present), (len(labels),), generator=generator)]
    places = (
        torch.rand(len(labels), generator=generator, dtype=torch.float64) * counts[drawn]
    ).long()
    return by_class[starts[drawn] + places]


def train_all(
    names: Sequence[str], data: TrainingData, options: TrainingOptions, traceback: bool = False
) -> list[str]:
    """Train experts one after the other; failures are logged, and their names returned."""
    if options.force:
        replace_link(options.folder)
    failed = []
    for name in names:
        options.report(f"EXPERT: {name.upper()}")
        try:
            train_expert(name, data, options)
        except (InputError, RunError, OSError) as error:
            logger.error("expert %r: %s", name, error, exc_info=traceback)
            failed.append(name)
    return failed
