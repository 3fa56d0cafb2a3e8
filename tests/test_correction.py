"""The cluster-affine correction and the selection of its setting."""

from __future__ import annotations

import contextlib
import json

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression, Ridge

from common.errors import InputError
from correction import (
    ClusterAffineCorrection,
    GridRequest,
    RidgeMap,
    fit_grid,
)
from correction.lines import Lines, Moments
from correction.partition import fit_projection


def fitted(q, fp, **options) -> ClusterAffineCorrection:
    defaults = {"num_clusters": 4, "pca_dim": 3}
    return ClusterAffineCorrection(**{**defaults, **options}).fit(q, fp)


def fit_global_line(q, fp) -> Lines:
    moments = Moments(1)
    moments.add(q, fp, np.zeros(len(q), dtype=np.int64))
    return moments.global_line()


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
    q = np.where(q == q[0, 0], np.float32(-0.0), q)
    assert fitted(q, fp, alpha=0.0).transform(q).tobytes() == q.tobytes()


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
    members = correction.partition_.assign(q) == 2
    line = LinearRegression().fit(q[members][:, [1]].astype(np.float64), fp[members, 1])
    assert correction.slope_[2, 1] == pytest.approx(line.coef_[0], rel=1e-9)
    assert correction.counts_.sum() == len(q)


def test_planted_lines_are_recovered():
    q, fp, group, slope, _ = planted()
    correction = fitted(q, fp, num_clusters=3, shrinkage=0.0)
    labels = correction.partition_.assign(q)
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
    moments = Moments(3)
    moments.add(q, fp, labels)
    lines, globally = moments.lines(shrinkage), fit_global_line(q, fp)
    assert np.allclose(lines.slope[2], globally.slope[0], rtol=1e-12)
    assert np.allclose(lines.shift[2], globally.shift[0], rtol=1e-12, atol=1e-12)


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
    wide, narrow = fit_projection(q, 5)(q), fit_projection(q, 2)(q)
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


@pytest.mark.parametrize("sizes", [[400], [100] * 4, [1, 2, 397]])
def test_parts_give_the_lines_of_the_whole(toy_logits, sizes):
    q, fp = ((array + 50).astype(np.float32) for array in toy_logits)
    whole = fitted(q, fp)
    parts = ClusterAffineCorrection(4, 3).fit_clusters(q)
    for end, size in zip(np.cumsum(sizes), sizes, strict=True):
        parts.partial_fit(q[end - size : end], fp[end - size : end])
    np.testing.assert_allclose(parts.slope_, whole.slope_, atol=1e-6)
    np.testing.assert_allclose(parts.shift_, whole.shift_, atol=1e-6)
    assert np.array_equal(parts.counts_, whole.counts_)
    assert np.array_equal(parts.fit(fp, q).slope_, fitted(fp, q).slope_)  # fit forgets the parts


def test_the_first_part_decides_on_the_clusters(toy_logits):
    q, fp = toy_logits
    parts = ClusterAffineCorrection(4, 3).partial_fit(q[:200], fp[:200])
    centres = parts.partition_.centres
    assert np.array_equal(centres, fitted(q[:200], fp[:200]).partition_.centres)
    assert np.array_equal(parts.partial_fit(q[200:], fp[200:]).partition_.centres, centres)
    with pytest.raises(InputError, match="q_logits must have 6 classes as in fit, got 5"):
        parts.partial_fit(q[:, :5], fp[:, :5])


def test_clusters_are_those_of_kmeans(toy_logits):
    q, fp = toy_logits
    correction = fitted(q, fp)
    pca = PCA(3, svd_solver="covariance_eigh").fit(q)
    kmeans = KMeans(4, n_init=10, random_state=0).fit(pca.transform(q))
    assert np.array_equal(correction.partition_.assign(q), kmeans.labels_)


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_a_tensor_is_corrected_like_an_array(toy_logits, alpha):
    q, fp = toy_logits
    correction = fitted(q, fp, alpha=alpha)
    result = correction.transform(torch.from_numpy(q))
    assert isinstance(result, torch.Tensor)
    np.testing.assert_allclose(result.numpy(), correction.transform(q), atol=1e-5)
    broken = torch.from_numpy(q).clone()
    broken[17, 2] = torch.nan
    with pytest.raises(InputError, match="q_logits must be finite, got NaN or Inf in row 17"):
        correction.transform(broken)
    with pytest.raises(InputError, match="q_logits must have 6 classes as in fit, got 5"):
        correction.transform(broken[:, :5])
    with pytest.raises(InputError, match=r"must be of shape \(samples, classes\), got \(6,\)"):
        correction.transform(broken[0])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_tensor_on_a_gpu_stays_there(toy_logits):
    q, fp = toy_logits
    correction = fitted(q, fp)
    result = correction.transform(torch.from_numpy(q).cuda())
    assert result.is_cuda
    np.testing.assert_allclose(result.cpu().numpy(), correction.transform(q), atol=1e-5)


