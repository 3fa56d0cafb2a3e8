"""Settings of the methods: dataclass fields with a help text and rules for their values."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.errors import InputError
from quant.arithmetic.augmentation import AUGMENTATIONS
from quant.arithmetic.ranges import RANGE_MODES
from quant.arithmetic.spec import (
    NO_TARGET,
    NOT_QUANTIZED,
    SOFTMAX_QUANTIZERS,
    TARGET_BITS,
    TARGETS,
    UNIFORM,
    QuantSpec,
)

OPTIONAL = " | None"
CACHE_PLACES = ("auto", "memory", "disk")
TYPES: Mapping[str, type] = {"int": int, "float": float, "bool": bool, "str": str}
# The flags of main_imagenet.py itself, which no setting may have as its name.
RESERVED_NAMES = frozenset(
    """
    alpha alpha_list arch arch_args augment_calibration batch_size benchmark bitwidth_sweep
    bw_act bw_bank bw_num_configs bw_options bw_out bw_samples bw_sampling bw_seed
    bw_sensitivity bw_target_average bw_tolerance bw_weighting cache_dir calibration_list
    checkpoint checkpoint_format checkpoint_key chunk_size class_order compare compression config
    correction correction_samples correction_source crop data_path dataset device download
    dry_run expect_top1 export_images export_onnx export_target force help input_size int2
    interpolation list_archs list_methods list_recipes load_correction log_dir logits_format
    mean min_agreement num_clusters num_clusters_list output output_dir pca_dim pca_dim_list
    plots print_config quant_method quiet recipe resize resume save_results shrinkage
    skip_bad_images std table val_labels verbose weights with_correction workers
    """.split()
)


def setting(
    default: Any,
    help_text: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: Sequence[Any] | None = None,
    must: str | None = None,
) -> Any:
    """Make a dataclass field with a help text and rules for its value; it becomes a CLI flag.

    Args:
        low, high: inclusive bounds.
        choices: allowed values.
        must: requirement to state in error texts, instead of the bounds or choices.
    """
    metadata = {"help": help_text, "low": low, "high": high, "choices": choices, "must": must}
    return dataclasses.field(default=default, metadata=metadata)


def type_text(field: dataclasses.Field) -> str:
    """The type of a setting other than None, as written in its annotation."""
    return str(field.type).removesuffix(OPTIONAL)


def setting_type(field: dataclasses.Field) -> type:
    """The Python type of a setting other than None."""
    return TYPES[type_text(field)]


def flag_name(name: str) -> str:
    """The flag of a setting: its name without a final underscore, which avoids Python keywords."""
    return name.rstrip("_")


def check_setting(field: dataclasses.Field, value: Any) -> Any:
    """Return the value, as a float if a float is expected and an int is given.

    Raises:
        InputError: the value is of the wrong type or not allowed by the field.
    """
    if value is None and str(field.type).endswith(OPTIONAL):
        return None
    kind, name = setting_type(field), flag_name(field.name)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise InputError(f"{name} must be of type {kind.__name__}, got {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{name} must be finite, got {value!r}")
    rules = field.metadata
    low, high, choices = rules["low"], rules["high"], rules["choices"]
    required = None
    if choices is not None and value not in choices:
        required = f"one of {', '.join(map(str, choices))}"
    elif low is not None and not value >= low:
        required = f"at least {low:g}"
    elif high is not None and not value <= high:
        required = f"at most {high:g}"
    if required is not None:
        raise InputError(f"{name} must be {rules['must'] or required}, got {value!r}")
    return value


ACTIVATION_BITS_HELP = "bits of the activations: 1 to 16, or 32 for float"
NUM_BITS_HELP = "set n_bits_w and n_bits_a to the same value"
OUTPUT_MOMENTS_HELP = (
    "match mean and standard deviation of each layer's output on the calibration images to those "
    "of the float network, by its bias and the scales of its channels (default: off; for distill "
    "on where weights are quantized)"
)
FOLD_HELP = "fold batch norms into the layers before them (off: keep them in float, as published)"
DISTILL_STEPS_HELP = (
    "steps in which the quantized network learns the float network's outputs on the calibration "
    "images, after the method (0: none)"
)
BIAS_CORRECTION_HELP = (
    "correct the mean of each quantized weight channel to that of the float one (default: on, off "
    "with quant_target, whose integer kernels have no such shift)"
)
TARGET_HELP = (
    "runtime whose 8-bit kernels will run the network, which is then quantized as they need it "
    "(none: as accurately as possible, to run in float)"
)
SOFTMAX_HELP = (
    "levels of softmax outputs: uniform, or log2 for powers of two, which keep small values apart; "
    "files of quant_target need uniform"
)
REPARAM_HELP = (
    "give the channels behind each LayerNorm equal ranges, exactly in float, where only linear "
    "layers read it (auto: in networks with attention)"
)
BITS: dict[str, Any] = {
    "choices": (*range(1, 17), NOT_QUANTIZED),
    "must": "between 1 and 16, or 32 (not quantized)",
}


@dataclass(frozen=True)
class MethodSettings:
    """Settings that all methods share.

    Raises:
        InputError: a value is of the wrong type or out of range; the text names setting,
            requirement and value.
    """

    n_bits_w: int = setting(4, "bits of the weights: 1 to 16, or 32 for float", **BITS)
    n_bits_a: int = setting(4, ACTIVATION_BITS_HELP, **BITS)
    channel_wise: bool = setting(
        True, "use one weight scale per output channel (off: one per layer)"
    )
    disable_8bit_head_stem: bool = setting(
        False, "quantize the first and the last layer to n_bits_w and n_bits_a instead of 8 bits"
    )
    symmetric: bool = setting(
        False, "use the middle code as the zero point of every weight (off: choose it)"
    )
    quant_target: str = setting(NO_TARGET, TARGET_HELP, choices=TARGETS)
    target_vnni: bool = setting(
        False,
        "the processor that runs the network has VNNI or AMX, so that 8-bit weights keep 8 bits "
        "(off: they have 7, since sums of products of 8 and 8 bits overflow without it, except for "
        "depthwise convolutions)",
    )
    softmax_quantizer: str = setting(UNIFORM, SOFTMAX_HELP, choices=SOFTMAX_QUANTIZERS)
    reparam_layernorm: str = setting("auto", REPARAM_HELP, choices=("auto", "on", "off"))
    num_samples: int = setting(1024, "number of calibration images", low=1, high=10**9)
    keep_cpu: bool = setting(
        False, "keep the cached activations in host memory instead of GPU memory"
    )
    cache_activations: str = setting(
        "auto",
        "where cached activations are: memory, disk (below cache_dir), or auto, which is memory if "
        "they fit into half of what is free",
        choices=CACHE_PLACES,
    )
    seed: int = setting(
        1005, "seed of every random draw", low=0, high=2**32 - 1, must="between 0 and 2^32 - 1"
    )

    distill_steps: int = setting(0, DISTILL_STEPS_HELP, low=0, high=10**9)
    distill_batch: int = setting(16, "distillation: number of images per step", low=1, high=10**6)
    distill_lr: float = setting(
        8e-3,
        "distillation: initial learning rate of the weights, in steps of their grids; it is "
        "multiplied by (2^n_bits_w - 1) / (2^n_bits_a - 1) if the activations have fewer bits; all "
        "learning rates are multiplied by the square root of the KL divergence at the start, if "
        "that is below 1, and fall to 0 along half a cosine",
        low=0,
        high=1000,
    )
    distill_lr_scale: float = setting(
        2e-2,
        "distillation: initial learning rate of the scales, relative to them, and of the biases, "
        "in units of the output (where it is normalised, in its standard deviations)",
        low=0,
        high=1000,
    )
    distill_features: float = setting(
        10.0,
        "distillation: weight of the relative squared errors of the units' outputs in the loss; it "
        "is lowered so that this term is at most 50 times the divergence term at the start",
        low=0,
        high=10**6,
    )
    distill_temperature: float = setting(
        2.0, "distillation: temperature of the softmax in the loss", low=1e-3, high=1000
    )
    distill_augment: str = setting(
        "auto",
        "distillation: random views of the images; crop_flip moves them by up to an eighth of "
        "their side and mirrors half of them; shift moves them by a thirty-second, for letters "
        "and digits; resized_crop enlarges a part and mirrors half of them; auto takes crop_flip, "
        "or shift where mirrored images change their class for the float network",
        choices=("auto", *AUGMENTATIONS),
    )

    distill_batch_norm: str = setting(
        "auto",
        "distillation: normalise the outputs of convolutions (with a scale per channel, and at "
        "least 256 values per channel in a batch) over each batch while they are trained; auto "
        "does so unless that more than doubles the divergence from the float network at the start",
        choices=("auto", "on", "off"),
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, check_setting(field, getattr(self, field.name)))
        if self.distill_steps == 0:
            self._refuse_settings_of_distillation()
        elif self.num_samples < 2:
            raise InputError(
                f"num_samples must be at least 2 with distill_steps, got {self.num_samples}"
            )
        self._require_target()

    def _require_target(self) -> None:
        """Check what the integer kernels of a target need."""
        if self.quant_target == NO_TARGET:
            if self.target_vnni:
                raise InputError("target_vnni must be given with quant_target, got it alone")
            return
        target = f"with quant_target {self.quant_target}"
        if self.n_bits_a != TARGET_BITS:
            raise InputError(f"n_bits_a must be {TARGET_BITS} {target}, got {self.n_bits_a}")
        if self.n_bits_w > TARGET_BITS:
            raise InputError(
                f"n_bits_w must be at most {TARGET_BITS} {target}, got {self.n_bits_w}"
            )
        if self.softmax_quantizer != UNIFORM:
            raise InputError(
                f"softmax_quantizer must be {UNIFORM} {target}, got {self.softmax_quantizer}"
            )

    def _refuse_settings_of_distillation(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            is_extra = field.name.startswith("distill_") and field.name != "distill_steps"
            if is_extra and value != field.default:
                raise InputError(
                    f"{field.name} must be left out while distill_steps is 0, got {value}"
                )

    @property
    def uses_labels(self) -> bool:
        """Whether the method uses the labels of the calibration images."""
        return False

    @property
    def spec(self) -> QuantSpec:
        return QuantSpec(
            self.n_bits_w,
            self.n_bits_a,
            self.channel_wise,
            not self.disable_8bit_head_stem,
            symmetric=self.symmetric,
            target=self.quant_target,
            target_vnni=self.target_vnni,
            softmax_quantizer=self.softmax_quantizer,
        )

    @property
    def has_target(self) -> bool:
        """Whether integer kernels will run the network."""
        return self.quant_target != NO_TARGET

    def require_quantized_weights(self, name: str) -> None:
        """Check that weights are quantized if the setting ``name``, which acts on them, is on.

        Raises:
            InputError: it is on, and they are not.
        """
        if getattr(self, name) and self.n_bits_w == NOT_QUANTIZED:
            raise InputError(f"{name} must be off with n_bits_w {NOT_QUANTIZED}, got on")

    def shifts_weights(self, asked: bool | None) -> bool:
        """Whether the means of weights are corrected; by default where no kernels forbid it.

        Args:
            asked: the value of ``bias_correction``; None: not given.

        Raises:
            InputError: it is asked for with a target.
        """
        if asked and self.has_target:
            raise InputError("bias_correction must be off with quant_target, got on")
        return not self.has_target if asked is None else asked


ShortForms = Mapping[str, Callable[[Any], dict[str, Any]]]


def same_bits(value: int | None) -> dict[str, Any]:
    """The settings that the short form ``num_bits`` sets."""
    return {} if value is None else {"n_bits_w": value, "n_bits_a": value}


def spelled_out(
    settings_class: type[MethodSettings], short_forms: ShortForms, given: dict[str, Any]
) -> dict[str, Any]:
    """Return the settings ``given``, extended by those that short forms among them set.

    Args:
        short_forms: name of a setting -> function from its value to the settings that it sets.

    Raises:
        InputError: the value of a short form is not allowed, or contradicts another setting.
    """
    fields = {field.name: field for field in dataclasses.fields(settings_class)}
    result, origin = dict(given), {key: key for key in given}
    for name in [name for name in short_forms if name in given]:
        value = check_setting(fields[name], given[name])
        for key, meant in short_forms[name](value).items():
            if not _equal(check_setting(fields[key], result.get(key, meant)), meant):
                raise InputError(
                    f"{origin[key]} must be left out or agree with {name} = {value}, "
                    f"got {given[origin[key]]}"
                )
            result[key], origin[key] = result.get(key, meant), origin.get(key, name)
    return result


def _equal(a: Any, b: Any) -> bool:
    return math.isclose(a, b, abs_tol=1e-9) if isinstance(b, float) else a == b


@dataclass(frozen=True)
class WeightOnlySettings(MethodSettings):
    """Settings of a method that leaves the activations in float and refuses fewer bits for them."""

    n_bits_a: int = setting(
        NOT_QUANTIZED,
        ACTIVATION_BITS_HELP,
        choices=(NOT_QUANTIZED,),
        must="32: this method leaves the activations in float",
    )


@dataclass(frozen=True)
class RangeSettings(MethodSettings):
    """Settings of the methods that choose ranges by a search or by min and max."""

    init_wmode: str = setting(
        "mse", "rule for choosing the ranges of the weights", choices=RANGE_MODES
    )
    init_amode: str = setting(
        "mse", "rule for choosing the ranges of the activations", choices=RANGE_MODES
    )
