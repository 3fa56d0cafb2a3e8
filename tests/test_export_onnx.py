"""--export_onnx of the main script, and export_onnx.py, on the embedded digits."""

from __future__ import annotations

import json
import shutil
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch

import export_onnx
import main_imagenet
from common.marks import MARK
from correction import ClusterAffineCorrection
from export.verification import OnnxNetwork
from export.writing import write_onnx
from loaders import load_dataset
from logits_io import LogitsAnalyzer
from models.checkpoints import state_digest
from models.digits import DIGITS_ENTRY
from tests.conftest import QUICK, TAG

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.usefixtures("one_operator_table")


def images() -> torch.Tensor:
    digits = load_dataset("digits", None, DIGITS_ENTRY.preprocess)
    return next(iter(digits.val.batches(len(digits.val))))[0]


@pytest.fixture(scope="module")
def run(tmp_path_factory, one_operator_table) -> Path:
    """The folder of a run whose ONNX file holds a correction that changes much."""
    root = tmp_path_factory.mktemp("onnx")
    random = np.random.RandomState(0)
    logits = random.normal(0, 4, (300, 10)).astype(np.float32)
    target = 2 * logits + random.normal(0, 1, (1, 10))
    correction = ClusterAffineCorrection(4, 3, alpha=0.8).fit(logits, target.astype(np.float32))
    correction.save(root / "other.npz")
    argv = ["--quant_method", "rtn", "--num_samples", "64", "--output_dir", str(root), "--no-plots"]
    argv += ["--load_correction", str(root / "other.npz"), "--export_onnx", "--with_correction"]
    with redirect_stdout(StringIO()) as out:
        assert main_imagenet.main([*argv, "--export_images", "200"]) == 0
    (root / "out.txt").write_text(out.getvalue())
    return root / "rtn" / f"run_{TAG}"


WRITTEN: dict[tuple[str, str], bytes] = {}


@pytest.fixture
def written_once(monkeypatch):
    """Let torch export the same model once, for tests of what is done with its file."""

    def write(model, path, image_shape, correction, **options):
        assert correction is None
        key = state_digest(model), repr(options)
        if key not in WRITTEN:
            write_onnx(model, path, image_shape, **options)
            WRITTEN[key] = path.read_bytes()
        path.write_bytes(WRITTEN[key])

    monkeypatch.setattr("export.reporting.write_onnx", write)


def test_the_file_gives_the_corrected_logits_of_the_run(run):
    report = json.loads((run / "export_report.json").read_text())
    assert report["correction"] and report["problems"] == [] and report["images"] == 200
    folder = "results_alpha0.8_clusters4_pca3_digits_resnet_w4bit_a4bit"
    stored = LogitsAnalyzer(run.parent).load(folder).logits
    found = OnnxNetwork(run / "quantized_model.onnx")(images()).numpy()
    assert np.abs(stored["corrected"] - stored["quantized"]).max() > 5
    np.testing.assert_allclose(found, stored["corrected"], rtol=1e-4, atol=1e-4)


def test_the_end_of_the_run_says_where_the_file_is(run):
    files = (run.parent.parent / "out.txt").read_text().split("files:\n")[1].split("\n\n")[0]
    assert files.splitlines()[-1].split() == ["ONNX:", str(run / "quantized_model.onnx")]


def test_the_report_says_what_the_file_is(run):
    report = json.loads((run / "export_report.json").read_text())
    assert report["bytes"]["file"] == (run / "quantized_model.onnx").stat().st_size
    assert report["bytes"]["theoretical"] < report["bytes"]["file"] < report["bytes"]["float32"]
    assert (
        report["agreement"] == min(level["agreement"] for level in report["levels"].values()) == 1
    )
    assert report["limit"] == 0.995 and report["reordered"]["agreement"] == 1
    assert report["arch"] == "digits_resnet" and report["wrong_integers"] == []
    assert set(report["top1_pct"].values()) == {report["top1_pct"]["file"]}
    assert report["input"].startswith("(pixels / white - mean) / std")
    assert report["preprocess"]["mean"] == list(DIGITS_ENTRY.preprocess.mean)


