"""Memory, disk and time of a run: told before the start, and refused where they are missing."""

from __future__ import annotations

import errno
import logging
import math
import subprocess
import time
from pathlib import Path

import pytest
import torch

import verify_logits
from common import machine
from common.errors import InputError, RunError
from common.machine import available_memory, free_disk, in_gb
from main_imagenet import main
from pipeline import needs
from quant import QuantizationManager, UnitStates
from quant.arithmetic.spec import QuantSpec
from quant.network import cached
from quant.network.cached import ActivationCache, choose_cache
from quant.network.chain import Task
from quant.network.forward import run_unit
from quant.network.model import FLOAT_SPEC
from quant.network.needs import cached_bytes, kept_bytes, passing_bytes
from quant.reconstruction.forecast import in_words, log_forecast, step_seconds
from quant.reconstruction.settings import ReconstructionSettings
from tests.conftest import GRID, captured_once, chain_of, make_tiny_images

SMALL = ["--quant_method", "rtn", "--init_wmode", "minmax", "--init_amode", "minmax", "--no-plots"]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB, where the machine lets us mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_memory_is_that_of_the_machine_or_of_its_container(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    alone = available_memory()
    assert 0 < alone < 1e15
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("900\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 400\n")
    assert available_memory() == pytest.approx(alone, rel=0.2)
    (tmp_path / "memory.max").write_text("1000\n")
    assert available_memory() == 500


def test_the_disk_of_a_folder_that_is_not_there_yet(small_disk):
    assert 0.9 * 2**20 <= free_disk(small_disk / "not" / "yet") <= 2**20
    assert [in_gb(size) for size in (5e5, 525e6, 2.34e10)] == ["0.5 MB", "525 MB", "23.4 GB"]


@pytest.mark.parametrize("place", ["memory", "disk"])
def test_joined_batches_are_the_whole_wherever_they_are(place, tmp_path):
    cache = choose_cache(place, 1.0, tmp_path)
    whole = torch.randn(10, 3, 4, 4).to(memory_format=torch.channels_last)
    found = cache.joined(whole.split(4), torch.empty(10, 1))
    assert torch.equal(found, whole)
    assert cache.folder == (tmp_path if place == "disk" else None)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="10 rows in all, got 8"):
        cache.joined(whole[:8].split(4), torch.empty(10, 1))


