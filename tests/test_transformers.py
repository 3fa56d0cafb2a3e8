"""Networks with attention: their points, powers of two for softmax outputs, equal LayerNorms."""

from __future__ import annotations

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torchvision.models import VisionTransformer

from benchmarks import transformers
from common.errors import InputError
from quant import QuantModel, read_quantized_file, restore_quantized
from quant.arithmetic.log2 import fake_quantize_log2, log2_levels, log2_qparams
from quant.arithmetic.range_search import Sample
from quant.arithmetic.spec import QuantSpec
from quant.bitwidth.banks import BankRequest, build_sweep
from quant.network.capture import CapturedNetwork, capture
from quant.network.layernorms import SAMPLES, Move, _move, find_moves, with_moves
from quant.network.layers import ActivationQuantizer, Log2Quantizer, QuantLayer
from quant.network.model import activation_quantizers, make_chain, quant_layers
from quant.network.operations import PRODUCTS, called_module, has_attention, operation
from tests.test_methods_contract import METHODS, make

BITS = 3


def tiny_vit() -> nn.Module:
    """Two blocks of width 16 for 8 x 8 images, with LayerNorms whose channels differ widely."""
    torch.manual_seed(0)
    network = VisionTransformer(8, 4, 2, 2, 16, 32, num_classes=4)
    nn.init.normal_(network.heads.head.weight)
    for module in network.modules():
        if isinstance(module, nn.LayerNorm):
            nn.init.normal_(module.bias)
            module.weight.data = torch.logspace(-1, 1, 16)[torch.randperm(16)]
    return network.eval()


def images(count: int = 48) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@functools.cache
def tiny_captured() -> CapturedNetwork:
    return capture(tiny_vit(), images())


@pytest.fixture
def captured() -> CapturedNetwork:
    return tiny_captured()


# Powers of two


def test_the_levels_are_powers_of_two_and_zero():
    assert log2_levels(torch.tensor(0.75), 2).tolist() == [0.75, 0.375, 0.1875, 0.0]
    assert log2_levels(torch.tensor(1.0), 1).tolist() == [1.0, 0.0]
    assert log2_levels(torch.tensor(1.0), 8)[[0, 149, 150]].tolist() == [1.0, 2.0**-149, 0.0]


def test_values_go_to_the_nearest_exponent():
    x = torch.tensor([2.0, 1.0, 0.71, 0.70, 0.5, 0.36, 0.35, 0.18, 0.17, 0.0])
    expected = [1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.25, 0.25, 0.0, 0.0]
    assert fake_quantize_log2(x, torch.tensor(1.0), 2).tolist() == expected


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_there_are_at_most_2_to_the_bits_values(bits):
    x = torch.cat([torch.zeros(1), torch.logspace(-45, 0.2, 10_000)])
    values = fake_quantize_log2(x, torch.tensor(0.8), bits).unique()
    assert len(values) <= 2**bits
    assert set(values.tolist()) <= set(log2_levels(torch.tensor(0.8), bits).tolist())


def test_gradients_pass_as_if_the_exponent_were_not_rounded():
    scale = torch.tensor(0.5, requires_grad=True)
    x = torch.tensor([0.9, 0.6, 0.3, 0.1, 0.01, 0.0], requires_grad=True)
    weights = torch.tensor([1.0, 2.0, 3.0, 5.0, 7.0, 11.0])
    xhat = fake_quantize_log2(x, scale, 2)
    assert xhat.tolist() == [0.5, 0.5, 0.25, 0.125, 0.0, 0.0]
    (xhat * weights).sum().backward()
    assert x.grad.tolist() == [0.0, 2.0, 3.0, 5.0, 7.0, 11.0]  # 0.9 > 0.5 sqrt(2) is clamped
    inside = ((xhat - x) * weights)[1:].sum() / 0.5
    assert scale.grad.item() == pytest.approx(1.0 + inside.item(), rel=1e-6)


def test_masked_elements_pass_in_float():
    x = torch.tensor([0.3, 0.3], requires_grad=True)
    scale = torch.tensor(1.0, requires_grad=True)
    out = fake_quantize_log2(x, scale, 2, torch.tensor([1.0, 0.0]))
    assert out.tolist() == [0.25, pytest.approx(0.3)]
    out.sum().backward()
    assert x.grad.tolist() == [1.0, 1.0]
    assert scale.grad.item() == pytest.approx(0.25 - 0.3, rel=1e-5)


