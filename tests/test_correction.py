"""The cluster-affine correction and the selection of its setting."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression, Ridge

from common import InputError
from correction import ClusterAffineCorrection, GridRequest, RidgeMap, Setting, fit_grid, plan_grid
from correction.cluster_affine import fit_cluster_lines, fit_global_line, fit_projection
from correction.selection import GLOBAL_LINE, holdout_size
from metrics import kl_divergence


def fitted(q, fp, **options) -> ClusterAffineCorrection:
    defaults = {"num_clusters": 4, "pca_dim": 3}
    return ClusterAffineCorrection(**{**defaults, **options}).fit(q, fp)


def planted(lines: int = 3, samples: int = 600, classes: int = 4):
    """Logits in well separated groups, each with its own exact line."""
    random = np.random.RandomState(1)
    group = random.randint(0, lines, samples)
    centres = 40 * random.normal(0, 1, (lines, classes))
    q = (centres[group] + random.normal(0, 1, (samples, classes))).astype(np.float32)
    slope, shift = random.uniform(0.5, 1.5, (2, lines, classes))
    return q, (slope[group] * q + shift[group]).astype(np.float32), group, slope, shift


def test_alpha_zero_is_the_identity(toy_logits):
    q, fp = toy_logits
    assert np.array_equal(fitted(q, fp, alpha=0.0).transform(q), q)


def test_identical_logits_give_the_identity(toy_logits):
    _, fp = toy_logits
    for shrinkage in (0.0, 10.0):
        assert np.allclose(fitted(fp, fp, shrinkage=shrinkage).transform(fp), fp, atol=1e-5)


def test_one_cluster_without_shrinkage_is_least_squares_per_class(toy_logits):
    q, fp = toy_logits
    correction = fitted(q, fp, num_clusters=1, shrinkage=0.0)
    for c in range(q.shape[1]):
        line = LinearRegression().fit(q[:, [c]].astype(np.float64), fp[:, c])
        assert correction.slope_[0, c] == pytest.approx(line.coef_[0], rel=1e-9)
        assert correction.shift_[0, c] == pytest.approx(line.intercept_, rel=1e-7)


def test_each_cluster_without_shrinkage_is_least_squares_of_its_members(toy_logits):
    q, fp = toy_logits
    correction = fitted(q, fp, shrinkage=0.0)
    members = correction.kmeans_.labels_ == 2
    line = LinearRegression().fit(q[members][:, [1]].astype(np.float64), fp[members, 1])
    assert correction.slope_[2, 1] == pytest.approx(line.coef_[0], rel=1e-9)
    assert correction.counts_.sum() == len(q)


def test_planted_lines_are_recovered():
    q, fp, group, slope, _ = planted()
    correction = fitted(q, fp, num_clusters=3, shrinkage=0.0)
    labels = correction.kmeans_.labels_
    for k in range(3):
        truth = group[np.argmax(labels == k)]
        assert np.allclose(correction.slope_[k], slope[truth], atol=1e-4)
    assert np.allclose(correction.transform(q), fp, atol=1e-3)


def test_shrinkage_goes_from_the_clusters_line_to_the_global_one(toy_logits):
    q, fp = toy_logits
    globally = fit_global_line(q, fp)
    free = fitted(q, fp, shrinkage=0.0)
    half = fitted(q, fp, shrinkage=float(free.counts_[1]))
    tight = fitted(q, fp, shrinkage=1e15)
    assert np.allclose(tight.slope_, globally.slope, atol=1e-9)
    assert np.allclose(half.slope_[1], (free.slope_[1] + globally.slope[0]) / 2)
    assert np.allclose(half.shift_[1], (free.shift_[1] + globally.shift[0]) / 2)


@pytest.mark.parametrize("shrinkage", [0.0, 10.0])
def test_an_empty_cluster_takes_the_global_line(toy_logits, shrinkage):
    q, fp = toy_logits
    labels = np.random.RandomState(0).randint(0, 2, len(q))
    lines = fit_cluster_lines(q, fp, labels, 3, shrinkage)
    globally = fit_global_line(q, fp)
    assert np.array_equal(lines.slope[2], globally.slope[0])
    assert np.array_equal(lines.shift[2], globally.shift[0])


def test_a_class_that_does_not_vary_is_only_shifted(toy_logits):
    q, fp = (array.copy() for array in toy_logits)
    q[:, 3] = 2.0
    line = fit_global_line(q, fp)
    assert line.slope[0, 3] == 1.0
    assert line.shift[0, 3] == pytest.approx(fp[:, 3].mean() - 2.0, abs=1e-6)
    single = fitted(q[:5], fp[:5], num_clusters=5, pca_dim=1, shrinkage=0.0)
    assert np.isfinite(single.transform(q)).all()
    assert np.allclose(single.transform(q[:5]), fp[:5], atol=1e-4)


def test_permuting_the_classes_commutes():
    q, fp, *_ = planted()
    order = np.array([2, 0, 3, 1])
    straight = fitted(q, fp, num_clusters=3).transform(q)
    permuted = fitted(q[:, order], fp[:, order], num_clusters=3).transform(q[:, order])
    assert np.allclose(permuted, straight[:, order], atol=1e-3)


def test_same_seed_same_bytes_and_the_given_names(toy_logits):
    q, fp = toy_logits
    first = fitted(q, fp, random_state=3).transform(q)
    again = ClusterAffineCorrection(4, 3, random_state=3)
    again.build_correction_model(q, fp)
    assert first.dtype == np.float32
    assert first.tobytes() == again.apply_correction(q).tobytes()


def test_alpha_blends_linearly(toy_logits):
    q, fp = toy_logits
    whole, half = (fitted(q, fp, alpha=alpha).transform(q) for alpha in (1.0, 0.5))
    assert np.allclose(half, (q + whole) / 2, atol=1e-5)


def test_offsets_do_not_cancel_the_sums(toy_logits):
    """Float32 sums of squares would lose the slope at an offset of 300."""
    q, fp = toy_logits
    line = fit_global_line(q, fp)
    shifted = fit_global_line((q + 300).astype(np.float32), fp)
    assert np.allclose(line.slope, shifted.slope, atol=1e-4)


def test_projections_to_fewer_dimensions_are_prefixes(toy_logits):
    q, _ = toy_logits
    wide, narrow = fit_projection(q, 5).transform(q), fit_projection(q, 2).transform(q)
    assert np.allclose(wide[:, :2], narrow, atol=1e-5)


def test_the_ridge_map_is_ridge_regression_towards_the_identity(toy_logits):
    q, fp = toy_logits
    ours = RidgeMap(ridge=0.1).fit(q, fp)
    centred = q - q.mean(0, dtype=np.float64)
    penalty = 0.1 * np.trace(centred.T @ centred) / q.shape[1]
    theirs = Ridge(alpha=penalty).fit(q.astype(np.float64), (fp - q).astype(np.float64))
    assert np.allclose(ours.transform(q), q + theirs.predict(q), atol=1e-4)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"num_clusters": 401},
            "num_clusters must be between 1 and the 400 fitting samples, got 401",
        ),
        ({"num_clusters": 0}, "num_clusters must be between 1"),
        (
            {"pca_dim": 7},
            r"pca_dim must be between 1 and 6 \(min of 6 classes and 400 fitting samples\), got 7",
        ),
        ({"pca_dim": 0}, "pca_dim must be between 1 and 6"),
        ({"alpha": 1.2}, r"alpha must be between 0 and 1, got 1\.2"),
        ({"alpha": float("nan")}, "alpha must be between 0 and 1, got nan"),
        ({"shrinkage": -1.0}, r"shrinkage must be at least 0, got -1\.0"),
    ],
)
def test_bad_settings_are_named(toy_logits, options, text):
    with pytest.raises(InputError, match=text):
        fitted(*toy_logits, **options)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_named_by_row(toy_logits, value):
    q, fp = (array.copy() for array in toy_logits)
    q[17, 2] = value
    with pytest.raises(InputError, match="q_logits must be finite, got NaN or Inf in row 17"):
        fitted(q, fp)
    with pytest.raises(InputError, match="fp_logits must be finite, got NaN or Inf in row 17"):
        fitted(fp, q)
    with pytest.raises(InputError, match="row 17"):
        fitted(fp, fp).transform(q)


def test_shapes_that_do_not_fit_are_named(toy_logits):
    q, fp = toy_logits
    with pytest.raises(InputError, match=r"of the shape of q_logits \(400, 6\), got \(399, 6\)"):
        fitted(q, fp[1:])
    with pytest.raises(InputError, match="q_logits must have 6 classes as in fit, got 5"):
        fitted(q, fp).transform(q[:, :5])
    with pytest.raises(InputError, match="must be fitted before transform"):
        ClusterAffineCorrection().transform(q)
    with pytest.raises(InputError, match=r"must be of shape \(samples, classes\), got \(0, 6\)"):
        fitted(q[:0], fp[:0])


# --- the grid


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


def test_the_selection_is_the_least_kl_on_samples_that_were_not_fitted(toy_logits):
    q, fp = toy_logits
    grid = fit_grid(q, fp, GridRequest([0.5, 1.0], [3], [2], random_state=11))
    order = np.random.RandomState(11).permutation(400)
    held, kept = order[: holdout_size(400)], order[holdout_size(400) :]
    assert len(held) == 80
    alone = ClusterAffineCorrection(3, 2, 0.5, random_state=11).fit(q[kept], fp[kept])
    expected = kl_divergence(fp[held], alone.transform(q[held]))
    result = next(r for r in grid.results if r.setting == Setting(0.5, 3, 2))
    assert result.heldout_kl == pytest.approx(expected, rel=1e-4)
    candidates = [r.heldout_kl for r in grid.results if r.kind != "ridge_map"]
    assert grid.results[grid.selected].heldout_kl == min(candidates)


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


def test_pca_is_scikit_learns(toy_logits):
    q, _ = toy_logits
    ours, full = fit_projection(q, 3), PCA(3, svd_solver="full").fit(q)
    assert np.allclose(ours.explained_variance_, full.explained_variance_, rtol=1e-4)


def test_logits_too_large_to_square_are_refused(toy_logits):
    q, fp = toy_logits
    with pytest.raises(InputError, match=r"must be at most 1e\+15 in size, got 2e\+15"):
        fit_grid(np.where(q == q.max(), np.float32(2e15), q), fp, GridRequest())
