"""Data sets, decoding, and which images a run uses for what."""

from __future__ import annotations

import json
import logging
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

import loaders.imageset
from common.errors import InputError
from loaders import PlanRequest, load_dataset, make_plan, resolve_dataset
from loaders.digits import read_digits
from loaders.imageset import FileImages, MemoryImages
from loaders.plan import parse_source, read_id_list
from loaders.transforms import Preprocess, augment_small
from tests.conftest import write_cifar10

PLAIN = Preprocess(mean=(0.0,) * 3, std=(1.0,) * 3)


def write_image(path, seed=0, size=(12, 12)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.RandomState(seed).randint(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


@pytest.fixture
def folder(tmp_path):
    """3 classes, 6 training and 4 evaluation images each."""
    seed = 0
    for split, count in (("train", 6), ("val", 4)):
        for name in ("ant", "bee", "cat"):
            for index in range(count):
                write_image(tmp_path / split / name / f"{index:02d}.png", seed)
                seed += 1
    return tmp_path


def images_of(image_set, batch_size=5):
    return torch.cat([images for images, _ in image_set.batches(batch_size)])


def test_digits_split_as_specified():
    data = load_dataset("digits", None, PLAIN)
    counts = np.bincount(data.train.labels).tolist()
    assert counts == [128, 132, 127, 133, 131, 132, 131, 129, 124, 130]
    assert np.bincount(data.val.labels).tolist() == [50] * 10
    numbers = [name.split("/")[1] for name in data.train.ids + data.val.ids]
    assert sorted(numbers) == [f"{i:04d}" for i in range(1797)]
    images = images_of(data.val, 64)
    assert images.shape == (500, 3, 8, 8)
    assert images.max() == 1.0
    assert torch.equal(images[:, 0], images[:, 2])


def test_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    images, labels = read_digits()
    assert np.array_equal(images, load_digits().images)
    assert np.array_equal(labels, load_digits().target)


def test_a_folder_is_listed_in_order_and_decoded_exactly(folder):
    data = load_dataset("imagenet", folder, PLAIN)
    assert data.classes == ["ant", "bee", "cat"]
    assert data.val.ids[:5] == [f"val/ant/{i:02d}.png" for i in range(4)] + ["val/bee/00.png"]
    assert data.val.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    expected = np.asarray(Image.open(folder / "val/bee/00.png")).transpose(2, 0, 1) / 255
    assert torch.allclose(images_of(data.val)[4], torch.tensor(expected, dtype=torch.float32))


def test_decoded_and_streamed_images_are_the_same(folder, monkeypatch):
    data = load_dataset("imagenet", folder, PLAIN)
    loaded = data.val.loaded()
    assert isinstance(loaded, MemoryImages)
    monkeypatch.setattr(loaders.imageset, "MEMORY_LIMIT", 100)
    streamed = data.val.loaded()
    assert isinstance(streamed, FileImages)
    assert torch.equal(images_of(loaded), images_of(streamed, 7))
    labels = torch.cat([labels for _, labels in streamed.batches(7)])
    assert labels.tolist() == loaded.labels.tolist()


def test_resize_and_crop_are_torchvisions(tmp_path):
    from torchvision import transforms

    write_image(tmp_path / "val/a/1.png", 3, size=(50, 37))
    preprocess = Preprocess((0.4,) * 3, (0.2,) * 3, resize=24, crop=20)
    data = load_dataset("imagenet", tmp_path, preprocess)
    theirs = transforms.Compose(
        [
            transforms.Resize(24),
            transforms.CenterCrop(20),
            transforms.ToTensor(),
            transforms.Normalize((0.4,) * 3, (0.2,) * 3),
        ]
    )(Image.open(tmp_path / "val/a/1.png"))
    assert torch.allclose(images_of(data.val)[0], theirs, atol=1e-6)


def test_grey_and_palette_images_become_three_channels(tmp_path):
    for name, mode in (("a", "L"), ("b", "P"), ("c", "RGBA")):
        path = tmp_path / "val" / name / "1.png"
        path.parent.mkdir(parents=True)
        Image.new(mode, (6, 6)).save(path)
    assert images_of(load_dataset("imagenet", tmp_path, PLAIN).val).shape == (3, 3, 6, 6)


def test_an_unreadable_image_is_named_or_skipped_and_counted(folder, caplog):
    bad = folder / "val/bee/01.png"
    bad.write_bytes(bad.read_bytes()[:60])
    data = load_dataset("imagenet", folder, PLAIN)
    for read in (lambda: data.val.loaded(), lambda: images_of(data.val)):
        with pytest.raises(
            InputError, match=r"val/bee/01\.png: must be a readable image.*--skip_bad"
        ):
            read()
    data = load_dataset("imagenet", folder, PLAIN, skip_bad=True)
    with caplog.at_level(logging.WARNING):
        loaded = data.val.loaded()
    assert len(loaded) == 11
    assert "val/bee/01.png" not in loaded.ids
    assert loaded.labels.tolist() == [0] * 4 + [1] * 3 + [2] * 4
    assert caplog.text.count("skipped unreadable image") == 1
    assert len(images_of(data.val, 1)) == 11


def test_files_too_many_for_memory_are_checked_before_the_run(folder, monkeypatch):
    monkeypatch.setattr(loaders.imageset, "MEMORY_LIMIT", 100)
    (folder / "val/cat/03.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"val/cat/03\.png: must be a readable image"):
        load_dataset("imagenet", folder, PLAIN).val.loaded()
    kept = load_dataset("imagenet", folder, PLAIN, skip_bad=True).val.loaded()
    assert isinstance(kept, FileImages)
    assert len(kept) == 11


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("digits", {"data_path": "x"}),
        ("digits", {"download": True}),
        ("imagenet", {"data_path": "x", "download": True}),
        ("cifar10", {"data_path": "x", "skip_bad": True}),
    ],
)
def test_a_data_flag_that_is_not_used_is_refused(name, options):
    path = options.pop("data_path", None)
    with pytest.raises(
        InputError, match=f"must be left out for dataset {name}, which does not use"
    ):
        load_dataset(name, path, PLAIN, **options)


def test_images_of_different_sizes_need_a_crop(folder):
    write_image(folder / "val/cat/09.png", 1, size=(13, 12))
    data = load_dataset("imagenet", folder, PLAIN)
    with pytest.raises(
        InputError, match=r"09\.png: image must be 12 x 12 pixels like the first, got 13 x 12"
    ):
        data.val.loaded()


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda p: p / "nothing", "data_path must be an existing folder"),
        (lambda p: (p / "val").rename(p / "valid").parent, "must hold val/<class>/ folders"),
        (
            lambda p: [f.unlink() for f in (p / "val/bee").iterdir()] and p,
            "bee must hold at least one image",
        ),
        (
            lambda p: (p / "train/bee").rename(p / "train/bug").parent.parent,
            "bee, bug in only one of them",
        ),
    ],
)
def test_a_missing_or_empty_folder_is_named(folder, damage, text):
    path = damage(folder)
    with pytest.raises(InputError, match=text):
        load_dataset("imagenet", path, PLAIN)


