"""Capture of networks as people write them: the chain equals the network, or it is refused."""

from __future__ import annotations

import functools
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from common.errors import InputError
from models import load_quantized
from quant import (
    CapturedNetwork,
    QuantizationManager,
    capture,
    read_quantized_file,
    restore_quantized,
)
from quant.arithmetic.spec import QuantSpec
from quant.network import model, passes
from quant.network.calibration import collect_calibration
from quant.network.layers import ActivationQuantizer
from quant.network.model import activation_quantizers, make_chain, quant_layers
from quant.network.outputs import OneOutput
from tests.conftest import chain_of, settle_norms

W2A2 = QuantSpec(2, 2)
W16A16 = QuantSpec(16, 16)
SIZE = 12
IMAGES = torch.randn(6, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3))


class Trunk(nn.Module):
    """Convolutions for the networks below, which change ``forward`` or a part."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.one = nn.Conv2d(3, 6, 3, padding=1)
        self.two = nn.Conv2d(6, 6, 3, padding=1)
        self.three = nn.Conv2d(6, 6, 3, padding=1)
        self.fc = nn.Linear(6, 4)

    def tail(self, x: Tensor) -> Tensor:
        return self.fc(x.mean((2, 3)))

    def forward(self, x):
        return self.tail(F.relu(self.two(F.relu(self.one(x)))))


class InPlaceSum(Trunk):
    def forward(self, x):
        x = F.relu(self.one(x))
        y = self.two(x)
        y += x
        y.mul_(0.5).clamp_(min=0)
        return self.tail(y)


class WrittenSlice(Trunk):
    """An assignment to a part of a tensor changes the tensor that a shortcut reads."""

    def forward(self, x):
        x = self.one(x)
        y = self.two(x)
        x[:, :2] = 0
        return self.tail(y + x)


class WrittenImage(Trunk):
    """The image is normalised in place, channel by channel, and read again."""

    def forward(self, x):
        for channel in range(3):
            x[:, channel] = x[:, channel] * (channel + 0.5) - 0.3
        x.sub_(0.5).div_(0.25)
        return super().forward(x)


class WrittenChannel(Trunk):
    def forward(self, x):
        x = F.relu(self.one(x))
        x[:, 0] = x[:, 1] * 2
        return self.tail(x)


class FirstInPlace(Trunk):
    def forward(self, x):
        return super().forward(F.relu_(x))


class Keeping(Trunk):
    """Features are kept in a dict, by a hook; one value is computed on first use."""

    def __init__(self):
        super().__init__()
        self.kept = {}
        self.scale = None
        self.one.register_forward_hook(lambda module, _, out: self.kept.update(one=out))
        super().forward(IMAGES)

    def forward(self, x):
        if self.scale is None:
            self.scale = self.fc.weight.abs().mean()
        return super().forward(x) * self.scale


class NamedLikeOurs(nn.Module):
    """Its module has the name that the quantizer behind ``a`` would have."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.a = nn.Conv2d(3, 4, 3)
        self.quantizer_a = nn.Conv2d(4, 4, 3)
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return self.fc(self.quantizer_a(self.a(x)).mean((2, 3)))


class DeadBranch(Trunk):
    def forward(self, x):
        logits = super().forward(x)
        self.three(x.repeat(1, 2, 1, 1)).sum()
        return logits


class AuxiliaryHead(Trunk):
    """A second classifier that only training uses, as in GoogLeNet."""

    def forward(self, x):
        x = F.relu(self.one(x))
        auxiliary = self.tail(self.three(x))
        logits = self.tail(F.relu(self.two(x)))
        return (logits, auxiliary) if self.training else logits


class MixedHeads(Trunk):
    """A head that is a product with a parameter, without a module."""

    def __init__(self, form: str):
        super().__init__()
        self.form = form
        self.table = nn.Parameter(torch.randn(6, 4))
        self.shift = nn.Parameter(torch.randn(4))

    def forward(self, x):
        x = F.relu(self.two(F.relu(self.one(x)))).mean((2, 3))
        if self.form == "matmul":
            return x @ self.table + self.shift
        if self.form == "einsum":
            return torch.einsum("bi,io->bo", x, self.table)
        if self.form == "addmm":
            return torch.addmm(self.shift, x, self.table)
        if self.form == "transposed":
            return (self.table.t() @ x.t()).t()
        return F.linear(F.normalize(x), F.normalize(self.table.t()), self.shift)


