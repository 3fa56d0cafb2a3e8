"""The configuration of a run: the command line overrides the file, the file the defaults."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from any_precision.settings import JOINT, RANDOM, Config, Optimizer, Validation, checked
from common.configs import parse_yaml
from common.errors import InputError, closest_names, require_known
from quant.bitwidth.assignments import require_options

ALIASES = {"number_of_configs": "num_bitwidths"}
METHOD_KEYS = {
    "bitwidth_options",
    "weight_quantization",
    "activation_quantization",
    "training_method",
    "validation_function",
    "switchable_clipping",
    "switchable_bn",
    "sat_weight_normalization",
    "weight_scale",
    "distillation",
    "loss_name",
    "joint_quantization_batch_size",
    "Conv",
}
VALIDATION_KEYS = {
    "num_bitwidths",
    "sampling",
    "anchors",
    "fixed_val_configs",
    "weighting",
    "bin_width",
    "knee_tolerance",
    "plot_every",
    "bitwidth_options",
    *ALIASES,
}
TOP_KEYS = (
    "dataset",
    "data_root",
    "class_order",
    "batch_size",
    "num_workers",
    "seed",
    "experiments_dir",
)
OPTIMIZER_KEYS = {"name", "start_lr", "weight_decay", "clip_grad"}
SCHEDULER_KEYS = {
    "name",
    "train_epochs",
    "warmup_epochs",
    "min_lr",
    "step_size",
    "milestones",
    "gamma",
}
MODEL_KEYS = {"model_variant", "dropout_ratio", "optimizer", "lr_scheduler", "fc_dim"}
BUILT_IN_METHODS: Mapping[str, dict[str, Any]] = {
    "any_precision": {"bitwidth_options": [2, 4, 8], "switchable_bn": "own"},
    "dorefa": {"bitwidth_options": [4, 8]},
    "pact": {"bitwidth_options": [4, 8], "activation_quantization": "pact"},
    "lsq": {
        "bitwidth_options": [4, 8],
        "weight_quantization": "lsq",
        "activation_quantization": "lsq",
    },
}


def read_file(path: Path) -> dict[str, Any]:
    """The mapping in a YAML or JSON file.

    Raises:
        InputError: the file is missing, damaged or holds no mapping, or PyYAML is missing.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            content = json.loads(text)
        else:
            content = parse_yaml(text)
    except (OSError, ValueError, RecursionError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(
            f"yaml_path must be a readable YAML or JSON file, got {path}: {reason}"
        ) from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: must map keys to values, got a {type(content).__name__}")
    return content


class Resolver:
    """Reads a configuration; collects a warning for each unknown key, or raises if ``strict``."""

    def __init__(self, strict: bool):
        self.strict = strict
        self.warnings: list[str] = []

    def _unknown(self, where: str, keys: Iterable[str], known: Iterable[str]) -> None:
        for key in sorted(set(map(str, keys)) - set(known)):
            text = f"{where}: unknown key {key!r}, did you mean {closest_names(key, known)[0]!r}?"
            if self.strict:
                raise InputError(text)
            self.warnings.append(text)

    def resolve(self, content: Mapping[str, Any], flags: Mapping[str, Any], method: str) -> Config:
        """The configuration of a run.

        Args:
            content: mapping read from a file; empty without a file.
            flags: values given on the command line, by name of the field.
            method: name of a section below ``quantization``, or of a built-in method.

        Raises:
            InputError: a value is unusable, or two contradict each other.
        """
        if "vehicle_classification" in content and "dataset" not in content:
            raise InputError("dataset must be given, got sensor data; set dataset: digits")
        quantization = _section(content, "quantization")
        methods = {name: value for name, value in quantization.items() if _is_method(value)}
        known = {"enable", JOINT, RANDOM, "Conv", *methods, *BUILT_IN_METHODS}
        self._unknown("quantization", quantization, known)
        names = {*methods, *BUILT_IN_METHODS}
        require_known("quantization_method", method, names)
        found: dict[str, Any] = {key: content[key] for key in TOP_KEYS if key in content}
        found["method"] = method
        if "enable" in quantization:
            found["enable"] = quantization["enable"]
        joint = _section(quantization, JOINT)
        found |= {k: v for k, v in joint.items() if k == "joint_quantization_batch_size"}
        found |= self._method(
            method, {**BUILT_IN_METHODS.get(method, {}), **methods.get(method, {})}
        )
        found |= self._model(_section(content, "ResNet"))
        found["validation"] = self._validation(content, quantization)
        return checked(_apply(found, flags))

    def _method(self, name: str, section: Mapping[str, Any]) -> dict[str, Any]:
        self._unknown(f"quantization.{name}", section, METHOD_KEYS)
        if section.get("Conv", "QuanConv") != "QuanConv":
            raise InputError(
                f"Conv must be QuanConv, got {section['Conv']!r}, which is not supported"
            )
        found = {
            key: value
            for key, value in section.items()
            if key in METHOD_KEYS - {"Conv", "sat_weight_normalization"}
        }
        if section.get("sat_weight_normalization"):
            found["weight_scale"] = "sat"
        if isinstance(found.get("switchable_bn"), bool):  # YAML's on and off
            found["switchable_bn"] = "own" if found["switchable_bn"] else "off"
        if found.get("weight_quantization") == "lsqplus":
            self.warnings.append(
                "weight_quantization lsqplus is lsq, since weights are quantized symmetrically"
            )
            found["weight_quantization"] = "lsq"
        return found

    def _model(self, section: Mapping[str, Any]) -> dict[str, Any]:
        self._unknown("ResNet", section, MODEL_KEYS)
        optimizer, scheduler = _section(section, "optimizer"), _section(section, "lr_scheduler")
        self._unknown("optimizer", optimizer, OPTIMIZER_KEYS)
        self._unknown("lr_scheduler", scheduler, SCHEDULER_KEYS)
        renamed = {"name": "schedule", "train_epochs": "epochs"}
        found = {k: v for k, v in section.items() if k in ("model_variant", "dropout_ratio")}
        values = {k: v for k, v in optimizer.items() if k in OPTIMIZER_KEYS}
        values |= {renamed.get(k, k): v for k, v in scheduler.items() if k in SCHEDULER_KEYS}
        found["optimizer"] = values
        return found

    def _validation(
        self, content: Mapping[str, Any], quantization: Mapping[str, Any]
    ) -> dict[str, Any]:
        places = [part for part in (content, quantization) if RANDOM in part]
        sections = [self._renamed(_section(part, RANDOM)) for part in places]
        if len(sections) == 2 and sections[0] != sections[1]:
            raise InputError(
                f"{RANDOM} must be given once, got different values at the top and under "
                "quantization"
            )
        return sections[0] if sections else {}

    def _renamed(self, section: Mapping[str, Any]) -> dict[str, Any]:
        self._unknown(RANDOM, section, VALIDATION_KEYS)
        found = {k: v for k, v in section.items() if k in VALIDATION_KEYS and k not in ALIASES}
        for alias, name in ALIASES.items():
            if alias in section and found.setdefault(name, section[alias]) != section[alias]:
                raise InputError(
                    f"{name} and {alias} must be the same, got {found[name]} and {section[alias]}"
                )
        return found


def _section(content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    section = content.get(key) or {}
    if not isinstance(section, Mapping):
        raise InputError(f"{key} must map keys to values, got {section!r}")
    return section


def _is_method(value: Any) -> bool:
    return isinstance(value, Mapping) and "bitwidth_options" in value


def _apply(found: dict[str, Any], flags: Mapping[str, Any]) -> Config:
    """The configuration from the values ``found``, which ``flags`` override."""
    validation, optimizer = dict(found.pop("validation", {})), dict(found.pop("optimizer", {}))
    subset = validation.pop("bitwidth_options", None)
    groups = {Config: found, Validation: validation, Optimizer: optimizer}
    for name, value in flags.items():
        owner = next(part for part in groups if name in {f.name for f in fields(part)})
        groups[owner][name] = value
    try:
        optimizer["milestones"] = tuple(optimizer.get("milestones") or ())
        found["bitwidth_options"] = require_options(list(found["bitwidth_options"]))
    except TypeError as error:
        raise InputError(f"milestones and bitwidth_options must be lists, got: {error}") from None
    if subset is not None:
        if not set(subset) <= set(found["bitwidth_options"]):
            raise InputError(
                f"{RANDOM}.bitwidth_options must be among {list(found['bitwidth_options'])}, got "
                f"{subset}"
            )
        validation["bitwidth_options"] = tuple(sorted(subset))
    return Config(**found, validation=Validation(**validation), optimizer=Optimizer(**optimizer))