@pytest.mark.parametrize("norm", [2.0, 2.4])
def test_no_larger_or_smaller_scale_has_a_smaller_error(norm):
    row = torch.rand(1, 500, generator=torch.Generator().manual_seed(0)).pow(4)
    counts = torch.arange(1.0, 501.0)
    scale, zero_point = log2_qparams(Sample(row, counts), 3, norm)

    def error(candidate: float) -> float:
        rounded = fake_quantize_log2(row, torch.tensor(candidate), 3)
        return ((rounded - row).abs().pow(norm) * counts).sum().item()

    top = row.max().item()
    assert zero_point.item() == 0
    assert top / 2 < scale.item() <= top
    assert error(scale.item()) == min(error(top * share / 100) for share in range(51, 101))
    assert log2_qparams(Sample(row), 3, math.inf)[0].item() == top


# LayerNorms


def test_moved_ranges_leave_the_float_network_as_it_is(captured):
    moves = find_moves(captured, images())
    assert len(moves) == 5  # two in each block, and the last
    moved = with_moves(captured, moves)
    logits = captured.graph(images())
    assert not torch.equal(moved.graph(images()), logits)
    assert (moved.graph(images()) - logits).abs().max() < 1e-5 * logits.abs().max()
    assert torch.equal(captured.graph(images(8)), captured.logits)  # it is a copy


def norm_outputs(network: CapturedNetwork) -> list[Tensor]:
    """Values behind the LayerNorms, (rows, 16)."""
    found = []

    class Run(fx.Interpreter):
        def run_node(self, n):
            value = super().run_node(n)
            if operation(n) == "layer_norm":
                found.append(value.detach().flatten(0, -2))
            return value

    Run(network.graph).run(images()[:SAMPLES])
    return found


def test_all_channels_have_one_range_afterwards(captured):
    moved = with_moves(captured, find_moves(captured, images()))
    for before, after in zip(norm_outputs(captured), norm_outputs(moved), strict=True):
        old, new = (x.amax(0) - x.amin(0) for x in (before, after))
        assert old.max() > 50 * old.min()
        assert torch.allclose(new, old.mean().expand(16), rtol=1e-4)
        one_step = new.max() / (2**4 - 1)  # zero points are rounded
        assert after.amin(0).max() - after.amin(0).min() < 1.01 * one_step


def test_a_constant_channel_does_not_move_the_others():
    """Its zero point, far outside of the codes, belongs to no range that matters."""
    rows = torch.randn(500, 8, generator=torch.Generator().manual_seed(0))
    rows[:, 3] = 100.0
    move = _move(rows)
    after = (rows + move.shift) / move.ratio
    assert -4 < after.amin() < 0 < after.amax() < 4


class ReadTwice(nn.Module):
    """A LayerNorm that two linear layers read, and perhaps the residual or another operation."""

    def __init__(self, other: str, bias: bool = True):
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, 4)
        self.norm = nn.LayerNorm(8, bias=bias)
        self.one, self.two = nn.Linear(8, 8, bias=False), nn.Linear(8, 8)
        self.head = nn.Linear(8, 4)
        self.other = other

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(self.patch(x).flatten(2).transpose(1, 2))
        if self.other in ("padded", "padded by 0"):
            tokens = nn.functional.pad(tokens, (0, 0, 0, int(self.other == "padded")))
        if self.other == "turned":
            tokens = tokens.transpose(1, 2).reshape(-1, 4, 8)
        attended = self.one(tokens) @ self.two(tokens).transpose(1, 2)
        if self.other == "residual":
            attended = attended @ tokens
        if self.other == "twice":
            attended = attended + self.one(tokens + 1).mean((1, 2), keepdim=True)
        if self.other == "rolled":
            attended = attended * self.two(tokens.roll(1, 1)[:, :1]).mean((1, 2), keepdim=True)
        if self.other == "measured":
            attended = attended + torch.ones_like(tokens).mean(-1, keepdim=True)
        if self.other == "masked":  # as Swin's shifted windows are
            mask = tokens.new_zeros((4, 4))
            mask[:2, 2:] = -100
            attended = (attended + mask).softmax(-1)
        return self.head(attended.flatten(1)[:, :8])


