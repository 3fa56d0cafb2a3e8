"""LAPQ: its starts, its joint search, its cached loss, and what it may look at."""

import logging
import math

import numpy as np
import pytest
import torch
from torch import nn

from common.errors import InputError, RunError
from quant import QuantizationManager, QuantModel, UnitStates
from quant.arithmetic.range_search import (
    Grid,
    Sample,
    full_qparams,
    quantization_error,
    search_qparams,
)
from quant.arithmetic.ranges import histogram
from quant.methods.lapq import search as step_search
from quant.methods.lapq.loss import LOSSES, CalibrationLoss, cross_entropy, squared_error
from quant.methods.lapq.method import parabola_vertex
from quant.methods.lapq.powell import minimise
from quant.network.model import activation_quantizers, quant_layers
from quant.network.states import LossRecord

pytestmark = pytest.mark.usefixtures("ranges_searched_once")
QUICK = {"p_steps": 2, "powell_maxfev": 40, "gradient_steps": 5}


def quantized(network, batches, on_scalar=None, states=None, **settings) -> QuantModel:
    method = QuantizationManager().get_quantization_method("lapq", **{**QUICK, **settings})
    return method.quantize_model(network, None, batches, on_scalar=on_scalar, states=states)


def calibration_loss(model: nn.Module, network: nn.Module, images: torch.Tensor) -> float:
    """The label-free loss, computed plainly."""
    with torch.no_grad():
        return -(network(images).softmax(1) * model(images).log_softmax(1)).sum(1).mean().item()


def same_bytes(one: QuantModel, other: QuantModel) -> bool:
    pair = one.state_dict(), other.state_dict()
    return all(torch.equal(value, pair[1][key]) for key, value in pair[0].items())


@pytest.mark.parametrize("size", [1, 3, 6])
def test_powell_finds_the_known_minimum_of_a_quadratic(size):
    random = np.random.RandomState(0)
    factor = random.normal(size=(size, size))
    matrix, centre = factor @ factor.T + np.eye(size), random.uniform(-0.3, 0.3, size)
    visited: dict[float, np.ndarray] = {}

    def objective(point: np.ndarray) -> float:
        value = float((point - centre) @ matrix @ (point - centre)) + 1.0
        visited[value] = point.copy()
        return value

    minimise(objective, size, maxiter=20, maxfev=None)
    assert min(visited) == pytest.approx(1.0, abs=1e-4)
    np.testing.assert_allclose(visited[min(visited)], centre, atol=0.02)


def test_powell_asks_no_more_than_it_may_and_stays_within_the_limit():
    asked: list[np.ndarray] = []

    def objective(point: np.ndarray) -> float:
        asked.append(point.copy())
        return -float(point.sum())

    minimise(objective, 3, maxiter=5, maxfev=25)
    assert len(asked) <= 25
    assert all(np.abs(point).max() <= 5 for point in asked)
    minimise(objective, 0, maxiter=5, maxfev=None)
    minimise(objective, 3, maxiter=0, maxfev=None)
    assert len(asked) <= 25


def test_the_vertex_of_a_parabola_and_where_there_is_none():
    norms = np.linspace(2, 4, 10)
    assert parabola_vertex(norms, 3 * (norms - 2.7) ** 2 + 1) == pytest.approx(2.7)
    assert parabola_vertex(norms, -3 * (norms - 2.7) ** 2) is None  # a maximum
    assert parabola_vertex(norms, (norms - 9) ** 2) is None  # beyond the norms
    assert parabola_vertex(norms[:2], [1.0, 2.0]) is None