class ResizedStem(Trunk):
    def forward(self, x):
        x = F.interpolate(
            (x - x.mean((1, 2, 3), keepdim=True)) / 0.3, scale_factor=0.5, mode="bilinear"
        )
        return super().forward(x)


class Hooked(Trunk):
    """A weight that a hook computes from a parameter before every call."""

    def __init__(self):
        super().__init__()
        del self.two.weight
        self.two.raw = nn.Parameter(torch.randn(6, 6, 3, 3))
        self.two.register_forward_pre_hook(
            lambda module, _: setattr(module, "weight", module.raw.tanh() * 0.3)
        )
        self.two.weight = self.two.raw.tanh() * 0.3


class Remembering(Trunk):
    """Features are kept as attributes, and a part runs without gradients."""

    def forward(self, x):
        with torch.no_grad():
            self.features = F.relu(self.one(x))
        return self.tail(self.two(self.features))


class Halving(nn.Module):
    def forward(self, weight):
        return weight / 2


class Parametrized(Trunk):
    def __init__(self):
        super().__init__()
        parametrizations.weight_norm(self.one)
        parametrizations.spectral_norm(self.two)
        torch.nn.utils.parametrize.register_parametrization(self.three, "weight", Halving())
        parametrizations.orthogonal(self.fc)

    def forward(self, x):
        return self.tail(self.three(F.relu(self.two(F.relu(self.one(x))))))


class Pruned(Trunk):
    def __init__(self):
        super().__init__()
        prune.random_unstructured(self.two, "weight", 0.5)


class Standardised(nn.Conv2d):
    """A convolution whose forward standardises its weight (BiT, Kolesnikov et al. 2020)."""

    def forward(self, x):
        deviation, mean = torch.std_mean(self.weight, (1, 2, 3), keepdim=True)
        return self._conv_forward(x, (self.weight - mean) / (deviation + 1e-5), self.bias)


class WithStandardised(Trunk):
    def __init__(self):
        super().__init__()
        self.two = Standardised(6, 6, 3, padding=1)


class NormOfItsOwn(nn.BatchNorm2d):
    """A batch norm with its activation, as timm writes it."""

    def forward(self, x):
        x = F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
        )
        return F.silu(x)


class OtherConvolutions(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.flat = nn.Conv1d(3, 4, 3, stride=2, padding=2, dilation=2, bias=False)
        self.norm = nn.BatchNorm1d(4)
        self.up = nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1, groups=2)
        self.up_norm = nn.BatchNorm2d(6)
        self.wide = nn.ConvTranspose2d(6, 4, (2, 3), (1, 3), dilation=(2, 1))
        self.fc = nn.Linear(4, 5)

    def forward(self, x):
        x = F.relu(self.norm(self.flat(x.flatten(2))))
        x = x.unflatten(2, (-1, 8))
        x = self.wide(F.relu(self.up_norm(self.up(x))))
        return self.fc(x.mean((2, 3)))


class Recurrent(Trunk):
    """One layer that is used three times."""

    def forward(self, x):
        x = F.relu(self.one(x))
        for _ in range(3):
            x = x + F.relu(self.two(x))
        return self.tail(self.three(x))


class Windows(nn.Module):
    """Attention in windows: between two layers, the first axis is not that of the images."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.patch = nn.Conv2d(3, 8, 2, 2)
        self.qkv = nn.Linear(8, 24)
        self.out = nn.Linear(8, 8)
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        x = self.patch(x)
        count, channels, height, width = x.shape
        x = x.view(count, channels, height // 3, 3, width // 3, 3)
        x = x.permute(0, 2, 4, 3, 5, 1).reshape(-1, 9, channels)
        q, k, v = self.qkv(x).chunk(3, -1)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v))
        return self.fc(x.reshape(count, -1, channels).mean(1))


class DenseBlock(Trunk):
    """Every layer reads all before it, so that no single value is alive between them."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3 + 2 * i, 2, 3, padding=1) for i in range(13))
        self.fc = nn.Linear(29, 4)

    def forward(self, x):
        values = [x]
        for layer in self.layers:
            values.append(F.relu(layer(torch.cat(values, 1))))
        return self.tail(torch.cat(values, 1))