@pytest.mark.parametrize(
    ("other", "moved"),
    [
        ("", 1),
        ("padded by 0", 1),
        ("measured", 1),
        ("masked", 1),
        ("residual", 0),
        ("padded", 0),
        ("turned", 0),
        ("twice", 0),
        ("rolled", 0),
    ],
)
def test_a_range_moves_only_where_linear_layers_alone_read_it(other, moved):
    torch.manual_seed(0)
    network = capture(ReadTwice(other).eval(), images())
    moves = find_moves(network, images())
    assert len(moves) == moved
    after = with_moves(network, moves).graph(images())
    assert torch.allclose(after, network.graph(images()), rtol=1e-5, atol=1e-5)


def test_a_mask_of_fixed_size_is_a_constant():
    network = capture(ReadTwice("masked").eval(), images())
    names = {operation(node) for node in network.graph.graph.nodes}
    assert not names & {"new_zeros", "slice_scatter", "fill", "full"}
    assert any((value == -100).any() for value in network.graph.buffers())


def test_a_layernorm_without_a_bias_gets_one():
    torch.manual_seed(0)
    network = capture(ReadTwice("", bias=False).eval(), images())
    moved = with_moves(network, find_moves(network, images()))
    assert torch.allclose(moved.graph(images()), network.graph(images()), rtol=1e-5, atol=1e-5)
    assert any(value.abs().max() > 0 for name, value in moved.graph.named_buffers())


def test_it_happens_where_there_is_attention(captured, tiny_network, tiny_images, caplog):
    assert has_attention(captured.graph)
    assert not has_attention(capture(tiny_network, tiny_images).graph)
    caplog.set_level("INFO")
    for asked, told in [("auto", True), ("on", True), ("off", False)]:
        caplog.clear()
        quantized("rtn", reparam_layernorm=asked)
        text = f"channels of 5 of 5 LayerNorms have equal ranges (reparam_layernorm {asked})"
        assert (text in caplog.text) == told


def test_moves_are_left_out_where_nothing_takes_them_back(captured):
    """As in a given float network whose LayerNorm of that name is read by a residual too."""
    torch.manual_seed(0)
    network = capture(ReadTwice("residual").eval(), images())
    (name,) = (n.name for n in network.graph.graph.nodes if operation(n) == "layer_norm")
    moved = with_moves(network, {name: Move(torch.full((8,), 2.0), torch.ones(8))})
    assert torch.equal(moved.graph(images()), network.graph(images()))


@pytest.mark.parametrize(
    ("bits", "reasons"),
    [
        (3, ["the network has no LayerNorm that only", "the network multiplies no softmax output"]),
        (32, ["activations stay in float", "activations stay in float"]),
    ],
)
def test_what_changes_nothing_is_told(tiny_network, tiny_images, caplog, bits, reasons):
    asked = {"reparam_layernorm": "on", "softmax_quantizer": "log2"}
    make("rtn", **asked, n_bits_a=bits).quantize_model(tiny_network, None, [tiny_images])
    told = [record.message for record in caplog.records if record.levelname == "WARNING"]
    for text, name, reason in zip(told, asked, reasons, strict=True):
        assert text.startswith(f"{name} {asked[name]} changes nothing: {reason}")


def test_equal_ranges_lower_the_error_of_few_bits(captured):
    logits = captured.graph(images())
    errors = {
        asked: (quantized("rtn", n_bits_w=8, reparam_layernorm=asked)(images()) - logits).square()
        for asked in ("on", "off")
    }
    assert errors["on"].mean() < 0.8 * errors["off"].mean()


# Blocks


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.proj((q @ k.transpose(1, 2)).softmax(-1) @ v)


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(x).relu())


class Block(nn.Module):
    """As timm writes it: attention and feed-forward are modules of their own."""

    def __init__(self):
        super().__init__()
        self.attn, self.mlp = Attention(), Mlp()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(x)
        return x + self.mlp(x)


class Tokens(nn.Module):
    def __init__(self, *blocks: nn.Module):
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, 4)
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x.mean(1))


class Given(Attention):
    """Attention whose probabilities are what a function makes of scores and values."""

    def __init__(self, attend):
        super().__init__()
        self.attend = attend

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.proj(self.attend(q, k, v))


def attending(*functions) -> nn.Module:
    torch.manual_seed(0)
    return Tokens(*map(Given, functions)).eval()


