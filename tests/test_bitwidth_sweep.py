"""Post-training quantized models at random bits: the bank, the knapsack, the files."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from common.errors import InputError
from common.marks import MARK
from main_imagenet import main
from pipeline.bitwidth_stage import _Prefix
from quant import QuantizationManager
from quant.bitwidth.__main__ import main as replot
from quant.bitwidth.assignments import (
    get_average_bitwidth,
    quantized_layers,
    set_configuration,
    stream,
)
from quant.bitwidth.banks import (
    BankRequest,
    build_sweep,
    choose_assignment,
    draw_with_average,
    fixed_layers,
    input_quantizers,
    method_runner,
)
from quant.bitwidth.report import read_table
from quant.bitwidth.statistics import find_knee
from quant.network.calibration import collect_calibration
from quant.network.capture import capture
from quant.network.model import activation_quantizers, quant_layers
from tests.conftest import QUICK, TAG, TinyResNet, settle_norms

pytestmark = pytest.mark.usefixtures("ranges_searched_once")
OPTIONS = (2, 4, 8)


@pytest.fixture
def tiny():
    torch.manual_seed(0)
    network = TinyResNet().eval()
    settle_norms(network)
    return network


@pytest.fixture
def calibration():
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(32, 3, 16, 16, generator=generator), torch.zeros(32, dtype=torch.int64))]


def quantize(network, calibration, **settings):
    method = QuantizationManager().get_quantization_method("rtn", num_samples=32, **settings)
    return method, method.quantize_model(network, None, calibration)


def sweep(network, calibration, bank="rtn", act="fixed", **settings):
    method, quantized = quantize(network, calibration, **settings)
    network = capture(network, collect_calibration(calibration, 8)[0])
    run = method_runner(method, network, lambda: calibration)
    request = BankRequest(OPTIONS, bank, act, "mse", run)
    return quantized, build_sweep(quantized, request)


def test_stem_and_head_are_fixed(tiny, calibration):
    _, quantized = quantize(tiny, calibration, n_bits_w=4, n_bits_a=4)
    names = list(quant_layers(quantized))
    assert fixed_layers(quantized) == {names[0], names[-1]}
    _, quantized = quantize(tiny, calibration, n_bits_w=8, n_bits_a=4)  # the number does not tell
    assert fixed_layers(quantized) == {names[0], names[-1]}
    _, quantized = quantize(tiny, calibration, n_bits_w=4, disable_8bit_head_stem=True)
    assert fixed_layers(quantized) == set()


@pytest.mark.parametrize("bank", ["rtn", "uniform_runs"])
def test_a_uniform_assignment_is_the_method_at_those_bits(tiny, calibration, bank):
    """Weights of the bank at b bits are those of round-to-nearest at b bits."""
    quantized, model = sweep(tiny, calibration, bank, n_bits_w=4, n_bits_a=32)
    before = {k: v.clone() for k, v in quantized.state_dict().items()}
    images = calibration[0][0]
    for bits in OPTIONS:
        set_configuration(model, bits)
        _, direct = quantize(tiny, calibration, n_bits_w=bits, n_bits_a=32)
        assert torch.equal(model(images), direct(images))
        assert get_average_bitwidth(model, "params") == bits
    for key, value in quantized.state_dict().items():
        assert torch.equal(value, before[key])


def test_layers_change_alone(tiny, calibration):
    _, model = sweep(tiny, calibration, n_bits_w=4, n_bits_a=8)
    layers = quantized_layers(model)
    set_configuration(model, 8)
    codes = [layer.module.codes for _, layer in layers]
    layers[1][1].set_bitwidth(2)
    assert [layer.module.codes is old for (_, layer), old in zip(layers, codes, strict=True)] == [
        number != 1 for number in range(len(layers))
    ]
    assert int(layers[1][1].module.codes.max()) <= 3
    assert layers[1][1].curr_act_bitwidth == 8
    with pytest.raises(ValueError, match="got 3"):
        layers[0][1].set_bitwidth(3)


def test_every_layer_knows_the_quantizer_that_it_reads(tiny, calibration):
    _, quantized = quantize(tiny, calibration, n_bits_w=4, n_bits_a=4)
    readers = input_quantizers(quantized)
    assert list(readers) == list(quant_layers(quantized))
    known = activation_quantizers(quantized)
    seen: dict[str, torch.Tensor] = {}
    for name, part in known.items():
        part.register_forward_hook(lambda _m, _i, out, name=name: seen.__setitem__(name, out))
    inputs: dict[str, torch.Tensor] = {}
    for name, layer in quant_layers(quantized).items():
        layer.register_forward_pre_hook(lambda _m, x, name=name: inputs.__setitem__(name, x[0]))
    quantized(calibration[0][0])
    for layer, quantizer in readers.items():
        if quantizer is None:
            assert torch.equal(inputs[layer], calibration[0][0])
        elif inputs[layer].shape == seen[quantizer].shape:
            assert torch.equal(inputs[layer], seen[quantizer])
    assert sum(quantizer is None for quantizer in readers.values()) == 1


def test_activations_follow_the_weights_when_tied(tiny, calibration):
    _, model = sweep(tiny, calibration, act="tied", n_bits_w=4, n_bits_a=4)
    set_configuration(model, 2)
    assert model.readers
    assert all(model.quantizers[name].num_bits == 2 for name in model.readers)
    name, readers = next(iter(model.readers.items()))
    readers[0].set_bitwidth(8)
    assert model.quantizers[name].num_bits == 8
    assert get_average_bitwidth(model, which="act") > 2


def test_activations_in_float(tiny, calibration):
    _, model = sweep(tiny, calibration, act="fp", n_bits_w=4, n_bits_a=4)
    assert not any(part.quantized for part in model.quantizers.values())
    assert get_average_bitwidth(model, which="act") == 32


def test_a_network_of_ends_alone_has_nothing_to_sweep(calibration):
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(784, 5)
    ).eval()
    with pytest.raises(InputError, match="must have a layer whose bits may change"):
        sweep(network, calibration, n_bits_w=4)


def test_the_knapsack_is_exact():
    random = np.random.RandomState(0)
    for _ in range(20):
        sizes = random.randint(1, 50, 5).tolist()
        costs = [dict(zip(OPTIONS, sorted(random.rand(3))[::-1], strict=True)) for _ in range(5)]
        average = random.uniform(2, 8)
        feasible = [
            bits
            for bits in itertools.product(OPTIONS, repeat=5)
            if sum(b * s for b, s in zip(bits, sizes, strict=True)) <= average * sum(sizes) + 1e-9
        ]
        best = min(sum(c[b] for c, b in zip(costs, bits, strict=True)) for bits in feasible)
        chosen = choose_assignment(costs, sizes, average)
        assert tuple(chosen) in feasible
        assert sum(c[b] for c, b in zip(costs, chosen, strict=True)) == pytest.approx(best)
    with pytest.raises(InputError, match=r"bw_target_average must be at least 2, got 1\.5"):
        choose_assignment(costs, sizes, 1.5)


def test_random_assignments_of_an_average_cannot_be_raised():
    sizes = [5, 17, 40, 3, 90]
    drawn = [draw_with_average(OPTIONS, sizes, 4.0, stream(0, 4, n)) for n in range(50)]
    for bits in drawn:
        used = sum(b * s for b, s in zip(bits, sizes, strict=True))
        assert used <= 4 * sum(sizes)
        for layer, number in enumerate(bits):
            if number < 8:
                more = OPTIONS[OPTIONS.index(number) + 1] - number
                assert used + more * sizes[layer] > 4 * sum(sizes)
    assert len({tuple(bits) for bits in drawn}) > 5
    with pytest.raises(InputError, match="must be at least 2"):
        draw_with_average(OPTIONS, sizes, 1.0, stream(0, 4))


SWEEP = ["--bitwidth_sweep", "--bw_options", "8", "2", "4", "--bw_num_configs", "5"]
FOLDER = "bitwidth_sweep_digits_resnet_rtn_seed1005"


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("swept")
    flags = [*QUICK, "--output_dir", str(root), "--no-plots", *SWEEP]
    assert main([*flags, "--bw_target_average", "4"]) == 0
    return root / "rtn"


def test_a_sweep_leaves_its_files(swept):
    folder = swept / FOLDER
    rows = read_table(folder / "bitwidth_configs.csv")
    kinds = [row["kind"] for row in rows]
    assert kinds == ["random"] * 5 + ["anchor"] * 3 + ["reference"]
    anchors = {row["bits"].split("-")[0]: row for row in rows if row["kind"] == "anchor"}
    reference = rows[-1]["top1"]
    assert anchors["8"]["top1"] == pytest.approx(reference, abs=0.01)
    assert [anchors[b]["avg_params"] for b in "248"] == [2.0, 4.0, 8.0]
    assert anchors["4"]["relative_weight_memory"] == 0.5
    summary = json.loads((folder / "bitwidth_summary.json").read_text())
    knee = find_knee([(int(b), row["top1"]) for b, row in anchors.items()])
    assert summary["statistics"]["knee"] == dataclasses.asdict(knee)
    assert summary["statistics"]["full_precision"] == reference
    assert set(summary["statistics"]["correlations"]) == {"layers", "params", "macs"}
    assert sum(layer["fixed"] for layer in summary["layers"]) == 2
    assert (folder / "bitwidth_vs_accuracy.png").read_bytes().startswith(b"\x89PNG")


def test_the_sensitivity_lowers_one_layer_at_a_time(swept):
    with (swept / FOLDER / "bitwidth_sensitivity.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    summary = json.loads((swept / FOLDER / "bitwidth_summary.json").read_text())
    free = [layer["name"] for layer in summary["layers"] if not layer["fixed"]]
    assert [row["layer"] for row in rows[::3]] == free
    assert {row["top1_drop"] for row in rows if row["bits"] == "8"} == {"0.0"}
    low, high = (
        np.mean([float(row["kl_calibration"]) for row in rows if row["bits"] == bits])
        for bits in "28"
    )
    assert low > high
    (target,) = summary["targets"]
    assert target["assignment_average"] <= 4
    assert set(target["assignment"].values()) <= {2, 4, 8}
    assert target["uniform_bits"] == 4
    assert len(target["random_top1"]) == 20
    assert max(target["random_averages"]) <= 4


BW_FLAGS = {
    "bw_num_configs": ("3", 3),
    "bw_sampling": ("uniform", "uniform"),
    "bw_bank": ("uniform_runs", "uniform_runs (mixed assignments are not re-tuned)"),
    "bw_act": ("tied", "tied"),
    "bw_weighting": ("macs", "macs"),
    "bw_tolerance": ("0.2", 0.2),
    "bw_samples": ("100", 100),
    "bw_seed": ("77", 77),
}


def test_every_flag_of_a_sweep_changes_what_it_says(swept, tmp_path):
    flags = [part for name, (text, _) in BW_FLAGS.items() for part in (f"--{name}", text)]
    command = [*QUICK, "--output_dir", str(tmp_path), "--no-plots", *SWEEP, *flags]
    assert main([*command, "--bw_out", "mine", "--bw_sensitivity"]) == 0
    folder = tmp_path / "rtn" / "mine"
    summary = json.loads((folder / "bitwidth_summary.json").read_text())
    found = {f"bw_{key}": value for key, value in summary["settings"].items()}
    assert {name: found[name] for name in BW_FLAGS} == {n: v for n, (_, v) in BW_FLAGS.items()}
    assert summary["statistics"]["weighting"] == "macs"
    assert summary["statistics"]["knee"]["tolerance"] == 0.2
    assert (folder / "bitwidth_sensitivity.csv").is_file()
    assert "targets" not in summary
    rows = read_table(folder / "bitwidth_configs.csv")
    others = read_table(swept / FOLDER / "bitwidth_configs.csv")
    assert [row["kind"] for row in rows].count("random") == 3
    assert [r["bits"] for r in rows[:3]] != [r["bits"] for r in others[:3]]
    low = next(row for row in rows if row["kind"] == "anchor" and row["avg_layers"] == 2)
    assert low["relative_bitops"] == (2 / 8) ** 2  # activations follow the weights
    assert all(round(100 * row["top1"]) == pytest.approx(100 * row["top1"]) for row in rows)


def test_a_sweep_changes_nothing_else(swept, tmp_path):
    assert main([*QUICK, "--output_dir", str(tmp_path), "--no-plots"]) == 0
    mine = {p.relative_to(tmp_path / "rtn") for p in (tmp_path / "rtn").rglob("logits_*.csv")}
    assert mine
    for path in mine:
        assert (swept / path).read_bytes() == (tmp_path / "rtn" / path).read_bytes(), path
    model = f"run_{TAG}/quantized_model.pt"
    assert (swept / model).read_bytes() == (tmp_path / "rtn" / model).read_bytes()


def test_a_table_is_drawn_anew(swept, tmp_path, capsys):
    table = swept / FOLDER / "bitwidth_configs.csv"
    assert replot(["--from", str(table), "--out", str(tmp_path)]) == 0
    assert "trend: " in capsys.readouterr().out
    for name in ("bitwidth_configs.csv", "bitwidth_vs_accuracy.png", "bitwidth_summary.json"):
        assert (tmp_path / name).read_bytes() == (swept / FOLDER / name).read_bytes()
    assert replot(["--from", str(tmp_path / "none.csv")]) == 2
    assert "must be a table of --bitwidth_sweep" in capsys.readouterr().err
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
    assert replot(["--from", str(tmp_path / "bad.csv")]) == 2
    assert replot(["--from", str(table), "--tolerance", "2"]) == 2


def test_files_of_the_user_in_the_folder_of_a_sweep_stay(tmp_path, capsys):
    folder = tmp_path / "rtn" / "mine"
    folder.mkdir(parents=True)
    (folder / "bitwidth_summary.json").write_text("{}")
    flags = [*QUICK, "--output_dir", str(tmp_path), *SWEEP, "--bw_out", "mine"]
    wanted = "bitwidth_summary.json: must be a file that this suite wrote and nobody changed"
    for dry in (["--dry_run"], []):
        assert main([*flags, *dry]) == 2
        assert wanted in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "rtn").iterdir()] == ["mine"]
    assert (folder / "bitwidth_summary.json").read_text() == "{}"
    (tmp_path / "rtn" / "link").symlink_to(folder)
    assert main([*flags[:-1], "link"]) == 2
    assert "link: must be a folder or new, got a symbolic link (--f" in capsys.readouterr().err


def test_a_table_is_drawn_over_files_of_a_sweep_alone(swept, tmp_path, capsys):
    shutil.copytree(swept / FOLDER, tmp_path / "old")
    table = tmp_path / "old" / "bitwidth_configs.csv"
    assert replot(["--from", str(table)]) == 0
    (tmp_path / "old" / MARK).unlink()  # as in a folder of an earlier version
    assert replot(["--from", str(table)]) == 0
    figure = tmp_path / "bitwidth_vs_accuracy.png"
    figure.write_text("mine")
    assert replot(["--from", str(table), "--out", str(tmp_path)]) == 2
    wanted = f"error: {figure}: must be a file that this suite wrote"
    assert capsys.readouterr().err.startswith(wanted)
    assert figure.read_text() == "mine"
    assert replot(["--from", str(table), "--out", str(tmp_path), "--force"]) == 0


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--bw_options", "2"], "bw_options must be given with --bitwidth_sweep, got [2] alone"),
        ([*SWEEP, "--bw_options", "2", "9"], "bw_options must be 2..8, got 9"),
        ([*SWEEP, "--bw_options", "1"], "2..16 or 32, got 1"),
        ([*SWEEP, "--bw_num_configs", "0"], "bw_num_configs must be at least 1, got 0"),
        ([*SWEEP, "--bw_tolerance", "2"], "bw_tolerance must be from 0 to 1"),
        ([*SWEEP, "--bw_target_average", "1"], "bw_target_average must be from 2"),
        ([*SWEEP, "--bw_out", "../x"], "bw_out must be a plain name (no / or"),
        ([*SWEEP, "--bw_out", "x" * 101], "at most 100 bytes), got 'xxx"),
        ([*SWEEP, "--bw_out", "run.json"], "bw_out must be the name of a folder of its own, got"),
        ([*SWEEP, "--bw_out", "run_x"], "bw_out must be the name of a folder of its own, got"),
        ([*SWEEP, "--n_bits_w", "32"], "bitwidth_sweep must have quantized weights"),
    ],
)
def test_bad_sweeps_are_one_line(flags, text, tmp_path, capsys):
    assert main([*QUICK, "--output_dir", str(tmp_path), *flags]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert text in error
    assert not list(tmp_path.iterdir())


def test_units_in_front_of_a_changed_layer_run_once(tiny, calibration):
    _, model = sweep(tiny, calibration, n_bits_w=4, n_bits_a=8)
    set_configuration(model, 8)

    class Batches:
        batches = calibration

    prefix = _Prefix(model.model, Batches())
    last = len(model.model.units) - 1
    name, layer = quantized_layers(model)[-1]
    assert name.startswith(f"units.{last - 1}.")
    prefix.advance(last - 1)
    for bits in OPTIONS:
        layer.set_bitwidth(bits)
        assert np.array_equal(prefix.logits(), model(calibration[0][0]).numpy())
