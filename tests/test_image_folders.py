"""Which files of a folder are images, of which class, and in which order the classes are."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import main_imagenet
from common.errors import InputError
from loaders import PlanRequest, load_dataset, make_plan
from loaders.class_order import natural_key
from loaders.transforms import Preprocess

PLAIN = Preprocess((0.0,) * 3, (1.0,) * 3)
NUMBERS = [str(number) for number in range(1, 13)]
COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


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


def loaded(root: Path, order: str | None = None):
    return load_dataset("imagenet", root, PLAIN, class_order=order)


# --- the order of the classes


def test_numbers_in_two_orders_are_refused_unless_an_order_is_given(tmp_path):
    root = folder_of(tmp_path, NUMBERS)
    with pytest.raises(InputError) as caught:
        loaded(root)
    assert str(caught.value) == (
        "class_order must be given where the classes are numbers whose orders differ (text, "
        "natural, or a file with the names in the order of the network's outputs), got none for "
        f"{root / 'val'}: 1, 10, 11 as text, 1, 2, 3 as numbers"
    )
    natural, text = loaded(root, "natural"), loaded(root, "text")
    assert natural.classes == NUMBERS
    assert text.classes == sorted(NUMBERS)
    for data in (natural, text):
        for images in (data.train, data.val):
            named = [name.split("/")[1] for name in images.ids]
            assert [data.classes[label] for label in images.labels] == named == data.classes


@pytest.mark.parametrize("names", [["0", "1", "2"], ["01", "02", "10"], ["8", "9"]])
def test_numbers_in_one_order_need_no_flag(tmp_path, names, caplog):
    assert loaded(folder_of(tmp_path, names)).classes == names
    assert caplog.text == ""


def test_other_names_in_two_orders_are_warned_of(tmp_path, caplog):
    root = folder_of(tmp_path, ["class2", "class10", "other"])
    with caplog.at_level(logging.WARNING):
        assert loaded(root).classes == ["class10", "class2", "other"]
    assert caplog.messages == [
        f"classes of {root / 'val'} are in the order of their text: class10, class2, other "
        "(--class_order natural: class2, class10, other)"
    ]
    caplog.clear()
    assert loaded(root, "text").classes == ["class10", "class2", "other"]
    assert loaded(root, "natural").classes == ["class2", "class10", "other"]
    assert caplog.messages == []


def test_synsets_are_not_warned_of(tmp_path, caplog):
    names = ["n01440764", "n01443537", "n15075141"]
    assert loaded(folder_of(tmp_path, names)).classes == names
    assert caplog.text == ""


def test_natural_order():
    names = ["b", "a10", "a9", "a", "a09", "10", "9", "a9b2", "a9b10", "0", "00", f"a{'9' * 5000}"]
    assert sorted(names, key=natural_key) == [
        *("0", "00", "9", "10", "a", "a09", "a9", "a9b2", "a9b10", "a10", f"a{'9' * 5000}", "b")
    ]


def test_a_file_gives_any_order(tmp_path):
    root, file = folder_of(tmp_path / "data", ["ant", "bee", COMPOSED], 2), tmp_path / "order.txt"
    file.write_text(f"\ufeffbee\r\n\n {DECOMPOSED}\nant\n", encoding="utf-8")
    data = loaded(root, str(file))
    assert data.classes == ["bee", COMPOSED, "ant"]
    assert data.val.ids[:3] == ["val/bee/0.png", "val/bee/1.png", f"val/{COMPOSED}/0.png"]
    assert data.val.labels.tolist() == data.train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.origin == "folders of val, bee to ant"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("ant\nbee", "must name exactly the 3 classes of {val}, got 2 names: cat not in the file"),
        (
            "ant\nbee\ncat\ndog",
            "must name exactly the 3 classes of {val}, got 4 names: dog not in {val}",
        ),
        ("ant\nbee\ncow", "got 3 names: cow not in {val}; cat not in the file"),
        ("ant\nbee\ncat\nant\n", "must name each class once, got 'ant' again"),
        (" \n\n", "must name a class on each line, got an empty file"),
    ],
)
def test_a_file_that_does_not_name_the_classes_is_refused(tmp_path, content, text):
    root, file = folder_of(tmp_path / "data", ["ant", "bee", "cat"]), tmp_path / "order.txt"
    file.write_text(content)
    with pytest.raises(InputError, match=re.escape(text.format(val=root / "val"))) as caught:
        loaded(root, str(file))
    assert str(caught.value).startswith(f"{file}: ")


def test_a_misspelt_order_is_no_file(tmp_path):
    root = folder_of(tmp_path, ["ant", "bee"])
    with pytest.raises(InputError) as caught:
        loaded(root, "natrual")
    assert str(caught.value).startswith(
        "class_order must be text, natural or a readable text file of class names, got 'natrual': "
    )
    (tmp_path / "binary").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(InputError, match="must be text, natural or a readable text file"):
        loaded(root, str(tmp_path / "binary"))


def test_an_order_is_refused_for_a_data_set_with_its_own():
    with pytest.raises(InputError, match="class_order must be left out for dataset digits"):
        load_dataset("digits", None, PLAIN, class_order="text")


NETWORK = '''
import torch
from torch import nn

def brightness():
    """Class k - 1 for images of brightness k / 12."""
    mean, head = nn.Conv2d(3, 1, 1), nn.Linear(1, 12)
    levels = torch.arange(1, 13) / 12
    with torch.no_grad():
        mean.weight.fill_(1 / 3)
        mean.bias.zero_()
        head.weight.copy_(200 * levels[:, None])
        head.bias.copy_(-100 * levels**2)
    return nn.Sequential(mean, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
'''


@pytest.fixture
def bright(tmp_path) -> list[str]:
    """Flags of a run on 12 folders that are numbers, with a network whose outputs are in order."""
    for number in range(1, 13):
        for index in range(5):
            path = tmp_path / "data" / "val" / str(number) / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), round(255 * number / 12)).save(path)
    (tmp_path / "nets.py").write_text(NETWORK)
    argv = ["--arch", f"{tmp_path / 'nets.py'}:brightness", "--data_path", str(tmp_path / "data")]
    argv += ["--mean", "0", "0", "0", "--std", "1", "1", "1", "--resize", "0", "--crop", "0"]
    return [*argv, "--quant_method", "rtn", "--no-correction", "--no-plots", "--n_bits_w", "8"]


def test_the_order_of_numbers_decides_the_accuracy_and_must_be_given(bright, tmp_path, capsys):
    assert main_imagenet.main([*bright, "--output_dir", str(tmp_path / "none")]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: class_order must be given where the classes are numbers")
    assert not (tmp_path / "none").exists()
    (tmp_path / "order.txt").write_text("\n".join(NUMBERS))
    accuracy = {}
    for order in ("text", "natural", str(tmp_path / "order.txt")):
        out = tmp_path / f"out_{Path(order).stem}"
        assert main_imagenet.main([*bright, "--class_order", order, "--output_dir", str(out)]) == 0
        record = json.loads((out / "rtn" / "run.json").read_text())
        assert record["config"]["class_order"] == order
        accuracy[Path(order).stem] = record["figures"]["fullprecision"]["top1_pct"]
    assert accuracy["natural"] == accuracy["order"] == 100
    assert accuracy["text"] < 20


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
