"""Average bitwidths, draws, validation at random bitwidths, knee, and the figure."""

from __future__ import annotations

import logging
import math
import random
import warnings

import numpy as np
import pytest
import torch
from matplotlib import pyplot
from torch import nn

from any_precision.layers import LayerSpec, QuantConv2d
from any_precision.networks import AnyPrecisionResNet
from common.errors import InputError
from plots.bitwidth import plot_bitwidth_vs_accuracy
from quant.bitwidth import (
    bin_statistics,
    cost_of_configuration,
    draw_configuration,
    find_knee,
    get_average_bitwidth,
    interpretation,
    measure_macs,
    quantized_layers,
    validate_random_bitwidths,
)
from quant.bitwidth.assignments import (
    draw_configurations,
    get_configuration,
    require_options,
    set_configuration,
    stream,
)
from quant.bitwidth.statistics import bin_centre, correlations, statistics_lines, summarise
from quant.bitwidth.validation import Plan, validate

OPTIONS = (2, 4, 8)


def three_layers() -> nn.Sequential:
    """Weights 144, 4608, 36864 and multiply-adds 9216, 73728, 147456 for 8 x 8 images."""
    spec = LayerSpec(OPTIONS)
    return nn.Sequential(
        QuantConv2d(1, 16, 3, padding=1, spec=spec),
        QuantConv2d(16, 32, 3, stride=2, padding=1, spec=spec),
        QuantConv2d(32, 128, 3, stride=2, padding=1, spec=spec),
    )


def test_averages_and_costs_by_hand():
    network = three_layers()
    with pytest.raises(ValueError, match="macs must be measured first"):
        get_average_bitwidth(network, "macs")
    measure_macs(network, torch.zeros(1, 1, 8, 8))
    assert [layer.num_weights for _, layer in quantized_layers(network)] == [144, 4608, 36864]
    assert [layer.macs for _, layer in quantized_layers(network)] == [9216, 73728, 147456]
    set_configuration(network, [2, 4, 8])
    found = [get_average_bitwidth(network, name) for name in ("layers", "params", "macs")]
    assert [round(value, 4) for value in found] == [4.6667, 7.5363, 6.48]
    costs = cost_of_configuration(network)
    assert round(costs["relative_bitops"], 4) == 0.7225
    assert round(costs["relative_weight_memory"], 4) == 0.9420
    set_configuration(network, 4)
    assert {get_average_bitwidth(network, n) for n in ("layers", "params", "macs")} == {4.0}
    with pytest.raises(ValueError, match=r"bitwidth must be one of \[2, 4, 8\], got 3"):
        quantized_layers(network)[0][1].set_bitwidth(3)
    with pytest.raises(ValueError, match="must have 3 bitwidths, got 2"):
        set_configuration(network, [2, 4])


def test_weights_and_inputs_may_have_other_bits():
    network = three_layers()
    for _, layer in quantized_layers(network):
        layer.set_bitwidth(8, 2)
    assert get_average_bitwidth(network, which="weight") == 8.0
    assert get_average_bitwidth(network, which="act") == 2.0


def test_networks_without_bitwidths_have_no_average(caplog):
    plain = nn.Sequential(nn.Conv2d(1, 2, 3))
    assert get_average_bitwidth(plain) is None
    assert cost_of_configuration(plain)["layers"] is None

    class Foreign(nn.Module):
        def set_bitwidth(self, bits):
            raise NotImplementedError

    mixed = nn.Sequential(Foreign(), *three_layers())
    assert get_average_bitwidth(mixed) == 8.0
    assert "left out of the average: 0" in caplog.text
    with pytest.raises(ValueError, match="must have curr_bitwidth"):
        get_average_bitwidth(mixed, strict=True)
    with pytest.raises(InputError, match="weighting must be a known name"):
        get_average_bitwidth(mixed, "bytes")


def test_uniform_draws_are_uniform_and_repeat():
    drawn = draw_configuration(OPTIONS, 30_000, stream(1, 2))
    for option in OPTIONS:
        assert drawn.count(option) / 30_000 == pytest.approx(1 / 3, abs=0.01)
    assert draw_configuration(OPTIONS, 50, stream(1, 2, 3)) == draw_configuration(
        OPTIONS, 50, stream(1, 2, 3)
    )
    others = [stream(1, 2, 4), stream(1, 1, 3), stream(2, 2, 3)]
    known = draw_configuration(OPTIONS, 50, stream(1, 2, 3))
    assert all(draw_configuration(OPTIONS, 50, other) != known for other in others)


