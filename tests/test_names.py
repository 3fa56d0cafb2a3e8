"""Names from the user that become part of paths are checked before anything else."""

from __future__ import annotations

import pytest

import create_splits_fixed
import main_imagenet
import recompute_logits
import train_experts
from common.errors import InputError
from common.names import require_name
from experts.stored_splits import _names_itself
from logits_io.naming import LONGEST_PART, RunName, file_name
from quant.methods.rtn import RoundToNearest
from quant.registry import register_method

BAD = ["", ".", "..", ".x", "a/b", "/a", "../a", "a\\b", "a\0b", "a\nb", "a\udc80", "x" * 101]


@pytest.mark.parametrize("name", BAD)
def test_names_that_lead_elsewhere_or_nowhere_are_refused(name):
    with pytest.raises(InputError, match=r"it must be a plain name \(no / or .* got '") as caught:
        require_name("it", name)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 220


@pytest.mark.parametrize("name", ["a", "mine 2", "W4A4_seed-1", "größe.v2", "x" * 100])
def test_plain_names_are_taken(name):
    assert require_name("it", name) == name


def test_a_method_needs_a_plain_name():
    class Elsewhere(RoundToNearest):
        name = "../x"

    with pytest.raises(ValueError, match=r"name of a method must be a plain name"):
        register_method(Elsewhere)


def test_long_architectures_have_short_and_different_names():
    path = "/" + "/".join(["d" * 50] * 6) + "/nets.py:Net"
    first, second = file_name(path + "A"), file_name(path + "B")
    assert first != second
    assert len(first.encode()) <= LONGEST_PART
    assert file_name("timm/resnet18.a1_in1k") == "timm_resnet18.a1_in1k"
    name = RunName(file_name("é" * 300 + ".py:Net"), 16, 16, 2**32 - 1)
    for text in (name.results_folder(0.123456789, 10**6, 10**3), name.file_stem, name.run_folder):
        assert len(text.encode()) <= 200


@pytest.mark.parametrize("name", ["../x", "a/b", "/x", "..", "", "é", "x" * 101, 3])
def test_splits_with_odd_names_are_refused(name):
    assert not _names_itself({"dataset": "digits", "slug": name})
    assert not _names_itself({"dataset": name, "slug": "digits_lt_if10"})


@pytest.mark.parametrize("script", [train_experts, create_splits_fixed, recompute_logits])
def test_data_sets_are_known_names(script, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert script.main(["--dataset", "../x"]) == 2
    assert "dataset must be a known name, got '../x'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["../x", "x" * 101, "a.b"])
def test_quantized_models_have_plain_names(lab, tmp_path, capsys, name):
    (tmp_path / "m.pt").touch()
    flags = ["--quantized", f"{name}={tmp_path / 'm.pt'}"]
    assert lab.recompute(tmp_path / "o", *flags) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    expected = (
        "m.pt: must be" if name == "a.b" else "name of a quantized model must be a plain name"
    )
    assert expected in error
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("flag", "text"),
    [
        ("--quant_method", "quant_method must be a known name, got '../x'"),
        ("--arch", "arch must be a known name, got '../x'"),
        ("--dataset", "dataset must be a known name, got '../x'"),
        ("--recipe", "recipe must be a known name, got '../x'"),
    ],
)
def test_names_of_the_main_job_are_known(flag, text, tmp_path, capsys):
    argv = ["--output_dir", str(tmp_path / "o"), flag, "../x"]
    assert main_imagenet.main(argv) == 2
    assert text in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