@pytest.mark.parametrize("criterion", [cross_entropy, squared_error])
def test_the_loss_from_a_later_unit_is_the_whole_loss(tiny_network, criterion):
    images = torch.randn(150, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    model = quantized(tiny_network, [images], powell_maxiter=0)
    with torch.no_grad():
        targets = tiny_network(images)
    targets = targets.softmax(1) if criterion is cross_entropy else targets
    units = list(model.units)
    kept = CalibrationLoss(units, images, targets, criterion, images.device)
    assert kept(0) == pytest.approx(float(criterion(model(images), targets)) / 150, rel=1e-5)
    for first in (2, 1, 3, 2, 2):
        for layer in quant_layers(units[first]).values():
            layer.scale = layer.scale * 1.05
        anew = CalibrationLoss(units, images, targets, criterion, images.device)
        assert kept(first) == anew(0)


def test_the_loss_from_a_changed_module_is_the_whole_loss(tiny_network):
    images = torch.randn(150, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    model = quantized(tiny_network, [images], powell_maxiter=0)
    with torch.no_grad():
        targets = tiny_network(images).softmax(1)
    units = list(model.units)
    kept = CalibrationLoss(units, images, targets, cross_entropy, images.device)
    kept(0)
    modules = [
        (number, module)
        for number, unit in enumerate(units)
        for module in (*quant_layers(unit).values(), *activation_quantizers(unit).values())
    ]
    last = len(modules) - 1
    for picks in ([0], [0], [0, 1], [1], [2, 3], [3], [2], [last, 4], [last], [last], [1, last]):
        changed = [modules[pick] for pick in picks]
        for _, module in changed:
            module.scale = module.scale * 1.05
        anew = CalibrationLoss(units, images, targets, cross_entropy, images.device)
        first = min(number for number, _ in changed)
        assert kept(first, [module for _, module in changed]) == anew(0)


def scaled_modules(model: QuantModel) -> list:
    return [*quant_layers(model).values(), *activation_quantizers(model).values()]


@pytest.mark.parametrize(("n_bits_w", "n_bits_a"), [(8, 8), (8, 4), (4, 8), (4, 4)])
def test_the_ends_keep_the_ranges_of_the_start_at_any_bits(
    tiny_network, tiny_images, monkeypatch, n_bits_w, n_bits_a
):
    bits = {"n_bits_w": n_bits_w, "n_bits_a": n_bits_a}
    start = quantized(tiny_network, [tiny_images], **bits, powell_maxiter=0, gradient_steps=0)
    searches = []
    powell = step_search.StepSearch.powell
    monkeypatch.setattr(
        step_search.StepSearch,
        "powell",
        lambda self, start: searches.append(self) or powell(self, start),
    )
    found = quantized(tiny_network, [tiny_images], **bits)
    kept = [
        torch.equal(before.scale, after.scale)
        for before, after in zip(scaled_modules(start), scaled_modules(found), strict=True)
        if after.is_end
    ]
    assert kept == [True, True, True]
    tensors = searches[0].tensors.modules
    searched = [tensors[index] for index in searches[0].free]
    assert searched == [module for module in tensors if not module.is_end]


def test_stem_head_and_what_feeds_the_head_are_the_ends(tiny_network, tiny_images):
    model = quantized(tiny_network, [tiny_images], powell_maxiter=0, gradient_steps=0)
    layers, quantizers = quant_layers(model), activation_quantizers(model)
    assert [i for i, layer in enumerate(layers.values()) if layer.is_end] == [0, len(layers) - 1]
    assert [q.is_end for q in quantizers.values()] == [False] * (len(quantizers) - 1) + [True]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"n_bits_w": 2},
        {"asymmetric": False},
        {"channel_wise": False},
        {"bias_correction": False},
    ],
)
def test_the_joint_search_never_ends_above_its_start(tiny_network, tiny_images, settings):
    settings = {"n_bits_w": 3, "n_bits_a": 2, **settings}
    start = quantized(tiny_network, [tiny_images], powell_maxiter=0, **settings)
    end = quantized(tiny_network, [tiny_images], **settings)
    losses = [calibration_loss(model, tiny_network, tiny_images) for model in (start, end)]
    assert losses[1] < losses[0]


def test_the_start_is_the_best_of_all(tiny_network, tiny_images, caplog):
    with caplog.at_level(logging.INFO):
        model = quantized(
            tiny_network, [tiny_images], n_bits_w=2, p_steps=4, powell_maxiter=0, gradient_steps=0
        )
    lines = [r.getMessage() for r in caplog.records if r.getMessage().startswith("start p")]
    losses = [float(line.split()[-1]) for line in lines]
    assert 5 <= len(losses) <= 6 and "inf" in lines[-1]
    found = calibration_loss(model, tiny_network, tiny_images)
    assert found == pytest.approx(min(losses), rel=1e-4)


def test_the_steps_of_one_tensor_keep_their_ratios(tiny_network, tiny_images):
    """One factor per tensor: the joint search scales all channels of a weight alike."""
    start = quantized(tiny_network, [tiny_images], n_bits_w=3, n_bits_a=2, powell_maxiter=0)
    end = quantized(tiny_network, [tiny_images], n_bits_w=3, n_bits_a=2)
    moved = 0
    for before, after in zip(quant_layers(start).values(), quant_layers(end).values(), strict=True):
        ratio = after.scale / before.scale
        assert ratio.std() <= 1e-6 * ratio.mean()
        assert torch.equal(before.zero_point, after.zero_point)
        moved += bool((ratio - 1).abs().max() > 1e-6)
        assert before.bits != 8 or torch.equal(before.scale, after.scale)
    assert moved > 0


