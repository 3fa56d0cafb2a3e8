"""Which files of a folder are images, and of which class."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.errors import InputError
from loaders import PlanRequest, load_dataset, make_plan
from loaders.transforms import Preprocess

COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"
PLAIN = Preprocess((0.0,) * 3, (1.0,) * 3)


def write(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.RandomState(seed).randint(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def folder_of(
    root: Path, names: list[str], count: int = 1, splits: tuple = ("train", "val")
) -> Path:
    for split in splits:
        for name in names:
            for number in range(count):
                write(root / split / name / f"{number}.png", number)
    return root


def loaded(root: Path):
    return load_dataset("imagenet", root, PLAIN)


# --- images in folders below a class


def test_images_below_a_class_are_those_of_torchvisions_folder(tmp_path):
    from torchvision.datasets import ImageFolder

    root = folder_of(tmp_path / "data", ["ant", "bee"], 2, splits=("val",))
    others = ("ant/z.png", "ant/b/1.png", "ant/b/c/1.png", "ant/b-c/1.png", "ant/B/x.JPEG")
    for seed, name in enumerate((*others, "bee/.hidden/2.png", "bee/x.png/3.png")):
        write(root / "val" / name, seed)
    write(tmp_path / "elsewhere" / "deep" / "9.png", 9)
    (root / "val" / "bee" / "link").symlink_to(tmp_path / "elsewhere")
    (root / "val" / "bee" / "notes.txt").write_text("no image")
    (root / "val" / "bee" / "gone.png").symlink_to(tmp_path / "nothing")
    theirs = ImageFolder(str(root / "val"))
    ours = loaded(root).val
    assert [str(root / name) for name in ours.ids] == [path for path, _ in theirs.samples]
    assert ours.labels.tolist() == theirs.targets
    assert ours.ids == [
        *(f"val/ant/{name}" for name in ("0.png", "1.png", "z.png", "B/x.JPEG", "b/1.png")),
        *(f"val/ant/{name}" for name in ("b-c/1.png", "b/c/1.png")),
        *(f"val/bee/{name}" for name in ("0.png", "1.png", "gone.png", ".hidden/2.png")),
        *(f"val/bee/{name}" for name in ("link/deep/9.png", "x.png/3.png")),
    ]


def test_a_class_that_holds_folders_only_has_images(tmp_path):
    for number in range(3):
        write(tmp_path / "val" / "ant" / f"part{number}" / "0.png", number)
    data = loaded(tmp_path)
    assert data.val.ids == [f"val/ant/part{number}/0.png" for number in range(3)]
    assert len(data.val.loaded()) == 3


def test_links_in_a_circle_end(tmp_path, caplog):
    root = folder_of(tmp_path / "data", ["ant", "bee"], 1, splits=("val",))
    ant, bee = root / "val" / "ant", root / "val" / "bee"
    (ant / "again").symlink_to(ant)
    (bee / "up").symlink_to(root)
    write(tmp_path / "other" / "5.png")
    (bee / "other").symlink_to(tmp_path / "other")
    (tmp_path / "other" / "back").symlink_to(bee)
    with caplog.at_level(logging.WARNING):
        ids = loaded(root).val.ids
    assert ids == [
        "val/ant/0.png",
        "val/bee/0.png",
        "val/bee/other/5.png",
        "val/bee/up/val/ant/0.png",
    ]
    left_out = {m.split(": ")[0].removeprefix(f"left out {root}/val/") for m in caplog.messages}
    assert left_out == {"ant/again", "bee/up/val/ant/again", "bee/up/val/bee", "bee/other/back"}


def test_a_name_below_a_class_must_be_utf8(tmp_path):
    import os

    folder_of(tmp_path, ["ant"], splits=("val",))
    write(tmp_path / "val" / "ant" / os.fsdecode(b"\xff") / "0.png")
    with pytest.raises(InputError, match=r"names of images must be UTF-8, got b'.*ant/\\xff/0.png"):
        loaded(tmp_path)


# --- Unicode


def test_classes_of_train_and_val_are_compared_in_composed_unicode(tmp_path):
    folder_of(tmp_path, [COMPOSED, "bee"], 2, splits=("train",))
    folder_of(tmp_path, [DECOMPOSED, "bee"], 1, splits=("val",))
    data = loaded(tmp_path)
    assert data.classes == ["bee", COMPOSED]
    assert data.train.ids[2:] == [f"train/{COMPOSED}/{number}.png" for number in range(2)]
    assert data.val.ids == ["val/bee/0.png", f"val/{DECOMPOSED}/0.png"]
    assert len(data.val.loaded()) == 2 and data.val.labels.tolist() == [0, 1]


def test_two_folders_of_one_name_are_refused(tmp_path):
    folder_of(tmp_path, [COMPOSED, DECOMPOSED, "bee"], splits=("val",))
    with pytest.raises(InputError) as caught:
        loaded(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path / 'val'}: class folders must differ in composed Unicode (NFC), got "
        r"'cafe\u0301' and 'caf\xe9'"
    )


def test_listed_images_are_found_in_composed_unicode(tmp_path):
    root, path = folder_of(tmp_path / "data", [DECOMPOSED, "bee"], 3), tmp_path / "ids.json"
    path.write_text(json.dumps([f"train/{COMPOSED}/1.png", "train/bee/0.png"]))
    plan = make_plan(loaded(root), PlanRequest(seed=0, calibration_list=path), 8)
    assert plan.calibration.ids == [f"train/{DECOMPOSED}/1.png", "train/bee/0.png"]
