"""PD-Quant's two terms against their formulas."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from torch import nn

from common.errors import InputError, RunError
from quant import QuantizationManager
from quant.methods.pd_quant import PDQuantSettings
from quant.network.capture import capture
from quant.network.model import FLOAT_SPEC, UNFOLDED_SPEC
from quant.reconstruction.distribution import (
    EPS,
    CorrectionSchedule,
    InputCorrection,
    _objective_and_gradient,
    correct_inputs,
    objective,
)
from quant.reconstruction.prediction import PredictionDifference, PredictionSettings
from quant.reconstruction.settings import ReconstructionSettings
from tests.conftest import chain_of

pytestmark = pytest.mark.usefixtures("ranges_searched_once")
QUICK = {"iters_w": 20, "lr_round": 0.15, "batch_size_recon": 16}
SCHEDULE = CorrectionSchedule(lamb_c=0.02, steps=100, lr=5e-3)


def make(name, **settings):
    return QuantizationManager().get_quantization_method(name, **settings)


def state(network, images, name, **settings):
    return make(name, **QUICK, **settings).quantize_model(network, None, [images]).state_dict()


def same(first, second):
    return all(torch.equal(first[key], second[key]) for key in first)


def test_defaults_are_those_of_the_published_command_line():
    settings = PDQuantSettings()
    assert (settings.lr_round, settings.prob, settings.input_prob) == (3e-3, 0.5, 0.5)
    assert settings.prediction == PredictionSettings(4.0, 0.1)
    assert settings.correction == CorrectionSchedule(0.02, 100, 5e-3)
    assert PDQuantSettings(dc_fast=False).correction == CorrectionSchedule(0.02, 500, 1e-3)


def test_either_flag_of_a_term_switches_it_on_for_the_other_methods():
    off = ReconstructionSettings()
    assert off.prediction is None
    assert off.correction is None
    assert ReconstructionSettings(lamb_r=0.2).prediction == PredictionSettings(4.0, 0.2)
    assert ReconstructionSettings(T=2.0).prediction == PredictionSettings(2.0, 0.1)
    assert ReconstructionSettings(lamb_c=0.5).correction == CorrectionSchedule(0.5, 100, 5e-3)
    given = ReconstructionSettings(bn_lr=1e-2, dc_steps=7)
    assert given.correction == CorrectionSchedule(0.02, 7, 1e-2)
    assert PDQuantSettings(dc_steps=7).correction == CorrectionSchedule(0.02, 7, 1e-3)
    assert PDQuantSettings(bn_lr=1e-2).correction == CorrectionSchedule(0.02, 500, 1e-2)
    for unused in ({"dc_steps": 7}, {"dc_fast": False}):
        with pytest.raises(InputError, match=f"{next(iter(unused))} must be left out while"):
            ReconstructionSettings(**unused)


def test_qdrop_with_both_terms_is_pd_quant(tiny_network, tiny_images):
    terms = {"lamb_r": 0.1, "T": 4.0, "lamb_c": 0.02, "dc_steps": 5}
    first = state(tiny_network, tiny_images, "pd_quant", dc_steps=5)
    assert same(first, state(tiny_network, tiny_images, "qdrop", **terms))
    assert not same(first, state(tiny_network, tiny_images, "qdrop"))


def test_prediction_difference_is_the_divergence_of_the_probabilities():
    random = np.random.RandomState(0)
    teacher, student = random.normal(0, 3, (2, 8, 5))
    probabilities = torch.softmax(torch.tensor(teacher) / 4.0, 1)
    term = PredictionDifference(probabilities, [], PredictionSettings(4.0, 0.1))
    got = term.term(torch.tensor(student), term.probabilities)

    def softmax(logits):
        powers = np.exp(logits / 4.0)
        return powers / powers.sum(1, keepdims=True)

    p, q = softmax(teacher), softmax(student)
    assert got.item() == pytest.approx((p * np.log(p / q)).sum(1).mean() / 0.1, rel=1e-5)
    assert term.term(torch.tensor(teacher), term.probabilities).item() == pytest.approx(0, abs=1e-6)


def test_prediction_difference_reaches_the_unit_through_the_float_tail():
    torch.manual_seed(0)
    tail = nn.Linear(6, 4).requires_grad_(False)
    output = torch.randn(3, 6, requires_grad=True)
    probabilities = torch.softmax(torch.randn(3, 4), 1)
    term = PredictionDifference(probabilities, [tail], PredictionSettings(1.0, 1.0))
    term.term(output, term.probabilities).backward()
    expected = (torch.softmax(tail(output), 1) - term.probabilities) @ tail.weight / 3
    assert torch.allclose(output.grad, expected, atol=1e-6)


def reference_objective(unit, inputs, first, lamb_c):
    """The objective written as in the paper, differentiated by autograd all the way."""
    total = []

    def note(norm, arguments):
        x = arguments[0]
        means, deviations = x.mean((2, 3)), (x.var((2, 3)) + EPS).sqrt()
        total.append((means - norm.running_mean).square().sum(1).mean())
        total.append((deviations - (norm.running_var + EPS).sqrt()).square().sum(1).mean())

    handles = [
        m.register_forward_pre_hook(note) for m in unit.modules() if isinstance(m, nn.BatchNorm2d)
    ]
    unit(inputs)
    for handle in handles:
        handle.remove()
    return sum(total) + (inputs - first).square().sum(1).mean() / lamb_c


def test_objective_and_its_gradient_equal_the_formula_under_autograd(tiny_network, tiny_images):
    unit = chain_of(tiny_network, UNFOLDED_SPEC).units[0]
    first = tiny_images[:6]
    moved = first + 0.1 * torch.randn(first.shape, generator=torch.Generator().manual_seed(0))
    a, b = moved.clone().requires_grad_(True), moved.clone().requires_grad_(True)
    ours = _objective_and_gradient(unit, a, first, 0.02)
    theirs = reference_objective(unit, b, first, 0.02)
    theirs.backward()
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    assert torch.allclose(a.grad, b.grad, rtol=1e-3, atol=1e-6)


def test_correction_lowers_the_objective_and_a_small_anchor_divisor_holds_it_fast(
    tiny_network, tiny_images
):
    unit = chain_of(tiny_network, UNFOLDED_SPEC).units[0]
    device = tiny_images.device
    found = correct_inputs(unit, tiny_images, SCHEDULE, device)
    after, before = (objective(unit, x, tiny_images, 0.02) for x in (found, tiny_images))
    assert after < 0.99 * before
    held = correct_inputs(unit, tiny_images, CorrectionSchedule(1e-4, 100, 5e-3), device)
    assert (held - tiny_images).norm() < 0.1 * (found - tiny_images).norm()


def test_images_of_one_batch_are_corrected_alike_in_any_company(tiny_network, tiny_images):
    """Terms are averaged over images, and Adam takes no notice of a common factor."""
    unit = chain_of(tiny_network, UNFOLDED_SPEC).units[0]
    schedule = CorrectionSchedule(0.02, 30, 5e-3)
    whole = correct_inputs(unit, tiny_images[:16], schedule, tiny_images.device)
    part = correct_inputs(unit, tiny_images[:4], schedule, tiny_images.device)
    assert torch.allclose(whole[:4], part, atol=2e-2)


def test_units_without_batch_norm_are_passed_over(tiny_network, tiny_images):
    correction = InputCorrection(
        capture(tiny_network, tiny_images), tiny_images, SCHEDULE, None, tiny_images.device
    )
    names = correction.chain.unit_names
    found = [correction.unit(index, name) is not None for index, name in enumerate(names)]
    assert found == [True, True, True, False]
    with pytest.raises(InputError, match="must be cut into the same units"):
        correction.unit(0, "another")


def test_the_unfolded_chain_computes_what_the_folded_one_does(tiny_network, tiny_images):
    folded = chain_of(tiny_network, FLOAT_SPEC)
    unfolded = chain_of(tiny_network, UNFOLDED_SPEC)
    assert folded.unit_names == unfolded.unit_names
    x = y = tiny_images
    for one, other in zip(folded.units, unfolded.units, strict=True):
        x, y = one(x), other(y)
        assert torch.allclose(x, y, atol=1e-5)


def test_corrected_inputs_are_kept_for_other_bits_and_change_no_bit(
    tiny_network, tiny_images, tmp_path, caplog
):
    def run(bits, cache, **settings):
        method = make("pd_quant", **QUICK, dc_steps=5, n_bits_w=bits, **settings)
        caplog.clear()
        with caplog.at_level(logging.INFO):
            result = method.quantize_model(tiny_network, None, [tiny_images], cache_dir=cache)
        return result.state_dict(), caplog.text.count("distribution correction changed")

    plain, made = run(2, None)
    assert made == 3
    first, made = run(2, tmp_path)
    assert (same(plain, first), made) == (True, 3)
    other, made = run(4, tmp_path)
    assert made == 0
    _, made = run(2, tmp_path, seed=7)
    assert made == 0
    assert same(run(4, None)[0], other)
    assert run(2, tmp_path, lamb_c=0.5)[1] == 3


def test_an_objective_that_is_not_finite_stops_with_the_iteration(tiny_network, tiny_images):
    unit = chain_of(tiny_network, UNFOLDED_SPEC).units[0]
    bad = tiny_images.clone()
    bad[0, 0, 0, 0] = torch.inf
    with pytest.raises(RunError, match="must be finite, got nan at iteration 1"):
        correct_inputs(unit, bad, SCHEDULE, bad.device)
