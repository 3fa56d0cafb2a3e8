"""Quantized and corrected logits beside full precision: values, intervals, flips, figures."""

from __future__ import annotations

import math

import numpy as np
import pytest

from common.errors import InputError
from evaluation.metrics import agreement, expected_calibration_error, kl_divergence, topk_accuracy
from logits_io import LogitsAnalyzer
from logits_io.comparison import compare_logits
from plots.axes import save_figure
from plots.run import class_figure, cluster_figure, grid_figure, reliability_figure, scatter_figure


@pytest.fixture(scope="module")
def logits() -> dict[str, np.ndarray]:
    random = np.random.RandomState(0)
    fp = random.normal(0, 3, (400, 6)).astype(np.float32)
    noise = random.normal(0, 1, (2, 400, 6)).astype(np.float32)
    return {"fullprecision": fp, "quantized": fp + 2 * noise[0], "corrected": fp + noise[1]}


@pytest.fixture(scope="module")
def targets(logits) -> np.ndarray:
    random = np.random.RandomState(1)
    best = logits["fullprecision"].argmax(1)
    return np.where(random.rand(400) < 0.8, best, random.randint(0, 6, 400))


def test_values_are_the_plain_figures(logits, targets):
    table = compare_logits(logits, targets, resamples=20).overall.set_index("logits")
    right = {kind: values.argmax(1) == targets for kind, values in logits.items()}
    for kind, values in logits.items():
        row, fp = table.loc[kind], logits["fullprecision"]
        assert row.top1_pct == pytest.approx(100 * right[kind].mean())
        assert row.top5_pct == pytest.approx(100 * topk_accuracy(values, targets, 5))
        assert row.agreement_pct == pytest.approx(100 * agreement(values, fp))
        assert row.kl_to_fp == pytest.approx(kl_divergence(fp, values), rel=1e-5)
        assert row.mse_to_fp == pytest.approx(np.square(values - fp).mean(), rel=1e-5)
        lost = right["fullprecision"] & ~right[kind]
        won = ~right["fullprecision"] & right[kind]
        assert row.right_to_wrong_pct == pytest.approx(100 * lost.mean())
        assert row.wrong_to_right_pct == pytest.approx(100 * won.mean())
        assert row.top1_pct == pytest.approx(
            table.top1_pct["fullprecision"] - row.right_to_wrong_pct + row.wrong_to_right_pct
        )


def test_classes_add_up_to_the_whole(logits, targets):
    comparison = compare_logits(logits, targets, resamples=20)
    for kind, rows in comparison.per_class.groupby("logits"):
        whole = comparison.overall.set_index("logits").loc[kind]
        assert rows.samples.sum() == len(targets)
        for name in ("top1_pct", "kl_to_fp", "right_to_wrong_pct", "cosine_to_fp"):
            assert np.average(rows[name], weights=rows.samples) == pytest.approx(whole[name])


def test_intervals_are_those_of_the_binomial(logits, targets):
    row = (
        compare_logits(logits, targets, resamples=4000).overall.set_index("logits").loc["quantized"]
    )
    share = row.top1_pct / 100
    half = 196 * np.sqrt(share * (1 - share) / len(targets))
    assert row.top1_pct_low == pytest.approx(row.top1_pct - half, abs=0.6)
    assert row.top1_pct_high == pytest.approx(row.top1_pct + half, abs=0.6)
    assert row.ece_low < row.ece_high


def test_full_precision_beside_itself(logits, targets):
    row = compare_logits(logits, targets, resamples=20).overall.set_index("logits")
    row = row.loc["fullprecision"]
    assert (row.agreement_pct, row.kl_to_fp, row.mse_to_fp) == (100.0, 0.0, 0.0)
    assert row.right_to_wrong_pct_high == row.wrong_to_right_pct_high == 0.0
    assert row.cosine_to_fp == pytest.approx(1.0)


def test_calibration_error_by_hand(logits, targets):
    confidence = np.array([0.95, 0.95, 0.55, 1.0])
    right = np.array([True, False, True, True])
    # bins of a fifteenth: 0.95 is in the last but one, 1.0 in the last, 0.55 in the ninth
    expected = (abs(1.9 - 1) + abs(0.55 - 1) + 0) / 4
    assert expected_calibration_error(confidence, right) == pytest.approx(expected)
    table = compare_logits(logits, targets, resamples=20).overall.set_index("logits")
    for kind, values in logits.items():
        exponent = np.exp(values - values.max(1, keepdims=True))
        confidence = 1 / exponent.sum(1)
        expected = expected_calibration_error(confidence, values.argmax(1) == targets)
        assert table.ece[kind] == pytest.approx(expected, rel=1e-4)