CAST = {
    "to its own type": lambda q, k, v: (q @ k.mT).softmax(-1, dtype=torch.float32).to(q.dtype) @ v,
    "type_as": lambda q, k, v: (q @ k.mT).softmax(-1).type_as(v) @ v,
    "float": lambda q, k, v: (q @ k.mT).float().softmax(-1).float() @ v,
    "padded by zeros": lambda q, k, v: (
        F.pad((q @ k.mT).softmax(-1), (0, 1)) @ F.pad(v, (0, 0, 0, 1))
    ),
}
OTHERWISE = {
    "another padding": lambda q, k, v: (
        F.pad((q @ k.mT).softmax(-1), (0, 1), value=-1.0) @ F.pad(v, (0, 0, 0, 1))
    ),
    "nan_to_num": lambda q, k, v: (q @ k.mT).softmax(-1).nan_to_num() @ v,
}


@pytest.mark.parametrize("name", CAST)
def test_a_softmax_output_is_found_behind_what_changes_no_value(name, caplog):
    network = attending(CAST[name])
    model = make("rtn", softmax_quantizer="log2").quantize_model(network, None, [images()])
    kinds = [type(part) for part in activation_quantizers(model).values()]
    assert kinds.count(Log2Quantizer) == 1
    assert "log2" not in caplog.text


@pytest.mark.parametrize("name", OTHERWISE)
def test_how_many_softmax_outputs_take_powers_of_two_is_told(name, caplog):
    network = attending(OTHERWISE[name], CAST["float"])
    make("rtn", softmax_quantizer="log2").quantize_model(network, None, [images()])
    assert "softmax_quantizer log2 acts on 1 of 2 softmax outputs" in caplog.text


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_products_of_other_types_than_float32_are_refused(dtype):
    def attend(q, k, v):
        return ((q @ k.mT).to(dtype).softmax(-1) @ v.to(dtype)).float()

    text = (
        f"must be float32 to be quantized, got {str(dtype).partition('.')[2]} in module 'blocks.0'"
    )
    network = attending(attend)
    network.head.weight.data *= 1e-3  # the rounding of bfloat16 is no other network
    with pytest.raises(InputError, match=text):
        make("rtn").quantize_model(network, None, [images()])


class Pooling(nn.Module):
    """Attention of one learned query, as timm's AttentionPoolLatent and CLIP-like heads have it."""

    def __init__(self):
        super().__init__()
        self.latent = nn.Parameter(torch.randn(1, 1, 8))
        self.q, self.kv = nn.Linear(8, 8), nn.Linear(8, 16)

    def forward(self, x: Tensor) -> Tensor:
        k, v = self.kv(x).chunk(2, -1)
        return (self.q(self.latent.expand(x.shape[0], -1, -1)) @ k.mT).softmax(-1) @ v


def test_a_learned_query_is_no_image():
    """Its layer has the bits of all others, and an input on the grid."""
    torch.manual_seed(0)
    network = Tokens(Pooling()).eval()
    model = make("rtn", n_bits_w=BITS, n_bits_a=BITS).quantize_model(network, None, [images()])
    bits = {name: int(layer.bits) for name, layer in quant_layers(model).items()}
    assert [value for name, value in bits.items() if name.endswith((".q", ".kv"))] == [BITS] * 2
    value, found = images(16), []
    for unit in model.units:
        value = Seen(unit, found).run(value)
    assert len(found) == 2 + 2 * 2 + 1  # both layers, operands of both products, head
    assert all(len(values.unique()) <= 2**BITS for _, values in found[:-1])


class Positions(nn.Module):
    """Position embeddings as CLIP has them: looked up by the numbers of the tokens."""

    def __init__(self):
        super().__init__()
        self.embedding, self.fc = nn.Embedding(4, 8), nn.Linear(8, 8)
        self.register_buffer("numbers", torch.arange(4)[None])

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x + self.embedding(self.numbers[:, : x.shape[1]]))


def test_embeddings_of_constant_numbers_are_constants():
    torch.manual_seed(0)
    network = Tokens(Positions()).eval()
    captured = capture(network, images())
    assert torch.allclose(captured.graph(images()), network(images()), atol=1e-5)
    assert not any(operation(node) == "embedding" for node in captured.graph.graph.nodes)


def test_a_mask_that_hides_a_whole_row_is_named():
    mask = torch.zeros(4, 4)
    mask[3] = -math.inf
    attend = functools.partial(F.scaled_dot_product_attention, attn_mask=mask)
    with pytest.raises(InputError, match="finite logits, as the network itself does"):
        capture(attending(attend), images())


