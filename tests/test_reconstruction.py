"""The engine: what it must do whatever the network is."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from torch import nn

from common.errors import InputError
from quant import QuantizationManager
from quant.arithmetic.spec import QuantSpec
from quant.network.calibration import collect_calibration
from quant.network.chain import (
    Task,
    UnitData,
    generator_for,
    nearest,
    reconstruction_loss,
    walk_chain,
)
from quant.network.forward import run_unit
from quant.network.model import FLOAT_SPEC, activation_quantizers, quant_layers
from quant.reconstruction.engine import penalty_exponent
from quant.reconstruction.settings import ReconstructionSettings
from tests.conftest import chain_of, make_tiny_images, make_tiny_network

pytestmark = pytest.mark.usefixtures("ranges_searched_once")
QUICK = {"iters_w": 120, "lr_round": 3e-2, "batch_size_recon": 16}
SHORT = {"iters_w": 30, "lr_round": 0.1, "batch_size_recon": 16}
RANGES = {"init_wmode": "minmax", "init_amode": "minmax"}


def quantized(network, images, method="adaround", **settings):
    manager = QuantizationManager()
    return manager.get_quantization_method(method, **settings).quantize_model(
        network, None, [images]
    )


def reports(network, images, **settings):
    seen = []
    method = QuantizationManager().get_quantization_method("adaround", **settings)
    method.quantize_model(network, None, [images], seen.append)
    return seen


def test_zero_iterations_are_round_to_nearest(tiny_network, tiny_images):
    nearest = quantized(tiny_network, tiny_images, "rtn", n_bits_w=3)
    same = quantized(tiny_network, tiny_images, "adaround", n_bits_w=3, iters_w=0)
    assert all(
        torch.equal(a, b)
        for a, b in zip(nearest.state_dict().values(), same.state_dict().values(), strict=True)
    )


def test_reconstruction_lowers_the_loss_of_every_block(tiny_network, tiny_images):
    for report in reports(tiny_network, tiny_images, n_bits_w=3, n_bits_a=4, **QUICK)[1:]:
        assert report.loss < report.loss_nearest, report
        assert 0.0 < report.flipped < 0.5, report


def test_two_bits_come_closer_to_the_float_network_than_round_to_nearest(tiny_network, tiny_images):
    with torch.no_grad():
        expected = tiny_network(tiny_images)
        errors = {}
        for method, settings in (("rtn", {}), ("adaround", QUICK)):
            result = quantized(
                tiny_network, tiny_images, method, n_bits_w=2, n_bits_a=4, **settings
            )
            errors[method] = (result(tiny_images) - expected).square().mean().item()
    assert errors["adaround"] < 0.7 * errors["rtn"]


def test_weight_scales_stay_and_activation_steps_are_learned(tiny_network, tiny_images):
    nearest = quantized(tiny_network, tiny_images, "rtn", n_bits_w=3)
    learned = quantized(tiny_network, tiny_images, n_bits_w=3, lr=1e-2, **QUICK)
    for before, after in zip(
        quant_layers(nearest).values(), quant_layers(learned).values(), strict=True
    ):
        assert torch.equal(before.scale, after.scale)
        assert (before.codes.int() - after.codes.int()).abs().max() <= 1
    steps = [
        (before.scale.item(), after.scale.item())
        for before, after in zip(
            activation_quantizers(nearest).values(),
            activation_quantizers(learned).values(),
            strict=True,
        )
    ]
    assert all(before != after and after > 0 for before, after in steps)


def test_no_learning_rate_for_the_steps_leaves_the_first_range_alone(tiny_network, tiny_images):
    nearest = quantized(tiny_network, tiny_images, "rtn")
    learned = quantized(tiny_network, tiny_images, lr=0.0, **SHORT)
    first = [
        next(iter(activation_quantizers(model).values())).scale for model in (nearest, learned)
    ]
    assert torch.equal(*first)


def test_nothing_of_the_optimisation_is_left_behind(tiny_network, tiny_images):
    result = quantized(tiny_network, tiny_images, prob=0.5, input_prob=0.5, **SHORT)
    assert all(layer.rounding is None for layer in quant_layers(result).values())
    for quantizer in activation_quantizers(result).values():
        assert quantizer.mask is None
        assert not quantizer.scale.requires_grad
    with torch.no_grad():
        assert torch.equal(result(tiny_images), result(tiny_images))


@pytest.mark.parametrize("setting", ["prob", "input_prob"])
def test_mixing_probabilities_change_the_result_and_one_means_off(
    tiny_network, tiny_images, setting
):
    def codes(**mixing):
        settings = {"n_bits_w": 2, "n_bits_a": 2, **SHORT, **RANGES, **mixing}
        model = quantized(tiny_network, tiny_images, **settings)
        return torch.cat([layer.codes.flatten() for layer in quant_layers(model).values()])

    plain, half = codes(), codes(**{setting: 0.5})
    assert torch.equal(codes(**{setting: 1.0}), plain)
    assert not torch.equal(half, plain)
    assert not torch.equal(codes(**{setting: 0.0}), half)


BASE = {"n_bits_w": 2, "n_bits_a": 2, "weight": 0.05, **SHORT, **RANGES}
OTHER = {
    "weight": 0.0,
    "warmup": 0.9,
    "b_start": 3.0,
    "b_end": 12.0,
    "lr_round": 1e-2,
    "iters_w": 20,
    "seed": 3,
    "lr": 1e-2,
    "batch_size_recon": 8,
    "num_samples": 40,
    "init_wmode": "mse",
    "init_amode": "minmax_scale",
    "channel_wise": False,
    "disable_8bit_head_stem": True,
    "lamb_r": 0.1,
    "T": 2.0,
    "lamb_c": 0.1,
    "bn_lr": 0.1,
    "amp": "bf16",
}


@pytest.fixture(scope="module")
def base_state() -> dict[str, torch.Tensor]:
    return quantized(make_tiny_network(), make_tiny_images(), **BASE).state_dict()


@pytest.mark.parametrize("name", OTHER)
def test_every_setting_changes_the_result(base_state, tiny_network, tiny_images, name):
    settings = {**BASE, name: OTHER[name]}
    if name in ("lamb_c", "bn_lr"):  # either switches the distribution correction on
        settings["dc_steps"] = 5
    state = quantized(tiny_network, tiny_images, **settings).state_dict()
    assert any(not torch.equal(value, state[key]) for key, value in base_state.items())


def test_where_the_cache_lies_changes_nothing(tiny_network, tiny_images):
    settings = {"prob": 0.5, "input_prob": 0.5, **SHORT}
    first = quantized(tiny_network, tiny_images, **settings)
    second = quantized(tiny_network, tiny_images, keep_cpu=True, **settings)
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_the_penalty_decides_the_roundings_by_the_end(tiny_network, tiny_images, monkeypatch):
    """With it, the soft weights are the hard ones when the optimisation ends."""
    from quant.arithmetic.rounding import SoftRounding

    undecided = []
    original = SoftRounding.hard_codes

    def spy(self):
        self.weight()
        undecided.append(float(((self._soft > 0.05) & (self._soft < 0.95)).float().mean()))
        return original(self)

    monkeypatch.setattr(SoftRounding, "hard_codes", spy)
    quantized(tiny_network, tiny_images, n_bits_w=3, iters_w=200, lr_round=6e-2, weight=0.1)
    assert np.mean(undecided) < 0.02


def test_exponent_is_linear_after_the_warm_up():
    settings = ReconstructionSettings(iters_w=10_000, warmup=0.2)
    assert penalty_exponent(2_000, settings) == 20.0
    assert penalty_exponent(6_000, settings) == pytest.approx(11.0)
    assert penalty_exponent(10_000, settings) == pytest.approx(2.0)


def test_loss_sums_over_channels_and_averages_over_the_rest():
    output, target = torch.zeros(4, 3, 5, 5), torch.full((4, 3, 5, 5), 2.0)
    assert reconstruction_loss(output, target).item() == pytest.approx(3 * 4.0)
    assert reconstruction_loss(output[:, :, 0, 0], target[:, :, 0, 0]).item() == pytest.approx(12.0)


def test_each_unit_sees_the_quantized_prefix_and_aims_at_the_float_network(
    tiny_network, tiny_images
):
    seen: list[UnitData] = []
    model, reference = (
        chain_of(tiny_network, QuantSpec(2, 2)),
        chain_of(tiny_network, FLOAT_SPEC),
    )
    walk_chain(
        Task(model, reference, tiny_network, tiny_images), nearest("mse", "mse"), seen.append
    )
    x_float = x_quant = tiny_images
    device = torch.device("cpu")
    for data, unit, float_unit in zip(seen, model.units, reference.units, strict=True):
        assert torch.equal(data.float_input, x_float)
        assert torch.equal(data.quant_input, x_quant)
        x_float, x_quant = run_unit(float_unit, x_float, device), run_unit(unit, x_quant, device)
        assert torch.equal(data.target, x_float)


def test_the_walk_runs_no_prefix_again(tiny_network, tiny_images):
    """Every unit's forward count is the same, however deep it lies."""
    model, reference = (
        chain_of(tiny_network, QuantSpec(4, 32)),
        chain_of(tiny_network, FLOAT_SPEC),
    )
    counts = [0] * len(reference.units)
    for index, unit in enumerate(reference.units):
        unit.register_forward_hook(lambda *_, i=index: counts.__setitem__(i, counts[i] + 1))
    walk_chain(Task(model, reference, tiny_network, tiny_images), nearest("mse", "mse"))
    assert counts == [1] * len(counts)


