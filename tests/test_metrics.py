from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from metrics import (
    agreement,
    kl_divergence,
    log_softmax,
    mean_confidence,
    mean_squared_error,
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
    assert mean_squared_error(a, b) == pytest.approx((0 + 1 + 4 + 16) / 4)
    expected = (1 / (1 + np.exp(-2)) + 1 / (1 + np.exp(-2))) / 2
    assert mean_confidence(a) == pytest.approx(expected)