def test_symmetric_weights_have_the_middle_zero_point_and_asymmetric_ones_lose_less(tiny_network):
    weight = tiny_network.second.conv1.weight.detach() + 0.1
    sample = Sample(weight.flatten(1))
    symmetric, free = Grid(3, 3.0, symmetric=True), Grid(3, 3.0)
    pairs = [search_qparams(sample, grid) for grid in (symmetric, free)]
    assert (pairs[0][1] == 4).all()
    errors = [quantization_error(sample, *pair, free).sum() for pair in pairs]
    assert errors[1] < errors[0]
    low, high = sample.rows.amin(1), sample.rows.amax(1)
    scale, zero_point = full_qparams(sample, symmetric)
    torch.testing.assert_close(7 * scale, 2 * torch.maximum(high, -low))
    assert (zero_point == 4).all()


@pytest.mark.parametrize("norm", [1.0, 2.0, 4.0])
def test_a_histogram_has_the_range_of_its_values(norm):
    values = torch.randn(100_000, generator=torch.Generator().manual_seed(3))
    grid = Grid(4, norm, symmetric=True)
    exact, binned = Sample(values.reshape(1, -1)), histogram([values])
    costs = [
        float(quantization_error(exact, *search_qparams(sample, grid), grid))
        for sample in (exact, binned)
    ]
    assert costs[1] == pytest.approx(costs[0], rel=1e-3)


def test_labels_are_looked_at_only_when_asked(tiny_network, tiny_images, caplog):
    generator = torch.Generator().manual_seed(0)
    labels = [torch.randint(0, 5, (48,), generator=generator) for _ in range(2)]
    free = [quantized(tiny_network, [(tiny_images, label)]) for label in labels]
    assert same_bytes(*free) and "labels" not in caplog.text
    tied = [
        quantized(tiny_network, [(tiny_images, label)], lapq_loss="ce_labels") for label in labels
    ]
    assert not same_bytes(*tied)
    assert "labels of the calibration images are used" in caplog.text
    with pytest.raises(InputError, match="must have labels for lapq_loss ce_labels, got none"):
        quantized(tiny_network, [tiny_images], lapq_loss="ce_labels")


def test_a_resumed_search_computes_only_what_is_missing(
    tiny_network, tiny_images, tmp_path, monkeypatch
):
    """The run is cut before, between and after the two gradient descents.

    The record holds losses of starts, factors and loss of each descent, and Powell's losses.
    """
    computed: list[str] = []
    loss, descend = CalibrationLoss.__call__, step_search.descend
    monkeypatch.setattr(
        CalibrationLoss, "__call__", lambda *given: computed.append("loss") or loss(*given)
    )
    monkeypatch.setattr(
        step_search, "descend", lambda *given: computed.append("factors") or descend(*given)
    )
    record = tmp_path / "state" / "losses.txt"
    states = UnitStates(tmp_path / "state", {})
    states.open(resume=False)
    whole = quantized(tiny_network, [tiny_images], states=states)
    answers = record.read_text().splitlines(keepends=True)
    expected = ["factors" if " " in line else "loss" for line in answers]
    assert computed == expected and len(expected) > 20
    first = expected.index("factors")
    assert expected[first : first + 4] == ["factors", "loss"] * 2 and first == 3
    for later in (-2, 0, 1, 2, 9):
        kept = first + later
        record.write_text("".join(answers[:kept]) + answers[kept][:4])
        computed.clear()
        states.open(resume=True)
        resumed = quantized(tiny_network, [tiny_images], states=states)
        assert same_bytes(whole, resumed)
        assert computed == expected[kept:]
    states.open(resume=False)
    assert not record.exists()


@pytest.mark.parametrize("bits", [{"n_bits_w": 4}, {"n_bits_w": 3}])
def test_gradient_descent_never_ends_above_its_start(tiny_network, tiny_images, bits, caplog):
    settings = {"n_bits_a": 2, "powell_maxiter": 0, **bits}
    start = quantized(tiny_network, [tiny_images], gradient_steps=0, **settings)
    assert "gradient descent" not in caplog.text
    with caplog.at_level(logging.INFO):
        end = quantized(tiny_network, [tiny_images], gradient_steps=60, **settings)
    losses = [calibration_loss(model, tiny_network, tiny_images) for model in (start, end)]
    assert losses[1] < losses[0]
    lines = [r.getMessage() for r in caplog.records if "gradient descent" in r.getMessage()]
    assert len(lines) == 2  # all tensors; activations alone
    least = min(float(line.split()[-1]) for line in lines)
    assert losses[1] == pytest.approx(least, rel=1e-4)
    still = quantized(tiny_network, [tiny_images], gradient_lr=0, **settings)
    assert same_bytes(start, still)