def test_spread_draws_reach_the_ends():
    drawn = draw_configurations(OPTIONS, 8, 8, stream(0, 4), "spread")
    averages = [sum(bits) / 8 for bits in drawn]
    assert min(averages) < 3.5
    assert max(averages) > 6.0
    assert set(draw_configuration((4,), 5, stream(0, 4), "spread")) == {4}
    low = draw_configuration((2, 8), 100_000, stream(0, 4), "spread", 0.0)
    assert low.count(8) / 100_000 == pytest.approx(math.exp(-4) / (1 + math.exp(-4)), abs=2e-3)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ([], "at least one"),
        ([2, 2], "must differ"),
        ([1], "2..16 or 32, got 1"),
        ([True], "True"),
        ([17], "17"),
    ],
)
def test_options_that_make_no_sense(options, text):
    with pytest.raises(InputError, match=text):
        require_options(options)


SEED_ROWS = [
    (0.8912, 0.2156, 12.45),
    (0.8654, 0.2387, 8.32),
    (0.9123, 0.1987, 18.76),
    (0.8876, 0.2245, 14.21),
]
SEED_LINES = """Validating with 4 random bitwidth configurations...
Config 1/4: Acc=0.8912, Loss=0.2156, Avg Bitwidth=12.45
Config 2/4: Acc=0.8654, Loss=0.2387, Avg Bitwidth=8.32
Config 3/4: Acc=0.9123, Loss=0.1987, Avg Bitwidth=18.76
Config 4/4: Acc=0.8876, Loss=0.2245, Avg Bitwidth=14.21

Random Bitwidths Validation Statistics:
  Accuracy - Mean: 0.8891, Min: 0.8654, Max: 0.9123, Std: 0.0166
  Loss - Mean: 0.2194, Min: 0.1987, Max: 0.2387, Std: 0.0145
  Bitwidth - Mean: 13.44, Min: 8.32, Max: 18.76, Std: 3.7447
  Correlation (bitwidth, accuracy) - Pearson: 0.9695, Spearman: 0.8000 (n=4)"""


class Given(nn.Module):
    """A model whose average bitwidth is given in advance."""

    macs = None
    num_weights = 1
    bitwidth_options = (8, 16, 32)

    def __init__(self, averages):
        super().__init__()
        self.averages, self.changes = list(averages), 0
        self.curr_bitwidth = self.curr_act_bitwidth = 32

    def set_bitwidth(self, bits, act=None):
        self.curr_bitwidth = self.averages[self.changes % len(self.averages)]
        self.changes += 1


def test_the_lines_are_those_of_the_specification(caplog):
    caplog.set_level(logging.INFO)
    rows = iter(SEED_ROWS)
    result = validate_random_bitwidths(
        Given([row[2] for row in SEED_ROWS]),
        None,
        None,
        None,
        4,
        rng=stream(0, 2),
        evaluate=lambda model: next(rows)[:2],
    )
    assert "\n".join(record.getMessage() for record in caplog.records) == SEED_LINES
    assert result["all_bitwidths"] == [row[2] for row in SEED_ROWS]
    assert (result["num_configs"], result["num_nonfinite"], result["anchors"]) == (4, 0, [])
    assert all(type(value) is float for value in result["all_accuracies"])


def evaluated(function, count=6, anchors=True, **more):
    network = three_layers()
    network.evaluations = []

    def evaluate(model):
        bits = list(get_configuration(model).values())
        model.evaluations.append(bits)
        return function(sum(bits) / 3), 0.5

    result = validate_random_bitwidths(
        network,
        None,
        None,
        None,
        count,
        rng=stream(3, 2),
        anchors=anchors,
        evaluate=evaluate,
        **more,
    )
    return network, result


def test_anchors_are_apart_from_the_statistics(caplog):
    caplog.set_level(logging.DEBUG)
    network, result = evaluated(lambda average: 0.5 + average / 20)
    assert len(network.evaluations) == 9
    assert [a["bitwidth"] for a in result["anchors"]] == [2, 4, 8]
    assert len(result["all_accuracies"]) == 6
    assert result["mean_acc"] == pytest.approx(np.mean(result["all_accuracies"]))
    assert result["corr_pearson"] == pytest.approx(1.0)
    assert (result["knee"]["bitwidth"], result["knee"]["source"]) == (8, "anchors")
    assert "Uniform configurations - 2-bit: 0.6000, 4-bit: 0.7000, 8-bit: 0.9000" in caplog.text
    assert "Knee - 8 bits (accuracy 0.9000, best 0.9000 at 8 bits, tolerance 0.0100)" in caplog.text
    assert "    Bitwidth " in caplog.text
    _, result = evaluated(lambda average: 0.5 + average / 20, anchors=False)
    assert result["knee"]["source"] == "bins"


def test_weightings_are_named_in_the_lines(caplog):
    caplog.set_level(logging.INFO)
    evaluated(lambda average: 0.5, weighting="params")
    assert "(params)" in caplog.text
    assert "n/a (all accuracies equal)" in caplog.text


