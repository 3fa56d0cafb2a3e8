"""The distillation of the whole network: its arithmetic, its start and end, and how it goes on."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from common.errors import InputError, RunError
from quant import QuantizationManager, UnitStates
from quant.arithmetic.augmentation import AUGMENTATIONS, augmented
from quant.arithmetic.primitives import dequantize
from quant.distillation import stage
from quant.distillation.latent import REACH, LatentWeight, TrainableNetwork
from quant.distillation.normalised import Normalisation
from quant.distillation.split import is_larger, split_calibration
from quant.network.layers import QuantConv2d, QuantLinear
from quant.network.model import activation_quantizers, quant_layers
from quant.network.observe import watch
from quant.reconstruction import engine
from quant.settings import MethodSettings
from tests.conftest import make_tiny_images, make_tiny_network

SETTINGS = {"n_bits_w": 2, "n_bits_a": 3, "distill_batch": 16, "init_wmode": "minmax"}
SETTINGS |= {"init_amode": "minmax", "distill_lr": 7e-2, "distill_lr_scale": 1e-2}
FAST = {
    "gpfq": {"distill_lr": 5e-3, "distill_lr_scale": 5e-4},
    "lapq": {"p_steps": 1, "powell_maxiter": 1, "powell_maxfev": 4, "gradient_steps": 0},
}


class Stop(Exception):
    pass


def make_network() -> nn.Module:
    """The tiny network with logits that tell the images apart."""
    network = make_tiny_network()
    with torch.no_grad():
        network.head.weight.mul_(30.0)
    return network


def quantized(steps: int, loader=None, method: str = "rtn", **more):
    settings = {**SETTINGS, **more, "distill_steps": steps}
    if steps == 0:
        settings = {k: v for k, v in settings.items() if not k.startswith("distill_")}
    options = {k: settings.pop(k) for k in ("states", "on_scalar") if k in settings}
    made = QuantizationManager().get_quantization_method(method, **settings)
    return made.quantize_model(make_network(), None, loader or [make_tiny_images()], **options)


def require_equal(one: nn.Module, other: nn.Module) -> None:
    mine, theirs = one.state_dict(), other.state_dict()
    assert list(mine) == list(theirs)
    for name, value in mine.items():
        assert torch.equal(value, theirs[name]), name


def require_unequal(one: nn.Module, other: nn.Module) -> None:
    with pytest.raises(AssertionError):
        require_equal(one, other)


@pytest.fixture(scope="module")
def trained():
    """The quantized network after 20 steps, and the held-out losses on the way."""
    losses: list[tuple[int, float]] = []

    def note(name, value, step):
        losses.append((step, value))

    network = quantized(20, on_scalar=note, distill_batch_norm="on")
    return network, losses


def test_the_network_computes_the_same_when_it_becomes_trainable():
    network, images = quantized(0), make_tiny_images()
    before = network(images)
    with TrainableNetwork(network) as trainable:
        for weight in trainable.weights:
            assert ((weight.codes - weight.layer.codes.float()).abs() <= REACH + 1e-6).all()
        assert torch.equal(network(images), before)
    assert torch.equal(network(images), before)
    require_equal(network, quantized(0))


@pytest.mark.parametrize("kind", ["plain", "offset", "gap"])
def test_the_gradients_of_the_latent_weight(kind):
    """Straight-through in the codes, zero outside of them; exact in the ratio."""
    torch.manual_seed(0)
    layer = QuantLinear(nn.Linear(12, 3), 2, per_channel=True)
    layer.quantize_to_nearest("minmax")
    if kind == "offset":
        layer.match_moments(mean=True)
    if kind == "gap":
        layer.gap = 0.1 * layer.scale
    expected = layer.effective_weight()
    weight = LatentWeight(layer)
    with torch.no_grad():
        weight.codes[0, :2] = torch.tensor([-0.7, 3.6])
    found = weight.weight()
    hard = weight.codes.detach().round().clamp(0, 3)
    assert torch.equal(found[1:], expected[1:])
    direction = torch.randn_like(found)
    (direction * found).sum().backward()
    wanted = direction * layer.scale
    wanted[0, :2] = 0
    torch.testing.assert_close(weight.codes.grad, wanted)
    grid = dequantize(hard, layer.scale, layer.zero_point)
    torch.testing.assert_close(weight.ratio.grad, (direction * grid).sum(1, keepdim=True))


def images_of_other_statistics() -> torch.Tensor:
    return 2.0 * make_tiny_images().flip(0) + 0.5


@pytest.mark.parametrize("kind", ["plain", "offset", "gap"])
def test_normalised_outputs_change_nothing_before_and_after(kind):
    """At the start, at the end of other parameters, and when they become part of the layers."""
    network, images = quantized(0), make_tiny_images()
    for layer in quant_layers(network).values():
        if kind == "offset":
            layer.weight = layer.effective_weight() + 0.01
            layer.match_moments(mean=True)
        if kind == "gap":
            layer.gap = 0.1 * layer.scale
    before = network(images)
    with TrainableNetwork(network) as trainable:
        normalisation = Normalisation(network, trainable.layers, images, len(images))
        trainable.normalise(normalisation)
        outputs = normalisation.outputs
        assert {out.layer for out in outputs} == {
            layer for layer in quant_layers(network).values() if isinstance(layer, QuantConv2d)
        }
        assert all(not weight.ratio.requires_grad for weight in trainable.weights[:-1])
        torch.testing.assert_close(network(images), before, rtol=1e-4, atol=1e-4)
        with torch.no_grad():
            for out in outputs:
                out.gain.uniform_(0.5, 1.5)
                out.shift.normal_()
        normalisation.estimate(images_of_other_statistics())
        expected = network(images)
        normalisation.fold()
        torch.testing.assert_close(network(images), expected, rtol=1e-4, atol=1e-3)
    assert not torch.allclose(expected, before, rtol=0.1)
    torch.testing.assert_close(network(images), expected, rtol=1e-4, atol=1e-3)


def test_statistics_of_unequal_batches_are_those_of_all_images():
    """In the first layer, whose input is not normalised; the last batch has 6 images."""
    network = quantized(0)
    images = torch.cat([make_tiny_images(), images_of_other_statistics()])[:70]
    with TrainableNetwork(network) as trainable:
        normalisation = Normalisation(network, trainable.layers, make_tiny_images(), 48)
        first = normalisation.outputs[0]
        normalisation.estimate(images)
        normalisation.remove()
        own: dict[nn.Module, torch.Tensor] = {}
        with watch([first.layer], own.__setitem__, outputs=True), torch.no_grad():
            network(images)
    variance, mean = torch.var_mean(own[first.layer], (0, 2, 3), correction=0)
    torch.testing.assert_close(first.estimate, (mean, variance), rtol=1e-4, atol=1e-5)


def test_normalised_outputs_have_the_level_and_spread_of_the_start():
    network = quantized(0)
    with TrainableNetwork(network) as trainable:
        normalisation = Normalisation(network, trainable.layers, make_tiny_images(), 48)
        trainable.normalise(normalisation)
        found: dict[nn.Module, torch.Tensor] = {}
        layers = [out.layer for out in normalisation.outputs]
        others = images_of_other_statistics()
        with watch(layers, found.__setitem__, outputs=True), normalisation.over_batches():
            network(others)
        normalisation.estimate(others)
        for out in normalisation.outputs:
            variance, mean = torch.var_mean(found[out.layer], (0, 2, 3), correction=0)
            torch.testing.assert_close(mean, out.level, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(
                variance,
                (out.spread**2 * out.estimate[1]) / (out.estimate[1] + out.eps),
                rtol=1e-3,
                atol=1e-6,
            )


@pytest.mark.parametrize(("start", "word"), [(0.5, ""), (0.49, "not ")])
def test_outputs_are_normalised_where_that_does_not_harm_at_the_start(
    monkeypatch, caplog, start, word
):
    """The first divergence that is measured is that of the start, the second over batches."""
    caplog.set_level("INFO")
    found = iter([torch.tensor(start), torch.tensor(1.0)])
    true = stage._divergence
    monkeypatch.setattr(stage, "_divergence", lambda *pair: next(found, true(*pair)))
    network = quantized(2)
    assert re.search(rf"outputs of \d layers are {word}normalised over batches", caplog.text)
    monkeypatch.undo()
    asked = quantized(2, distill_batch_norm="off" if word else "on")
    require_equal(network, asked)


def test_normalised_logits_of_a_gpu_are_where_the_images_are(monkeypatch):
    """With ``keep_cpu`` the images, and the targets that they are compared with, are on the CPU."""

    class OnGpu:
        device = torch.device("cuda")

        def __call__(self, images: Tensor) -> Tensor:
            assert images.device.type == "cuda"
            return torch.empty(len(images), 5, device="cuda")

    network = quantized(0)
    layers = list(quant_layers(network).values())
    normalisation = Normalisation(network, layers, make_tiny_images(), 16)
    monkeypatch.setattr(normalisation, "network", OnGpu())
    with FakeTensorMode(allow_non_fake_inputs=True):
        logits = normalisation.logits_over_batches(torch.empty(40, 3, 8, 8), 16)
    assert logits.shape == (32, 5) and logits.device.type == "cpu"


def test_normalised_outputs_start_from_stored_statistics():
    """A resumed run measures its own; on a GPU these differ in the last digits."""
    network = quantized(0)
    layers = list(quant_layers(network).values())
    stored = Normalisation(network, layers, images_of_other_statistics(), 48)
    stored.remove()
    own = Normalisation(network, layers, make_tiny_images(), 48)
    own.start_from(stored.starts)
    for mine, theirs in zip(own.outputs, stored.outputs, strict=True):
        assert mine.eps == theirs.eps
        assert torch.equal(mine.level, theirs.level) and torch.equal(mine.spread, theirs.spread)


@pytest.mark.parametrize(
    ("batch", "per_channel", "twice"), [(1, True, False), (48, False, False), (48, True, True)]
)
def test_outputs_that_cannot_be_normalised_are_left_alone(batch, per_channel, twice):
    """Too few values in a batch, one scale for all channels, and a layer that is called twice."""
    network = quantized(0, channel_wise=per_channel)
    first = next(iter(quant_layers(network).values()))
    unit = network.units[0]
    if twice:
        node = next(n for n in unit.graph.nodes if n.op == "call_module" and n.target == "stem.0")
        with unit.graph.inserting_after(node):
            unit.graph.call_module("stem.0", node.args)
    with TrainableNetwork(network) as trainable:
        normalisation = Normalisation(network, trainable.layers, make_tiny_images(), batch)
        trainable.normalise(normalisation)
        normalised = {out.layer for out in normalisation.outputs}
    assert first not in normalised
    assert bool(normalised) == twice


@pytest.mark.parametrize("asked", ["on", "auto"])
def test_a_network_without_outputs_to_normalise_is_warned_of_if_asked(asked, caplog):
    network = quantized(2, channel_wise=False, distill_batch_norm=asked)
    text = "distill_batch_norm on changes nothing: no convolution"
    assert (text in caplog.text) == (asked == "on")
    require_equal(network, quantized(2, channel_wise=False, distill_batch_norm="off"))


def test_a_resumed_run_keeps_the_choice_of_the_stored_one(trained, tmp_path, monkeypatch):
    """Another machine might choose otherwise, as the divergences differ in the last digits."""

    def stop(name, value, step):
        if step >= 10:
            raise Stop

    states = UnitStates(tmp_path, {"a": 1})
    states.open(resume=False)
    true = stage._divergence
    for first in (100.0, 0.0):  # the start, as it is compared; then normalised, not normalised
        found = iter([torch.tensor(first), torch.tensor(1.0)])
        monkeypatch.setattr(
            stage, "_divergence", lambda *pair, found=found: next(found, true(*pair))
        )
        if first:
            with pytest.raises(Stop):
                quantized(20, states=states, on_scalar=stop)
            states.open(resume=True)
        else:
            require_equal(quantized(20, states=states), trained[0])


def test_without_steps_nothing_changes():
    settings = {key: value for key, value in SETTINGS.items() if "distill" not in key}
    made = QuantizationManager().get_quantization_method("rtn", distill_steps=0, **settings)
    plain = made.quantize_model(make_network(), None, [make_tiny_images()])
    require_equal(quantized(0), plain)


def test_the_curve_ends_with_the_loss_of_the_network_that_is_returned(trained):
    network, losses = trained
    steps = [step for step, _ in losses]
    assert steps == list(range(21))
    last = losses[-1][1]
    assert last < 0.7 * losses[0][1]
    held = make_tiny_images()[split_calibration(48, 1005)[0]]
    targets = make_network()(held).log_softmax(1)
    found = network(held).log_softmax(1)
    divergence = (targets.exp() * (targets - found)).sum(1).mean()
    assert float(divergence.detach()) == pytest.approx(last, rel=1e-3)


def test_a_learning_rate_that_destroys_ends_at_the_start():
    require_equal(quantized(4, distill_lr=1e3, distill_lr_scale=10.0), quantized(0))


@pytest.mark.parametrize(
    ("growth", "is_worse"),
    [
        ([0.1, 0.2, 0.3, 0.2], True),
        ([-0.1, -0.2, -0.3, -0.2], False),
        ([1.0, -0.9, 1.0, -0.9], False),  # mean 0.05, standard error 0.55
        ([0.0, 0.0, 0.0, 0.0], False),
        ([0.0, 0.0, 0.0, float("nan")], True),
        ([-1.0, -1.0, float("inf"), -1.0], True),
        ([0.01], True),
        ([-0.01], False),
    ],
)
def test_divergences_are_larger_if_they_grow_by_more_than_noise(growth, is_worse):
    before = torch.full((len(growth),), 0.5)
    assert is_larger(before + torch.tensor(growth), before) == is_worse


def test_the_start_is_taken_where_the_end_is_worse_than_noise_explains(monkeypatch, caplog):
    seen = []

    def judged(found, before):
        seen.append((found, before))
        return judgement

    monkeypatch.setattr(stage, "is_larger", judged)
    settings = {"distill_lr": 1e3, "distill_lr_scale": 10.0}
    with caplog.at_level("INFO"):
        for judgement, text in ((True, ": the network stays as it was"), (False, "within noise")):
            network = quantized(4, **settings)
            assert caplog.messages[-1].endswith(text)
            require = require_equal if judgement else require_unequal
            require(network, quantized(0))
    held = make_tiny_images()[split_calibration(48, 1005)[0]]
    targets = make_network()(held).log_softmax(1)
    for made, found in zip((network, quantized(0)), seen[-1], strict=True):
        expected = targets.exp() * (targets - made(held).log_softmax(1))
        torch.testing.assert_close(found, expected.sum(1), rtol=1e-3, atol=1e-5)


def test_a_reconstruction_before_it_does_not_train_on_the_images_that_are_held_out(monkeypatch):
    held, kept, _ = split_calibration(48, 1005)
    assert sorted([*held.tolist(), *kept.tolist()]) == list(range(48)) and len(held) == 6
    drawn: list[Tensor] = []
    true = engine.UnitStep.run

    def run(self, given):
        drawn.append(given.pick)
        return true(self, given)

    monkeypatch.setattr(engine.UnitStep, "run", run)
    for steps, expected in ((1, set(kept.tolist())), (0, set(range(48)))):
        drawn.clear()
        quantized(steps, method="qdrop", iters_w=40, batch_size_recon=16)
        assert set(torch.cat(drawn).tolist()) == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("distill_batch", 8),
        ("distill_lr", 0.2),
        ("distill_lr_scale", 1e-3),
        ("distill_features", 0.0),
        ("distill_temperature", 1.0),
        ("distill_augment", "none"),
        ("distill_batch_norm", "off"),
        ("distill_steps", 3),
    ],
)
def test_every_setting_changes_the_training(name, value):
    traces = []
    for settings in ({}, {name: value}):
        trace: list[float] = []
        steps = {"steps": 4, **({"steps": value} if name == "distill_steps" and settings else {})}
        more = {key: other for key, other in settings.items() if key != "distill_steps"}
        quantized(**steps, **more, on_scalar=lambda n, loss, s, to=trace: to.append(loss))
        traces.append(trace)
    assert traces[0][0] == traces[1][0]
    assert traces[0] != traces[1]


@pytest.mark.parametrize(("limit", "is_lowered"), [(0.01, True), (1e9, False)])
def test_the_errors_of_units_are_limited_to_a_multiple_of_the_divergence(
    monkeypatch, limit, is_lowered
):
    found: dict[str, float] = {}

    def stop(training, step):
        outputs = targets = training._calibration(stage.ESTIMATED)
        errors = []
        for unit, float_unit in zip(
            training.task.model.units, training.task.reference.units, strict=True
        ):
            outputs, targets = unit(outputs).detach(), float_unit(targets)
            errors.append(float((outputs - targets).square().sum() / targets.square().sum()))
        divergence = 4.0 * float(stage._divergence(outputs / 2.0, targets / 2.0))
        found.update(weight=training.features, ratio=sum(errors[:-1]) / divergence)
        raise Stop

    monkeypatch.setattr(stage, "MOST_FEATURES", limit)
    monkeypatch.setattr(stage._Distillation, "_train", stop)
    with pytest.raises(Stop):
        quantized(1, distill_batch=64)
    if is_lowered:
        assert found["weight"] * found["ratio"] == pytest.approx(limit, rel=1e-4)
        assert found["weight"] < 10.0
    else:
        assert found["weight"] == 10.0


def test_a_resumed_run_compares_where_the_logits_are():
    """With --keep_cpu these are on the CPU, whatever the device of the network."""
    training = object.__new__(stage._Distillation)
    model = SimpleNamespace(device=torch.device("meta"))
    training.task = SimpleNamespace(model=model)
    training.trainable = SimpleNamespace(parameters=[], normalisation=None)
    training.generator, training.optimizers = torch.Generator(), []
    training.targets = torch.zeros(3, 5)
    stored = {"step": 2, "first": 0.5, "features": 1.0, "order": torch.arange(3), "values": []}
    stored |= {"optimizers": [], "average": [torch.zeros(1)], "divergences": torch.ones(3)}
    training.stored = {**stored, "generator": training.generator.get_state()}
    assert training._restore()
    assert training.divergences.device == training.targets.device
    assert training.average[0].device == model.device


@pytest.mark.parametrize(("w", "a", "factor"), [(4, 2, 5), (3, 2, 7 / 3), (2, 4, 1), (8, 32, 1)])
def test_weights_of_finer_grids_move_in_steps_of_the_activations(w, a, factor):
    settings = MethodSettings(n_bits_w=w, n_bits_a=a, distill_steps=1, distill_lr=0.01)
    assert stage._code_rate(settings) == pytest.approx(0.01 * factor)


@pytest.mark.parametrize(("first", "share"), [(4.0, 1.0), (0.25, 0.5), (0.0, 0.0), (-1e-9, 0.0)])
def test_learning_rates_shrink_with_the_distance_of_the_start(first, share):
    training = object.__new__(stage._Distillation)
    training.first = first
    assert training.distance == share


def test_codes_are_hard_and_levels_few(trained):
    network, _ = trained
    levels: dict[nn.Module, int] = {}
    quantizers = activation_quantizers(network)
    layers = quant_layers(network)
    for layer in layers.values():
        assert layer.rounding is None and not layer.scale.requires_grad
        assert layer.codes.dtype == torch.uint8 and int(layer.codes.max()) < 2 ** int(layer.bits)

    def note(quantizer, output):
        levels[quantizer] = max(levels.get(quantizer, 0), len(output.unique()))

    with watch(quantizers.values(), note, outputs=True), torch.no_grad():
        network(make_tiny_images())
    assert levels.keys() == set(quantizers.values())
    for quantizer, count in levels.items():
        assert count <= 2**quantizer.num_bits
    assert any(
        not torch.equal(a.codes, b.codes)
        for a, b in zip(layers.values(), quant_layers(quantized(0)).values(), strict=True)
    )


def test_no_label_is_read_and_the_same_seed_gives_the_same_bytes(trained):
    images = make_tiny_images()
    for labels in (torch.zeros(48), torch.arange(48) % 5):
        require_equal(quantized(20, [(images, labels)], distill_batch_norm="on"), trained[0])
    other = quantized(20, seed=7, distill_batch_norm="on")
    assert any(
        not torch.equal(value, other.state_dict()[name])
        for name, value in trained[0].state_dict().items()
    )


@pytest.mark.parametrize("last", [1, 10, 20])
def test_it_goes_on_where_it_stopped_to_the_same_end(trained, tmp_path, last):
    def stop(name, value, step):
        if step >= last:
            raise Stop

    states = UnitStates(tmp_path, {"a": 1})
    states.open(resume=False)
    with pytest.raises(Stop):
        quantized(20, states=states, on_scalar=stop, distill_batch_norm="on")
    states.open(resume=True)
    seen: list[int] = []
    more = {"on_scalar": lambda name, value, step: seen.append(step), "distill_batch_norm": "on"}
    again = quantized(20, states=states, **more)
    require_equal(again, trained[0])
    assert seen[0] == (0 if last == 1 else last)


@pytest.mark.parametrize("damage", [b"", b"x", "other settings", "another version"])
def test_a_damaged_state_is_not_believed(trained, tmp_path, damage, caplog):
    states = UnitStates(tmp_path, {"a": 1})
    states.open(resume=False)
    quantized(20, states=states, distill_batch_norm="on")
    path = tmp_path / "distillation.pt"
    if damage == "other settings":
        states.origin = "other"
    elif damage == "another version":
        states.save_stage(stage.STATE_FORMAT - 1, {"step": 10})
    else:
        path.write_bytes(damage)
    require_equal(quantized(20, states=states, distill_batch_norm="on"), trained[0])
    assert f"{path} is damaged or of another origin" in caplog.text


@pytest.mark.parametrize(("method", "bits"), [("gpfq", 32), ("aciq_mix", 3), ("lapq", 3)])
def test_mixed_bits_and_float_activations_train_too(method, bits):
    losses: list[float] = []
    settings = {"n_bits_w": 2, "n_bits_a": bits, "distill_steps": 60, "distill_augment": "none"}
    settings |= {"distill_lr": 1e-2, "distill_lr_scale": 1e-3, **FAST.get(method, {})}
    made = QuantizationManager().get_quantization_method(method, **settings)
    network = made.quantize_model(
        make_network(), None, [make_tiny_images()], on_scalar=lambda n, v, s: losses.append(v)
    )
    assert min(losses[-21:]) < losses[-21]
    for layer in quant_layers(network).values():
        assert (layer.codes.long() < 2**layer.bits).all()


def test_large_batches_are_computed_again_with_the_same_gradients(trained, monkeypatch):
    monkeypatch.setattr(stage, "LARGE_BATCH", 0)
    require_equal(quantized(20, distill_batch_norm="on"), trained[0])


def test_a_loss_that_is_not_finite_names_the_step(monkeypatch):
    monkeypatch.setattr(stage, "augmented", lambda images, kind, generator: images / 0)
    with pytest.raises(RunError, match="distillation must be finite, got nan at step 1;"):
        quantized(3)


def test_out_of_gpu_memory_names_the_batch_of_the_distillation(monkeypatch):
    def full(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory.\nmore")

    monkeypatch.setattr(stage._Distillation, "_loss", full)
    with pytest.raises(RunError, match=r"out of memory\.; start again with a smaller") as e:
        quantized(3)
    assert str(e.value).endswith("--distill_batch")


def test_what_cannot_be_distilled_is_refused():
    few = "num_samples must be at least 2 with distill_steps, got 1"
    with pytest.raises(InputError, match=few):
        quantized(3, [make_tiny_images()[:1]])
    with pytest.raises(InputError, match=few):
        QuantizationManager().get_quantization_method("rtn", distill_steps=1, num_samples=1)
    for name, value in (("distill_lr", 0.5), ("distill_features", 0.0)):
        with pytest.raises(InputError, match=f"{name} must be left out while distill_steps is 0"):
            QuantizationManager().get_quantization_method("rtn", **{name: value})
    with pytest.raises(InputError, match="distill_augment must be one of"):
        quantized(3, distill_augment="mixup")


@pytest.mark.parametrize(("is_sided", "kind"), [(True, "shift"), (False, "crop_flip")])
def test_images_are_mirrored_unless_the_float_network_sees_another_class(is_sided, kind, caplog):
    """The class is the brighter half, or whether the image is bright."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(2 * 8 * 8, 2)).eval()
    with torch.no_grad():
        network[0].weight.fill_(1.0)
        network[0].bias.zero_()
        side = torch.ones(2, 8, 8)
        side[:, :, 4:] = -1.0 if is_sided else 1.0
        network[2].weight.copy_(torch.stack([side.flatten(), -side.flatten()]))
    images = torch.rand(32, 1, 8, 8)
    images[::2, ..., :4] += 1
    images[1::2, ..., 4:] += 1
    states = []
    for augment in ("auto", kind):
        settings = {**SETTINGS, "distill_augment": augment, "distill_steps": 4}
        made = QuantizationManager().get_quantization_method("rtn", **settings)
        with caplog.at_level("INFO"):
            states.append(made.quantize_model(network, None, [images]))
    share = 0 if is_sided else 100
    assert f"are made by {kind}, as {share} % of mirrored images keep the class" in caplog.text
    require_equal(*states)


