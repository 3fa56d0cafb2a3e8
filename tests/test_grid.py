"""The grid of corrections: what competes, what is selected, what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from common.errors import InputError
from correction import (
    ClusterAffineCorrection,
    GridRequest,
    Setting,
    fit_grid,
    plan_grid,
    selection,
)
from correction.selection import GLOBAL_LINE
from evaluation.metrics import kl_divergence


def test_the_selected_correction_by_itself_gives_the_same_logits(toy_logits):
    q, fp = toy_logits
    for request in (GridRequest([0.4, 1.0], [2, 5], [2, 4]), GridRequest([0.0], [1], [1])):
        grid = fit_grid(q, fp, request)
        expected = next(
            logits for i, (_, logits) in enumerate(grid.corrected(q)) if i == grid.selected
        )
        assert np.allclose(grid.selected_correction().transform(q), expected, atol=1e-6)
    random = np.random.RandomState(0)
    same = random.normal(0, 3, (60, 6)).astype(np.float32)
    identity = fit_grid(same, same, GridRequest([1.0], [8], [2])).selected_correction()
    assert identity.transform(q).tobytes() == q.tobytes()


def test_the_grid_holds_baselines_and_every_setting(toy_logits):
    request = GridRequest([0.2, 1.0], [2, 4], [1, 3])
    grid = fit_grid(*toy_logits, request)
    kinds = [result.kind for result in grid.results]
    assert kinds == ["identity", "global_line", "ridge_map"] + ["cluster_affine"] * 8
    settings = {result.setting for result in grid.results if result.kind == "cluster_affine"}
    assert settings == {Setting(a, k, d) for a in (0.2, 1.0) for k in (2, 4) for d in (1, 3)}


def test_every_result_equals_a_correction_fitted_by_itself(toy_logits):
    q, fp = toy_logits
    grid = fit_grid(q, fp, GridRequest([0.4, 1.0], [1, 5], [2, 4], random_state=3))
    for result, logits in grid.corrected(q):
        if result.kind == "cluster_affine":
            alone = ClusterAffineCorrection(
                result.setting.num_clusters,
                result.setting.pca_dim,
                result.setting.alpha,
                random_state=3,
            ).fit(q, fp)
            assert np.allclose(logits, alone.transform(q), atol=1e-5)
        if result.kind == "global_line":
            alone = ClusterAffineCorrection(1, 1, 1.0).fit(q, fp)
            assert np.allclose(logits, alone.transform(q), atol=1e-5)
            assert result.setting == GLOBAL_LINE


@pytest.mark.parametrize("folds", [5, 1])
def test_settings_are_measured_on_samples_that_were_not_fitted(toy_logits, monkeypatch, folds):
    q, fp = toy_logits
    if folds == 1:
        monkeypatch.setattr(selection, "CHEAP_VALUES", 0)
    grid = fit_grid(q, fp, GridRequest([0.5, 1.0], [3], [2], random_state=11))
    order = np.random.RandomState(11).permutation(400)
    expected = []
    for held in np.split(order, 5)[:folds]:
        kept = np.setdiff1d(order, held)
        alone = ClusterAffineCorrection(3, 2, 0.5, random_state=11).fit(q[kept], fp[kept])
        expected.append(kl_divergence(fp[held], alone.transform(q[held])))
    result = next(r for r in grid.results if r.setting == Setting(0.5, 3, 2))
    assert result.heldout_kl == pytest.approx(np.mean(expected), rel=1e-3)


def test_the_simple_is_preferred_within_a_standard_error():
    results = [
        selection.SettingResult(kind, None, 0.0)
        for kind in ("identity", "global_line", "ridge_map", "cluster_affine", "cluster_affine")
    ]
    noise = np.random.RandomState(0).normal(0, 0.1, 400)
    noise -= noise.mean()
    base = np.full(400, 1.0)
    for levels, chosen in (
        ((1.0, 0.9, 0.0, 0.5, 0.4), 4),  # never the ridge map
        ((1.0, 0.402, 0.0, 0.5, 0.4), 1),
        ((0.403, 0.402, 0.0, 0.5, 0.4), 0),
        ((1.0, 0.41, 0.0, 0.5, 0.4), 4),
    ):
        divergences = [base * level + noise * (i == 4) for i, level in enumerate(levels)]
        assert selection._select(results, divergences) == chosen


def test_logits_that_need_no_correction_select_the_identity():
    """When the difference is noise, every fit is worse on samples that it has not seen."""
    random = np.random.RandomState(0)
    fp = random.normal(0, 3, (60, 6)).astype(np.float32)
    grid = fit_grid(fp, fp, GridRequest([1.0], [8], [2]))
    assert grid.results[grid.selected].kind == "identity"


def test_no_ridge_map_where_samples_are_too_few():
    random = np.random.RandomState(0)
    q, fp = random.normal(0, 1, (2, 20, 15)).astype(np.float32)
    grid = fit_grid(q, fp, GridRequest([1.0], [2], [2]))
    assert [result.kind for result in grid.results] == ["identity", "global_line", "cluster_affine"]
    assert len(list(grid.corrected(q))) == 3


def test_defaults_adapt_to_classes_and_samples():
    shape = plan_grid(GridRequest(), 10_000, 1000)
    assert (shape.num_clusters, shape.pca_dims) == ((8, 16, 64), (25, 50, 100))
    shape = plan_grid(GridRequest(), 10_000, 10)
    assert shape.pca_dims == (2, 5, 10)
    assert plan_grid(GridRequest(), 50, 10).num_clusters == (8, 16)
    assert plan_grid(GridRequest(), 4, 2).pca_dims == (1, 2)
    assert plan_grid(GridRequest([0.5, 0.5]), 50, 10).alphas == (0.5,)


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (GridRequest(alphas=[0.2, 1.01]), r"alpha must be between 0 and 1, got 1\.01"),
        (
            GridRequest(num_clusters=[81]),
            "between 1 and 80 .100 fitting samples, 20 of them held out",
        ),
        (
            GridRequest(pca_dims=[11]),
            r"between 1 and 10 \(10 classes, 80 fitting samples\), got 11",
        ),
        (GridRequest(shrinkage=-1), "shrinkage must be at least 0, got -1"),
    ],
)
def test_values_asked_for_are_never_lowered_but_refused(request_, text):
    with pytest.raises(InputError, match=text):
        plan_grid(request_, 100, 10)


def test_three_fitting_samples_are_the_fewest(toy_logits):
    q, fp = toy_logits
    with pytest.raises(InputError, match="at least 3 fitting samples, got 2"):
        plan_grid(GridRequest(), 2, 10)
    grid = fit_grid(q[:3], fp[:3], GridRequest())
    assert all(np.isfinite(logits).all() for _, logits in grid.corrected(q))