@pytest.mark.parametrize(
    "attend",
    [
        functools.partial(F.scaled_dot_product_attention, is_causal=True),
        lambda q, k, v: (q @ k.mT).softmax(-1) @ v + v.sum(-1, keepdim=True, dtype=torch.float32),
    ],
)
def test_a_saved_operation_keeps_a_type_that_is_its_only_named_argument(attend, tmp_path):
    model = make("rtn").quantize_model(attending(attend), None, [images()])
    model.save(tmp_path / "model.pt", {})
    again = restore_quantized(read_quantized_file(tmp_path / "model.pt"))
    assert torch.equal(again(images()), model(images()))


def test_a_block_is_one_unit_however_its_code_is_divided():
    """And what a list holds are blocks, even an attention and a feed-forward."""
    torch.manual_seed(0)
    network = Tokens(Block(), Attention(), Mlp()).eval()
    chain = make_chain(capture(network, images()), QuantSpec(BITS, BITS))
    sizes = {name: len(quant_layers(unit)) for name, unit in chain.named_units()}
    assert sizes == {"patch": 1, "blocks.0": 4, "blocks.1": 2, "blocks.2": 2, "head": 1}


class PostNorm(Block):
    """As in Swin V2: a LayerNorm ends each branch, and linear layers read the residual stream."""

    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.norm1(self.attn(x))
        return x + self.norm2(self.mlp(x))


def test_the_residual_stream_stays_in_float():
    torch.manual_seed(0)
    network = capture(Tokens(PostNorm(), PostNorm()).eval(), images())
    model = make("rtn", n_bits_w=BITS, n_bits_a=BITS).quantize_model(network, None, [images()])
    sums = [
        (unit, node)
        for unit in model.units
        for node in unit.graph.nodes
        if operation(node) == "add"
    ]
    assert len(sums) == 6
    for unit, node in sums:
        read = [called_module(unit, source) for source in node.all_input_nodes]
        assert not any(isinstance(module, ActivationQuantizer) for module in read)
    value, found = images(16), []
    for unit in model.units:
        value = Seen(unit, found).run(value)
    inner = found[:-1]  # the head has 8 bits
    assert len(inner) == 2 * (4 + 4)
    assert all(len(values.unique()) <= 2**BITS for _, values in inner)


# Counts


def test_what_the_benchmark_counts_is_what_a_network_has(monkeypatch):
    monkeypatch.setattr(transformers, "random_network", lambda *_: (tiny_vit(), images(4)))
    cells = dict(zip(transformers.COLUMNS, transformers.measure("tiny").cells, strict=True))
    assert cells["LayerNorms moved"] == "5 of 5"
    assert (cells["layers quantized"], cells["inputs"]) == ("10 of 10", "9 of 9")
    assert (cells["operands of products"], cells["softmax log2"]) == ("8 of 8", "2 of 2")
    assert (cells["units"], cells["biggest unit"]) == ("4", "4")
    assert float(cells["float after it"]) < 1e-5 and int(cells["most levels"]) <= 2**4


# All methods


def quantized(name: str, **settings) -> QuantModel:
    settings = {"n_bits_w": BITS, "n_bits_a": BITS} | settings
    return make(name, **settings).quantize_model(tiny_captured(), None, [images()])


class Seen(fx.Interpreter):
    """Values that linear layers and products of two activations read."""

    def __init__(self, unit: fx.GraphModule, found: list[tuple[fx.Node, Tensor]]):
        super().__init__(unit)
        self.found = found

    def run_node(self, n):
        arguments = [a for a in n.all_input_nodes if a.op != "get_attr"]
        layer = called_module(self.module, n)
        if operation(n) in PRODUCTS or (isinstance(layer, QuantLayer) and layer.codes.dim() == 2):
            self.found += [(a, self.env[a]) for a in arguments]
        return super().run_node(n)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("softmax", ["uniform", "log2"])
def test_what_products_and_linear_layers_read_has_at_most_2_to_the_bits_levels(name, softmax):
    model = quantized(name, softmax_quantizer=softmax)
    value, found = images(16), []
    for unit in model.units:
        value = Seen(unit, found).run(value)
    assert len(found) == 2 * (4 + 4) + 1  # inputs of four layers, operands of two products; head
    powers = [part for part in activation_quantizers(model).values() if type(part) is Log2Quantizer]
    assert len(powers) == (2 if softmax == "log2" else 0)
    for node, values in found[:-1]:
        quantizer = source_quantizer(model, node)
        per_channel = quantizer.scale.numel() > 1
        groups = values.transpose(0, 1).flatten(1) if per_channel else values.reshape(1, -1)
        most = 2 ** quantizer.bits.flatten().expand(len(groups))
        assert all(len(g.unique()) <= m for g, m in zip(groups, most.tolist(), strict=True))