EXACT = {
    "dense block": DenseBlock,
    "in-place sum": InPlaceSum,
    "written slice": WrittenSlice,
    "written image": WrittenImage,
    "written channel": WrittenChannel,
    "image changed in place": FirstInPlace,
    "kept in a dict": Keeping,
    "names of ours": NamedLikeOurs,
    "dead branch": DeadBranch,
    "auxiliary head": AuxiliaryHead,
    "resized stem": ResizedStem,
    "hooked weight": Hooked,
    "kept features": Remembering,
    "parametrized weights": Parametrized,
    "pruned weight": Pruned,
    "standardised weight": WithStandardised,
    "other convolutions": OtherConvolutions,
    "shared layer": Recurrent,
    "attention in windows": Windows,
} | {
    f"head by {form}": (lambda form=form: MixedHeads(form))
    for form in ("matmul", "einsum", "addmm", "transposed", "normalised")
}


def ready(network: nn.Module) -> nn.Module:
    settle_norms(network)
    return network.eval()


@functools.cache
def captured_trunk() -> CapturedNetwork:
    return capture(ready(Trunk()), IMAGES)


@pytest.mark.parametrize("name", EXACT)
def test_a_network_as_people_write_it_is_quantized_as_it_is(name, tmp_path):
    """At 16 bits the quantized model equals the network; its file needs no code of the network."""
    network, images = ready(EXACT[name]()), IMAGES.clone()
    method = QuantizationManager().get_quantization_method(
        "rtn", n_bits_w=16, n_bits_a=16, num_samples=6, init_wmode="minmax", init_amode="minmax"
    )
    quantized = method.quantize_model(network, None, [images])
    assert torch.equal(images, IMAGES), "the images of the user are left alone"
    with torch.no_grad():
        expected, got = network(IMAGES.clone()), quantized(IMAGES)
        assert (expected - got).abs().max() <= 1e-3 * expected.abs().max()
        quantized.save(tmp_path / "model.pt", {})
        restored = restore_quantized(read_quantized_file(tmp_path / "model.pt"), None)
        assert torch.equal(restored(IMAGES[:1]), quantized(IMAGES[:1]))


def bits_of(network: nn.Module) -> dict[str, int]:
    layers = quant_layers(chain_of(ready(network), W2A2, SIZE))
    return {name.split(".", 2)[2]: int(layer.bits) for name, layer in layers.items()}


@pytest.mark.parametrize("form", ["matmul", "einsum", "addmm", "transposed", "normalised"])
def test_a_head_without_a_module_is_a_layer_of_eight_bits(form):
    assert bits_of(MixedHeads(form)) == {"one": 8, "two": 2, "table": 8}


def test_a_stem_behind_operations_without_weights_has_eight_bits():
    assert bits_of(ResizedStem()) == {"one": 8, "two": 2, "fc": 8}


def test_computed_weights_are_named_after_their_module():
    assert bits_of(Hooked()) == {"one": 8, "two.raw": 2, "fc": 8}
    assert list(bits_of(Parametrized())) == ["one", "two", "three", "fc"]
    assert list(bits_of(Pruned())) == ["one", "two", "fc"]


def test_a_layer_used_three_times_has_one_set_of_codes():
    chain = chain_of(ready(Recurrent()), W2A2, SIZE)
    assert [name.split(".", 2)[2] for name in quant_layers(chain)] == ["one", "two", "three", "fc"]


def test_a_block_of_many_layers_is_cut_where_few_numbers_cross():
    network = capture(ready(DenseBlock()), IMAGES)
    chain = make_chain(network, W2A2)
    sizes = [len(quant_layers(unit)) for unit in chain.units]
    assert sum(sizes) == 14
    assert max(sizes) <= 12
    crossing = chain.units[0](IMAGES)
    assert crossing.shape == (6, 3 + 2 * sizes[0], SIZE * SIZE)
    assert torch.equal(crossing[:, :3].reshape(IMAGES.shape), IMAGES)
    assert chain.unit_names == make_chain(network, W16A16).unit_names


def test_norms_fold_whatever_class_computes_them_and_only_along_the_outputs():
    network = nn.Sequential(nn.Conv2d(3, 6, 3), NormOfItsOwn(6), nn.AdaptiveAvgPool2d(1))
    network = ready(nn.Sequential(*network, nn.Flatten(), nn.Linear(6, 4)))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in chain_of(network, W2A2).modules())
    tokens = nn.Sequential(nn.Flatten(2), nn.Linear(64, 3), nn.BatchNorm1d(3), nn.Flatten())
    network = ready(nn.Sequential(*tokens, nn.Linear(9, 4)))
    assert any(isinstance(m, nn.BatchNorm1d) for m in chain_of(network, W2A2).modules())


