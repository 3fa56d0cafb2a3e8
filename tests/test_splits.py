"""Long-tailed splits: the profile, the draws, the files and the command."""

from __future__ import annotations

import json

import numpy as np
import pytest

from common.errors import InputError
from create_splits_fixed import main
from experts.class_counts import draw_train, exponential_counts, split_pool
from experts.splits import SplitRequest, draw_splits, list_digest
from tests.conftest import write_cifar10


@pytest.mark.parametrize(
    ("classes", "ratio", "largest", "total", "first", "last"),
    [
        (100, 100, 500, 10847, [500, 477, 455, 434, 415], [6, 5, 5, 5, 5]),
        (100, 50, 500, 12608, [500, 480, 462, 444, 426], [11, 11, 10, 10, 10]),
        (100, 10, 500, 19573, [500, 488, 477, 466, 455], [54, 53, 52, 51, 50]),
        (10, 100, 5000, 12406, [5000, 2997, 1796, 1077, 645], [387, 232, 139, 83, 50]),
        (10, 10, 124, 503, [124, 96, 74, 57, 44], [34, 26, 20, 16, 12]),
        (10, 100, 124, 304, [124, 74, 44, 26, 16], [9, 5, 3, 2, 1]),
    ],
)
def test_the_profile_is_the_published_one(classes, ratio, largest, total, first, last):
    counts = exponential_counts(classes, ratio, largest)
    assert sum(counts) == total
    assert (counts[:5], counts[-5:]) == (first, last)
    assert exponential_counts(classes, 1, largest) == [largest] * classes


def test_draws_are_those_of_the_global_generator():
    """The published script seeds NumPy's global generator; the streams are the same."""
    labels = np.random.RandomState(3).randint(0, 5, 400)
    counts = [40, 20, 10, 5, 1000]
    expected: list[int] = []
    pool: dict[str, list[int]] = {"test": [], "val": [], "tunev": []}
    size = np.bincount(labels).min()
    state = np.random.get_state()
    np.random.seed(7)
    for c, count in enumerate(counts):
        members = np.where(labels == c)[0]
        expected += np.random.choice(members, min(count, len(members)), replace=False).tolist()
    np.random.seed(7)
    for c in range(5):
        members = np.where(labels == c)[0]
        np.random.shuffle(members)
        tenth = size // 10
        pool["test"] += members[: size - 2 * tenth].tolist()
        pool["val"] += members[size - 2 * tenth : size - tenth].tolist()
        pool["tunev"] += members[size - tenth : size].tolist()
    np.random.set_state(state)
    before = np.random.get_state()[1].copy()
    assert draw_train(labels, counts, 7) == expected
    assert split_pool(labels, 5, 7) == (pool, 400 - 5 * size)
    assert np.array_equal(np.random.get_state()[1], before)  # no global state is touched


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: exponential_counts(10, 0.5, 50), r"imb-factor must be at least 1, got 0\.5"),
        (
            lambda: exponential_counts(10, float("nan"), 50),
            "imb-factor must be at least 1, got nan",
        ),
        (lambda: exponential_counts(1, 2, 50), "num_classes must be at least 2, got 1"),
        (lambda: exponential_counts(3, 2, 0), "max-per-class must be from 1 to 1000000000, got 0"),
        (lambda: draw_train(np.array([0, 2]), [1, 1, 1], 0), "got no sample of class 1"),
        (
            lambda: split_pool(np.repeat([0, 1], [30, 9]), 2, 0),
            "at least 10 samples of every class, got 9 of class 1",
        ),
    ],
)
def test_what_cannot_be_split_is_refused(call, text):
    with pytest.raises(InputError, match=text):
        call()