def test_validation_leaves_everything_as_it_was():
    network = AnyPrecisionResNet("resnet8", 10, image_size=8).train()
    network.blocks[1].eval()
    layers = [layer for _, layer in quantized_layers(network)]
    layers[2].set_bitwidth(2, 4)

    def state():
        bits = [(layer.curr_bitwidth, layer.curr_act_bitwidth) for layer in layers]
        return bits, [part.training for part in network.modules()]

    before, torch_state = state(), torch.get_rng_state()
    numpy_state, python_state = np.random.get_state()[1].copy(), random.getstate()
    arguments = {"rng": stream(0, 2), "anchors": True}
    validate_random_bitwidths(
        network, None, None, None, 3, **arguments, evaluate=lambda model: (0.5, 1.0)
    )
    assert state() == before

    def broken(model):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        validate_random_bitwidths(network, None, None, None, 3, **arguments, evaluate=broken)
    assert state() == before
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)
    assert random.getstate() == python_state


def test_a_loader_is_evaluated_over_all_samples():
    network = three_layers()
    head = nn.Sequential(network, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 3))
    images, labels = torch.rand(10, 1, 8, 8), torch.arange(10) % 3
    batches = [(images[:7], labels[:7]), (images[7:], labels[7:])]
    loss = nn.functional.cross_entropy
    result = validate_random_bitwidths(
        head, batches, loss, torch.device("cpu"), 1, bitwidth_options=[4], rng=stream(0, 2)
    )
    with torch.no_grad():
        set_configuration(head, 4)
        logits = head.eval()(images)
    assert result["all_accuracies"] == [int((logits.argmax(1) == labels).sum()) / 10]
    assert result["all_losses"][0] == pytest.approx(float(loss(logits, labels)), rel=1e-5)


def test_configurations_without_finite_figures(caplog):
    rows = iter([(0.5, 1.0), (math.nan, 1.0), (0.7, math.inf), (0.9, 1.0)])
    result = validate_random_bitwidths(
        Given([1, 2, 3, 4]), None, None, None, 4, rng=stream(0, 2), evaluate=lambda m: next(rows)
    )
    assert result["num_nonfinite"] == 2
    assert result["mean_acc"] == pytest.approx(0.7)
    assert len(result["all_accuracies"]) == 4
    assert "2 configurations have NaN or infinite accuracy or loss" in caplog.text
    with pytest.raises(ValueError, match="must be finite for one configuration"):
        validate_random_bitwidths(
            Given([1]), None, None, None, 1, rng=stream(0, 2), evaluate=lambda m: (math.nan, 0)
        )


def test_validation_refuses_what_it_cannot_do():
    good = three_layers()
    with pytest.raises(InputError, match="got 0 and 3"):
        validate_random_bitwidths(good, None, None, None, 0, rng=stream(0, 2))
    with pytest.raises(InputError, match="got 4 and 0"):
        validate_random_bitwidths(nn.Linear(2, 2), None, None, None, rng=stream(0, 2))
    with pytest.raises(InputError, match="loader, loss and device"):
        validate_random_bitwidths(good, None, None, None, rng=stream(0, 2))


@pytest.mark.parametrize(
    ("points", "tolerance", "knee", "monotone"),
    [
        ([(8, 0.85), (16, 0.91), (32, 0.94)], 0.01, 32, True),
        ([(8, 0.85), (16, 0.92), (32, 0.92)], 0.01, 16, True),
        ([(8, 0.80), (16, 0.88), (32, 0.90)], 0.01, 32, True),
        ([(8, 0.80), (16, 0.88), (32, 0.90)], 0.02, 16, True),
        ([(2, 0.2986), (3, 0.9833), (4, 0.9875), (8, 0.9931)], 0.01, 3, True),
        ([(8, 0.92), (16, 0.85), (32, 0.92)], 0.01, 8, False),
    ],
)
def test_the_knee(points, tolerance, knee, monotone):
    found = find_knee(points[::-1], tolerance)
    assert (found.bitwidth, found.monotone) == (knee, monotone)
    assert found.best_accuracy == max(y for _, y in points)
    assert find_knee(points[:1]) is None
    assert find_knee([*points[:1], (4, math.nan)]) is None


def test_bins():
    bins = bin_statistics([8.2, 8.25, 8.3], [0.5, 0.6, 0.8])
    assert [(part.bitwidth, part.count) for part in bins] == [(8.2, 1), (8.3, 2)]
    assert [bin_centre(x) for x in (8.25, 8.35, 4.6667)] == [8.3, 8.4, 4.7]
    assert bins[1].std_acc == pytest.approx(0.1)