def source_quantizer(model: QuantModel, node: fx.Node) -> nn.Module:
    parts = activation_quantizers(model)
    while True:
        name = next((key for key in parts if key.endswith(f".{node.target}")), None)
        if name is not None:
            return parts[name]
        node = node.all_input_nodes[0]


def test_powers_of_two_need_a_softmax_and_uniform_kernels(tiny_network, tiny_images):
    with pytest.raises(InputError, match="softmax_quantizer must be uniform with quant_target"):
        make("rtn", n_bits_w=8, n_bits_a=8, softmax_quantizer="log2", quant_target="openvino")
    model = make("rtn", softmax_quantizer="log2").quantize_model(tiny_network, None, [tiny_images])
    assert not any(type(part) is Log2Quantizer for part in activation_quantizers(model).values())


@pytest.mark.parametrize(
    ("name", "setting", "text"),
    [
        ("aciq_mix", {"act_points": "outputs"}, "act_points must be inputs, got outputs, which"),
        (
            "aciq_mix",
            {"per_channel_act": True},
            "per_channel_act must be off where linear layers or",
        ),
        ("lapq", {"first_last": "fp32"}, "first_last must be another than fp32, got fp32, which"),
    ],
)
def test_what_does_not_fit_a_transformer_is_refused(name, setting, text):
    with pytest.raises(InputError, match=text):
        quantized(name, **setting)


def test_aciq_measures_which_density_fits_a_transformer():
    ways = {way: quantized("aciq_mix", aciq_method=way) for way in (None, "auto", "laplace")}
    chosen, auto, laplace = (model.state_dict() for model in ways.values())
    assert all(torch.equal(chosen[key], value) for key, value in auto.items())
    assert not all(torch.equal(chosen[key], value) for key, value in laplace.items())


def test_a_saved_transformer_computes_the_same(tmp_path):
    model = quantized("rtn", softmax_quantizer="log2")
    model.save(tmp_path / "model.pt", {})
    again = restore_quantized(read_quantized_file(tmp_path / "model.pt"))
    assert torch.equal(again(images()), model(images()))
    kinds = [type(part) for part in activation_quantizers(again).values()]
    assert kinds == [type(part) for part in activation_quantizers(model).values()]
    assert kinds.count(Log2Quantizer) == 2


def test_a_bank_holds_the_biases_that_belong_to_its_weights():
    """Ranges of LayerNorms have moved into both; the sweep starts as the method's own result."""
    model = quantized("rtn", init_wmode="minmax")
    request = BankRequest((BITS, 8), "rtn", "fixed", "minmax", lambda *_: pytest.fail("not asked"))
    sweep = build_sweep(model, request)
    for _, layer in sweep.bitwidth_layers():
        layer.set_bitwidth(BITS)
    assert torch.equal(sweep(images()), model(images()))


@pytest.mark.usefixtures("one_operator_table")
@pytest.mark.parametrize("softmax", ["uniform", "log2"])
def test_the_exported_file_computes_what_the_simulation_does(softmax, tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from export.verification import OnnxNetwork, wrong_integers
    from export.writing import write_onnx

    model = quantized("rtn", n_bits_w=4, n_bits_a=4, softmax_quantizer=softmax)
    path = tmp_path / "m.onnx"
    write_onnx(model, path, (3, 8, 8))
    found = OnnxNetwork(path)(images())
    assert torch.allclose(found, model(images()), rtol=1e-3, atol=1e-3)
    assert wrong_integers(path, model) == []
    powers = [name for name, part in model.named_modules() if type(part) is Log2Quantizer]
    if powers:
        content = onnx.load(str(path))
        stored = next(t for t in content.graph.initializer if t.name == f"{powers[1]}.powers")
        levels = onnx.numpy_helper.to_array(stored).copy()
        levels[3] *= 2
        stored.CopyFrom(onnx.numpy_helper.from_array(levels, stored.name))
        onnx.save(content, str(path))
        assert wrong_integers(path, model) == [powers[1]]