def test_activations_go_to_the_disk_where_they_take_more_than_half_the_memory(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(cached, "available_memory", lambda: 1000.0)
    assert choose_cache("auto", 500, tmp_path) == ActivationCache()
    assert choose_cache("auto", 501, tmp_path) == ActivationCache(tmp_path)
    monkeypatch.setattr(cached, "free_disk", lambda _: 2e9)
    with pytest.raises(InputError, match=r"must have 3 GB free for cached activations, got 2 GB"):
        choose_cache("auto", 3e9, tmp_path)


def test_a_disk_that_is_full_is_one_line(small_disk):
    with pytest.raises(RunError, match=r"must have 8 MB free for cached activations, got 1\.05 MB"):
        ActivationCache(small_disk).joined([torch.zeros(2, 1_000_000)], torch.empty(2, 1))
    assert not list(small_disk.iterdir())


@pytest.mark.parametrize("method", ["rtn", "qdrop", "gpfq"])
def test_the_model_is_the_same_with_activations_on_the_disk(
    method, tiny_network, tiny_images, tmp_path
):
    settings = {"n_bits_w": 3, "n_bits_a": 3, "num_samples": 48}
    settings |= {"iters_w": 20, "lr_round": 0.15} if method == "qdrop" else {}
    states = []
    for place in ("memory", "disk"):
        chosen = QuantizationManager().get_quantization_method(
            method, cache_activations=place, **settings
        )
        model = chosen.quantize_model(tiny_network, None, [tiny_images], cache_dir=tmp_path)
        states.append(model.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_cached_bytes_are_those_of_the_largest_pair_of_input_and_output(tiny_network, tiny_images):
    model = chain_of(tiny_network, FLOAT_SPEC)
    values, sizes = tiny_images[:4], []
    for unit in model.units:
        output = run_unit(unit, values, torch.device("cpu"))
        sizes.append(2 * 4 * (values[0].numel() + output[0].numel()))
        values = output
    assert cached_bytes(model, 7) == 7 * max(sizes)


def test_passing_bytes_count_what_is_alive_together():
    class Toy(torch.nn.Module):
        """Values per image: 48, 160 behind ``wide`` and its ReLU, 32 behind ``narrow``, 5."""

        def __init__(self):
            super().__init__()
            self.wide, self.narrow = torch.nn.Conv2d(3, 10, 1), torch.nn.Conv2d(10, 2, 1)
            self.head = torch.nn.Linear(32, 5)

        def forward(self, x):
            return self.head(self.narrow(self.wide(x).relu()).flatten(1))

    model = chain_of(Toy().eval(), QuantSpec(32, 32), size=4)
    assert passing_bytes(model, 300) == 4 * 256 * (160 + 160)
    assert passing_bytes(model, 3) == 4 * 3 * (160 + 160)


def test_the_forecast_is_near_the_time_of_the_steps_and_changes_nothing(
    tiny_network, tiny_images, caplog, monkeypatch
):
    monkeypatch.setattr("quant.reconstruction.forecast.MANY_STEPS", 100)
    chains = [chain_of(tiny_network, spec) for spec in (QuantSpec(4, 4), FLOAT_SPEC)]
    task = Task(*chains, captured_once(tiny_network, tiny_images), tiny_images)
    before = {key: value.clone() for key, value in task.model.state_dict().items()}
    random = torch.get_rng_state()
    seconds = step_seconds(
        task, ReconstructionSettings(batch_size_recon=16), range(len(task.model.units))
    )
    assert all(torch.equal(value, before[key]) for key, value in task.model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    method = QuantizationManager().get_quantization_method(
        "adaround", iters_w=100, lr_round=0.03, batch_size_recon=16
    )
    start = time.perf_counter()
    with caplog.at_level(logging.INFO):
        method.quantize_model(tiny_network, None, [tiny_images])
    taken = time.perf_counter() - start
    assert 0.1 * taken < 100 * seconds < 10 * taken
    assert "plan: 100 steps for each of" in caplog.text


def test_the_forecast_leaves_out_what_is_stored_and_never_fails_the_run(
    tiny_network, tiny_images, tmp_path, caplog, monkeypatch
):
    chains = [chain_of(tiny_network, spec) for spec in (QuantSpec(4, 4), FLOAT_SPEC)]
    states = UnitStates(tmp_path, {})
    states.open(False)
    for index in (0, 2):
        (tmp_path / f"unit_{index:03d}.pt").touch()
    task = Task(*chains, captured_once(tiny_network, tiny_images), tiny_images, states=states)
    settings = ReconstructionSettings(batch_size_recon=8, iters_w=600, lr_round=0.01)
    with caplog.at_level(logging.INFO):
        log_forecast(task, settings)
    assert f"600 steps for each of {len(task.model.units) - 2} units" in caplog.text
    caplog.clear()

    def fail(*_: object) -> None:
        raise RunError("loss must be finite")

    monkeypatch.setattr("quant.reconstruction.forecast.UnitStep.check", fail)
    log_forecast(task, settings)
    assert not caplog.text


@pytest.mark.parametrize("place", ["auto", "memory"])
def test_lapq_keeps_all_units_in_memory_and_says_so(place, tiny_network, tiny_images, caplog):
    few = {"p_steps": 1, "powell_maxiter": 0, "gradient_steps": 0, "num_samples": 8}
    make = QuantizationManager().get_quantization_method
    with caplog.at_level(logging.INFO):
        make("lapq", cache_activations=place, **few).quantize_model(
            tiny_network, None, [tiny_images]
        )
    told = in_gb(kept_bytes(chain_of(tiny_network, FLOAT_SPEC), 8))
    assert f"cached activations take up to {told} of memory" in caplog.text
    with pytest.raises(InputError, match="must be left out for lapq, which keeps the activations"):
        make("lapq", cache_activations="disk", **few).quantize_model(
            tiny_network, None, [tiny_images]
        )


def test_kept_bytes_are_the_inputs_of_all_units_and_the_values_in_the_largest(tiny_network):
    model = chain_of(tiny_network, FLOAT_SPEC)
    values, total = make_tiny_images()[:2], 0
    for unit in model.units:
        total += values[0].numel()
        values = run_unit(unit, values, torch.device("cpu"))
    assert kept_bytes(model, 3) == 3 * 4 * total + passing_bytes(model, 3)


def test_durations_in_words():
    found = [in_words(seconds) for seconds in (0.25, 61, 600, 40_000)]
    assert found == ["0.25 s", "61 s", "10 minutes", "11.1 hours"]


def test_the_logits_of_a_default_imagenet_run_are_those_of_the_selected_correction(
    tmp_path, monkeypatch, capsys
):
    assert needs.logits_bytes(50_000, 1000, ["csv"], 45) / 47 == pytest.approx(530e6)
    monkeypatch.setattr(needs, "MOST_RESULTS", 100_000)
    assert main([*SMALL, *GRID, "--num_samples", "64", "--output_dir", str(tmp_path)]) == 0
    error = capsys.readouterr().err
    assert "save_results: selected, because the logits of all 5 corrections would take" in error
    assert len(list((tmp_path / "rtn").glob("results_*"))) <= 1


def test_the_size_of_the_results_is_told_and_true(tmp_path, capsys):
    assert main([*SMALL, *GRID, "--num_samples", "64", "--output_dir", str(tmp_path)]) == 0
    files = {
        p.stat().st_ino: p.stat().st_size for p in tmp_path.rglob("*.csv") if "logits" in p.name
    }
    folders = len(list((tmp_path / "rtn").glob("results_*")))
    told = needs.logits_bytes(500, 10, ["csv"], folders)
    assert sum(files.values()) == pytest.approx(told, rel=0.2)
    assert (
        f"plan: results take about {in_gb(told + needs.OTHER_BYTES)} of disk"
        in capsys.readouterr().err
    )


def test_a_disk_too_small_for_the_results_is_refused_before_the_start(small_disk, capsys):
    output = small_disk / "out"
    assert main([*SMALL, *GRID, "--output_dir", str(output)]) == 2
    error = capsys.readouterr().err
    assert "free for the results, got 1.05 MB (--save_results selected takes less)" in error
    assert not output.exists()
    assert main([*SMALL, *GRID, "--dry_run", "--output_dir", str(output)]) == 2


def test_a_disk_that_fills_leaves_what_is_whole(small_disk, capsys, monkeypatch):
    monkeypatch.setattr(needs, "free_disk", lambda _: math.inf)
    flags = [*SMALL, "--num_samples", "64", "--output_dir", str(small_disk)]
    assert main([*flags, "--log_dir", str(small_disk.parent / "board")]) == 3
    captured = capsys.readouterr()
    assert "No space left on device" in captured.err + captured.out
    left = [path for path in small_disk.rglob("*") if path.is_file()]
    assert not [path for path in left if path.name.endswith((".part", ".tmp"))]
    whole = {path.parent for path in left if path.name.endswith("_metadata.csv")}
    assert whole
    for folder in whole:
        assert verify_logits.main(["--csv-dir", str(folder)]) == 0


def test_errors_of_the_disk_other_than_its_size_stay_what_they_are(tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("os.posix_fallocate", refuse)
    with pytest.raises(OSError, match="Permission denied"):
        ActivationCache(Path(tmp_path)).joined([torch.zeros(2, 3)], torch.empty(2, 1))