def test_a_saved_model_is_exported_later_with_the_same_integers(run, tmp_path, capsys):
    model = str(run / "quantized_model.pt")
    argv = [model, "--output_dir", str(tmp_path), "--with_correction", "--export_images", "200"]
    assert export_onnx.main(argv) == 0
    lines = dict(line.split(":", 1) for line in capsys.readouterr().out.splitlines())
    assert lines["file"].strip() == str(tmp_path / "quantized_model.onnx")
    assert lines["target"].strip() == "exact" and lines["agreement"].strip().startswith("100.00 %")
    first, second = (
        OnnxNetwork(folder / "quantized_model.onnx")(images()).numpy() for folder in (run, tmp_path)
    )
    np.testing.assert_array_equal(first, second)


@pytest.mark.usefixtures("written_once")
def test_random_images_check_a_model_without_its_data(run, tmp_path):
    model = str(run / "quantized_model.pt")
    argv = [model, "--output_dir", str(tmp_path), "--noise", "--export_images", "64"]
    assert export_onnx.main(argv) == 0
    report = json.loads((tmp_path / "export_report.json").read_text())
    assert (report["checked_on"], report["images"], report["correction"]) == ("noise", 64, False)


@pytest.mark.usefixtures("written_once")
def test_a_model_saved_without_metadata_is_checked_on_noise_alone(run, tmp_path, capsys):
    content = torch.load(run / "quantized_model.pt", weights_only=True)
    content["metadata"] = {}
    model = str(tmp_path / "own.pt")
    torch.save(content, model)
    argv = [model, "--output_dir", str(tmp_path / "out"), "--export_images", "64"]
    assert export_onnx.main([*argv, "--noise"]) == 0
    refused = {
        "preprocess": ["--dataset", "digits"],
        "num_classes": ["--noise", "--with_correction"],
    }
    for name, given in refused.items():
        assert export_onnx.main([*argv, *given, "--force"]) == 2
        assert f"{model}: must be saved with {name} in its metadata" in capsys.readouterr().err


@pytest.mark.usefixtures("written_once")
@pytest.mark.parametrize("name", ["quantized_model.onnx", "export_report.json"])
def test_files_of_the_user_are_not_exported_over(run, tmp_path, capsys, name):
    argv = [str(run / "quantized_model.pt"), "--output_dir", str(tmp_path), "--noise"]
    argv += ["--export_images", "64"]
    (tmp_path / name).write_text("{}")
    assert export_onnx.main(argv) == 2
    wanted = f"error: {tmp_path / name}: must be a file that this suite wrote and nobody changed"
    assert capsys.readouterr().err.startswith(wanted)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert export_onnx.main([*argv, "--force"]) == 0
    (tmp_path / MARK).unlink()  # as in a folder of an earlier version
    assert export_onnx.main(argv) == 0
    (tmp_path / "link").symlink_to(tmp_path)
    capsys.readouterr()
    assert export_onnx.main([*argv[:2], str(tmp_path / "link"), "--noise"]) == 2
    assert "link: must be a folder or new, got a symbolic link" in capsys.readouterr().err


def test_what_the_file_must_reach_is_what_the_simulation_reaches():
    from export.judging import agreement_limit

    found = {"images": 100, "reordered": {"agreement": 0.95}}
    assert agreement_limit(found, 0.995) == pytest.approx(0.95 - 2 * (0.95 * 0.05 / 100) ** 0.5)
    assert agreement_limit({"images": 100, "reordered": {"agreement": 1.0}}, 0.995) == 0.995
    assert agreement_limit(found, 0.5) == 0.5