def test_cifar_in_torchvisions_layout(tmp_path, monkeypatch):
    write_cifar10(tmp_path, monkeypatch)
    data = load_dataset("cifar10", tmp_path, PLAIN)
    assert (len(data.train), len(data.val), len(data.classes)) == (20, 4, 10)
    assert data.train.pixels.shape == (20, 3, 32, 32)
    assert data.val.ids[3] == "val/000003"
    with (tmp_path / "cifar-10-batches-py" / "test_batch").open("rb") as handle:
        raw = pickle.load(handle)["data"][1].reshape(3, 32, 32)
    assert torch.equal(data.val.pixels[1], torch.from_numpy(raw))


def test_damaged_or_missing_cifar_is_named_and_never_downloaded(tmp_path):
    with pytest.raises(
        InputError, match=r"cifar100 must be in .*cifar-100-python \(--download fetches it\)"
    ):
        load_dataset("cifar100", tmp_path, PLAIN)
    (tmp_path / "cifar-100-python").mkdir()
    with pytest.raises(InputError, match=r"cifar100 below .* must be complete, got: "):
        load_dataset("cifar100", tmp_path, PLAIN)


def test_auto_recognises_the_layout(folder, tmp_path, monkeypatch):
    assert resolve_dataset("auto", folder)[:2] == ("imagenet", folder)
    (tmp_path / "cifar-10-batches-py").mkdir()
    assert resolve_dataset("auto", tmp_path)[0] == "cifar10"
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    assert resolve_dataset("auto", None)[:2] == ("digits", None)
    for name in ("train", "test", "meta"):
        path = empty / "data" / "cifar-100-python" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert resolve_dataset("auto", None)[0] == "cifar100"
    with pytest.raises(InputError, match="data_path must hold one of val, cifar-10-batches-py"):
        resolve_dataset("auto", empty)
    with pytest.raises(
        InputError, match="dataset must be a known name, got 'imagnet'; closest: imagenet"
    ):
        resolve_dataset("imagnet", folder)


