"""The mathematics of gates, of rules that accept or reject, and of risk against coverage."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from common.errors import InputError
from experts.gating import (
    Gate,
    GateOptions,
    features,
    gate_loss,
    gate_weights,
    halves,
    mixture,
    num_features,
    posteriors,
    train_gate,
)
from experts.groups import make_groups
from experts.risk_coverage import (
    COSTS,
    Scored,
    accepted_at,
    area,
    areas,
    cost_threshold,
    curve_of,
)
from experts.selective import (
    LAMBDAS,
    Rule,
    Sample,
    errors_of,
    fit_argse,
    fit_rule,
    fixed_point,
    group_coverages,
    group_errors,
    maximum_probability,
    normalised,
    threshold_for,
)

OF_CLASS = np.array([0, 0, 0, 1, 1])


def made_up(count: int = 400, seed: int = 0, experts: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Posteriors of experts that are good at different classes, and targets."""
    random = np.random.RandomState(seed)
    targets = random.randint(5, size=count)
    logits = random.normal(0, 1, (experts, count, 5))
    for expert in range(experts):
        strength = 3.0 - 0.8 * np.abs(targets - 2 * expert)
        logits[expert, np.arange(count), targets] += strength
    return posteriors(logits, [1.0] * experts), targets


def sample(seed: int = 0) -> Sample:
    p, targets = made_up(seed=seed)
    return Sample(p.mean(axis=0), targets)


def test_posteriors_are_softmax_with_a_temperature():
    logits = np.array([[[0.0, np.log(3.0)]], [[0.0, 2 * np.log(3.0)]]])
    np.testing.assert_allclose(posteriors(logits, [1.0, 2.0])[:, 0], [[0.25, 0.75]] * 2)


def test_features_by_hand():
    p = np.array([[[0.5, 0.3, 0.1, 0.05, 0.03, 0.02]], [[0.1, 0.2, 0.3, 0.2, 0.1, 0.1]]])
    mean = p.mean(axis=0)[0]
    found = features(p)
    assert found.shape == (1, num_features(2)) == (1, 17)
    blocks = found[0, :14].reshape(7, 2)
    for expert in range(2):
        q = p[expert, 0]
        entropy = -(q * np.log(q)).sum()
        top = np.sort(q)[::-1]
        cosine = (q @ mean) / np.sqrt((q @ q) * (mean @ mean))
        divergence = (q * np.log(q / mean)).sum()
        expected = [entropy, top[:5].sum(), top[5], top[0], top[0] - top[1], cosine, divergence]
        np.testing.assert_allclose(blocks[:, expert], expected, rtol=1e-5)
    spread = [-(mean * np.log(mean)).sum(), p.var(axis=0).mean(), np.std([0.5, 0.3])]
    np.testing.assert_allclose(found[0, 14:], spread, rtol=1e-5)


def test_one_expert_is_its_own_mixture():
    p, targets = made_up(experts=1)
    gate, _ = train_gate(p, targets, GateOptions(epochs=1))
    weights = gate_weights(gate, p)
    assert np.array_equal(weights, np.ones((400, 1)))
    np.testing.assert_array_equal(mixture(weights, p), p[0])


def test_identical_experts_have_the_same_loss_whatever_the_weights():
    likelihoods = torch.rand(50, 1).expand(-1, 3)
    losses = [gate_loss(torch.rand(50, 3).softmax(1), likelihoods, 0.0) for _ in range(3)]
    expected = -likelihoods[:, 0].log().mean()
    for loss in losses:
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_balance_is_the_divergence_of_the_mean_weights_from_uniform():
    weights = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    ones = torch.ones(2, 2)
    mean = np.array([0.75, 0.25])
    expected = (mean * np.log(mean / 0.5)).sum()
    assert gate_loss(weights, ones, 2.0).item() == pytest.approx(2 * expected, rel=1e-5)


def test_permuted_experts_have_permuted_weights():
    p, _ = made_up()
    order = [2, 0, 1]
    torch.manual_seed(0)
    gate, turned = Gate(3).eval(), Gate(3).eval()
    turned.load_state_dict(gate.state_dict())
    columns = [block * 3 + expert for block in range(7) for expert in order] + [21, 22, 23]
    first, last = turned.layers[0], turned.layers[-1]
    with torch.no_grad():
        first.weight.copy_(gate.layers[0].weight[:, columns])
        last.weight.copy_(gate.layers[-1].weight[order])
        last.bias.copy_(gate.layers[-1].bias[order])
    np.testing.assert_allclose(
        gate_weights(turned, p[order]), gate_weights(gate, p)[:, order], atol=1e-6
    )


