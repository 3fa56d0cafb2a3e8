"""The commands that the end of a run suggests: whole, and right for that run."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from export.settings import has_integer_type
from logits_io.naming import MODEL_FILE
from pipeline.flags import build_parser
from pipeline.job import IN_PYTHON, Job
from pipeline.options import DEFAULT_ARCH, DEFAULT_METHOD, RunOptions
from pipeline.results import Results
from quant import QuantizationManager
from quant.settings import flag_name, spelled_out

# Points of Top-1 lost to the float network above which another method is suggested.
LARGE_DROP = 1.0
BETTER_METHOD = "qdrop"
MOST_STEPS = 2
OF_RECIPE = ("recipe",)  # the figures of a recipe are those of its method
# What a sweep passes on to every run; it sets all the rest itself, or leaves it at its default.
OF_SWEEP_RUNS = ("device", "correction")


def next_steps(job: Job, results: Results) -> list[str]:
    """One or two commands to try after this run."""
    if job.options.network.arch.startswith(f"{IN_PYTHON}:"):
        return [f"an ONNX file:   {export_command(job)}"]
    drop = results.full_precision.top1_pct - results.selected.top1_pct
    steps = []
    if job.options.network.arch == DEFAULT_ARCH:
        steps.append(
            "your network:   python main_imagenet.py --data_path IMAGES --arch resnet18 "
            "--checkpoint FILE --n_bits_w 4 --n_bits_a 4"
        )
    if drop > LARGE_DROP:
        steps.append(f"another method: {other_method(job)}")
    if job.options.export is None and has_integer_type(job.method.settings.n_bits_a):
        steps.append(f"an ONNX file:   {export_command(job)}")
    steps.append(f"many settings:  {sweep_command(job)}")
    return steps[:MOST_STEPS]


def other_method(job: Job) -> str:
    """The command of this run with another method, at the same bits."""
    name = BETTER_METHOD if job.method.name != BETTER_METHOD else DEFAULT_METHOD
    values = {key: value for key, value in _differing(job.options).items() if key not in OF_RECIPE}
    values |= {"quant_method": name, **_settings_for(job, name)}
    return _command("main_imagenet.py", [], values)


def export_command(job: Job) -> str:
    """The command that writes the model of this run as ONNX."""
    data = job.options.data
    values = {name: getattr(data, name) for name in ("data_path", "val_labels", "class_order")}
    given = {name: str(value) for name, value in values.items() if value is not None}
    return _command("export_onnx.py", [str(job.folder / MODEL_FILE)], given)


def sweep_command(job: Job) -> str:
    """The command of a small sweep over methods on the network and the images of this run."""
    options = job.options
    seed = str(job.method.settings.seed)
    own = [options.network.arch, "--methods", "rtn", "adaround", "--bits", "4,4", "--seeds", seed]
    groups = (options.network, options.inputs, options.data)
    passed = {name for group in groups for name in vars(group)} | set(OF_SWEEP_RUNS)
    passed -= {"arch", "download"}
    values = {key: value for key, value in _differing(options).items() if key in passed}
    return _command("run_script.py", [*own, "--"] if values else own, values)


def _differing(options: RunOptions) -> dict[str, Any]:
    """The flags of a run that do not have their defaults, without the settings of the method."""
    usual = RunOptions().as_flags()
    values = options.as_flags()
    found = {key: value for key, value in values.items() if usual.get(key) != value}
    if options.network.arch == DEFAULT_ARCH:
        if options.data.dataset == "digits":  # as without both flags
            del found["dataset"]
        elif "dataset" in found or "data_path" in found:
            found["arch"] = DEFAULT_ARCH
    return found


def _settings_for(job: Job, method: str) -> dict[str, Any]:
    """The bits of this run, and those of its given settings that another method has too."""
    cls, settings = type(job.method), job.method.settings
    given = spelled_out(cls.settings_class, cls.short_forms, dict(job.options.settings))
    other = QuantizationManager().get_method_class(method).settings_class
    fields = {field.name: field for field in dataclasses.fields(other)}
    values = {"n_bits_w": settings.n_bits_w, "n_bits_a": settings.n_bits_a}
    for name, value in given.items():
        choices = fields[name].metadata["choices"] if name in fields else ()
        if choices is None or value in choices:
            values.setdefault(name, value)
    return {flag_name(name): value for name, value in values.items()}


def _command(script: str, own: Sequence[str], values: Mapping[str, Any]) -> str:
    """A command line, quoted for a shell."""
    words = ["python", script, *own]
    for argument in build_parser().arguments(values, script):
        flag, _, value = argument.partition("=")
        is_pair = argument.startswith("--") and value and not value.startswith("-")
        words += [flag, value] if is_pair else [argument]
    return shlex.join(words)
