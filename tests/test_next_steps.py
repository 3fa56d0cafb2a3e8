"""The commands that a run suggests at its end: they parse, and say what this run was."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest

import export_onnx
from pipeline.command import read_command
from pipeline.flags import build_parser
from pipeline.method import make_method
from pipeline.next_steps import next_steps, other_method, sweep_command
from pipeline.options import RunOptions
from sweeps.flags import build_parser as sweep_parser
from sweeps.spec import SET_BY_GRID, require_free

NETWORK = ["--arch", "cifar_resnet20", "--checkpoint", "my nets/a.pt", "--data_path", "my images"]


def job(*argv: str) -> SimpleNamespace:
    """What the suggestions look at in the job of a command line."""
    options = read_command(build_parser(), argv).options
    return SimpleNamespace(options=options, method=make_method(options), folder=Path("out/run a"))


def results(drop: float) -> SimpleNamespace:
    rows = {"full_precision": 90.0, "selected": 90.0 - drop}
    return SimpleNamespace(**{key: SimpleNamespace(top1_pct=top1) for key, top1 in rows.items()})


def again(command: str) -> RunOptions:
    python, script, *argv = shlex.split(command)
    assert (python, script) == ("python", "main_imagenet.py")
    return read_command(build_parser(), argv).options


@pytest.mark.parametrize(
    "argv",
    [
        [],
        [*NETWORK, "--quant_method", "adaround", "-b", "3", "--n_bits_a", "2", "--iters_w", "50"],
        [*NETWORK, "--quant_method", "qdrop", "--num_bits", "3", "--no_correction"],
        [
            *NETWORK,
            "--quant_method",
            "gpfq",
            "--n_bits_w",
            "2",
            "--regularizer",
            "L1",
            "--lambda",
            "0.5",
        ],
        [*NETWORK, "--quant_method", "rtn", "--mean", "0.5", "0.5", "0.5", "--alpha", "1"],
        ["--arch", "nets.py:Net", "--arch_args", "w=4", "d=[1, 2]", "--data_path", "x"],
        ["--recipe", "resnet18_qdrop_w4a4", "--checkpoint", "a.pt", "--data_path", "x"],
        ["--arch", "digits_resnet", "--dataset", "cifar10", "--output_dir", "s3://b/c"],
    ],
)
def test_another_method_is_the_same_run_with_another_method(argv):
    mine = job(*argv)
    found = again(other_method(mine))
    assert found.quant_method == ("adaround" if mine.method.name == "qdrop" else "qdrop")
    same = dataclasses.replace(found, quant_method=mine.method.name, settings={})
    assert same == dataclasses.replace(mine.options, settings={}, recipe=None)
    settings = make_method(found).settings
    bits = (mine.method.settings.n_bits_w, mine.method.settings.n_bits_a)
    assert (settings.n_bits_w, settings.n_bits_a) == bits


def test_settings_that_both_methods_have_are_kept():
    assert again(other_method(job())).settings == {
        "n_bits_w": 2,
        "n_bits_a": 1,
        "disable_8bit_head_stem": True,
    }
    kept = again(other_method(job(*NETWORK, "--iters_w", "50", "--seed", "7"))).settings
    assert (kept["iters_w"], kept["seed"]) == (50, 7)


def test_the_sweep_has_the_networks_own_flags_and_a_small_grid():
    flags = [*NETWORK, "--input_size", "64", "--output_dir", "o", "--no_correction", "--seed", "7"]
    words = shlex.split(sweep_command(job(*flags)))
    cut = words.index("--")
    own, extra = sweep_parser().parse(words[2:cut]), words[cut + 1 :]
    assert (own.arch, own.methods) == (["cifar_resnet20"], ["rtn", "adaround"])
    assert (own.bits, own.seeds) == (["4,4"], [7])
    require_free(extra, SET_BY_GRID)
    given = ["--checkpoint", "my nets/a.pt", "--input_size", "64", "--data_path", "my images"]
    assert sorted(extra) == sorted([*given, "--no-correction"])
    bare = "python run_script.py digits_resnet --methods rtn adaround --bits 4,4 --seeds 1005"
    assert sweep_command(job()) == bare


def test_the_export_finds_the_images_of_the_run():
    steps = next_steps(job(*NETWORK, "--val_labels", "l.txt"), results(drop=0.5))
    assert [step.split(":")[0] for step in steps] == ["an ONNX file", "many settings"]
    python, script, *argv = shlex.split(steps[0].split(":", 1)[1])
    found = export_onnx.build_parser().parse(argv)
    assert (python, script, found.model) == (
        "python",
        "export_onnx.py",
        Path("out/run a/quantized_model.pt"),
    )
    assert (found.data_path, found.val_labels) == (Path("my images"), Path("l.txt"))


def test_activations_without_an_integer_type_are_not_exported():
    steps = next_steps(job(*NETWORK, "--n_bits_a", "12"), results(drop=0.5))
    assert [step.split(":")[0] for step in steps] == ["many settings"]


def test_a_large_loss_comes_before_the_export():
    steps = next_steps(job(*NETWORK), results(drop=2.0))
    assert [step.split(":")[0] for step in steps] == ["another method", "an ONNX file"]
