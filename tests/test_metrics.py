from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from evaluation.metrics import (
    Scorer,
    agreement,
    classes_ahead,
    kl_divergence,
    log_softmax,
    mean_confidence,
    topk_accuracy,
)


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.RandomState(0)
    return tuple(random.normal(0, 5, (200, 12)).astype(np.float32) for _ in range(2))


@pytest.mark.parametrize("k", [1, 3, 5, 12])
def test_topk_equals_torch(pair, k):
    logits = pair[0]
    targets = np.random.RandomState(1).randint(0, 12, 200)
    top = torch.from_numpy(logits).topk(k).indices.numpy()
    expected = np.mean([target in row for target, row in zip(targets, top, strict=True)])
    assert topk_accuracy(logits, targets, k) == expected


def test_equal_logits_count_once():
    """A constant network is right for one class, not for all."""
    logits = np.zeros((10, 10), dtype=np.float32)
    assert topk_accuracy(logits, np.arange(10)) == 0.1
    assert topk_accuracy(logits, np.arange(10), 5) == 0.5
    assert topk_accuracy(logits, logits.argmax(1)) == 1.0


def test_kl_equals_torch_and_is_zero_for_equal_distributions(pair):
    reference, logits = pair
    expected = F.kl_div(
        F.log_softmax(torch.tensor(logits, dtype=torch.float64), 1),
        F.log_softmax(torch.tensor(reference, dtype=torch.float64), 1),
        log_target=True,
        reduction="batchmean",
    ).item()
    assert kl_divergence(reference, logits) == pytest.approx(expected, rel=1e-9)
    assert kl_divergence(reference, reference) == 0.0
    assert kl_divergence(reference, reference + 7) == pytest.approx(0.0, abs=1e-6)


def test_huge_logits_do_not_overflow():
    logits = np.array([[1e30, 0.0, -1e30]], dtype=np.float32)
    assert np.isfinite(log_softmax(logits)).all()
    assert mean_confidence(logits) == 1.0


def test_the_others_by_hand():
    a = np.array([[1.0, 3.0], [2.0, 0.0]], dtype=np.float32)
    b = np.array([[1.0, 2.0], [0.0, 4.0]], dtype=np.float32)
    assert agreement(a, b) == 0.5
    assert Scorer(b, np.array([0, 0]))(a).mse.tolist() == [0.5, 10.0]
    expected = (1 / (1 + np.exp(-2)) + 1 / (1 + np.exp(-2))) / 2
    assert mean_confidence(a) == pytest.approx(expected)


def test_the_scorer_equals_the_plain_figures(pair):
    reference, logits = (np.tile(array, (7, 1)) for array in pair)  # several blocks
    logits = logits + np.arange(len(logits), dtype=np.float32)[:, None] / 500
    targets = np.random.RandomState(1).randint(0, 12, len(logits))
    figures = Scorer(reference, targets)(logits)
    for k in (1, 5):
        assert (figures.ahead < k).mean() == topk_accuracy(logits, targets, k)
    assert figures.agrees.mean() == agreement(logits, reference)
    assert figures.kl.mean() == pytest.approx(kl_divergence(reference, logits), rel=1e-5)
    assert figures.mse.mean() == pytest.approx(np.square(logits - reference).mean(), rel=1e-5)
    assert figures.confidence.mean() == pytest.approx(mean_confidence(logits), rel=1e-5)
    cosine = F.cosine_similarity(*map(torch.from_numpy, (logits, reference)))
    np.testing.assert_allclose(figures.cosine, cosine, atol=1e-5)
    assert np.array_equal(figures.prediction, logits.argmax(1))


def test_the_same_logits_have_no_divergence(pair):
    reference = pair[0]
    figures = Scorer(reference, np.zeros(200, dtype=np.int64))(reference.copy())
    assert not figures.kl.any() and not figures.mse.any() and figures.agrees.all()
    np.testing.assert_allclose(figures.cosine, 1, atol=1e-6)


def test_of_equal_logits_the_first_class_comes_first():
    logits = np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 2.0]], dtype=np.float32)
    assert classes_ahead(logits, np.array([0, 0])).tolist() == [0, 1]
    assert classes_ahead(logits, np.array([1, 1])).tolist() == [1, 2]