@pytest.mark.usefixtures("written_once")
def test_a_model_of_image_files_is_exported_later(run, tmp_path):
    from PIL import Image

    random = np.random.RandomState(0)
    for name in "0123456789":
        (tmp_path / "data" / "val" / name).mkdir(parents=True)
        pixels = random.randint(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "data" / "val" / name / "a.png")
    argv = [str(run / "quantized_model.pt"), "--output_dir", str(tmp_path / "out")]
    assert (
        export_onnx.main([*argv, "--dataset", "imagenet", "--data_path", str(tmp_path / "data")])
        == 0
    )
    report = json.loads((tmp_path / "out" / "export_report.json").read_text())
    assert (report["checked_on"], report["images"]) == ("imagenet", 10)


@pytest.mark.usefixtures("written_once")
def test_a_file_that_says_something_else_is_a_failure(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        "export.verification.OnnxNetwork.forward", lambda self, images: -images.flatten(1)[:, :10]
    )
    model = str(run / "quantized_model.pt")
    few = ["--output_dir", str(tmp_path), "--export_images", "100"]
    assert export_onnx.main([model, *few]) == 1
    said = capsys.readouterr().out
    must = "argmax agreement with the simulation must be at least 0.9950 (min_agreement), got 0."
    assert said.startswith(must)
    assert main_imagenet.main([*QUICK, *few, "--export_onnx"]) == 1
    assert (tmp_path / "rtn" / "run.json").is_file(), "the rest of the run is saved"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--int2"], "int2 must be given with --export_onnx, got True alone"),
        (["--export_images", "5"], "export_images must be given with --export_onnx, got 5 alone"),
        (
            ["--export_onnx", "--export_images", "0"],
            "export_images must be from 1 to 1000000, got 0",
        ),
        (["--export_onnx", "--min_agreement", "2"], "min_agreement must be from 0 to 1, got 2.0"),
        (
            ["--export_onnx", "--n_bits_a", "9"],
            "activations must have at most 8 bits in ONNX, got 9",
        ),
    ],
)
def test_flags_of_the_export_that_make_no_sense(arguments, text, tmp_path, capsys):
    assert main_imagenet.main([*QUICK, "--output_dir", str(tmp_path), *arguments]) == 2
    assert text in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--noise", "--dataset", "digits"], "dataset must be left out with --noise, got digits"),
        (["--correction", "x.npz"], "correction must be left out without --with_correction"),
        (["--batch_size", "0"], "batch_size must be at least 1, got 0"),
        (["--dataset", "imagenet"], "data_path must be given"),
        (["--with_correction", "--correction", "x.npz"], "x.npz: must be a correction.npz"),
    ],
)
def test_flags_of_the_script_that_make_no_sense(arguments, text, run, tmp_path, capsys):
    argv = [str(run / "quantized_model.pt"), "--output_dir", str(tmp_path / "out"), *arguments]
    assert export_onnx.main(argv) == 2
    assert text in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("damage", "arguments"),
    [
        (lambda c: c["metadata"].pop("preprocess"), []),
        (lambda c: c["metadata"].update(preprocess=5), []),
        (lambda c: c["metadata"].update(preprocess={"mean": [0.1, 0.2], "std": [1.0, 1.0]}), []),
        (lambda c: c["metadata"].pop("dataset"), []),
        (lambda c: c["metadata"].update(image_shape=[3, 8.5, 8]), ["--noise"]),
        (lambda c: c["metadata"].update(image_shape="abc"), ["--noise"]),
        (lambda c: c.update(version=torch.tensor([1, 2])), []),
        (lambda c: c["packed"].update({next(iter(c["packed"])): [10**6, 10**6, 3, 3]}), []),
        (lambda c: _first_scale(c).fill_(-1.0), []),
        (lambda c: _first_scale(c).fill_(float("nan")), []),
    ],
)
def test_a_model_file_with_odd_values_is_refused(damage, arguments, run, tmp_path, capsys):
    content = torch.load(run / "quantized_model.pt", weights_only=True)
    damage(content)
    torch.save(content, tmp_path / "odd.pt")
    argv = [str(tmp_path / "odd.pt"), "--output_dir", str(tmp_path / "out"), *arguments]
    assert export_onnx.main(argv) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ") and "must be" in line
    assert not (tmp_path / "out").exists()