def test_both_operands_of_a_product_of_activations_are_quantized():
    chain = chain_of(ready(Windows()), W2A2, SIZE)
    names = [name.rpartition(".")[2] for name in activation_quantizers(chain)]
    assert {"quantizer_mul", "quantizer_softmax"} <= set(names)
    assert len(names) == 7  # inputs of qkv, out and fc; q, k, softmax, v


class MixedColours(Trunk):
    """A product of the image with itself stands in front of the first layer."""

    def forward(self, x):
        pixels = x.flatten(2)
        return super().forward((pixels @ pixels.mT @ pixels).view(x.shape) / 100)


def test_products_of_the_image_alone_stay_in_float():
    names = [
        n.rpartition(".")[2]
        for n in activation_quantizers(chain_of(ready(MixedColours()), W2A2, SIZE))
    ]
    assert names == ["quantizer_relu", "quantizer_relu_1"]


def test_the_image_before_the_stem_stays_in_float():
    chain = chain_of(ready(ResizedStem()), W2A2, SIZE)
    first = [type(m) for m in chain.units[0].children() if isinstance(m, ActivationQuantizer)]
    stem = chain.units[0].graph
    before = [node.op for node in stem.nodes if str(node.target).startswith("quantizer")]
    assert len(first) == len(before) == 1
    assert next(n for n in stem.nodes if n.op == "call_module").name == "one"


def test_images_of_another_shape_are_refused_by_the_quantized_model():
    chain = make_chain(captured_trunk(), W2A2)
    with pytest.raises(InputError, match=r"shape \(3, 12, 12\), .* got \(3, 16, 16\)"):
        chain(torch.zeros(2, 3, 16, 16))


class Several(Trunk):
    def forward(self, x):
        features = F.relu(self.one(x))
        return {"logits": self.tail(features), "features": features}


def test_one_of_several_outputs_can_be_chosen():
    network = ready(Several())
    text = (
        r"one tensor of logits, got 2 outputs: logits \(6, 4\), features \(6, 6, 12, 12\); choose"
    )
    with pytest.raises(InputError, match=text):
        capture(network, IMAGES)
    chain = make_chain(capture(OneOutput(network, "logits"), IMAGES), W16A16)
    assert torch.allclose(chain(IMAGES), network(IMAGES)["logits"], atol=1e-5)
    with pytest.raises(InputError, match=r"must be one of the outputs .*got 'probabilities'"):
        capture(OneOutput(network, "probabilities"), IMAGES)


class FixedBatch(Trunk):
    def forward(self, x):
        return super().forward(x).view(6, 4)


class Branching(Trunk):
    def forward(self, x):
        return super().forward(x if x.sum() > 0 else -x)


class Noisy(Trunk):
    def forward(self, x):
        return super().forward(x + torch.rand_like(x))


class Dropping(Trunk):
    """Its dropout does not know whether the network is in evaluation."""

    def __init__(self, drop):
        super().__init__()
        self.drop = drop

    def forward(self, x):
        return super().forward(self.drop(x))


class OthersOfTheBatch(Trunk):
    def forward(self, x):
        return super().forward(x - x.mean(0, keepdim=True))


class InHalf(Trunk):
    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().forward(x).float()


class Memory(Trunk):
    def __init__(self):
        super().__init__()
        self.steps = nn.LSTM(6, 6, batch_first=True)

    def forward(self, x):
        return self.fc(self.steps(self.one(x).mean(3).mT)[0][:, -1])


class Odd(Trunk):
    """A child has a name that torch.fx uses itself."""

    def __init__(self):
        super().__init__()
        self.code = nn.Conv2d(3, 6, 3)


class Locked(Trunk):
    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


class ComplexScale(Trunk):
    def forward(self, x):
        return self.tail((F.relu(self.one(x)) * (1 + 2j)).real)


class ManyMatrices(Trunk):
    def __init__(self):
        super().__init__()
        self.matrices = nn.Parameter(torch.randn(2, 3, 2))

    def forward(self, x):
        x = self.one(x).mean((2, 3)).view(-1, 2, 1, 3) @ (self.matrices / 2)
        return x.flatten(1)


class Looking(Trunk):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(5, 6)

    def forward(self, x):
        return self.tail(
            self.one(x) + self.words((x.mean((2, 3))[:, 0] > 0).long())[:, :, None, None]
        )


