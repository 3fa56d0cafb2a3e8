"""The shipped vision transformers and their training."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from common.files import read_torch_file
from evaluation.inference import infer_logits
from evaluation.metrics import topk_accuracy
from loaders import load_dataset
from models import load_model
from models.vit import CIFAR_VIT, DIGITS_VIT
from tools.train_vit import forward_with_half, loss_of, main

LARGEST = 500_000  # bytes of digits_vit


def test_the_shipped_weights_have_the_accuracy_that_they_were_stored_with():
    loaded = load_model("digits_vit")
    digits = load_dataset("digits", None, loaded.entry.preprocess)
    found = infer_logits({"n": loaded.network}, digits.val.batches(100), torch.device("cpu"))
    stored = read_torch_file(DIGITS_VIT.shipped_weights)
    top1 = topk_accuracy(found.logits["n"], found.targets)
    assert top1 == pytest.approx(stored["top1"], abs=0.002)
    assert top1 > 0.94
    assert all(value.dtype == torch.float16 for value in stored["state_dict"].values())
    assert DIGITS_VIT.shipped_weights.stat().st_size < LARGEST


def test_the_transformer_for_cifar_is_small_and_has_its_weights():
    loaded = load_model("cifar_vit")
    assert loaded.weights == str(CIFAR_VIT.shipped_weights)
    assert CIFAR_VIT.shipped_weights.stat().st_size < 3 * 2**20
    stored = read_torch_file(CIFAR_VIT.shipped_weights)
    assert stored["top1"] == pytest.approx(0.6556)
    state = loaded.network.state_dict()
    assert all(
        torch.equal(state[name], value.float()) for name, value in stored["state_dict"].items()
    )


def test_half_of_the_patches_are_left_out(monkeypatch):
    network = load_model("digits_vit").network
    monkeypatch.setattr(torch, "randperm", lambda count: torch.arange(count))  # the upper half
    images = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    logits = forward_with_half(network, images)
    lower, upper = images.clone(), images.clone()
    lower[:, :, 4:] = 0
    upper[:, :, :4] = 0
    assert torch.equal(forward_with_half(network, lower), logits)
    assert not torch.allclose(forward_with_half(network, upper), logits)
    assert not torch.allclose(network(images), logits)


def test_a_teacher_gives_half_of_the_loss():
    logits, labels = torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([1])
    own = -logits.log_softmax(1)[0]
    taught = torch.tensor([[0.0, 1.0, 3.0]])
    expected = (own[1] + (taught.softmax(1)[0] * own).sum()) / 2
    assert loss_of(logits, labels, None).item() == pytest.approx(own[1].item())
    assert loss_of(logits, labels, taught).item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["digits_vit", "--data_path", "x"], "data_path must be left out for digits_vit, got it"),
        (["digits_vit", "--teacher", "x"], "teacher must be left out for digits_vit, got it"),
        (["cifar_vit"], "data_path must be a folder of images with train and val, got none"),
        (["cifar_vit", "--data_path", "VAL"], "data_path must hold train and val, got "),
    ],
)
def test_images_that_do_not_fit_the_network_are_refused(flags, text, tmp_path, capsys):
    for name in "ab":
        folder = tmp_path / "images" / "val" / name
        folder.mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(folder / "0.png")
    flags = [str(tmp_path / "images") if flag == "VAL" else flag for flag in flags]
    assert main([*flags, "--output", str(tmp_path / "new.pt")]) == 2
    assert text in capsys.readouterr().err
    assert not (tmp_path / "new.pt").exists()


def test_weights_of_something_else_are_not_replaced(tmp_path, capsys):
    path = tmp_path / "mine.pt"
    path.write_bytes(b"mine")
    assert main(["digits_vit", "--output", str(path)]) == 2
    assert "must be new or a file of weights of this network" in capsys.readouterr().err
    assert path.read_bytes() == b"mine"
