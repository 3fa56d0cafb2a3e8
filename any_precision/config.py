"""The configuration of a run: the command line overrides the file, the file the defaults."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from any_precision.settings import JOINT, RANDOM, Config, Optimizer, Validation, checked
from common.configs import read_config
from common.errors import InputError, require_known
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
KNOWN_KEYS = (*TOP_KEYS, "quantization", "ResNet", RANDOM, "vehicle_classification")
JOINT_KEYS = ("joint_quantization_batch_size",)
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
BUILT_IN: Mapping[str, dict[str, Any]] = {
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
        InputError: the file is unusable (see ``read_config``), or PyYAML is missing.
    """
    return read_config(path, "yaml_path")


class Resolver:
    """Reads a configuration; unknown keys are refused, and what is replaced gives a warning."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def resolve(self, content: Mapping[str, Any], flags: Mapping[str, Any], method: str) -> Config:
        """The configuration of a run.

        Args:
            content: mapping read from a file; empty without a file.
            flags: values given on the command line, by name of the field.
            method: name of a section below ``quantization``, or of a built-in method.

        Raises:
            InputError: a key is unknown, a value is unusable, or two contradict each other.
        """
        if "vehicle_classification" in content and "dataset" not in content:
            raise InputError("dataset must be given, got sensor data; set dataset: digits")
        _refuse_unknown("the configuration", content, KNOWN_KEYS)
        quantization = _section(content, "quantization")
        methods = _methods(quantization)
        require_known("quantization_method", method, methods)
        found: dict[str, Any] = {key: content[key] for key in TOP_KEYS if key in content}
        found["method"] = method
        if "enable" in quantization:
            found["enable"] = quantization["enable"]
        joint = _section(quantization, JOINT)
        _refuse_unknown(JOINT, joint, JOINT_KEYS)
        found |= joint
        found |= self._method(methods[method])
        found |= _model(_section(content, "ResNet"))
        found["validation"] = _validation(content, quantization)
        return checked(_apply(found, flags))

    def _method(self, section: Mapping[str, Any]) -> dict[str, Any]:
        if section.get("Conv", "QuanConv") != "QuanConv":
            raise InputError(
                f"Conv must be QuanConv, got {section['Conv']!r}, which is not supported"
            )
        found = {
            key: value
            for key, value in section.items()
            if key not in ("Conv", "sat_weight_normalization")
        }
        sat = section.get("sat_weight_normalization", False)
        if not isinstance(sat, bool):
            raise InputError(f"sat_weight_normalization must be True or False, got {sat!r}")
        if sat:
            found["weight_scale"] = "sat"
        if isinstance(found.get("switchable_bn"), bool):  # YAML's on and off
            found["switchable_bn"] = "own" if found["switchable_bn"] else "off"
        if found.get("weight_quantization") == "lsqplus":
            self.warnings.append(
                "weight_quantization lsqplus is lsq, since weights are quantized symmetrically"
            )
            found["weight_quantization"] = "lsq"
        return found


def _methods(quantization: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The built-in methods, changed by their sections, and those of the user.

    Raises:
        InputError: a key is unknown.
    """
    own = [key for key, value in quantization.items() if _is_method(value)]
    _refuse_unknown(
        "quantization", quantization, ("enable", JOINT, RANDOM, "Conv", *BUILT_IN, *own)
    )
    sections = {name: _section(quantization, name) for name in (*BUILT_IN, *own)}
    for name, section in sections.items():
        _refuse_unknown(f"quantization.{name}", section, METHOD_KEYS)
    return {name: {**BUILT_IN.get(name, {}), **section} for name, section in sections.items()}


def _model(section: Mapping[str, Any]) -> dict[str, Any]:
    optimizer, scheduler = _section(section, "optimizer"), _section(section, "lr_scheduler")
    _refuse_unknown("ResNet", section, MODEL_KEYS)
    _refuse_unknown("ResNet.optimizer", optimizer, OPTIMIZER_KEYS)
    _refuse_unknown("ResNet.lr_scheduler", scheduler, SCHEDULER_KEYS)
    renamed = {"name": "schedule", "train_epochs": "epochs"}
    found = {k: v for k, v in section.items() if k in ("model_variant", "dropout_ratio")}
    found["optimizer"] = {**optimizer, **{renamed.get(k, k): v for k, v in scheduler.items()}}
    return found


def _validation(content: Mapping[str, Any], quantization: Mapping[str, Any]) -> dict[str, Any]:
    places = [part for part in (content, quantization) if RANDOM in part]
    sections = [_renamed(_section(part, RANDOM)) for part in places]
    if len(sections) == 2 and sections[0] != sections[1]:
        raise InputError(
            f"{RANDOM} must be given once, got different values at the top and under quantization"
        )
    return sections[0] if sections else {}


def _renamed(section: Mapping[str, Any]) -> dict[str, Any]:
    _refuse_unknown(RANDOM, section, VALIDATION_KEYS)
    found = {k: v for k, v in section.items() if k not in ALIASES}
    for alias, name in ALIASES.items():
        if alias in section and found.setdefault(name, section[alias]) != section[alias]:
            raise InputError(
                f"{name} and {alias} must be the same, got {found[name]} and {section[alias]}"
            )
    return found


def _refuse_unknown(where: str, section: Mapping[Any, Any], known: Collection[str]) -> None:
    for key in section:
        require_known(f"key in {where}", str(key), known)


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
        known = found["bitwidth_options"]
        if not isinstance(subset, list) or any(bits not in known for bits in subset):
            raise InputError(f"{RANDOM}.bitwidth_options must be among {list(known)}, got {subset}")
        validation["bitwidth_options"] = tuple(sorted(subset))
    return Config(**found, validation=Validation(**validation), optimizer=Optimizer(**optimizer))