def poisoned() -> nn.Module:
    network = Trunk()
    network.two.bias.data[1] = torch.nan
    return network


REFUSED = {
    "fixed number of images": (FixedBatch, "torch.export"),
    "control flow on values": (Branching, "captured by torch.export, got Branching"),
    "random numbers": (Noisy, r"random operation rand_like in module ''$"),
    "dropout": (
        lambda: Dropping(F.dropout),
        "random operation dropout in module ''",
    ),
    "dropout of maps": (lambda: Dropping(F.dropout2d), "random operation feature_dropout in"),
    "dropout that trains": (
        lambda: Dropping(lambda x: torch.native_dropout(x, 0.5, None)[0]),
        r"random operation native_dropout in module '' \(F.dropout needs training=self.training\)$",
    ),
    "other images": (OthersOfTheBatch, "logits of each image alone, got logits that differ by"),
    "autocast": (InHalf, "compute in float32, got bfloat16 in module"),
    "recurrence": (Memory, "got operation lstm in module 'steps'"),
    "a name of torch.fx": (Odd, "other names than those of torch.fx, got 'code'"),
    "not copyable": (Locked, "copyable by copy.deepcopy, got: cannot pickle"),
    "not storable": (ComplexScale, "plain arguments, got complex"),
    "batched matrices": (ManyMatrices, "got operation matmul in module ''"),
    "no values": (lambda: nn.Sequential(nn.LazyConv2d(4, 3)), "must have values, got none in '0"),
    "scripted part": (lambda: nn.Sequential(torch.jit.script(Trunk())), "TorchScript in '0'"),
    "embedding": (Looking, "got operation embedding in module 'words'"),
    "feature maps": (
        lambda: nn.Conv2d(3, 4, 1),
        r"logits of shape \(6, classes\).*\(6, 4, 12, 12\)",
    ),
    "batch statistics": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3),
            nn.BatchNorm2d(4, track_running_stats=False),
            nn.Flatten(),
            nn.Linear(400, 4),
        ),
        "stored statistics, got none in module '1'",
    ),
    "double": (lambda: Trunk().double(), "float32, got float64 in 'one.weight'"),
    "half": (lambda: Trunk().bfloat16(), "float32, got bfloat16 in 'one.weight'"),
    "NaN": (poisoned, "finite, got NaN or Inf in 'two.bias'"),
    "no weights": (lambda: nn.Sequential(nn.Flatten()), "must have weights, got none"),
    "no layer": (
        lambda: nn.Sequential(nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        "at least one convolution or linear layer",
    ),
    "TorchScript": (lambda: torch.jit.script(Trunk()), "compiled by TorchScript"),
    "no module": (lambda: F.relu, "must be a torch.nn.Module, got function"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_what_cannot_be_quantized_exactly_is_refused_with_its_reason(name):
    build, text = REFUSED[name]
    network = build()
    network = network.eval() if isinstance(network, nn.Module) else network
    with pytest.raises(InputError, match=text) as caught:
        make_chain(capture(network, IMAGES), W2A2)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, lambda network: torch.compile(network, backend="eager")]
)
def test_wrappers_are_unwrapped(wrap):
    network = ready(Trunk())
    chain = make_chain(capture(wrap(network), IMAGES), W16A16)
    images = IMAGES.to(chain.device)  # a GPU, where there is one
    assert torch.allclose(chain(images), network(images), atol=1e-5)


def test_lapq_takes_networks_whose_graph_holds_the_number_of_images():
    method = QuantizationManager().get_quantization_method(
        "lapq", num_samples=6, p_steps=1, powell_maxfev=5, gradient_steps=3
    )
    assert method.quantize_model(ready(Windows()), None, [IMAGES])(IMAGES).isfinite().all()


def test_a_fold_that_is_wrong_by_one_percent_is_refused_with_its_unit(tiny_network, monkeypatch):
    right = passes.fuse_conv_bn_eval

    def wrong(layer, norm):
        fused = right(layer, norm)
        if layer.out_channels == 12 and layer.kernel_size == (3, 3):
            fused.weight.data *= 1.01
        return fused

    monkeypatch.setattr(passes, "fuse_conv_bn_eval", wrong)
    with pytest.raises(
        InputError, match=r"captured exactly, .*first unit that differs is 'second'"
    ):
        chain_of(tiny_network, W2A2)