def test_another_network_as_reference_is_refused(tiny_network, tiny_images):
    other = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 5))
    method = QuantizationManager().get_quantization_method("rtn")
    with pytest.raises(InputError, match="fp_model must have the same blocks as model"):
        method.quantize_model(tiny_network, other, [tiny_images])


def test_fp_model_is_what_the_units_aim_at(tiny_network, tiny_images):
    import copy

    other = copy.deepcopy(tiny_network)
    with torch.no_grad():
        other.head.bias += 5.0
    own = reports(tiny_network, tiny_images, iters_w=0)[-1].loss
    seen = []
    method = QuantizationManager().get_quantization_method("adaround", iters_w=0)
    method.quantize_model(tiny_network, other, [tiny_images], seen.append)
    assert seen[-1].loss == pytest.approx(own + 5 * 25.0, rel=0.05)


def test_images_are_collected_from_batches_or_pairs_up_to_the_number(caplog):
    images = torch.arange(10.0).reshape(10, 1, 1, 1)
    assert torch.equal(collect_calibration([images[:4], images[4:]], 7)[0], images[:7])
    pairs = [(images[:4], torch.zeros(4)), (images[4:], torch.zeros(6))]
    assert torch.equal(collect_calibration(pairs, 10)[0], images)
    with caplog.at_level(logging.INFO):
        assert len(collect_calibration([images], 12)[0]) == 10
    assert "10 images, fewer than num_samples = 12" in caplog.text
    with pytest.raises(InputError, match="calibration set must hold at least one image"):
        collect_calibration([], 5)


def test_a_loader_that_is_none_is_refused(tiny_network):
    method = QuantizationManager().get_quantization_method("rtn")
    for loader, got in ((None, "None"), (3, "int")):
        text = f"train_loader must be an iterable of batches, got {got}"
        with pytest.raises(InputError, match=text):
            method.quantize_model(tiny_network, None, loader)


def test_a_short_schedule_with_a_small_learning_rate_is_warned_of(caplog):
    with caplog.at_level(logging.WARNING):
        ReconstructionSettings(iters_w=1000, lr_round=1e-3)
    assert "lr_round * iters_w = 1 is below 3" in caplog.text
    assert "raise lr_round to 0.003" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        ReconstructionSettings(iters_w=1000, lr_round=3e-3)
    assert not caplog.text


def test_generators_differ_between_units_and_seeds():
    device = torch.device("cpu")
    draws = [
        torch.rand(4, generator=generator_for(seed, index, device)).tolist()
        for seed, index in ((1, 0), (1, 1), (2, 0), (1, 0))
    ]
    assert draws[0] == draws[3]
    assert draws[0] != draws[1] != draws[2] != draws[0]
