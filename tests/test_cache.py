"""What runs share: decoded images, logits of the float network; made once, changing nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from common.errors import InputError
from common.files import locked
from evaluation.inference import infer_logits
from loaders import load_dataset
from loaders.imageset import FileImages
from loaders.transforms import Preprocess
from main_imagenet import main
from pipeline import networks as inference
from tests.conftest import PROJECT, QUICK

PLAIN = Preprocess((0.5,) * 3, (0.25,) * 3)


@pytest.fixture
def images(tmp_path) -> FileImages:
    random = np.random.RandomState(0)
    for split in ("train", "val"):
        for label in "ab":
            folder = tmp_path / "data" / split / label
            folder.mkdir(parents=True)
            for number in range(3):
                pixels = random.randint(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return load_dataset("imagenet", tmp_path / "data", PLAIN, skip_bad=True).val


def test_decoded_images_are_kept_and_the_same(images, tmp_path, monkeypatch):
    plain, first = images.loaded(), images.loaded(tmp_path / "c")
    monkeypatch.setattr(FileImages, "_decode", None)  # nothing is decoded any more
    again = images.loaded(tmp_path / "c")
    for other in (first, again):
        assert torch.equal(other.pixels, plain.pixels)
        assert (other.ids, other.digest()) == (plain.ids, plain.digest())
    subset = images.subset([3, 1])
    with pytest.raises(TypeError):
        subset.loaded(tmp_path / "c")


def test_changed_files_are_decoded_anew(images, tmp_path):
    images.loaded(tmp_path / "c")
    path = images.root / images.ids[2]
    Image.new("RGB", (8, 8), (1, 2, 3)).save(path)
    found = images.loaded(tmp_path / "c")
    assert found.pixels[2, :, 0, 0].tolist() == [1, 2, 3]


def test_skipped_images_stay_skipped(images, tmp_path):
    (images.root / images.ids[1]).write_bytes(b"nothing")
    first, again = images.loaded(tmp_path / "c"), images.loaded(tmp_path / "c")
    assert first.ids == again.ids == [images.ids[0], *images.ids[2:]]
    assert np.array_equal(again.labels, first.labels)


def test_a_link_that_leads_nowhere_is_skipped_as_without_the_cache(images, tmp_path, caplog):
    path = images.root / images.ids[4]
    target = path.rename(tmp_path / "moved.png")
    path.symlink_to(tmp_path / "nothing.png")
    plain = images.loaded()
    assert plain.ids == [*images.ids[:4], images.ids[5]]
    caplog.clear()
    first, again = images.loaded(tmp_path / "c"), images.loaded(tmp_path / "c")
    assert caplog.text.count(f"skipped unreadable image {path}: must be a readable image") == 1
    for found in (first, again):
        assert (found.ids, found.labels.tolist()) == (plain.ids, plain.labels.tolist())
        assert torch.equal(found.pixels, plain.pixels)
    (tmp_path / "nothing.png").symlink_to(target)
    assert images.loaded(tmp_path / "c").ids == images.ids
    path.unlink()
    path.symlink_to(tmp_path / "no")
    strict = replace(images, skip_bad=False)
    with pytest.raises(InputError, match=r"must be a readable image, got FileNotFoundError"):
        strict.loaded(tmp_path / "c")


def test_a_cache_that_cannot_be_written_is_no_cache(images, tmp_path, caplog):
    (tmp_path / "c").write_text("a file")
    assert len(images.loaded(tmp_path / "c")) == 6
    assert "decoded images are not kept" in caplog.text


HOLD = """
import pathlib, sys, time
from common.errors import InputError
from common.files import locked

with locked(pathlib.Path(sys.argv[1])):
    print("ready", flush=True)
    time.sleep(0.5)