# --- augmentation


def test_augmentation_crops_and_flips_reproducibly():
    pixels = torch.arange(2 * 3 * 6 * 6, dtype=torch.uint8).reshape(2, 3, 6, 6)
    generator = torch.Generator().manual_seed(0)
    first = augment_small(pixels, 2, True, generator)
    second = augment_small(pixels, 2, True, torch.Generator().manual_seed(0))
    assert torch.equal(first, second)
    assert first.shape == pixels.shape
    untouched = augment_small(pixels, 0, False, torch.Generator().manual_seed(0))
    assert torch.equal(untouched, pixels)


def test_every_augmented_image_is_a_window_of_the_padded_one():
    pixels = torch.randint(1, 256, (30, 3, 5, 5), dtype=torch.uint8)
    padded = torch.nn.functional.pad(pixels, (1, 1, 1, 1))
    crops = augment_small(pixels, 1, True, torch.Generator().manual_seed(1))
    flipped = 0
    for image, source in zip(crops, padded, strict=True):
        windows = [source[:, t : t + 5, s : s + 5] for t in range(3) for s in range(3)]
        straight = any(torch.equal(image, window) for window in windows)
        mirrored = any(torch.equal(image, window.flip(2)) for window in windows)
        assert straight or mirrored
        flipped += mirrored and not straight
    assert 5 <= flipped <= 25


def test_augmented_files_depend_on_the_seed_alone(folder, monkeypatch):
    preprocess = Preprocess((0.0,) * 3, (1.0,) * 3, resize=12, crop=8)
    data = load_dataset("imagenet", folder, preprocess)
    first = images_of(data.train.augmented(1))
    torch.rand(5)
    assert torch.equal(first, images_of(data.train.augmented(1), 3))
    assert not torch.equal(first, images_of(data.train.augmented(2)))
    assert not torch.equal(first, images_of(data.train))


# --- the plan


@pytest.fixture
def digits():
    return load_dataset("digits", None, PLAIN)


def test_calibration_is_the_seeded_permutation_of_the_training_images(digits):
    plan = make_plan(digits, PlanRequest(seed=5, num_samples=20), 1024)
    order = np.random.RandomState(5).permutation(1297)[:20]
    assert plan.calibration.ids == [digits.train.ids[i] for i in order]
    assert plan.evaluation.ids == digits.val.ids
    assert plan.correction_source == "train"


def test_correction_prefers_images_that_did_not_calibrate(digits):
    plan = make_plan(digits, PlanRequest(seed=5, num_samples=200, correction_samples=1000), 1024)
    assert not set(plan.calibration.ids) & set(plan.correction.ids)
    everything = make_plan(digits, PlanRequest(seed=5, num_samples=200), 1024)
    assert sorted(everything.correction.ids) == sorted(digits.train.ids)


def test_what_is_taken_from_val_is_in_no_figure(digits):
    plan = make_plan(digits, PlanRequest(seed=5, correction_source="val:0.3"), 1024)
    assert len(plan.correction) == 150
    assert len(plan.evaluation) == 350
    assert not set(plan.correction.ids) & set(plan.evaluation.ids)
    assert plan.evaluation.ids == [i for i in digits.val.ids if i in set(plan.evaluation.ids)]


def test_augmented_training_images(digits):
    plan = make_plan(digits, PlanRequest(seed=5, correction_source="train_aug"), 1024)
    plain = make_plan(digits, PlanRequest(seed=5), 1024)
    assert plan.correction.ids == plain.correction.ids
    assert not torch.equal(plan.correction.pixels, plain.correction.pixels)


