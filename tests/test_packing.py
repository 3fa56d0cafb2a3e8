"""Codes of fewer than 8 bits as a stream of bits, in memory and in the file of a model."""

from __future__ import annotations

import math
import re

import pytest
import torch

from common.errors import InputError
from quant import QuantizationManager, capture, read_quantized_file, restore_quantized
from quant.arithmetic.packing import (
    float_bytes,
    pack_codes,
    pack_state,
    theoretical_bytes,
    unpack_codes,
)
from quant.network.model import quant_layers
from tests.conftest import TinyResNet

pytestmark = pytest.mark.usefixtures("ranges_searched_once")


def codes_of(bits: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    drawn = torch.randint(0, 256, shape, generator=generator)
    return (drawn % (2**bits)).to(torch.uint8)


@pytest.mark.parametrize("bits", range(1, 9))
def test_a_stream_holds_the_codes_in_as_few_bytes_as_there_can_be(bits):
    codes = codes_of(torch.tensor(bits), (5, 3, 3, 3))
    stream = pack_codes(codes, torch.tensor(bits))
    assert stream.dtype == torch.uint8
    assert stream.shape == (math.ceil(135 * bits / 8),)
    assert torch.equal(unpack_codes(stream, torch.tensor(bits), codes.shape), codes)


def test_the_lowest_bit_of_the_first_code_comes_first():
    codes = torch.tensor([[1, 2], [3, 0]], dtype=torch.uint8)
    assert pack_codes(codes, torch.tensor(2)).tolist() == [0b00_11_10_01]
    assert pack_codes(codes, torch.tensor(4)).tolist() == [0x21, 0x03]


def test_channels_may_differ_in_their_bits_down_to_none():
    bits = torch.tensor([0, 1, 3, 8, 5]).view(5, 1, 1)
    codes = codes_of(bits, (5, 7, 3))
    stream = pack_codes(codes, bits)
    assert len(stream) == math.ceil(21 * 17 / 8)
    assert torch.equal(unpack_codes(stream, bits, codes.shape), codes)


def test_codes_of_eight_bits_or_too_large_for_their_bits_stay_as_they_are():
    eight = {"a.codes": torch.full((4,), 200, dtype=torch.uint8), "a.bits": torch.tensor(8)}
    too_large = {"a.codes": torch.full((4,), 200, dtype=torch.uint8), "a.bits": torch.tensor(4)}
    wide = {"a.codes": torch.full((4,), 2000, dtype=torch.int32), "a.bits": torch.tensor(12)}
    for state in (eight, too_large, wide):
        packed, shapes = pack_state(state)
        assert shapes == {}
        assert torch.equal(packed["a.codes"], state["a.codes"])


def test_sizes_are_those_of_the_definition():
    state = {
        "a.codes": torch.zeros(5, 3, dtype=torch.uint8),
        "a.bits": torch.tensor(3),
        "a.scale": torch.ones(5, 1),
        "a.zero_point": torch.ones(5, 1),
        "a.bias": torch.ones(5),
    }
    assert theoretical_bytes(state) == math.ceil(15 * 3 / 8) + 4 * 15
    assert float_bytes(state) == 4 * (15 + 5)


@pytest.mark.parametrize(("method", "bits"), [("rtn", 2), ("rtn", 3), ("aciq_mix", 3), ("gpfq", 4)])
def test_a_file_holds_packed_codes_and_gives_back_every_bit(
    method, bits, tiny_network, tiny_images, tmp_path
):
    made = QuantizationManager().get_quantization_method(method, n_bits_w=bits)
    model = made.quantize_model(tiny_network, None, [tiny_images])
    model.save(tmp_path / "model.pt", {})
    raw = torch.load(tmp_path / "model.pt", weights_only=True)
    assert raw["packed"]
    for name in raw["packed"]:
        assert raw["state_dict"][name].dim() == 1
    loaded = restore_quantized(read_quantized_file(tmp_path / "model.pt"), TinyResNet())
    for one, other in zip(quant_layers(model).values(), quant_layers(loaded).values(), strict=True):
        assert one.codes.dtype == other.codes.dtype
        assert torch.equal(one.codes, other.codes)


def test_a_file_of_the_first_format_is_still_read(tiny_network, tiny_images, tmp_path):
    made = QuantizationManager().get_quantization_method("rtn", n_bits_w=3)
    model = made.quantize_model(tiny_network, None, [tiny_images])
    model.save(tmp_path / "model.pt", {})
    content = torch.load(tmp_path / "model.pt", weights_only=True)
    content["version"], content["state_dict"] = 1, model.state_dict()
    del content["packed"]
    torch.save(content, tmp_path / "old.pt")
    content = read_quantized_file(tmp_path / "old.pt")
    with pytest.raises(InputError, match="files of version 1 hold no graph"):
        restore_quantized(content)
    loaded = restore_quantized(content, lambda: capture(TinyResNet(), tiny_images))
    with torch.no_grad():
        assert torch.equal(loaded(tiny_images), model(tiny_images))


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda c: c["packed"].update({"no.codes": [3]}), "'no.bits'"),
        (lambda c: c["packed"].update({next(iter(c["packed"])): [3]}), "packed codes must be"),
        (lambda c: c.update(packed=[1]), "must be a whole quantized model"),
        (lambda c: c.update(version=4), "format version must be 1 to 3, got 4"),
        (lambda c: c.pop("state_dict"), "must be a whole quantized model"),
    ],
)
def test_a_damaged_file_is_refused(damage, text, tiny_network, tiny_images, tmp_path):
    made = QuantizationManager().get_quantization_method("rtn", n_bits_w=3)
    made.quantize_model(tiny_network, None, [tiny_images]).save(tmp_path / "model.pt", {})
    content = torch.load(tmp_path / "model.pt", weights_only=True)
    damage(content)
    torch.save(content, tmp_path / "bad.pt")
    with pytest.raises(InputError, match=re.escape(text)):
        read_quantized_file(tmp_path / "bad.pt")