"""


def test_a_lock_is_waited_for(tmp_path):
    path = tmp_path / "x.lock"
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        start = time.monotonic()
        with locked(path):
            assert time.monotonic() - start > 0.2


def test_logits_that_are_known_are_not_computed():
    network, images = torch.nn.Linear(3, 2), torch.randn(5, 3)
    batches = [(images[:3], torch.zeros(3)), (images[3:], torch.ones(2))]
    known = np.arange(10, dtype=np.float32).reshape(5, 2)
    seen = []
    result = infer_logits(
        {"a": network},
        batches,
        torch.device("cpu"),
        on_batch=lambda logits, labels: seen.append({k: v.copy() for k, v in logits.items()}),
        known={"b": known},
    )
    assert np.array_equal(result.logits["b"], known)
    assert np.array_equal(np.concatenate([batch["b"] for batch in seen]), known)
    assert np.allclose(result.logits["a"], network(images).detach().numpy())
    assert list(seen[0]) == ["a", "b"]


def test_a_run_with_a_cache_writes_the_same_logits_and_runs_the_float_network_once(
    tmp_path, monkeypatch
):
    flags = [*QUICK, "--no-plots"]
    cached = [*flags, "--cache_dir", str(tmp_path / "c")]
    assert main([*flags, "--output_dir", str(tmp_path / "plain")]) == 0
    assert main([*cached, "--output_dir", str(tmp_path / "first")]) == 0
    infer, networks = inference.infer_logits, []

    def watched(given, *arguments):
        networks.append(sorted(given))
        return infer(given, *arguments)

    monkeypatch.setattr(inference, "infer_logits", watched)
    assert main([*cached, "--output_dir", str(tmp_path / "second")]) == 0
    assert networks == [["quantized"], ["quantized"]]
    plain = sorted((tmp_path / "plain").rglob("logits_*.csv"))
    assert plain
    for path in plain:
        name = path.relative_to(tmp_path / "plain")
        for other in ("first", "second"):
            assert (tmp_path / other / name).read_bytes() == path.read_bytes(), name


@pytest.mark.parametrize("which", ["", "_kept"])
def test_damaged_pixels_are_decoded_anew(images, tmp_path, which, caplog):
    plain = images.loaded(tmp_path / "c")
    (entry,) = (
        path
        for path in (tmp_path / "c").glob("*.npy")
        if path.stem.endswith("_kept") == bool(which)
    )
    content = bytearray(entry.read_bytes())
    for where in (3, len(content) // 2, len(content) - 5):
        content[where] ^= 4
        entry.write_bytes(bytes(content))
        found = images.loaded(tmp_path / "c")
        assert torch.equal(found.pixels, plain.pixels)
        assert found.ids == plain.ids
    assert caplog.text.count("is made anew") == 3


def test_folders_with_equal_names_and_times_have_pixels_of_their_own(images, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(images.root, other)
    path = other / images.ids[0]
    before = path.stat()
    Image.new("RGB", (8, 8), (1, 2, 3)).save(path)
    path.write_bytes(path.read_bytes().ljust(before.st_size, b"\0"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    first = images.loaded(tmp_path / "c")
    second = replace(images, root=other).loaded(tmp_path / "c")
    assert second.pixels[0, :, 0, 0].tolist() == [1, 2, 3]
    assert not torch.equal(first.pixels[0], second.pixels[0])
    assert torch.equal(first.pixels[1:], second.pixels[1:])


def test_a_file_that_was_changed_in_place_with_its_time_kept_is_decoded_anew(images, tmp_path):
    images.loaded(tmp_path / "c")
    path = images.root / images.ids[0]
    before, digest = path.stat(), images.digest()
    content = path.read_bytes()
    Image.new("RGB", (8, 8), (1, 2, 3)).save(path)
    path.write_bytes(path.read_bytes().ljust(len(content), b"\0"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert images.loaded(tmp_path / "c").pixels[0, :, 0, 0].tolist() == [1, 2, 3]
    assert images.digest() != digest


def test_damaged_float_logits_are_computed_anew(tmp_path, capsys):
    flags = [*QUICK, "--no-plots", "--cache_dir", str(tmp_path / "c")]
    assert main([*flags, "--output_dir", str(tmp_path / "first")]) == 0
    entries = sorted((tmp_path / "c").glob("logits_*.npy"))
    assert entries
    for entry in entries:
        content = entry.read_bytes()
        entry.write_bytes(content[:200] + bytes([content[200] ^ 1]) + content[201:])
    assert main([*flags, "--output_dir", str(tmp_path / "second")]) == 0
    told = capsys.readouterr()
    assert told.err.count("is made anew: its digest does not hold") == len(entries)
    for path in (tmp_path / "first").rglob("logits_*.csv"):
        other = tmp_path / "second" / path.relative_to(tmp_path / "first")
        assert other.read_bytes() == path.read_bytes()
