"""A flat val folder with a file of labels."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import main_imagenet
from common.errors import InputError
from loaders import load_dataset
from loaders.transforms import Preprocess
from models import get_entry
from tests.conftest import PROJECT

PLAIN = Preprocess((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
NAMES = [f"ILSVRC2012_val_{index:08d}.JPEG" for index in range(1, 7)]
CLASSES = ["cat", "ant", "bee", "ant", "cat", "bee"]
INDEX = {"ant": 0, "bee": 1, "cat": 2}
LABELS = [INDEX[name] for name in CLASSES]


def write(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.RandomState(seed).randint(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def flat(tmp_path):
    """Six images right in val."""
    for seed, name in enumerate(NAMES):
        write(tmp_path / "images" / "val" / name, seed)
    return tmp_path / "images"


def labelled(flat: Path, text: str, **options):
    file = flat.parent / "labels.txt"
    file.write_text(text, encoding="utf-8")
    return load_dataset("imagenet", flat, PLAIN, val_labels=file, **options)


def rows(labels: list, separator: str = " ", suffix: str = "") -> str:
    pairs = list(zip(NAMES, labels, strict=True))
    return "\n".join(f"{name}{separator}{label}{suffix}" for name, label in pairs[::-1]) + "\n"


FORMS = {
    "names": rows(CLASSES),
    "numbers": rows(LABELS, "\t"),
    "kaggle": "ImageId,PredictionString\n"
    + "\n".join(f"{Path(n).stem},{c} 85 131 499 465" for n, c in zip(NAMES, CLASSES, strict=True)),
    "paths": "\n".join(f"val/{n},{c}" for n, c in zip(NAMES, CLASSES, strict=True)),
    "one a line": "\n".join(CLASSES),
    "one number a line": "\n".join(map(str, LABELS)) + "\n\n",
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_labels_in_the_order_of_the_images(form, flat):
    data = labelled(flat, FORMS[form])
    assert data.val.ids == [f"val/{name}" for name in NAMES]
    assert data.val.labels.tolist() == LABELS
    numbers = "number" in form
    assert data.classes == (["0", "1", "2"] if numbers else ["ant", "bee", "cat"])
    assert data.train is None


@pytest.mark.parametrize("form", FORMS)
def test_the_classes_are_those_of_the_train_folder_where_there_is_one(form, flat):
    for seed, name in enumerate(("ant", "bee", "cat", "dog")):
        write(flat / "train" / name / "0.png", seed)
    data = labelled(flat, FORMS[form])
    assert data.classes == ["ant", "bee", "cat", "dog"]
    assert data.val.labels.tolist() == LABELS
    assert len(data.train) == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must hold a label per image, got an empty file"),
        ("\n".join(CLASSES[:5]), "one for each of the 6 images in val, got 5"),
        (
            rows(CLASSES) + "other.JPEG ant\n",
            "must be those of the 6 images in val, got 1 of other images, 'other.JPEG' first",
        ),
        (rows(CLASSES).replace("00000003", "00000009"), f"got none for '{NAMES[2]}'"),
        (
            rows(CLASSES) + f"{NAMES[0]} ant\n",
            "must occur once, got 'ILSVRC2012_val_00000001.JPEG' again",
        ),
        (rows(CLASSES) + "ant\n", "lines must all be NAME LABEL or all LABEL, got 'ant'"),
        (rows([n + 1 for n in LABELS]), "labels must be numbers from 0, got 1 to 3"),
        (
            rows([float(n) for n in LABELS]),
            "all names or all whole numbers from 0 to 999999, got '2.0'",
        ),
        (rows([-1, *LABELS[1:]]), "all whole numbers from 0 to 999999, got '-1'"),
        (rows(["cat", *LABELS[1:]]), "labels must be all names or all whole numbers"),
        (rows([10**9, *LABELS[1:]]), "all whole numbers from 0 to 999999, got '1000000000'"),
        (rows(["9" * 5000, *LABELS[1:]]), "all whole numbers from 0 to 999999, got '9999"),
    ],
)
def test_labels_that_do_not_fit_are_said_to(text, message, flat):
    with pytest.raises(InputError, match=re.escape(message)):
        labelled(flat, text)


def test_the_numbers_of_the_devkit_are_explained(tmp_path):
    from loaders.label_file import read_labels

    file = tmp_path / "ILSVRC2012_validation_ground_truth.txt"
    file.write_text("\n".join(str(number) for number in range(1, 1001)))
    with pytest.raises(InputError, match=r"got 1 to 1000 \(the numbers of ILSVRC's ground truth"):
        read_labels(file, [f"{n:04d}.JPEG" for n in range(1000)], None)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["cat", "ant", "bee", "ant", "cow", "bee"], "must be folders of train, got 'cow'"),
        ([0, 1, 2, 0, 3, 1], "labels must be below 3, the folders of train, got 3"),
    ],
)
def test_a_label_that_train_does_not_have_is_refused(labels, message, flat):
    for seed, name in enumerate(INDEX):
        write(flat / "train" / name / "0.png", seed)
    with pytest.raises(InputError, match=re.escape(message)):
        labelled(flat, rows(labels))


def test_numbers_that_folders_of_train_contradict_are_refused(flat):
    for number in range(12):
        write(flat / "train" / str(number) / "0.png", number)
    message = (
        "labels must be unambiguous, got numbers where '10' of the folders of train is number 2 in "
        "order"
    )
    with pytest.raises(InputError, match=re.escape(message)):
        labelled(flat, rows(LABELS), class_order="text")
    with pytest.raises(InputError, match="class_order must be given where the classes are numbers"):
        labelled(flat, rows(LABELS))
    assert labelled(flat, rows(LABELS), class_order="natural").val.labels.tolist() == LABELS


def test_a_class_order_applies_to_the_names_in_the_file(flat, tmp_path, caplog):
    names = [f"c{number}" for number in (10, 9, 2, 2, 10, 9)]
    with caplog.at_level("WARNING"):
        assert labelled(flat, rows(names)).classes == ["c10", "c2", "c9"]
    assert (
        "classes of labels.txt are in the order of their text: c10, c2, c9 (--class_order natural: "
        "c2, c9, c10)"
    ) in caplog.text
    assert labelled(flat, rows(names), class_order="natural").classes == ["c2", "c9", "c10"]
    order = tmp_path / "order.txt"
    order.write_text("c9\nc10\nc7\nc2\n")  # more classes than this val has
    data = labelled(flat, rows(names), class_order=str(order))
    assert data.classes == ["c9", "c10", "c7", "c2"]
    assert data.val.labels.tolist() == [1, 0, 3, 3, 1, 0]
    assert labelled(flat, rows([3, 1, 0, 0, 1, 2]), class_order=str(order)).classes == data.classes
    with pytest.raises(InputError, match=r"labels must be names in order\.txt, got 'c1', which is"):
        labelled(flat, rows(["c1", *names[1:]]), class_order=str(order))
    with pytest.raises(InputError, match=r"labels must be below 4, the names in order\.txt, got 4"):
        labelled(flat, rows([4, 1, 0, 0, 1, 2]), class_order=str(order))


@pytest.mark.parametrize("order", ["text", "natural"])
def test_a_class_order_without_effect_on_numbers_is_refused(flat, order):
    message = (
        "class_order must be a file of names or left out where labels.txt holds numbers and there "
        f"is no train folder, got {order}"
    )
    with pytest.raises(InputError, match=message):
        labelled(flat, rows(LABELS), class_order=order)


def test_names_are_compared_in_composed_unicode(flat):
    for seed, name in enumerate(("cafe\u0301", "the\u0301")):
        write(flat / "train" / name / "0.png", seed)
    (flat / "val" / NAMES[0]).rename(flat / "val" / "e\u0301te\u0301.JPEG")
    text = rows(["caf\u00e9"] * 5 + ["th\u00e9"]).replace(NAMES[0], "\u00e9t\u00e9.JPEG")
    data = labelled(flat, text)
    assert data.classes == ["caf\u00e9", "th\u00e9"]
    assert data.val.ids[-1] == "val/e\u0301te\u0301.JPEG"
    assert data.val.labels.tolist() == [0, 0, 0, 0, 1, 0]


def test_a_folder_of_train_whose_name_only_looks_like_a_number_is_a_name(flat):
    for number, name in enumerate(["0", "1", "²"]):
        write(flat / "train" / name / "0.png", number)
    assert labelled(flat, rows(LABELS)).val.labels.tolist() == LABELS


def test_labels_with_spaces_and_quoted_cells_are_kept_whole(flat):
    names = ["tiger cat", "tiger shark", "bee", "bee", "tiger cat", "bee"]
    expected = [1, 2, 0, 0, 1, 0]
    for text in (rows(names, ","), rows([f'"{name}"' for name in names], ",")):
        data = labelled(flat, text)
        assert data.classes == ["bee", "tiger cat", "tiger shark"]
        assert data.val.labels.tolist() == expected


def test_images_that_differ_in_their_extension_need_it_in_the_file(flat):
    write(flat / "val" / "ILSVRC2012_val_00000001.png", 9)
    text = rows(CLASSES) + "ILSVRC2012_val_00000001.png bee\n"
    data = labelled(flat, text)
    assert data.val.ids[1].endswith("00000001.png") and data.val.labels[1] == 1
    stems = "".join(f"{Path(name).stem} ant\n" for name in NAMES)
    with pytest.raises(InputError, match="names must identify images, got no line for"):
        labelled(flat, stems)


def test_a_flat_folder_without_the_file_says_what_to_do(flat):
    message = r"must hold a folder per class, got 6 images and no folder \(--val_labels FILE"
    with pytest.raises(InputError, match=message):
        load_dataset("imagenet", flat, PLAIN)


def test_the_file_with_class_folders_says_what_is_wrong(flat):
    file = flat.parent / "labels.txt"
    file.write_text(rows(CLASSES))
    for name in NAMES:
        (flat / "val" / name).unlink()
    write(flat / "val" / "ant" / "0.png", 0)
    with pytest.raises(InputError, match="must itself hold images if --val_labels is given"):
        load_dataset("imagenet", flat, PLAIN, val_labels=file)
    with pytest.raises(InputError, match="val_labels must be left out for dataset digits"):
        load_dataset("digits", None, PLAIN, val_labels=file)


def test_a_wrong_class_count_is_explained(flat, capsys, tmp_path):
    torch.save(get_entry("cifar_resnet20").build(10).state_dict(), tmp_path / "c.pt")
    file = tmp_path / "labels.txt"
    file.write_text(rows(LABELS))
    argv = ["--arch", "cifar_resnet20", "--checkpoint", str(tmp_path / "c.pt"), "--dry_run"]
    argv += ["--data_path", str(flat), "--val_labels", str(file)]
    assert main_imagenet.main(argv) == 2
    message = "and 3 in imagenet (numbers in labels.txt, the largest 2)"
    assert message in capsys.readouterr().err


@pytest.fixture(scope="module")
def sample(shared, tmp_path_factory) -> Path:
    """The shared ImageNet images: val/<synset>/*.JPEG."""
    import tarfile

    target = tmp_path_factory.mktemp("imagenet")
    with tarfile.open(shared / "data" / "imagenet_sample.tar.xz") as archive:
        archive.extractall(target, filter="data")
    return target / "imagenet_sample"


@pytest.mark.data
@pytest.mark.slow
def test_the_imagenet_sample_gives_the_same_logits_in_both_layouts(sample, tmp_path):
    network = get_entry("resnet18").build(1000)
    torch.save(network.state_dict(), tmp_path / "c.pt")
    files = sorted((sample / "val").glob("*/*.JPEG"))
    (tmp_path / "flat" / "val").mkdir(parents=True)
    for file in files:
        os.link(file, tmp_path / "flat" / "val" / file.name)
    labels = tmp_path / "labels.txt"
    labels.write_text("".join(f"{file.name} {file.parent.name}\n" for file in files))
    common = ["--arch", "resnet18", "--quant_method", "rtn", "--num_samples", "16"]
    common += ["--checkpoint", str(tmp_path / "c.pt")]
    common += ["--correction_source", "val:0.1", "--no-plots", "--save_results", "selected"]
    common += ["--init_wmode", "minmax", "--init_amode", "minmax", "--pca_dim_list", "5"]
    common += ["--num_clusters_list", "4"]
    for name, extra in (
        ("folders", ["--data_path", str(sample)]),
        ("flat", ["--data_path", str(tmp_path / "flat"), "--val_labels", str(labels)]),
    ):
        command = [sys.executable, "main_imagenet.py", *common, *extra]
        command += ["--output_dir", str(tmp_path / name)]
        subprocess.run(command, check=True, cwd=PROJECT, capture_output=True)
    first, second = (
        next((tmp_path / name / "rtn").glob("initial_logits_*")) for name in ("folders", "flat")
    )
    targets = np.loadtxt(next(first.glob("*targets*.csv")), dtype=int)
    assert len(targets) == 900 and (np.diff(targets) > 0).all()
    logits = sorted(first.glob("*.csv"))
    assert len(logits) >= 3
    for file in logits:
        if "metadata" not in file.name:
            assert file.read_bytes() == (second / file.name).read_bytes()