def test_val_alone_is_enough_and_said_so(folder, caplog):
    import shutil

    shutil.rmtree(folder / "train")
    data = load_dataset("imagenet", folder, PLAIN)
    with caplog.at_level(logging.INFO):
        plan = make_plan(data, PlanRequest(seed=0), 1024)
    assert "no train folder: calibration and correction use 0.2 of val" in caplog.text
    assert "2 of 12 val images are set aside" in caplog.text
    assert len(plan.calibration) == len(plan.correction) == 2
    assert len(plan.evaluation) == 10
    with pytest.raises(InputError, match="correction_source 'train' must have a train folder"):
        make_plan(data, PlanRequest(seed=0, correction_source="train"), 1024)


def test_a_stored_list_gives_the_same_calibration_again(digits, tmp_path):
    plan = make_plan(digits, PlanRequest(seed=5, num_samples=20), 1024)
    path = tmp_path / "ids.json"
    for text in (json.dumps(plan.calibration.ids), "\n".join(plan.calibration.ids) + "\n"):
        path.write_text(text)
        again = make_plan(digits, PlanRequest(seed=9, calibration_list=path), 1024)
        assert again.calibration.ids == plan.calibration.ids
        assert torch.equal(again.calibration.pixels, plan.calibration.pixels)


def test_listed_val_images_leave_the_evaluation(digits, tmp_path):
    path = tmp_path / "ids.txt"
    path.write_text("\n".join(digits.val.ids[:7]))
    plan = make_plan(digits, PlanRequest(seed=5, calibration_list=path), 1024)
    assert plan.evaluation.ids == digits.val.ids[7:]


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (
            {"num_samples": 2000},
            r"num_samples must be at most 1297 \(the training images\), got 2000",
        ),
        ({"correction_samples": 1298}, "correction_samples must be at most 1297"),
        ({"correction_source": "val:0"}, "with 0 < FRACTION < 1, got 'val:0'"),
        ({"correction_source": "val"}, "with 0 < FRACTION < 1, got 'val'"),
        ({"correction_source": "train:0.2"}, "got 'train:0.2'"),
        ({"correction_source": "val:nan"}, "got 'val:nan'"),
        ({"correction_source": "val:0.1", "correction_samples": 51}, "must be at most 50"),
    ],
)
def test_impossible_plans_are_refused(digits, request_, text):
    with pytest.raises(InputError, match=text):
        make_plan(digits, PlanRequest(seed=1, **request_), 1024)


def test_bad_id_lists_are_refused(digits, tmp_path):
    path = tmp_path / "ids"
    for content, text in (
        ("", "must name at least one image"),
        ("[1, 2", "must be a readable list of image ids"),
        ("train/9999", "must name images of the data set, got 'train/9999'"),
        (f"{digits.train.ids[0]}\nval/0001", "ids must all be of one split, got 'val/0001'"),
    ):
        path.write_text(content)
        with pytest.raises(InputError, match=text):
            make_plan(digits, PlanRequest(seed=1, calibration_list=path), 1024)
    with pytest.raises(InputError, match="must be a readable list of image ids"):
        read_id_list(tmp_path / "none")
    path.write_text("\n".join(digits.train.ids[:5]))
    with pytest.raises(InputError, match="num_samples must be at most 5"):
        make_plan(digits, PlanRequest(seed=1, calibration_list=path, num_samples=6), 1024)


def test_sources_are_parsed():
    assert parse_source("train") == ("train", 0.0)
    assert parse_source("train_aug") == ("train_aug", 0.0)
    assert parse_source("val:0.25") == ("val", 0.25)


def test_digest_changes_with_pixels_order_and_labels(folder):
    data = load_dataset("imagenet", folder, PLAIN).val.loaded()
    digests = {
        data.digest(),
        data.subset(range(11, -1, -1)).digest(),
        data.subset(range(11)).digest(),
    }
    assert len(digests) == 3
    assert data.subset(range(12)).digest() == data.digest()


def test_pixels_are_those_of_torchvision_and_need_none_of_it():
    from torchvision.transforms import PILToTensor

    from loaders.transforms import as_pixels, image_transform

    picture = Image.fromarray(np.random.RandomState(0).randint(0, 256, (9, 7, 3), dtype=np.uint8))
    pixels = as_pixels(picture)
    assert torch.equal(pixels, PILToTensor()(picture)) and pixels.shape == (3, 9, 7)
    assert image_transform(PLAIN, False) is as_pixels