def test_splits_of_digits(tmp_path, capsys):
    assert main(["--dataset", "digits", "--output", str(tmp_path / "s")]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Dataset: digits (as given)")
    assert "disjoint: yes, balanced: yes" in out
    files = {path.name: json.loads(path.read_text()) for path in (tmp_path / "s").iterdir()}
    assert len(files) == 7
    assert [len(files[f"{n}_indices.json"]) for n in ("train", "test", "val", "tunev")] == [
        503,
        400,
        50,
        50,
    ]
    pool = [i for n in ("test", "val", "tunev") for i in files[f"{n}_indices.json"]]
    assert sorted(pool) == list(range(500))
    assert files["train_class_counts.json"] == exponential_counts(10, 10, 124)
    weights = files["class_weights.json"]
    assert sum(weights) == pytest.approx(1, abs=1e-9)
    assert weights[0] == 124 / 503
    info = files["split_info.json"]
    assert info["slug"] == "digits_lt_if10"
    assert info["splits"]["val"]["indices_sha256"] == list_digest(files["val_indices.json"])
    assert info["sources"] == {
        "train": {"name": "digits train", "size": 1297},
        "test": {"name": "digits test", "size": 500},
    }


def test_the_same_splits_are_not_written_again_and_others_not_lost(tmp_path, capsys):
    folder = tmp_path / "s"
    flags = ["--dataset", "digits", "--output", str(folder)]
    assert main(flags) == 0
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    capsys.readouterr()
    assert main(flags) == 0
    assert "already up to date" in capsys.readouterr().out
    assert main([*flags, "--seed", "43"]) == 2
    error = capsys.readouterr().err
    assert "train_indices.json must hold these splits, got others" in error
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (folder / "val_indices.json").write_text("[")
    assert main(flags) == 2
    assert "val_indices.json must hold these splits" in capsys.readouterr().err
    assert main([*flags, "--seed", "43", "--force"]) == 0
    assert json.loads((folder / "split_info.json").read_text())["seed"] == 43


def test_files_that_are_missing_are_written_again(tmp_path, capsys):
    folder = tmp_path / "s"
    flags = ["--dataset", "digits", "--output", str(folder)]
    assert main(flags) == 0
    before = {path.name: path.read_text() for path in folder.glob("*_*.json")}
    (folder / "val_indices.json").unlink()
    (folder / "split_info.json").unlink()
    assert main(flags) == 0
    for name, text in before.items():
        assert name == "split_info.json" or (folder / name).read_text() == text
    assert main([*flags[:-1], "x" * 300]) == 2
    assert "error: " in capsys.readouterr().err


def test_more_than_a_class_has_is_told(tmp_path, capsys):
    flags = ["--dataset", "digits", "--output", str(tmp_path / "s"), "--max-per-class", "200"]
    assert main(flags) == 0
    error = capsys.readouterr().err
    assert "a class has fewer samples than the exponential profile requires" in error


def test_splits_of_cifar(tmp_path, monkeypatch, capsys):
    write_cifar10(tmp_path, monkeypatch)
    flags = ["--dataset", "cifar10", "--data-root", str(tmp_path), "--output", str(tmp_path / "s")]
    assert main(flags) == 2  # 4 test images
    assert "test source must hold at least 10 samples of every class" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--dataset", "nothing"], "dataset must be a known name, got 'nothing'"),
        (["--dataset", "digits", "--imb-factor", "0"], "imb-factor must be at least 1, got 0"),
        (
            ["--dataset", "digits", "--max-per-class", "0"],
            "max-per-class must be from 1 to 1000000000, got 0",
        ),
        (["--dataset", "imagenet"], "data-root must be given for dataset imagenet"),
        (["--data-root", "nowhere"], "must be an existing folder, got 'nowhere'"),
    ],
)
def test_bad_requests_are_one_line(flags, text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(flags) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert text in error[-1]
    assert not list(tmp_path.iterdir())


def test_classes_that_differ_in_size_are_cut_to_the_smallest(caplog):
    test = np.repeat([0, 1, 2], [30, 20, 25])
    splits = draw_splits(SplitRequest("x"), np.repeat([0, 1, 2], 50), test)
    assert splits.dropped == 15
    splits.require_sound(test)
    assert [len(splits.indices[name]) for name in ("test", "val", "tunev")] == [48, 6, 6]
