"""Interrupted runs continue with the next unit and end in the same bytes."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from common.errors import InputError, RunError
from common.sealed import read_record
from main_imagenet import main
from quant import QuantizationManager, UnitStates
from quant.network.chain import UnitData
from quant.reconstruction.engine import reconstruct_unit
from quant.reconstruction.settings import ReconstructionSettings
from quant.reconstruction.step import UnitStep
from tests.conftest import PROJECT, RANGES
from tests.script_process import ScriptProcess

pytestmark = pytest.mark.usefixtures("ranges_searched_once")
QUICK = {"iters_w": 15, "lr_round": 0.2, "batch_size_recon": 16}
COMMON = ["--num_samples", "64", "--correction_samples", "100", "--alpha", "0.4"]
COMMON += ["--num_clusters", "4", "--pca_dim", "2", *RANGES, "--no-plots"]
FLAGS = ["--quant_method", "qdrop", "--iters_w", "30", "--lr_round", "0.1", *COMMON]


class StopHere(Exception):
    pass


def quantized(network, images, states, stop_after=None, seen=None):
    def on_unit(report):
        if seen is not None:
            seen.append(report)
        if report.index == stop_after:
            raise StopHere

    method = QuantizationManager().get_quantization_method("qdrop", **QUICK)
    return method.quantize_model(network, None, [images], on_unit, states).state_dict()


@pytest.mark.parametrize("last", [0, 1, 2])
def test_resumed_after_any_unit_gives_the_same_bits(tiny_network, tiny_images, tmp_path, last):
    whole_reports, reports = [], []
    whole = quantized(tiny_network, tiny_images, None, seen=whole_reports)
    states = UnitStates(tmp_path / "state", {"seed": 1})
    states.open(resume=False)
    with pytest.raises(StopHere):
        quantized(tiny_network, tiny_images, states, stop_after=last)
    assert len(list(states.folder.glob("unit_*.pt"))) == last + 1
    states.require_same_settings()
    states.open(resume=True)
    resumed = quantized(tiny_network, tiny_images, states, seen=reports)
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    assert [(r.name, r.loss, r.flipped) for r in reports] == [
        (r.name, r.loss, r.flipped) for r in whole_reports
    ]


def test_a_run_that_is_not_resumed_forgets_the_stored_units(tiny_network, tiny_images, tmp_path):
    states = UnitStates(tmp_path / "state", {})
    states.open(resume=False)
    quantized(tiny_network, tiny_images, states)
    states.open(resume=False)
    assert not list(states.folder.glob("unit_*.pt"))


def test_units_of_unknown_settings_are_not_taken(tiny_network, tiny_images, tmp_path):
    """What a kill in the middle of forgetting leaves behind."""
    states = UnitStates(tmp_path / "state", {})
    states.open(resume=False)
    quantized(tiny_network, tiny_images, states)
    (states.folder / "settings.json").unlink()
    states.require_same_settings()
    states.open(resume=True)
    assert not list(states.folder.glob("unit_*.pt"))


def test_the_first_setting_that_differs_is_named(tmp_path):
    UnitStates(tmp_path, {"arch": "a", "n_bits_w": 4, "lr": 1e-3}).open(resume=False)
    UnitStates(tmp_path, {"arch": "a", "n_bits_w": 4, "lr": 1e-3}).require_same_settings()
    with pytest.raises(InputError, match=r"n_bits_w must be 4 as in the run to resume, got 2"):
        UnitStates(tmp_path, {"arch": "a", "n_bits_w": 2, "lr": 1.0}).require_same_settings()
    with pytest.raises(InputError, match=r"lr must be 0\.001 as in the run to resume, got None"):
        UnitStates(tmp_path, {"arch": "a", "n_bits_w": 4}).require_same_settings()


@pytest.mark.parametrize("damage", ["cut", "flipped", "another unit", "other settings", "no entry"])
def test_a_unit_that_cannot_be_believed_is_made_anew(
    tiny_network, tiny_images, tmp_path, damage, caplog
):
    states = UnitStates(tmp_path / "state", {"seed": 1})
    states.open(resume=False)
    whole = quantized(tiny_network, tiny_images, states)
    path = states.folder / "unit_001.pt"
    content = path.read_bytes()
    if damage == "cut":
        path.write_bytes(content[:-50])
    elif damage == "flipped":
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    elif damage == "another unit":
        path.write_bytes((states.folder / "unit_002.pt").read_bytes())
    elif damage == "other settings":
        torch.save({**torch.load(path), "made_from": "another"}, path)
    else:
        torch.save([1], path)
    resumed = quantized(tiny_network, tiny_images, states)
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert warnings[0].startswith(f"{path} is damaged or of another origin and is made anew: ")


def test_a_unit_of_an_earlier_version_is_taken(tiny_network, tiny_images, tmp_path, caplog):
    states = UnitStates(tmp_path / "state", {"seed": 1})
    states.open(resume=False)
    quantized(tiny_network, tiny_images, states)
    for path in states.folder.glob("unit_*.pt"):
        content = torch.load(path)
        del content["made_from"]
        torch.save(content, path)
    (states.folder / "settings.json").write_text('{"seed": 1}')
    (states.folder / ".written.json").unlink()
    states.require_same_settings()
    states.open(resume=True)
    with caplog.at_level(logging.INFO):
        quantized(tiny_network, tiny_images, states)
    assert caplog.text.count("taken from the earlier run") == 4
    states.open(resume=False)
    assert not list(states.folder.glob("unit_*.pt"))


@pytest.mark.parametrize(
    "text", ["{", "[1]", "{}", '{"seed": 2, "sha256_of_this_record": "0"}', "[" * 9999]
)
def test_damaged_settings_are_not_believed(tiny_network, tiny_images, tmp_path, text, caplog):
    states = UnitStates(tmp_path / "state", {"seed": 1})
    states.open(resume=False)
    quantized(tiny_network, tiny_images, states)
    (states.folder / "settings.json").write_text(text)
    states.require_same_settings()
    assert "settings.json is damaged or of another origin and is made anew" in caplog.text
    states.open(resume=True)
    assert not list(states.folder.glob("unit_*.pt"))


def test_files_of_the_user_stay_among_the_states(tiny_network, tiny_images, tmp_path):
    states = UnitStates(tmp_path / "state", {})
    states.open(resume=False)
    quantized(tiny_network, tiny_images, states)
    (states.folder / "notes.txt").write_text("mine")
    (states.folder / "unit_007.pt").write_text("mine")
    states.open(resume=False)
    names = sorted(path.name for path in states.folder.iterdir())
    assert names == [".written.json", "notes.txt", "settings.json", "unit_007.pt"]


def csv_bytes(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*.csv"))}


def test_the_command_line_resumes_only_the_same_run(tmp_path, capsys):
    first = [*FLAGS, "--output_dir", str(tmp_path / "a")]
    assert main(first) == 0
    before = csv_bytes(tmp_path / "a")
    capsys.readouterr()
    assert main([*first, "--resume", "--weight", "0.5"]) == 2
    error = capsys.readouterr().err.strip().split("\n")[-1]
    assert error.startswith("error: weight must be 0.01 as in the run to resume, got 0.5")
    assert csv_bytes(tmp_path / "a") == before
    assert next((tmp_path / "a").glob("*/run.json")).exists()
    assert main([*first, "--resume", "--keep_cpu"]) == 0
    units = [line for line in capsys.readouterr().err.split("\n") if "INFO unit " in line]
    assert len(units) == 5
    assert all(line.endswith("s, taken from the earlier run") for line in units)
    assert csv_bytes(tmp_path / "a") == before
    assert main([*FLAGS, "--output_dir", str(tmp_path / "b"), "--resume"]) == 0
    folder = next((tmp_path / "b").glob("*/run_*")) / "state"
    line = f"INFO nothing to resume in {folder}: starting from the beginning\n"
    assert line in capsys.readouterr().err
    assert csv_bytes(tmp_path / "b") == before


@pytest.mark.slow
def test_killed_in_three_different_units_it_ends_in_the_same_bytes(tmp_path):
    """SIGKILL while units 1, 2 and 3 are under way; the run goes on each time."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def command(output):
        flags = [*FLAGS, "--iters_w", "600", "--output_dir", str(output)]
        return [sys.executable, str(PROJECT / "main_imagenet.py"), *flags]

    subprocess.run(command(tmp_path / "whole"), check=True, env=environment, capture_output=True)
    for unit in (1, 2, 3):
        flags = {"stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL, "text": True}
        run = [*command(tmp_path / "killed"), "--resume"]
        with subprocess.Popen(run, env=environment, **flags) as process:
            assert process.stderr is not None
            for line in process.stderr:
                if f"INFO unit {unit - 1} " in line:
                    break
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
        stored = len(list((tmp_path / "killed").rglob("state/unit_*.pt")))
        assert stored == unit
    last = [*command(tmp_path / "killed"), "--resume"]
    subprocess.run(last, check=True, env=environment, capture_output=True)
    whole = csv_bytes(tmp_path / "whole")
    assert csv_bytes(tmp_path / "killed") == whole
    assert len(whole) > 5


def test_killed_in_the_distillation_it_ends_in_the_same_bytes(tmp_path, capsys):
    flags = ["--quant_method", "rtn", "--distill_steps", "40", "--distill_batch", "8", *COMMON]
    assert main([*flags, "--output_dir", str(tmp_path / "whole")]) == 0
    flags += ["--output_dir", str(tmp_path / "killed"), "--resume"]
    process = ScriptProcess("main_imagenet", flags, tmp_path / "streams")
    while not list(tmp_path.glob("killed/*/run_*/state/distillation.pt")):
        assert process.wait(0.01) is None, process.err.read_text()
    process.kill()
    assert process.wait() == -signal.SIGKILL
    capsys.readouterr()
    assert main(flags) == 0
    (steps,) = re.findall(
        r"distillation: (\d+) steps taken from the earlier run", capsys.readouterr().err
    )
    assert 0 < int(steps) < 40
    ends = ("*.csv", "*/run_*/quantized_model.pt")
    whole, killed = (
        {str(p.relative_to(root)): p.read_bytes() for end in ends for p in root.rglob(end)}
        for root in (tmp_path / "whole", tmp_path / "killed")
    )
    assert whole == killed and len(whole) > 5


def test_a_loss_that_is_not_finite_stops_at_once_with_unit_and_iteration(tiny_network, tiny_images):
    method = QuantizationManager().get_quantization_method("adaround", **QUICK)
    text = r"loss of unit 1 first must be finite, got .* at iteration 3;"
    with pytest.raises(RunError, match=text), poisoned_target():
        method.quantize_model(tiny_network, None, [tiny_images])


def poisoned_target():
    """Make the target of unit 1 infinite from the third step on."""
    seen = []
    original = UnitStep.run

    def run(self, step):
        seen.append(self.data.index)
        if self.data.index == 1 and seen.count(1) == 3:
            self.data.target.fill_(torch.inf)
        original(self, step)

    return patch.object(UnitStep, "run", run)


def test_a_failed_run_ends_in_status_1_with_one_line_and_keeps_the_finished_units(tmp_path, capsys):
    with poisoned_target():
        assert main([*FLAGS, "--output_dir", str(tmp_path)]) == 1
    lines = capsys.readouterr().err.strip().split("\n")
    assert lines[-1].startswith("error: loss of unit 1 layer1.0 must be finite")
    assert len(list(tmp_path.rglob("state/unit_*.pt"))) == 1
    assert not list(tmp_path.rglob("run.json"))


def test_out_of_gpu_memory_names_what_helps(tiny_network, tiny_images, monkeypatch, tmp_path):
    from quant.reconstruction import engine as reconstruction

    def full(data, *arguments):
        if data.index == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore")

    monkeypatch.setattr(reconstruction, "reconstruct_unit", full)
    states = UnitStates(tmp_path / "state", {})
    states.open(resume=False)
    with pytest.raises(
        RunError, match="--resume, which keeps the finished units, and --keep_cpu, or start again"
    ) as caught:
        quantized(tiny_network, tiny_images, states)
    assert "\n" not in str(caught.value)
    assert len(list(states.folder.glob("unit_*.pt"))) == 2


def test_settings_are_stored_as_json(tmp_path):
    states = UnitStates(tmp_path, {"a": 0.1, "b": None, "c": True})
    states.open(resume=False)
    assert read_record(tmp_path / "settings.json") == states.settings


def test_zero_iterations_need_no_step(tiny_network, tiny_images):
    data = UnitData(0, "x", tiny_network.stem, *(tiny_images,) * 3, tiny_images.device)
    assert reconstruct_unit(data, ReconstructionSettings(iters_w=0)) is None