def test_a_swapped_shortcut_is_refused_with_its_unit(tiny_network, monkeypatch):
    network = capture(tiny_network, torch.randn(4, 3, 8, 8))
    right = passes.prepared

    def swapped(captured, fold):
        graph = right(captured, fold)
        add = next(node for node in graph.graph.nodes if node.name == "add")
        add.args = (add.args[0], add.args[0])
        graph.recompile()
        return graph

    monkeypatch.setattr(model, "prepared", swapped)
    with pytest.raises(InputError, match="first unit that differs is 'first'"):
        make_chain(network, W2A2)


@pytest.mark.parametrize(
    ("batches", "text"),
    [
        ([{"image": IMAGES}], r"got a dict with keys \['image'\]"),
        ([IMAGES.byte()], "float32, scaled as the network expects, got uint8"),
        ([IMAGES / 0], "must be finite"),
        ([IMAGES, IMAGES[:, :, :4]], "must have one shape"),
        ([(["a.png"], [1])], "must be a tensor, got list"),
        ([], "at least one image"),
    ],
)
def test_calibration_batches_that_are_no_images_are_refused(batches, text):
    with pytest.raises(InputError, match=text):
        collect_calibration(batches, 12)


def test_calibration_takes_arrays_doubles_and_missing_labels():
    for batch in ((IMAGES.numpy(), [0] * 6), (IMAGES.double(), None), IMAGES):
        images, _ = collect_calibration([batch], 6)
        assert images.dtype == torch.float32
        assert torch.equal(images, IMAGES)


def hostile(content, unit, row, place=None):
    """Put a node into the first unit, or replace one."""
    nodes = content["units"][unit]["nodes"]
    if place is None:
        nodes.insert(1, row(nodes[0][1]))
    else:
        nodes[place] = row(nodes[place])


CODE = "x=__import__('pathlib').Path('written').write_text('x')"
HOSTILE = {
    "code as input": lambda c: hostile(c, 0, lambda n: [n[0], n[1], CODE, *n[3:]], 0),
    "code as argument name": lambda c: hostile(
        c, 0, lambda x: ["call_function", "zz", "aten.relu.default", [{"node": x}], {CODE: 1}]
    ),
    "a method": lambda c: hostile(
        c, 0, lambda x: ["call_method", "zz", "tofile", [{"node": x}, "written"], {}]
    ),
    "a file": lambda c: hostile(
        c, 0, lambda x: ["call_function", "zz", "aten.from_file.default", ["written", True, 9], {}]
    ),
    "another operation": lambda c: hostile(
        c, 0, lambda x: ["call_function", "zz", "os.system", ["touch written"], {}]
    ),
    "an in-place operation": lambda c: hostile(
        c, 0, lambda x: ["call_function", "zz", "aten.relu_.default", [{"node": x}], {}]
    ),
    "code as attribute": lambda c: hostile(
        c, 0, lambda x: ["get_attr", "zz", "a'];" + CODE + "#", [], {}]
    ),
    "no dtype": lambda c: hostile(
        c, 0, lambda x: ["call_function", "zz", "aten.relu.default", [{"dtype": "load"}], {}]
    ),
    "two inputs": lambda c: hostile(c, 0, lambda x: ["placeholder", "zz", "x", [], {}]),
    "a deep argument": lambda c: hostile(
        c, 0, lambda x: ["call_function", "zz", "aten.relu.default", [[[[[[[[[[[1]]]]]]]]]]], {}]
    ),
    "no units": lambda c: c.pop("units"),
    "another shape of images": lambda c: c.update(image_shape=[3, -8, 8]),
    "bits of another type": lambda c: c["state_dict"].update(
        {k: torch.tensor(float("nan")) for k in c["state_dict"] if k.endswith("bits")}
    ),
    "a stride of nothing": lambda c: c["units"][0]["modules"]["one"].update(stride=[0, 0]),
    "empty codes": lambda c: c["packed"].clear(),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_or_damaged_file_is_refused_and_runs_nothing(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    chain = make_chain(captured_trunk(), W2A2)
    for layer in quant_layers(chain).values():
        layer.quantize_to_nearest("minmax")
    chain.save("model.pt", {"arch": "none", "num_classes": 4})
    content = torch.load("model.pt", weights_only=True)
    HOSTILE[name](content)
    torch.save(content, "model.pt")
    with pytest.raises(InputError) as caught:
        load_quantized("model.pt")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "written").exists()