def test_gradient_descent_that_leads_astray_is_dropped(tiny_network, tiny_images, monkeypatch):
    settings = {"n_bits_a": 2, "powell_maxiter": 0}
    start = quantized(tiny_network, [tiny_images], gradient_steps=0, **settings)
    end = quantized(tiny_network, [tiny_images], gradient_steps=3, gradient_lr=10, **settings)
    assert same_bytes(start, end)
    monkeypatch.setattr(step_search, "descend", lambda data, modules, *_: [math.nan] * len(modules))
    assert same_bytes(start, quantized(tiny_network, [tiny_images], **settings))


def record_of(path, count):
    record, values = LossRecord(path, "settings"), iter(range(count))
    return [record.next(lambda: float(next(values))) for _ in range(count)]


@pytest.mark.parametrize("damage", range(60))
def test_a_damaged_line_of_the_record_and_all_after_it_are_computed_anew(tmp_path, damage, caplog):
    path = tmp_path / "losses.txt"
    assert record_of(path, 5) == [0.0, 1.0, 2.0, 3.0, 4.0]
    content = bytearray(path.read_bytes())
    where = damage * len(content) // 60
    content[where] ^= 1 << damage % 7
    path.write_bytes(bytes(content))
    before = bytes(content)[:where].count(b"\n")
    record = LossRecord(path, "settings")
    assert record.known == [[float(index)] for index in range(before)]
    assert len([r for r in caplog.records if "losses.txt is damaged" in r.getMessage()]) <= 1
    assert path.read_text().count("\n") == before


def test_a_record_of_other_settings_is_not_believed(tmp_path):
    path = tmp_path / "losses.txt"
    record_of(path, 3)
    assert LossRecord(path, "others").known == []


def test_a_record_of_an_earlier_version_is_taken(tmp_path):
    path = tmp_path / "losses.txt"
    path.write_text("0x1p-3\n0x1p-1 0x1p+0\n0x1")
    assert LossRecord(path, "settings").known == [[0.125], [0.5, 1.0]]
    assert LossRecord(path, "settings").known == [[0.125], [0.5, 1.0]]
    path.write_text("0x1p-3\nnonsense\n0x1p-1\n")
    assert LossRecord(path, "settings").known == [[0.125]]


def test_a_loss_that_is_not_finite_stops_the_run(tiny_network, tiny_images, monkeypatch):
    monkeypatch.setitem(LOSSES, "ce", lambda logits, _: logits.sum() * math.nan)
    with pytest.raises(RunError, match="calibration loss must be finite, got nan"):
        quantized(tiny_network, [tiny_images])


def test_the_loss_curve_is_reported(tiny_network, tiny_images, caplog):
    seen: list[tuple[str, float, int]] = []
    with caplog.at_level(logging.INFO):
        report = lambda *scalar: seen.append(scalar)  # noqa: E731
        quantized(tiny_network, [tiny_images], on_scalar=report, p_steps=4, powell_maxfev=20)
    starts = [step for name, _, step in seen if name == "lapq/start_loss"]
    curve = [(step, loss) for name, loss, step in seen if name == "lapq/loss"]
    assert starts[:4] == [200, 267, 333, 400]
    assert [step for step, _ in curve] == list(range(1, len(curve) + 1))
    assert f"in {len(curve)} evaluations" in caplog.text


def test_the_published_ends_stay_in_float(tiny_network, tiny_images):
    model = quantized(tiny_network, [tiny_images], first_last="fp32", fold_bn=False)
    assert len(quant_layers(model)) == 4  # of six convolutions; the linear layer is float
    assert len(activation_quantizers(model)) == 3  # of five
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert all(int(part.bits) == 4 for part in quant_layers(model).values())


def test_other_names_of_settings():
    make = QuantizationManager().get_quantization_method
    settings = make("lapq", per_channel=False, calib_size=99, num_bits=3).settings
    assert (settings.channel_wise, settings.num_samples) == (False, 99)
    assert (settings.n_bits_w, settings.n_bits_a) == (3, 3)
    assert make("lapq").settings.num_samples == 512


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            {"per_channel": True, "channel_wise": False},
            "channel_wise must be left out or agree with per_channel = True, got False",
        ),
        (
            {"calib_size": 5, "num_samples": 6},
            "num_samples must be left out or agree with calib_size = 5, got 6",
        ),
        ({"p_min": 3, "p_max": 2}, r"p_max must be at least p_min = 3, got 2"),
        (
            {"first_last": "fp32", "disable_8bit_head_stem": True},
            "disable_8bit_head_stem must be off with first_last fp32, got on",
        ),
        ({"lapq_loss": "kl"}, "lapq_loss must be one of ce, mse, ce_labels, got 'kl'"),
    ],
)
def test_a_bad_setting_is_named(settings, text):
    with pytest.raises(InputError, match=text):
        QuantizationManager().get_quantization_method("lapq", **settings)