def test_a_trained_gate_trusts_the_expert_that_is_right_and_repeats_itself():
    p, targets = made_up(1200)
    options = GateOptions(epochs=40, lr=5e-3)
    gate, record = train_gate(p, targets, options)
    again, _ = train_gate(p, targets, options)
    for one, other in zip(gate.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    fresh, truth = made_up(1200, seed=5)
    weights = gate_weights(gate, fresh)
    own = mixture(weights, fresh)[np.arange(1200), truth]
    uniform = fresh.mean(axis=0)[np.arange(1200), truth]
    assert -np.log(own).mean() < -np.log(uniform).mean() - 0.02
    assert record.held_out[record.best_epoch] == min(record.held_out)
    assert len(record.train) == options.epochs + 1


def test_halves_split_every_class_and_share_no_sample():
    targets = np.repeat(np.arange(4), [10, 6, 4, 2])
    first, second = halves(targets, 3)
    assert sorted([*first, *second]) == list(range(22))
    assert np.bincount(targets[first]).tolist() == [5, 3, 2, 1]


def test_groups_by_threshold_and_by_quantiles():
    counts = [100, 5, 60, 20, 21, 8]
    assert make_groups(counts, None, None).of_class.tolist() == [0, 1, 0, 1, 0, 1]
    assert make_groups(counts, None, 59).of_class.tolist() == [0, 1, 0, 1, 1, 1]
    assert make_groups(counts, 3, None).of_class.tolist() == [0, 2, 0, 1, 1, 2]
    assert make_groups([9, 8, 7, 6], None, None).of_class.tolist() == [0, 0, 1, 1]
    assert make_groups(counts, 3, None).names == ["group 1", "group 2", "group 3"]
    assert make_groups(counts, None, 59).lists() == {"head": [0, 2], "tail": [1, 3, 4, 5]}
    text = "training samples in head: 2 classes of 60 to 100; tail: 4 classes of 5 to 21"
    assert make_groups(counts, None, 59).describe() == f"{text} (head_above 59)"
    with pytest.raises(InputError, match="at least 2 classes, got 5, 1 with head_above 6"):
        make_groups(counts, None, 6)
    for number in (1, 4, 10**30):
        with pytest.raises(InputError, match=f"from 2 to 3 for 6 classes, got {number}"):
            make_groups(counts, number, None)
    with pytest.raises(InputError, match="at least 4 classes, got 3"):
        make_groups(counts[:3], None, None)


def test_alpha_one_and_mu_zero_are_the_maximum_probability():
    eta = sample().eta
    rule = maximum_probability(OF_CLASS)
    assert np.array_equal(rule.predictions(eta), eta.argmax(1))
    np.testing.assert_allclose(rule.scores(eta), eta.max(1) - 1)


def test_the_rule_by_hand():
    rule = Rule(np.array([0, 1]), np.array([0.8, 1.25]), np.array([0.3, -0.3]))
    eta = np.array([[0.6, 0.4]])
    assert rule.predictions(eta).tolist() == [1]  # 0.48 against 0.5
    expected = 0.5 - ((0.8 - 0.3) * 0.6 + (1.25 + 0.3) * 0.4)
    assert rule.scores(eta)[0] == pytest.approx(expected)


@pytest.mark.parametrize(("coverage", "count"), [(0.2, 1), (0.5, 3), (0.6, 3), (1.0, 5)])
def test_a_threshold_accepts_the_coverage(coverage, count):
    scores = np.array([0.1, 0.5, 0.3, 0.4, 0.2])
    assert (scores >= threshold_for(scores, coverage)).sum() == count
    assert threshold_for(scores, 1.0) == -np.inf


def test_errors_of_groups_are_among_the_accepted_and_one_without_any():
    accepted = np.array([True, True, True, False, False])
    wrong = np.array([True, False, False, True, True])
    groups = np.array([0, 0, 1, 1, 2])
    assert group_errors(accepted, wrong, groups).tolist() == [0.5, 0.0, 1.0]


def test_alpha_has_geometric_mean_one_within_its_bounds():
    found = normalised(np.array([2.0, 2.2]))
    assert found.prod() == pytest.approx(1.0)
    assert found[1] / found[0] == pytest.approx(1.1)
    assert normalised(np.array([1.0, 100.0])).tolist() == [0.75, 1.35]


def test_the_fixed_point_of_two_classes_by_hand():
    """Of ten samples eight are accepted whatever alpha is: six of class 0 and two of class 1.

    Then alpha is inverse to 0.6 / w_0 and 0.2 / w_1, with geometric mean 1, up to its bounds.
    """
    sure, unsure = [0.99, 0.01], [0.5, 0.5]
    eta = np.array([sure] * 6 + [sure[::-1]] * 2 + [unsure] * 2)
    targets = np.array([0] * 6 + [1] * 2 + [0, 1])
    start = maximum_probability(np.array([0, 1]))
    for weights, expected in (
        ([0.5, 0.5], [0.75, 1.35]),
        ([0.6, 0.22], [1.1**-0.5, 1.1**0.5]),
    ):
        rule = fixed_point(Sample(eta, targets), start, 0.8, np.array(weights) / sum(weights))
        np.testing.assert_allclose(rule.alpha, expected, rtol=1e-3)
        assert (rule.scores(eta) >= rule.threshold).tolist() == [True] * 8 + [False] * 2


def test_no_group_is_accepted_before_another_for_its_alpha_alone():
    """Samples of certain class have one score whatever their group: that of mu."""
    rule = Rule(OF_CLASS, np.array([0.75, 1.35]), np.zeros(2))
    np.testing.assert_allclose(rule.scores(np.eye(5)), 0.0, atol=1e-12)


def test_the_fitted_rule_is_the_best_of_its_grid_and_uses_no_other_split():
    tunev, val = sample(1), sample(2)
    fit = fit_rule(tunev, val, OF_CLASS, 0.7, "worst")
    assert fit.offset in LAMBDAS
    assert fit.objective == pytest.approx(errors_of(fit.rule, val).max())
    uniform = np.array([0.5, 0.5])
    for offset in LAMBDAS:
        mu = np.array([offset / 2, -offset / 2])
        rule = fixed_point(tunev, Rule(OF_CLASS, np.ones(2), mu), 0.7, uniform)
        assert fit.objective <= errors_of(rule, val).max()
    accepted = fit.rule.scores(tunev.eta) >= fit.rule.threshold
    assert accepted.mean() == pytest.approx(0.7, abs=0.01)


def test_of_rules_without_an_error_that_which_serves_all_groups_is_chosen():
    """Ten samples of the head are surer than ten of the tail, and all are right."""
    sure, unsure = np.linspace(0.9, 0.99, 10), np.linspace(0.6, 0.75, 10)
    head = [[value, 1 - value, 0.0, 0.0] for value in sure]
    tail = [[0.0, 0.0, value, 1 - value] for value in unsure]
    eta = np.array([*head, *tail])
    perfect = Sample(eta, np.array([0] * 10 + [2] * 10))
    of_class = np.array([0, 0, 1, 1])
    plain = maximum_probability(of_class)
    threshold = threshold_for(plain.scores(eta), 0.5)
    assert (plain.scores(eta) >= threshold).tolist() == [True] * 10 + [False] * 10
    fit = fit_rule(perfect, perfect, of_class, 0.5, "worst")
    assert (fit.objective, fit.on_tunev) == (0.0, 0.0)
    assert fit.answered == group_coverages(fit.rule, perfect).min() >= 0.3


def test_the_outer_loop_begins_with_the_plug_in_rule_and_moves_alpha():
    tunev, val = sample(1), sample(2)
    best, rounds = fit_argse(tunev, val, OF_CLASS, 0.7, "worst", rounds=6)
    first = fit_rule(tunev, val, OF_CLASS, 0.7, "worst")
    assert np.array_equal(rounds[0].rule.alpha, first.rule.alpha)
    assert best.rank == min(fit.rank for fit in rounds) <= first.rank
    errors = errors_of(first.rule, tunev)
    new = np.maximum(0.5 * np.exp(0.2 * (errors - errors.mean())), 0.05)
    expected = 0.25 * 0.5 + 0.75 * new / new.sum()
    np.testing.assert_allclose(rounds[1].weights, expected)
    assert rounds[1].weights.argmax() == errors.argmax()
    assert any(not np.array_equal(fit.rule.alpha, first.rule.alpha) for fit in rounds[1:])


@pytest.mark.parametrize(
    ("cost", "expected"), [(0.0, 0.8), (0.4, 0.8), (0.5, 0.6), (0.6, 0.6), (1.0, 0.5)]
)
def test_the_threshold_of_a_cost_by_hand(cost, expected):
    """Accepting down to 0.8, 0.7, 0.6, 0.5: errors 0, 1, 1, 2 and 3, 2, 1, 0 rejected."""
    scores = np.array([0.6, 0.8, 0.5, 0.7])
    wrong = np.array([False, False, True, True])
    losses = {0.8: 3 * cost, 0.7: 1 + 2 * cost, 0.6: 1 + cost, 0.5: 2.0}
    assert losses[expected] == min(losses.values())
    assert cost_threshold(scores, wrong, cost) == expected


def test_equal_scores_are_accepted_together():
    scores, wrong = np.array([0.5, 0.5, 0.5]), np.array([False, True, True])
    assert cost_threshold(scores, wrong, 0.5) == np.inf
    assert cost_threshold(scores, wrong, 0.9) == 0.5


def ten(scores: np.ndarray) -> tuple[Scored, np.ndarray]:
    """Ten samples, two of them wrong, with thresholds chosen on themselves."""
    wrong = np.array([False] * 8 + [True] * 2)
    zeros = np.zeros(10, dtype=int)
    scored = Scored(scores, wrong, zeros, zeros)
    return scored, accepted_at(scored, scored, "cost")


def test_areas_by_coverage_on_ten_samples():
    """Perfect: 8 right ones first, then the risk is 1 / 9 and 2 / 10. Useless: all at once."""
    perfect, _ = ten(np.arange(10.0, 0.0, -1.0))
    values = np.linspace(0.1, 1.0, 10)
    curve = curve_of(accepted_at(perfect, perfect, "coverage", values), perfect)
    np.testing.assert_allclose(curve.coverage, values)
    np.testing.assert_allclose(curve.risks["overall"], [0.0] * 8 + [1 / 9, 0.2])
    expected = 0.1 * (1 / 9) / 2 + 0.1 * (1 / 9 + 0.2) / 2
    assert area(curve.coverage, curve.risks["overall"]) == pytest.approx(expected)
    useless, _ = ten(np.ones(10))
    curve = curve_of(accepted_at(useless, useless, "coverage", values), useless)
    assert curve.coverage.tolist() == [1.0] * 10
    assert area(curve.coverage, curve.risks["overall"]) == pytest.approx(0.2)


def test_areas_of_a_perfect_and_of_a_useless_score_on_ten_samples():
    """Perfect: risk 0 up to coverage 0.8, then straight to 0.2. Useless: all or none, risk 0.2."""
    perfect, accepted = ten(np.arange(10.0, 0.0, -1.0))
    curve = curve_of(accepted, perfect)
    assert curve.coverage.tolist() == [0.8] * 20 + [1.0]
    assert area(curve.coverage, curve.risks["overall"]) == pytest.approx(0.2 * 0.2 / 2)
    assert area(curve.coverage, curve.risks["overall"], 0.2) == pytest.approx(0.02 / 0.8)
    useless, accepted = ten(np.ones(10))
    curve = curve_of(accepted, useless)
    assert set(curve.coverage.tolist()) == {0.0, 1.0}
    assert area(curve.coverage, curve.risks["overall"]) == pytest.approx(0.2)


def test_a_curve_without_points_is_the_worst():
    assert area(np.zeros(3), np.full(3, np.nan)) == 1.0


def test_a_curve_by_groups_and_its_bootstrap_interval():
    random = np.random.RandomState(0)
    groups = random.randint(2, size=300)
    wrong = random.rand(300) < np.where(groups == 1, 0.4, 0.1)
    scored = Scored(random.rand(300) - 0.5 * wrong, wrong, groups, groups)
    accepted = accepted_at(scored, scored, "cost")
    curve = curve_of(accepted, scored)
    assert (np.diff(curve.coverage) >= 0).all()
    for index in (5, 20):
        mask = accepted[index]
        for group in range(2):
            own = groups == group
            assert curve.group_risks[index, group] == pytest.approx(wrong[mask & own].mean())
            assert curve.group_coverages[index, group] == pytest.approx(mask[own].mean())
        assert curve.risks["worst"][index] == curve.group_risks[index].max()
        assert curve.risks["balanced"][index] == pytest.approx(curve.group_risks[index].mean())
    found = areas(accepted, scored, seed=1)
    assert [(each.risk, each.low) for each in found[:2]] == [("overall", 0.0), ("overall", 0.2)]
    for each in found:
        assert each.interval[0] < each.value < each.interval[1]
    assert areas(accepted, scored, seed=1) == found


def test_each_part_has_the_threshold_of_its_own_samples():
    scores = np.array([0.9, 0.8, 0.7, 0.9, 0.8, 0.7])
    wrong = np.array([False, False, False, False, True, True])
    parts = np.array([0, 0, 0, 1, 1, 1])
    scored = Scored(scores, wrong, parts, parts)
    middle = int(np.argmin(np.abs(COSTS - 0.5)))
    accepted = accepted_at(scored, scored, "cost")[middle]
    assert accepted.tolist() == [True, True, True, True, False, False]
