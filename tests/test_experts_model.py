"""The network of an expert, its losses, temperature and figures."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar

from common.errors import InputError
from experts.calibration import calibrate, fit_temperature, negative_log_likelihood
from experts.class_counts import exponential_counts
from experts.losses import make_loss
from experts.metrics import class_groups, expert_figures
from experts.schedules import Overrides, expert_names
from experts.training import balanced_order
from models.expert import Expert


@pytest.mark.parametrize(("classes", "trained"), [(100, 472_756), (10, 466_906)])
def test_an_expert_has_the_published_size(classes, trained):
    expert = Expert(classes)
    assert expert.get_num_parameters() == trained
    assert sum(p.numel() for p in expert.backbone.parameters()) == 466_256
    assert len(expert.state_dict()) == 201
    assert expert.temperature.shape == (1,)
    expert.set_temperature(1.37)
    assert expert.state_dict()["temperature"].shape == (1,)
    assert float(expert.temperature) == pytest.approx(1.37)


@pytest.mark.parametrize("size", [32, 8])
def test_logits_features_and_calibrated_logits(size):
    expert = Expert(100, "resnet32").eval()
    expert.set_temperature(2.0)
    images = torch.randn(2, 3, size, size)
    features = expert.get_features(images)
    assert features.shape == (2, 64)
    assert torch.equal(expert(images), F.linear(features, expert.fc.weight, expert.fc.bias))
    assert torch.equal(expert.get_calibrated_logits(images), expert(images) / 2)


def test_initial_weights_have_the_stated_spread():
    torch.manual_seed(0)
    expert = Expert(100, dropout_rate=0.1)
    conv = expert.backbone.layer3[4].conv2.weight
    assert float(conv.detach().std()) == pytest.approx(math.sqrt(2 / (64 * 9)), rel=0.02)
    assert float(expert.fc.weight.detach().std()) == pytest.approx(0.01, rel=0.05)
    assert not expert.fc.bias.any()
    assert len(Expert(10, dropout_rate=0.1).state_dict()) == 201


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_temperatures_that_make_no_sense_are_refused(temperature):
    with pytest.raises(InputError, match="temperature must be positive and finite"):
        Expert(10).set_temperature(temperature)


def test_unknown_backbones_list_the_known_ones():
    with pytest.raises(InputError, match="known: cifar_resnet32, resnet18"):
        Expert(10, "resnet31")


def test_losses_agree_where_they_are_the_same():
    torch.manual_seed(0)
    logits, targets = torch.randn(50, 4, dtype=torch.float64), torch.randint(4, (50,))
    counts = [500, 100, 20, 5]
    balanced = make_loss("balsoftmax", counts)(logits, targets)
    assert float(balanced) == pytest.approx(
        float(make_loss("logitadjust", counts)(logits, targets))
    )
    plain = F.cross_entropy(logits, targets)
    for kind, tau in (("logitadjust", 0.0), ("ce", 1.0), ("decoupling", 1.0)):
        assert float(make_loss(kind, counts, tau)(logits, targets)) == pytest.approx(float(plain))
    weighted = logits.exp() * torch.tensor(counts)
    expected = -(weighted[range(50), targets] / weighted.sum(1)).log().mean()
    assert float(balanced) == pytest.approx(float(expected), abs=1e-6)


def test_a_loss_by_hand():
    loss = make_loss("logitadjust", [90, 10])(torch.zeros(1, 2), torch.tensor([1]))
    assert float(loss) == pytest.approx(math.log(10), abs=1e-6)


def test_losses_refuse_empty_classes_and_unknown_names():
    with pytest.raises(InputError, match="must be positive, got 0 of class 1"):
        make_loss("ce", [3, 0])
    with pytest.raises(InputError, match="loss must be one of ce, decoupling, balsoftmax"):
        make_loss("focal", [3, 1])


def test_schedules_scale_with_the_epochs():
    overrides = Overrides(epochs=3, batch_size=32, stage2_epochs=2)
    assert overrides.first("cifar10")["ce"].milestones == (1, 2, 3)
    assert overrides.first("cifar10")["logitadjust"].milestones == (2,)  # 160 and 180 meet
    assert Overrides(epochs=1).first("digits")["ce"].milestones == (1,)
    table = Overrides().first("imagenet")
    assert (table["balsoftmax"].weight_decay, table["ce"].weight_decay) == (5e-4, 1e-4)
    assert (table["ce"].epochs, table["ce"].milestones) == (256, (96, 192, 224))
    digits = Overrides().first("digits")["balsoftmax"]
    assert (digits.epochs, digits.lr, digits.milestones) == (40, 0.05, (24, 34))
    assert (overrides.second("digits").epochs, overrides.second("digits").batch_size) == (2, 32)
    assert Overrides().second("digits").batch_size == 64


def test_experts_by_name_and_key():
    assert expert_names(["ce", "ce_baseline", "decoupling"]) == [
        "ce_baseline",
        "decoupling_twostage",
    ]
    assert len(expert_names(["ce", "all"])) == 4
    with pytest.raises(InputError, match=r"got 'ce_baselin'; did you mean ce_baseline\?"):
        expert_names(["ce_baselin"])


def test_balanced_draws_are_uniform_over_classes_and_then_over_images():
    labels = torch.tensor([0] * 9000 + [2] * 900 + [1] * 100)
    order = balanced_order(labels, torch.Generator().manual_seed(0))
    assert len(order) == 10_000
    drawn = torch.bincount(labels[order]) / len(order)
    assert torch.allclose(drawn, torch.tensor([1 / 3] * 3), atol=0.015)
    rare = torch.bincount(order, minlength=10_000)[9900:]
    assert rare.min() > 10
    assert float(rare.float().mean()) == pytest.approx(100 / 3, rel=0.05)
    again = balanced_order(labels, torch.Generator().manual_seed(0))
    assert torch.equal(order, again)


def made_up(samples: int = 300, classes: int = 5) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.RandomState(0)
    targets = random.randint(0, classes, samples)
    logits = random.normal(0, 2, (samples, classes)).astype(np.float32)
    logits[np.arange(samples), targets] += 2.0
    return logits, targets


def test_the_temperature_is_the_minimum():
    logits, targets = made_up()
    best = fit_temperature(logits, targets)

    def loss(log_t: float) -> float:
        return negative_log_likelihood(logits.astype(np.float64) / np.exp(log_t), targets)

    for factor in (0.99, 1.01, 0.9999, 1.0001):
        assert loss(np.log(best * factor)) > loss(np.log(best))
    search = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded")
    assert best == pytest.approx(np.exp(search.x), rel=1e-3)
    result = calibrate(logits, targets, "val")
    assert result.nll_after < result.nll_before
    assert result.describe().startswith(f"Temperature: T = {best:.3f} (val NLL ")
    assert fit_temperature(3 * logits, targets) == pytest.approx(3 * best, rel=1e-6)


def test_temperatures_at_a_bound_are_kept_with_a_warning(caplog):
    right = np.array([[9.0, 0.0], [0.0, 9.0]], dtype=np.float32)
    assert fit_temperature(right, np.array([0, 1])) == 0.05
    assert fit_temperature(right, np.array([1, 0])) == 20.0
    assert caplog.text.count("is at or beyond the bound") == 2


def test_reweighted_and_balanced_accuracy_by_hand():
    """Counts 5000/500/50 with accuracies .9/.85/.7."""
    targets = np.repeat([0, 1, 2], 20)
    hits = np.concatenate([np.arange(20) < n for n in (18, 17, 14)])
    logits = np.zeros((60, 3), dtype=np.float32)
    logits[np.arange(60), np.where(hits, targets, (targets + 1) % 3)] = 5.0
    weights = np.array([5000, 500, 50]) / 5550
    figures = expert_figures(logits, targets, weights, class_groups([5000, 500, 50]))
    assert figures.reweighted == pytest.approx(0.893694, abs=1e-6)
    assert figures.balanced == pytest.approx(0.816667, abs=1e-6)
    assert (figures.head, figures.medium, figures.tail) == pytest.approx((0.9, 0.85, 0.7))
    assert figures.top5 is None
    expected = (weights * [figures_nll(logits, targets, c) for c in range(3)]).sum()
    assert figures.reweighted_nll == pytest.approx(expected)


def figures_nll(logits, targets, label):
    own = targets == label
    return negative_log_likelihood(logits[own], targets[own])


def test_absent_classes_are_in_no_mean():
    logits = np.eye(4, dtype=np.float32)[[0, 0, 1, 1]] * 3
    figures = expert_figures(
        logits, np.array([0, 0, 1, 2]), [0.4, 0.3, 0.2, 0.1], class_groups([4, 3, 2, 1])
    )
    assert figures.per_class == [1.0, 1.0, 0.0, None]
    assert figures.balanced == pytest.approx(2 / 3)
    assert figures.reweighted == pytest.approx(0.7 / 0.9)
    assert figures.absent_weight == pytest.approx(0.1)
    assert (figures.head, figures.medium, figures.tail) == (1.0, 1.0, 0.0)


def test_a_constant_predictor_is_as_good_as_chance():
    targets = np.repeat(np.arange(10), 4)
    logits = np.zeros((40, 10), dtype=np.float32)
    logits[:, 0] = 1.0
    figures = expert_figures(logits, targets, [0.1] * 10, class_groups([1] * 10))
    assert figures.balanced == pytest.approx(0.1)
    assert figures.reweighted == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("rule", "sizes"),
    [("thirds", (33, 33, 34)), ("threshold", (69, 0, 31)), ("shots", (35, 35, 30))],
)
def test_groups_of_cifar100(rule, sizes):
    counts = exponential_counts(100, 100, 500)
    groups = class_groups(counts, rule)
    assert tuple(map(len, groups.values())) == sizes
    assert [c for members in groups.values() for c in members] == list(range(100))
    backwards = class_groups(counts[::-1], rule)
    assert sorted(backwards["head"]) == list(range(100 - sizes[0], 100))


def test_groups_of_few_classes():
    assert class_groups([1, 5]) == {"head": [1], "medium": [], "tail": [0]}
    assert class_groups([2, 2, 2]) == {"head": [0], "medium": [1], "tail": [2]}
    with pytest.raises(InputError, match="group-by must be a known name"):
        class_groups([1, 2], "halves")
