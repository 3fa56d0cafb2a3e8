"""The settings of a training run, and the allowed values of each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from any_precision.layers import LayerSpec
from any_precision.quantizers import WEIGHT_SCALES
from common.errors import InputError, require_known
from quant.bitwidth.assignments import SAMPLINGS, WEIGHTINGS

JOINT, VANILLA = "joint_quantization", "vanilla_single_precision_training"
RANDOM, SIMPLE = "random_bitwidths", "simple_validation"


@dataclass(frozen=True)
class Validation:
    """Validation at random bits per layer."""

    num_bitwidths: int = 4
    sampling: str = "uniform"
    anchors: str = "plot"
    fixed_val_configs: bool = False
    weighting: str = "layers"
    bin_width: float = 0.1
    knee_tolerance: float = 0.01
    plot_every: int = 5
    bitwidth_options: tuple[int, ...] | None = None  # None: those of the layers


@dataclass(frozen=True)
class Optimizer:
    """Optimizer and learning-rate schedule."""

    name: str = "AdamW"
    start_lr: float = 0.002
    weight_decay: float = 1e-4
    clip_grad: float | None = 5.0
    schedule: str = "cosine"
    epochs: int = 10
    warmup_epochs: int = 0
    min_lr: float = 1e-6
    milestones: tuple[int, ...] = ()
    step_size: int = 30
    gamma: float = 0.1


@dataclass(frozen=True)
class Config:
    """All settings of a run."""

    dataset: str = "digits"
    data_root: str = "data"
    class_order: str | None = None
    batch_size: int = 64
    num_workers: int = 0
    seed: int = 42
    experiments_dir: str = "experiments"
    enable: bool = True
    method: str = "any_precision"
    bitwidth_options: tuple[int, ...] = (2, 4, 8)
    weight_quantization: str = "dorefa"
    activation_quantization: str = "dorefa"
    training_method: str = JOINT
    validation_function: str = RANDOM
    switchable_clipping: bool = True
    switchable_bn: str = "off"
    weight_scale: str = "none"
    distillation: str = "none"
    loss_name: str = "cross_entropy"
    joint_quantization_batch_size: int = 2
    model_variant: str = "resnet8"
    dropout_ratio: float = 0.0
    validation: Validation = field(default_factory=Validation)
    optimizer: Optimizer = field(default_factory=Optimizer)

    def layer_spec(self) -> LayerSpec:
        return LayerSpec(
            self.bitwidth_options,
            self.weight_quantization,
            self.activation_quantization,
            self.switchable_clipping,
            self.weight_scale,
        )

    def as_dict(self) -> dict[str, Any]:
        """All values as plain JSON types."""
        return json.loads(json.dumps(asdict(self)))


def from_dict(content: Mapping[str, Any]) -> Config:
    """The inverse of ``Config.as_dict``.

    Raises:
        InputError: a key is missing or unknown.
    """
    try:
        plain = dict(content)
        part = dict(plain.pop("validation"))
        part["bitwidth_options"] = part["bitwidth_options"] and tuple(part["bitwidth_options"])
        validation = Validation(**part)
        optimizer = dict(plain.pop("optimizer"))
        optimizer["milestones"] = tuple(optimizer["milestones"])
        plain["bitwidth_options"] = tuple(plain["bitwidth_options"])
        return Config(**plain, validation=validation, optimizer=Optimizer(**optimizer))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"config must be that of a run, got: {error!r}") from None


CHOICES = {
    "training_method": (JOINT, VANILLA),
    "validation_function": (RANDOM, SIMPLE),
    "switchable_bn": ("own", "off"),
    "weight_scale": WEIGHT_SCALES,
    "distillation": ("none", "recursive"),
    "loss_name": ("cross_entropy", "label_smoothing_ce"),
}
VALIDATION_CHOICES = {
    "sampling": SAMPLINGS,
    "anchors": ("plot", "always", "never"),
    "weighting": WEIGHTINGS,
}
OPTIMIZERS = ("AdamW", "Adam", "SGD")
SCHEDULES = ("cosine", "step", "multistep", "none")
RANGES: dict[str, tuple[float, float]] = {
    "batch_size": (1, 1 << 30),
    "num_workers": (0, 1 << 10),
    "seed": (0, (1 << 32) - 1),
    "joint_quantization_batch_size": (1, 1 << 10),
    "dropout_ratio": (0.0, 0.999),
}
VALIDATION_RANGES: dict[str, tuple[float, float]] = {
    "num_bitwidths": (1, 1 << 20),
    "bin_width": (1e-3, 32.0),
    "knee_tolerance": (0.0, 1.0),
    "plot_every": (1, 1 << 30),
}
OPTIMIZER_RANGES: dict[str, tuple[float, float]] = {
    "start_lr": (1e-12, 1e3),
    "weight_decay": (0.0, 1e3),
    "epochs": (1, 1 << 30),
    "warmup_epochs": (0, 1 << 30),
    "min_lr": (0.0, 1e3),
    "step_size": (1, 1 << 30),
    "gamma": (0.0, 1.0),
}
WHOLE = {
    "batch_size",
    "num_workers",
    "seed",
    "joint_quantization_batch_size",
    "num_bitwidths",
    "plot_every",
    "epochs",
    "warmup_epochs",
    "step_size",
}
SWITCHES = ("enable", "switchable_clipping")
TEXTS = ("dataset", "data_root", "class_order", "experiments_dir", "method", "model_variant")


def checked(config: Config) -> Config:
    """Check every value; returns the configuration.

    Raises:
        InputError: a value is unusable, or two contradict each other.
    """
    for part, choices in ((config, CHOICES), (config.validation, VALIDATION_CHOICES)):
        for name, known in choices.items():
            require_known(name, str(getattr(part, name)), known)
    require_known("optimizer", str(config.optimizer.name), OPTIMIZERS)
    require_known("lr_scheduler", str(config.optimizer.schedule), SCHEDULES)
    _check_ranges(config, RANGES)
    _check_ranges(config.validation, VALIDATION_RANGES)
    _check_ranges(config.optimizer, OPTIMIZER_RANGES)
    if config.optimizer.clip_grad is not None:
        _check_ranges(config.optimizer, {"clip_grad": (1e-12, 1e12)})
    _check_kinds(config)
    config.layer_spec()
    options = list(config.bitwidth_options)
    if config.training_method == VANILLA and len(options) != 1:
        raise InputError(f"{VANILLA} needs exactly one bitwidth option, got {options}")
    if config.distillation != "none" and config.training_method != JOINT:
        raise InputError(
            f"training_method must be {JOINT} with distillation, got {config.training_method}"
        )
    return config


def _check_kinds(config: Config) -> None:
    switches = {name: getattr(config, name) for name in SWITCHES}
    switches["fixed_val_configs"] = config.validation.fixed_val_configs
    for name, value in switches.items():
        if not isinstance(value, bool):
            raise InputError(f"{name} must be True or False, got {value!r}")
    for name in TEXTS:
        value = getattr(config, name)
        if not isinstance(value, str) and not (name == "class_order" and value is None):
            raise InputError(f"{name} must be text, got {value!r}")
    for epoch in config.optimizer.milestones:
        if not isinstance(epoch, int) or isinstance(epoch, bool):
            raise InputError(f"milestones must be whole numbers, got {epoch!r}")


def _check_ranges(part: Any, ranges: Mapping[str, tuple[float, float]]) -> None:
    for name, (low, high) in ranges.items():
        value = getattr(part, name)
        number = isinstance(value, int if name in WHOLE else (int, float))
        if not number or isinstance(value, bool) or not low <= value <= high:
            kind = "a whole number" if name in WHOLE else "a number"
            raise InputError(f"{name} must be {kind} from {low:g} to {high:g}, got {value!r}")


def without_where(config: Config) -> Config:
    """The configuration without what affects no result: folders and number of workers."""
    return replace(config, data_root="", experiments_dir="", num_workers=0)
