"""BRECQ's release checkpoints: names and shapes (tests/data) of all six against our networks."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

import main_imagenet
from common.errors import InputError
from models import brecq, get_entry, load_model

DATA = Path(__file__).parent / "data"


def shapes_of(arch: str) -> dict[str, list[int]]:
    return json.loads((DATA / f"brecq_{arch}.json").read_text())


def checkpoint(arch: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.rand(shape, generator=generator) if shape else torch.tensor(7)
        for name, shape in shapes_of(arch).items()
    }


@pytest.mark.parametrize("arch", brecq.ARCHS)
def test_every_name_and_shape_has_its_place_in_our_network(arch):
    ours = brecq.resolve_arch(arch)
    network = get_entry(ours).build(1000)
    expected = {name: list(value.shape) for name, value in network.state_dict().items()}
    theirs = {name: torch.zeros(shape, device="meta") for name, shape in shapes_of(arch).items()}
    found = brecq.renamed(ours, theirs, "file")
    assert {name: list(value.shape) for name, value in found.items()} == expected


@pytest.mark.parametrize("arch", brecq.ARCHS)
def test_a_table_is_one_to_one_and_turns_back(arch):
    ours = brecq.resolve_arch(arch)
    table = brecq.rename_table(ours)
    assert len(set(table.values())) == len(table)
    for name in shapes_of(arch):
        (new,) = brecq.renamed(ours, {name: torch.zeros(1)}, "file")
        assert brecq.their_name(ours, new) == name


def test_the_tables_by_hand():
    table = brecq.rename_table("mobilenetv2")
    assert table["features.1.conv.3"] == "features.1.conv.1"
    assert table["features.9.conv.4"] == "features.9.conv.1.1"
    table = brecq.rename_table("regnetx_600m")
    assert table["s2.b1.proj"] == "trunk_output.block2.block2-0.proj.0"
    assert table["s3.b5.f.b_bn"] == "trunk_output.block3.block3-4.f.b.1"
    assert "s2.b2.proj" not in table


@pytest.mark.parametrize("arch", ["mobilenetv2", "regnetx_600m", "mnasnet"])
def test_a_checkpoint_is_loaded_value_by_value(arch, tmp_path):
    state = checkpoint(arch)
    content = {"model": state} if arch == "mobilenetv2" else state  # as the releases are
    torch.save(content, tmp_path / "c.pth.tar")
    model = load_model(arch, tmp_path / "c.pth.tar", checkpoint_format="brecq")
    assert model.entry.arch == brecq.ARCHS[arch]
    own = model.network.state_dict()
    for name, value in brecq.renamed(brecq.ARCHS[arch], state, "file").items():
        assert torch.equal(own[name], value), name


def test_a_file_without_step_counters_is_loaded(tmp_path):
    state = {k: v for k, v in checkpoint("regnetx_600m").items() if "num_batches" not in k}
    torch.save(state, tmp_path / "c.pth")
    load_model("regnetx_600m", tmp_path / "c.pth", checkpoint_format="brecq")


@pytest.mark.parametrize(
    ("arch", "name"),
    [
        ("resnet18", "layer3.0.downsample.0.weight"),
        ("mobilenetv2", "features.4.conv.3.weight"),
        ("regnetx_600m", "s3.b2.f.b.weight"),
        ("mnasnet", "layers.9.1.layers.3.weight"),
    ],
)
def test_one_shape_off_is_refused_with_that_name(arch, name, tmp_path):
    state = checkpoint(arch)
    state[name] = torch.zeros(3, 3, 3, 3)
    torch.save(state, tmp_path / "c.pth")
    text = rf"misshapen: {re.escape(name)} \(must be \(.*\), got \(3, 3, 3, 3\)\)"
    with pytest.raises(InputError, match=text):
        load_model(arch, tmp_path / "c.pth", checkpoint_format="brecq")


@pytest.mark.parametrize("arch", ["resnet18", "mobilenetv2", "regnetx_600m"])
def test_one_name_missing_or_too_many_is_refused_with_that_name(arch, tmp_path):
    state = checkpoint(arch)
    name, value = next(iter(state.items()))
    torch.save({k: v for k, v in state.items() if k != name}, tmp_path / "less.pth")
    with pytest.raises(InputError, match=f"missing: {re.escape(name)}"):
        load_model(arch, tmp_path / "less.pth", checkpoint_format="brecq")
    torch.save({**state, "extra.weight": value}, tmp_path / "more.pth")
    with pytest.raises(InputError, match=r"extra\.weight"):
        load_model(arch, tmp_path / "more.pth", checkpoint_format="brecq")


def test_a_file_with_our_names_is_told_to_be_one(tmp_path):
    torch.save(load_model("mobilenetv2").network.state_dict(), tmp_path / "c.pth")
    text = "names must be those of BRECQ's mobilenetv2, got 'features.1.conv.0.0.weight' (leave"
    with pytest.raises(InputError, match=re.escape(text)):
        load_model("mobilenetv2", tmp_path / "c.pth", checkpoint_format="brecq")


@pytest.mark.parametrize("arch", ["mnasnet1_0", "mnasnet2_0", "regnet_x_400mf"])
def test_torchvision_s_own_file_is_loaded(arch, tmp_path):
    state = load_model(arch).network.state_dict()
    torch.save(state, tmp_path / "c.pth")
    loaded = load_model(arch, tmp_path / "c.pth").network.state_dict()
    assert all(torch.equal(state[name], loaded[name]) for name in state)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--arch", "vgg11"], "arch of a BRECQ checkpoint must be a known name, got 'vgg11'"),
        (["--arch", "mnasnet"], "checkpoint must be given with checkpoint_format brecq, got none"),
    ],
)
def test_the_format_needs_a_network_of_its_own_and_a_file(arguments, text, capsys):
    argv = [*arguments, "--dataset", "digits", "--checkpoint_format", "brecq", "--dry_run"]
    assert main_imagenet.main(argv) == 2
    assert text in capsys.readouterr().err