def _first_scale(content: dict) -> torch.Tensor:
    return next(v for k, v in content["state_dict"].items() if k.endswith(".scale"))


@pytest.mark.usefixtures("written_once")
def test_an_older_file_of_the_folder_does_not_outlive_its_model(tmp_path):
    argv = [*QUICK, "--output_dir", str(tmp_path), "--no-plots"]
    assert main_imagenet.main([*argv, "--export_onnx", "--export_images", "20"]) == 0
    folder = tmp_path / "rtn" / f"run_{TAG}"
    assert (folder / "quantized_model.onnx").is_file() and (folder / "export_report.json").is_file()
    assert main_imagenet.main(argv) == 0
    assert not (folder / "quantized_model.onnx").exists()
    assert not (folder / "export_report.json").exists()


def test_a_network_that_cannot_be_exported_costs_the_file_alone(tmp_path, monkeypatch):
    from common.errors import InputError

    def refuse(*arguments, **options):
        raise InputError("network must be one that torch can export, got: something")

    monkeypatch.setattr("export.reporting.write_onnx", refuse)
    argv = [*QUICK, "--output_dir", str(tmp_path), "--export_onnx"]
    assert main_imagenet.main(argv) == 1
    assert (tmp_path / "rtn" / "run.json").is_file()


def test_a_float_model_is_exported_too(tmp_path):
    argv = [*QUICK, "--output_dir", str(tmp_path), "--export_onnx", "--export_images", "50"]
    assert main_imagenet.main([*argv, "--n_bits_w", "32", "--n_bits_a", "32"]) == 0


@pytest.mark.usefixtures("written_once")
def test_a_flat_folder_can_be_checked_on(run, tmp_path):
    from PIL import Image

    (tmp_path / "data" / "val").mkdir(parents=True)
    random = np.random.RandomState(0)
    for name in "0123456789":
        pixels = random.randint(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "data" / "val" / f"{name}.png")
    (tmp_path / "labels.txt").write_text("".join(f"{name}.png {name}\n" for name in "0123456789"))
    argv = [str(run / "quantized_model.pt"), "--output_dir", str(tmp_path / "out")]
    argv += ["--dataset", "auto", "--data_path", str(tmp_path / "data")]
    assert export_onnx.main([*argv, "--val_labels", str(tmp_path / "labels.txt")]) == 0
    report = json.loads((tmp_path / "out" / "export_report.json").read_text())
    assert report["checked_on"] == "imagenet"


def test_a_correction_of_other_classes_is_refused(run, tmp_path, capsys):
    random = np.random.RandomState(0)
    logits = random.normal(size=(50, 7)).astype(np.float32)
    ClusterAffineCorrection(2, 2).fit(logits, logits + 1).save(tmp_path / "seven.npz")
    argv = [str(run / "quantized_model.pt"), "--output_dir", str(tmp_path / "out")]
    assert (
        export_onnx.main([*argv, "--with_correction", "--correction", str(tmp_path / "seven.npz")])
        == 2
    )
    assert "must be for 10 classes like the model, got 7" in capsys.readouterr().err


def test_something_else_than_a_model_is_refused(tmp_path, capsys):
    (tmp_path / "x.pt").write_bytes(b"nothing")
    assert export_onnx.main([str(tmp_path / "x.pt")]) == 2
    assert "x.pt" in capsys.readouterr().err
    shutil.rmtree(tmp_path)
    assert export_onnx.main([str(tmp_path / "x.pt")]) == 2