def test_the_same_seed_gives_the_same_intervals(logits, targets):
    one, same, other = (
        compare_logits(logits, targets, 50, seed).overall.to_csv() for seed in (1, 1, 2)
    )
    assert one == same != other


def test_the_analyzer_compares_a_saved_folder(tmp_path, logits, targets):
    analyzer = LogitsAnalyzer(tmp_path, 150)
    analyzer.save_logits_to_csv("out", "logits_x", logits, targets, {})
    table = analyzer.compare("out", resamples=50, seed=3)
    assert table.overall.equals(compare_logits(logits, targets, 50, 3).overall)
    without = {kind: logits[kind] for kind in ("quantized", "corrected")}
    analyzer.save_logits_to_csv("out", "logits_x", without, targets, {})
    with pytest.raises(InputError, match="must hold fullprecision, got quantized, corrected"):
        analyzer.compare("out")


# --- figures


def test_the_grid_is_centred_on_the_quantized_accuracy():
    points = [(a, k, d, 70.0 + a + k + d) for a in (0.5, 1.0) for k in (1, 2) for d in (3, 4)]
    figure = grid_figure(points, 72.0, 90.0, 400)
    assert figure.get_suptitle() == "Corrected Top-1; quantized 72.00 ± 2.24 %, float 90.00 %"
    panels = [axes for axes in figure.axes if axes.get_title().startswith("alpha")]
    assert [axes.get_title() for axes in panels] == ["alpha 0.5", "alpha 1"]
    image = panels[1].images[0]
    assert image.get_array().tolist() == [[75.0, 76.0], [76.0, 77.0]]
    low, high = image.get_clim()
    assert low + high == pytest.approx(144.0) and high == pytest.approx(77.0)
    assert [text.get_text() for text in panels[0].texts] == ["74.50", "75.50", "75.50", "76.50"]


def test_points_of_the_figures_are_the_logits(logits, targets):
    axes = scatter_figure(logits).axes
    assert [a.get_ylabel() for a in axes] == ["quantized logit", "corrected logit"]
    assert (
        axes[0].get_title()
        == f"MSE {np.square(logits['quantized'] - logits['fullprecision']).mean():.3g}"
    )
    changes = {"quantized": [-3.0, 0.0, -5.0], "corrected": [0, 1, 2]}
    lines = class_figure([0, 1, 2], changes, (90.0, 1.5)).axes[0]
    assert lines.lines[0].get_ydata().tolist() == [-5.0, -3.0, 0.0]
    assert lines.lines[1].get_ydata().tolist() == [2, 0, 1]
    assert lines.get_legend().get_texts()[0].get_text() == "quantized (mean -2.67)"
    assert lines.lines[2].get_label() == "full precision (mean 90.00 ± 1.50 %)"
    labels = np.arange(400) % 3
    assert (
        "3 clusters of 400"
        in cluster_figure(logits["quantized"][:, :2], labels).axes[0].get_title()
    )
    assert len(cluster_figure(logits["quantized"][:, :1], labels).axes[0].collections) == 1
    reliable = reliability_figure(logits, targets).axes[0]
    names = [text.get_text() for text in reliable.get_legend().get_texts()]
    assert names[:3] == ["fullprecision", "quantized", "corrected"]
    right = float((logits["fullprecision"].argmax(1) == targets).mean())
    error = math.sqrt(right * (1 - right) / len(targets))
    assert names[3:] == [f"full precision {right:.4f} ± {error:.4f}"]


def test_a_perfectly_calibrated_model_lies_on_the_diagonal():
    logits = np.log(np.tile([[0.7, 0.3]], (1000, 1))).astype(np.float32)
    targets = (np.arange(1000) >= 700).astype(np.int64)
    line = reliability_figure({"fullprecision": logits}, targets).axes[0].lines[1]
    assert line.get_xydata() == pytest.approx(np.array([[0.7, 0.7]]), abs=1e-5)


def test_the_same_figure_has_the_same_bytes(tmp_path, logits):
    for name in ("a", "b"):
        save_figure(tmp_path / name, scatter_figure(logits))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
