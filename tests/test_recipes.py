"""Published results with their settings, and a run that is compared with one."""

from __future__ import annotations

import json

import pytest

import main_imagenet
from common.configs import parse_yaml
from common.errors import InputError
from loaders import PlanRequest, load_dataset, make_plan
from logits_io.naming import file_name
from models import brecq, get_entry
from models.digits import DIGITS_ENTRY
from pipeline import recipes
from pipeline.recipes import Recipe, list_recipes, load_recipe
from tests.conftest import FEW, RANGES

DIGITS = """source: a table that was made up
settings: none
float_top1: {float_top1}
top1: 98.0
flags:
  arch: digits_resnet
  dataset: digits
  quant_method: rtn
  n_bits_w: 4
  n_bits_a: 4
  num_samples: 64
  num_clusters_list: [4]
  pca_dim_list: [2]
  alpha_list: [1.0]
  correction_samples: 300
  init_wmode: minmax
  init_amode: minmax
"""
REAL = load_recipe("resnet18_qdrop_w4a4")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder of recipes is this one, with a recipe for digits in it."""
    (tmp_path / "recipes").mkdir()
    monkeypatch.setattr(recipes, "FOLDER", tmp_path / "recipes")
    (tmp_path / "recipes" / "digits.yaml").write_text(DIGITS.format(float_top1=99.0))
    return tmp_path / "recipes"


def run(tmp_path, *arguments: str) -> int:
    return main_imagenet.main([*arguments, "--output_dir", str(tmp_path / "out"), "--no-plots"])


def of_brecq() -> list[str]:
    return [name for name in list_recipes() if not name.startswith("timm_")]


def of_timm() -> list[str]:
    return [name for name in list_recipes() if name.startswith("timm_")]


@pytest.mark.parametrize("name", of_brecq())
def test_a_recipe_is_what_its_name_says_and_its_flags_are_taken(name, capsys):
    recipe = load_recipe(name)
    flags = recipe.flags
    bits = f"w{flags['n_bits_w']}a{flags['n_bits_a']}"
    assert name == f"{flags['arch']}_{flags['quant_method']}_{bits}"
    assert flags["arch"] in brecq.ARCHS and flags["checkpoint_format"] == "brecq"
    assert 10 < recipe.top1 < recipe.float_top1 < 80
    assert "github.com" in recipe.source and "arXiv" in recipe.settings
    assert main_imagenet.main(["--recipe", name, "--print_config"]) == 0
    config = parse_yaml(capsys.readouterr().out)
    assert recipe.changed({**config, "arch": brecq.their_arch(config["arch"])}) == []
    assert (config["iters_w"], config["num_samples"]) == (20000, 1024)


TRIED = {
    "rtn": load_recipe("timm_deit_tiny_patch16_224_rtn_w4a4"),
    "qdrop": load_recipe("timm_swin_base_patch4_window7_224_qdrop_w3a3"),
}


@pytest.mark.parametrize("name", of_timm())
def test_a_recipe_of_a_transformer_names_its_weights(name):
    recipe = load_recipe(name)
    flags = recipe.flags
    network, weights = flags["arch"].split(".")
    bits = f"w{flags['n_bits_w']}a{flags['n_bits_a']}"
    assert name == f"{file_name(network)}_{flags['quant_method']}_{bits}" and weights
    assert 10 < recipe.top1 < recipe.float_top1 < 90
    assert "github.com" in recipe.source and "arXiv" in recipe.settings and recipe.note
    other = TRIED[flags["quant_method"]].flags
    own = ("arch", "n_bits_w", "n_bits_a", "resize", "crop")
    assert all(flags.get(key) == other.get(key) for key in {*flags, *other} - set(own))


@pytest.mark.parametrize("method", TRIED)
def test_the_flags_of_recipes_of_transformers_are_taken(method, capsys):
    recipe = TRIED[method]
    assert main_imagenet.main(["--recipe", recipe.name, "--print_config"]) == 0
    config = parse_yaml(capsys.readouterr().out)
    assert recipe.changed(config) == []
    softmax, images = {"rtn": ("log2", 32), "qdrop": ("uniform", 1024)}[method]
    assert (config["softmax_quantizer"], config["num_samples"]) == (softmax, images)
    assert (config["reparam_layernorm"], config["disable_8bit_head_stem"]) == ("on", True)


def test_timm_knows_the_networks_and_weights_of_the_recipes():
    pytest.importorskip("timm")
    for name in of_timm():
        entry = get_entry(load_recipe(name).flags["arch"])
        assert entry.pretrained is not None and entry.preprocess.crop == 224


# Top-1 of float, of RepQ-ViT at W4A4 and W6A6, and of QDrop at W3A3 and W4A4.
TRANSFORMERS = {
    "vit_small_patch16_224": (81.39, 65.05, 80.43, 38.31, 67.62),
    "vit_base_patch16_224": (84.54, 68.48, 83.62, 73.79, 82.02),
    "deit_tiny_patch16_224": (72.21, 57.43, 70.76, 46.69, 64.95),
    "deit_small_patch16_224": (79.85, 69.03, 78.90, 52.55, 74.73),
    "deit_base_patch16_224": (81.80, 75.61, 81.27, 74.32, 79.64),
    "swin_tiny_patch4_window7_224": (81.35, 72.31, 80.69),
    "swin_small_patch4_window7_224": (83.23, 79.45, 82.79, 74.11, 81.03),
    "swin_base_patch4_window7_224": (85.27, 78.32, 84.57, 75.28, 82.79),
}


def test_the_tables_of_transformers_are_complete():
    found = {}
    for network, (float_top1, *published) in TRANSFORMERS.items():
        kinds = ("rtn_w4a4", "rtn_w6a6", "qdrop_w3a3", "qdrop_w4a4")
        for kind, top1 in zip(kinds, published, strict=False):
            found[f"timm_{network}_{kind}"] = (float_top1, top1)
    assert sorted(found) == of_timm()
    for name, figures in found.items():
        recipe = load_recipe(name)
        assert (recipe.float_top1, recipe.top1) == figures


def test_the_published_tables_are_complete():
    names = of_brecq()
    for method, bits in (
        ("qdrop", ("w4a4", "w2a4", "w3a3", "w2a2")),
        ("pd_quant", ("w4a4", "w2a4", "w4a2", "w2a2")),
    ):
        for arch in brecq.ARCHS:
            assert all(f"{arch}_{method}_{bit}" in names for bit in bits)
    assert len(names) == 48 + 3
    assert (REAL.float_top1, REAL.top1) == (71.06, 69.13)
    assert load_recipe("mnasnet_pd_quant_w4a2").top1 == 38.89
    assert load_recipe("mnasnet_pd_quant_w4a2").flags["weight"] == 0.2
    assert load_recipe("regnetx_600m_pd_quant_w2a2").flags["lamb_c"] == 0.01


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("resnet18_qdrop_w4a4", "BRECQ's release checkpoints"),
        (
            "timm_deit_tiny_patch16_224_rtn_w4a4",
            "the published weights of timm/deit_tiny_patch16_224.fb_in1k",
        ),
    ],
)
def test_a_float_network_that_is_not_the_recipe_s_is_told_which_weights_it_needs(name, weights):
    with pytest.raises(InputError) as error:
        load_recipe(name).require_float(50.0, 50000)
    assert f"other weights (the recipe needs {weights})" in str(error.value)


def test_a_run_from_a_recipe_is_compared_with_it(folder, tmp_path, capsys):
    assert run(tmp_path, "--recipe", "digits") == 0
    table = capsys.readouterr().out.split("\n\n")[-1].splitlines()
    assert table[0] == "recipe digits"
    assert table[1].split() == ["published", "ours", "difference"]
    record = json.loads((tmp_path / "out" / "rtn" / "run.json").read_text())
    for line, kind, published in (
        (table[2], "fullprecision", 99.0),
        (table[3], "quantized", 98.0),
    ):
        ours = record["figures"][kind]["top1_pct"]
        difference = f"{ours - published:+.2f}"
        assert line.split()[1:] == [f"{published:.2f}", f"{ours:.2f}", difference]
    assert table[4] == "published: a table that was made up"
    assert record["recipe"]["flags"]["num_samples"] == 64
    assert record["config"]["num_samples"] == 64


def test_the_figures_are_those_of_the_same_run_without_the_recipe(folder, tmp_path):
    assert run(tmp_path, "--recipe", "digits") == 0
    flags = ["--quant_method", "rtn", *FEW, *RANGES, "--no-plots"]
    flags += "--num_clusters_list 4 --pca_dim_list 2 --alpha_list 1".split()
    assert main_imagenet.main([*flags, "--output_dir", str(tmp_path / "b")]) == 0
    first, second = (
        json.loads((tmp_path / name / "rtn" / "run.json").read_text())["figures"]
        for name in ("out", "b")
    )
    assert first == second


def test_a_float_network_that_is_not_the_recipe_s_stops_the_run(folder, tmp_path, capsys):
    (folder / "other.yaml").write_text(DIGITS.format(float_top1=80.0))
    assert run(tmp_path, "--recipe", "other") == 2
    text = capsys.readouterr().err
    assert "float Top-1 must be within 1 point of 80.00, the recipe's, got 99." in text
    assert "on 500 images" in text and "(--force continues)" in text
    assert not (tmp_path / "out").exists()
    assert run(tmp_path, "--recipe", "other", "--force") == 0


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda text: text + "setting: none\n", "got 'setting'; closest: settings"),
        (lambda text: text.replace("top1: 98.0\n", ""), "must have the key top1, got source"),
        (lambda text: text + "  arch: lenet\n", "key 'arch' must be given once"),
        (lambda text: text + "  n_bit_w: 3\n", "got 'n_bit_w'; closest: n_bits_w"),
    ],
)
def test_a_recipe_with_unknown_or_repeated_keys_is_refused(change, text, folder, tmp_path, capsys):
    (folder / "own.yaml").write_text(change(DIGITS.format(float_top1=99.0)))
    assert run(tmp_path, "--recipe", "own", "--dry_run") == 2
    error = capsys.readouterr().err
    assert text in error and error.count("\n") == 1


@pytest.mark.parametrize(("top1", "accepted"), [(70.06, True), (72.06, True), (70.05, False)])
def test_one_point_is_allowed(top1, accepted):
    if accepted:
        REAL.require_float(top1, 50000)
    else:
        with pytest.raises(InputError, match=r"within 1 point of 71\.06"):
            REAL.require_float(top1, 50000)


def test_flags_win_over_the_recipe_and_it_is_said(folder, tmp_path, capsys):
    assert run(tmp_path, "--recipe", "digits", "--n_bits_w", "3") == 0
    assert "recipe digits: n_bits_w is 3 here, 4 in the recipe" in capsys.readouterr().err
    assert (tmp_path / "out/rtn/initial_logits_digits_resnet_w3bit_a4bit_seed1005").is_dir()


def test_a_switch_of_the_recipe_can_be_switched_off(folder, tmp_path, capsys):
    text = DIGITS.format(float_top1=99.0) + "  augment_calibration: true\n"
    (folder / "augmented.yaml").write_text(text)
    (tmp_path / "c.yaml").write_text("augment_calibration: false\n")
    for arguments in (["--config", str(tmp_path / "c.yaml")], ["--no-augment_calibration"]):
        argv = ["--recipe", "augmented", *arguments, "--print_config"]
        assert main_imagenet.main(argv) == 0
        assert parse_yaml(capsys.readouterr().out)["augment_calibration"] is False


def test_another_architecture_than_the_recipe_s_is_said(folder, tmp_path, capsys):
    argv = ["--recipe", "digits", "--arch", "cifar_resnet20", "--force", "--dry_run"]
    assert run(tmp_path, *argv) == 0
    assert "arch is cifar_resnet20 here, digits_resnet in the recipe" in capsys.readouterr().err


def test_a_configuration_file_wins_over_the_recipe_that_it_names(folder, tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("recipe: digits\nn_bits_a: 6\n")
    assert main_imagenet.main(["--config", str(tmp_path / "c.yaml"), "--print_config"]) == 0
    config = parse_yaml(capsys.readouterr().out)
    assert (config["n_bits_w"], config["n_bits_a"], config["quant_method"]) == (4, 6, "rtn")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            ["--recipe", "resnet18_qdrop_w4a5"],
            "got 'resnet18_qdrop_w4a5'; closest: resnet18_qdrop_w4a4",
        ),
        (["--recipe", "../digits"], "recipe must be a known name, got '../digits'"),
        (["--recipe", "resnet18_qdrop_w4a4"], "data_path must hold"),
    ],
)
def test_recipes_that_cannot_be_cooked(arguments, text, capsys, tmp_path):
    argv = [*arguments, "--output_dir", str(tmp_path / "out")]
    if "qdrop_w4a4" in arguments[-1]:
        argv += ["--data_path", str(tmp_path)]
    assert main_imagenet.main(argv) == 2
    assert text in capsys.readouterr().err


def test_a_recipe_has_a_table_of_its_own():
    recipe = Recipe("r", "s", "t", 70.0, 60.0, {})
    assert recipe.comparison(70.5, 59.25).splitlines() == [
        "recipe r",
        "             published    ours  difference",
        "float            70.00   70.50       +0.50",
        "quantized        60.00   59.25       -0.75",
        "published: s",
    ]


def test_calibration_images_are_augmented_when_asked_for():
    digits = load_dataset("digits", None, DIGITS_ENTRY.preprocess)
    plain, augmented, again = (
        make_plan(digits, PlanRequest(7, 40, augment_calibration=augment), 64)
        for augment in (False, True, True)
    )
    assert augmented.calibration.ids == plain.calibration.ids
    assert augmented.calibration.digest() != plain.calibration.digest()
    assert augmented.calibration.digest() == again.calibration.digest()
    for part in ("correction", "evaluation"):
        assert getattr(augmented, part).digest() == getattr(plain, part).digest()