def test_correlations_against_scipy():
    from scipy.stats import pearsonr, spearmanr

    values = np.random.RandomState(0).rand(2, 20).round(1)  # with ties
    pearson, spearman, count = correlations(*values.tolist())
    assert (count, pearson) == (20, pytest.approx(pearsonr(*values)[0]))
    assert spearman == pytest.approx(spearmanr(*values)[0])
    assert correlations([1, 2], [1, 2]) == (None, None, 2)
    assert correlations([1, 1, 1], [1, 2, 3]) == (None, None, 3)


def example_result(function, count=9):
    def evaluate(model):
        return function(sum(get_configuration(model).values()) / 3), 0.5

    plan = Plan(num_configs=count, anchors=True)
    return validate(three_layers(), plan, evaluate, stream(3, 2)).statistics


def test_interpretation_follows_its_rules():
    rising = interpretation(example_result(lambda average: average / 10))
    assert rising == ["trend: higher bitwidth, higher accuracy", "plateau: none below the maximum"]
    falling = interpretation(example_result(lambda average: 0.9 - average / 20))
    assert falling[0] == "trend: higher bitwidth, lower accuracy"
    assert falling[1] == "plateau: from 2 bits on"
    assert falling[2].startswith("non-monotonic: 2 beats 4, 2 beats 8, 4 beats 8")
    flat = interpretation(example_result(lambda average: 0.9 + average / 1e4, 3))
    assert flat[0] == "(few points) trend: flat: robust across bitwidths"


WORKED = ([4.0, 4.04, 6, 6, 8, 8], [0.80, 0.82, 0.90, 0.88, 0.91, 0.93])


def test_one_configuration_of_a_bin_has_no_deviation():
    found = summarise([4, 4, 8], [0.5, 0.7, 0.9], [1.0] * 3, [], 0.1, 0.01)
    lines = [line.strip() for line in statistics_lines(found, "", verbose=True)]
    assert lines[-2:] == [
        "Bitwidth 4.0: Acc=0.6000±0.1000 (n=2)",
        "Bitwidth 8.0: Acc=0.9000 (n=1)",
    ]


def test_the_worked_example_of_the_figure():
    figure = plot_bitwidth_vs_accuracy(
        *WORKED,
        3,
        anchors=[(4, 0.8), (8, 0.93)],
        knee={"bitwidth": 6},
        reference=0.9931,
        images=500,
        weighting="params",
    )
    axes = figure.axes[0]
    line = next(part for part in axes.lines if part.get_label() == "Mean accuracy")
    assert line.get_xdata().tolist() == [4, 6, 8]
    assert line.get_ydata().tolist() == pytest.approx([0.81, 0.89, 0.92])
    labels = {text.get_text() for text in axes.get_legend().get_texts()}
    assert labels >= {"Individual configs", "Mean accuracy", "±1 std", "Min-max range"}
    assert labels >= {"Uniform configs", "Knee: 6 bits", "full precision 0.9931 ± 0.0037"}
    box = axes.texts[0].get_text()
    assert "Mean Acc: 0.8733 ± 0.0475" in box
    assert "Mean BW: 6.01 ± 1.62" in box
    assert "r = 0.95 (n = 6)" in box
    assert axes.get_title() == "Bitwidth vs Accuracy (Epoch 4)"
    assert axes.get_xlabel() == "Average Bitwidth (params-weighted)"


@pytest.mark.parametrize(
    ("x", "y", "box", "labels"),
    [
        ([], [], None, set()),
        ([math.nan], [0.5], None, set()),
        ([4], [0.6], "Mean Acc: 0.6000\nMean BW: 4.00", {"Mean: 0.6000"}),
        ([4, 4, 4], [0.5, 0.6, 0.7], "Mean BW: 4.00 ± 0.00", {"Mean: 0.6000", "±1 std"}),
        ([4, math.inf, 5], [0.5, 0.6, 0.7], "dropped: 1", {"Individual configs", "Mean accuracy"}),
        ([4, 5, 6], [0.5, 0.6, 0.7], "1 config per bin", {"Individual configs", "Mean accuracy"}),
        ([4, 8], [50.0, 60.0], "Mean Acc: 55.0000", {"Individual configs", "Mean accuracy"}),
    ],
)
def test_edge_cases_of_the_figure(x, y, box, labels):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = plot_bitwidth_vs_accuracy(x, y, None)
        figure.canvas.draw()
    axes = figure.axes[0]
    legend = axes.get_legend()
    assert {text.get_text() for text in legend.get_texts()} == labels if labels else legend is None
    assert (box in axes.texts[0].get_text()) if box else axes.texts[0].get_text() == "no data"
    assert axes.get_title() == "Bitwidth vs Accuracy"
    assert pyplot.get_fignums() == []


def test_the_figure_needs_pairs():
    with pytest.raises(ValueError, match="of one length, got 2 and 1"):
        plot_bitwidth_vs_accuracy([1, 2], [0.5], 0)