def test_a_resumed_run_keeps_its_kind_of_views():
    training = object.__new__(stage._Distillation)
    training.settings, training.stored = MethodSettings(), {"views": "shift"}
    assert training.settings.distill_augment == "auto"
    assert training._choose_views() == "shift"


@pytest.mark.parametrize("kind", AUGMENTATIONS)
def test_views_are_parts_of_the_images_and_fixed_by_the_generator(kind):
    images = torch.arange(2 * 3 * 32 * 32, dtype=torch.float32).view(2, 3, 32, 32)
    views = [augmented(images, kind, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(views[0], views[1])
    assert torch.equal(views[0], views[2]) == (kind == "none")
    for view, image in zip(views[0], images, strict=True):
        assert view.shape == image.shape
        assert view.min() >= image.min() - 1e-3 and view.max() <= image.max() + 1e-3
        if kind != "resized_crop":
            assert torch.isin(view, image).all()
    plain = torch.full((2, 3, 8, 8), 0.5)
    torch.testing.assert_close(augmented(plain, kind, torch.Generator().manual_seed(1)), plain)


def test_a_shift_is_one_of_the_nine_by_a_pixel_at_32_pixels():
    image = torch.randn(1, 1, 32, 32)
    padded = nn.functional.pad(image, (1, 1, 1, 1), mode="reflect")
    windows = [padded[..., i : i + 32, j : j + 32] for i in range(3) for j in range(3)]
    for seed in range(20):
        view = augmented(image, "shift", torch.Generator().manual_seed(seed))
        assert any(torch.equal(view, window) for window in windows)


def test_convolutions_keep_their_kind():
    network = quantized(4)
    assert any(isinstance(layer, QuantConv2d) for layer in quant_layers(network).values())