def test_a_saved_correction_gives_the_same_bytes(toy_logits, tmp_path):
    q, fp = toy_logits
    correction = fitted(q, fp, alpha=0.6, shrinkage=3.0, random_state=5)
    correction.save(tmp_path / "correction.npz")
    again = ClusterAffineCorrection.load(tmp_path / "correction.npz")
    assert again.transform(q).tobytes() == correction.transform(q).tobytes()
    for name in ("num_clusters", "pca_dim", "alpha", "shrinkage", "random_state"):
        assert getattr(again, name) == getattr(correction, name)
    assert np.array_equal(again.counts_, correction.counts_)


@pytest.mark.parametrize("settings", [{"alpha": 7}, {"alpha": "x"}, {"shrinkage": None}, {"a": 1}])
def test_settings_in_a_file_are_checked(toy_logits, tmp_path, settings):
    path = tmp_path / "c.npz"
    fitted(*toy_logits).save(path)
    with np.load(path) as stored:
        arrays = dict(stored)
    content = {**json.loads(arrays["settings"].tobytes()), **settings}
    arrays["settings"] = np.frombuffer(json.dumps(content).encode(), np.uint8)
    np.savez(path, **arrays)
    with pytest.raises(InputError, match=r"c.npz: must be a correction"):
        ClusterAffineCorrection.load(path)


def test_every_damaged_byte_is_an_input_error_or_harmless(toy_logits, tmp_path):
    path = tmp_path / "c.npz"
    fitted(*toy_logits).save(path)
    whole = path.read_bytes()
    for place in range(0, len(whole), 37):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 99]) + whole[place + 1 :])
        with contextlib.suppress(InputError):
            ClusterAffineCorrection.load(path)


def test_what_is_not_fitted_says_so(toy_logits, tmp_path):
    q, fp = toy_logits
    for call in (lambda c: c.transform(q), lambda c: c.save(tmp_path / "c.npz")):
        for unfitted in (ClusterAffineCorrection(), fitted(q, fp).fit_clusters(fp)):
            with pytest.raises(InputError, match="must be fitted before"):
                call(unfitted)
    fitted(q, fp).save(tmp_path / "c.npz")
    with pytest.raises(
        InputError, match="must continue a correction that was fitted here, got a loaded"
    ):
        ClusterAffineCorrection.load(tmp_path / "c.npz").partial_fit(q, fp)
    with pytest.raises(InputError, match="at least 2 fitting samples, got 1"):
        ClusterAffineCorrection(1, 1).fit(q[:1], fp[:1])
    with pytest.raises(InputError, match="q_logits must be an array of numbers"):
        ClusterAffineCorrection(1, 1).fit([["a"]], [["b"]])


def test_a_failed_fit_keeps_what_was_learned(toy_logits):
    q, fp = toy_logits
    correction = fitted(q, fp)
    before = correction.slope_.copy()
    with pytest.raises(InputError):
        correction.fit(q, fp * np.nan)
    assert np.array_equal(correction.slope_, before)
    assert correction.partial_fit(q, fp).counts_.sum() == 2 * len(q)


def test_a_file_that_is_no_correction_is_named(toy_logits, tmp_path):
    path = tmp_path / "c.npz"
    text = "c.npz: must be a correction.npz written by this suite, got: "
    with pytest.raises(InputError, match=text + ".*No such file"):
        ClusterAffineCorrection.load(path)
    fitted(*toy_logits).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-200])
    with pytest.raises(InputError, match=text):
        ClusterAffineCorrection.load(path)
    path.write_bytes(whole)
    with np.load(path) as stored:
        arrays = dict(stored)
    for change in (
        {"slope": arrays["slope"] * 1e300},
        {"slope": arrays["slope"].astype(complex)},
        {"settings": np.frombuffer(b'"x"', np.uint8)},
        {"slope": arrays["slope"][:2]},
        {"shift": arrays["shift"] * np.nan},
        {"settings": np.frombuffer(b'{"format": "x"}', np.uint8)},
    ):
        np.savez(path, **{**arrays, **change})
        with pytest.raises(InputError, match=text):
            ClusterAffineCorrection.load(path)
    np.savez(path, a=1)
    with pytest.raises(InputError, match=text):
        ClusterAffineCorrection.load(path)


def test_pca_is_scikit_learns(toy_logits):
    q, _ = toy_logits
    ours, full = fit_projection(q, 3), PCA(3, svd_solver="full").fit(q)
    assert np.allclose(ours(q).var(axis=0, ddof=1), full.explained_variance_, rtol=1e-4)


def test_logits_too_large_to_square_are_refused(toy_logits):
    q, fp = toy_logits
    with pytest.raises(InputError, match=r"must be at most 1e\+15 in size, got 2e\+15"):
        fit_grid(np.where(q == q.max(), np.float32(2e15), q), fp, GridRequest())
