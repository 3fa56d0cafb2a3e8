"""README and docs: their commands run, their names and numbers are those of the code."""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import torch

import main_imagenet
from models import load_model
from pipeline.command import read_command
from pipeline.flags import build_parser
from plots.frontier import draw_frontier
from quant import QuantizationManager, registry
from tests.conftest import PROJECT
from tools.make_docs import (
    RESULTS,
    dataflow,
    frontier_table,
    markdown_table,
    read_frontier,
    read_table,
    results_page,
)

README = PROJECT / "README.md"
DOCS = PROJECT / "docs"
PAGES = [README, *sorted(DOCS.glob("*.md"))]
SCRIPTS = ("main_imagenet", "run_script", "recompute_logits", "verify_logits", "train_experts")
SCRIPTS += ("create_splits_fixed", "train_any_precision", "export_onnx")
SCRIPTS += ("train_gating", "train_argse", "correction.__main__")
METHODS = QuantizationManager().list_available_methods()
NEEDS_FILES = ("IMAGES", "FILE", "IMAGENET", "cifar10_jpeg", "...", "resnet18")
# Of TensorBoard, of python -m quant.bitwidth and of python -m benchmarks.frontier.
OF_OTHERS = {"--logdir", "--from", "--budgets"}


def blocks(page: Path, language: str = "") -> list[str]:
    """The fenced blocks of a page."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[list[str]]:
    """The python commands of the blocks of a page, without ``python``."""
    lines = "\n".join(blocks(page)).replace("\\\n", " ").split("\n")
    words = [shlex.split(line, comments=True) for line in lines if line.startswith("python ")]
    return [line[1:] for line in words]


def needs_files(command: list[str]) -> bool:
    return any(mark in word for word in command for mark in NEEDS_FILES)


def table_names(page: Path) -> list[str]:
    """What stands in backticks in the first column of the tables of a page."""
    return re.findall(r"^\| `(\w+)` \|", page.read_text(), re.MULTILINE)


def test_the_readme_is_short():
    text = README.read_text()
    assert len(text.splitlines()) <= 200
    assert len(text.split()) <= 1800


def test_the_commands_of_the_readme_that_need_no_files_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    of_experts = commands(DOCS / "experts.md")[:7]
    runnable = [c for c in commands(README) if not needs_files(c) and c not in of_experts]
    assert {command[0] for command in runnable} == {"main_imagenet.py", "verify_logits.py"}
    for script, *arguments in runnable:
        module = importlib.import_module(script.removesuffix(".py"))
        assert module.main(arguments) == 0, (script, arguments)
    assert "VERIFICATION PASSED" in capsys.readouterr().out


@pytest.mark.slow
def test_the_commands_of_the_experts_run_from_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    block = blocks(DOCS / "experts.md")[0]
    assert block in README.read_text()
    runnable = commands(DOCS / "experts.md")[:7]
    assert (runnable[0][0], runnable[-1][0]) == ("create_splits_fixed.py", "train_argse.py")
    for script, *arguments in runnable:
        assert importlib.import_module(script.removesuffix(".py")).main(arguments) == 0, script
    assert "VERIFICATION PASSED" in capsys.readouterr().out
    assert len(list(tmp_path.glob("outputs/selective/*/argse/*.png"))) == 2


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_the_main_script_parse(page):
    table = re.findall(r"\| `python (main_imagenet\.py [^`]*)`", page.read_text())
    found = [*commands(page), *(shlex.split(text) for text in table)]
    for script, *arguments in found:
        if script == "main_imagenet.py":
            read_command(build_parser(), [word for word in arguments if word != "..."])


def test_the_python_of_the_readme_runs(tmp_path, tiny_images):
    code = blocks(README, "python")[0]
    network = load_model("digits_resnet").network
    method = QuantizationManager().get_quantization_method("rtn")
    saved = method.quantize_model(network, None, [tiny_images])
    saved.save(tmp_path / "m.pt", {"arch": "digits_resnet", "num_classes": 10})
    code = code.replace("20000", "2").replace("outputs/adaround/run_X/quantized_model.pt", "PATH")
    code = code.replace("PATH", str(tmp_path / "m.pt"))
    names = {"model": network, "train_loader": [tiny_images]}
    exec(compile(code, "README.md", "exec"), names)
    assert torch.equal(names["loaded"](tiny_images), saved(tiny_images))


def links(page: Path) -> list[str]:
    return re.findall(r"\]\(([^)#\s]*(?:#[\w-]+)?)\)", page.read_text())


def test_every_page_is_reached_from_the_readme_and_every_link_holds():
    seen, todo = set(), [README]
    while todo:
        page = todo.pop()
        if page in seen:
            continue
        seen.add(page)
        for link in links(page):
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            assert target.exists(), f"{page.name}: {link}"
            if anchor:
                headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
                names = [re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings]
                assert anchor in names, f"{page.name}: {link}"
            if target.suffix == ".md":
                todo.append(target)
    assert seen == set(PAGES)


def test_the_methods_of_the_pages_are_those_of_the_registry():
    documented = table_names(DOCS / "methods.md")
    assert sorted(documented) == sorted(table_names(README))
    assert set(documented) <= set(METHODS)
    missing = set(METHODS) - set(documented)
    assert not missing & committed_methods(), "docs/methods.md must describe every method"


def committed_methods() -> set[str]:
    """The methods whose file is committed; a new one may be tried before it is written about."""
    command = ["git", "-C", str(PROJECT), "ls-files", "quant/methods"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    modules = {path.removesuffix(".py").replace("/", ".") for path in listed}
    manager = QuantizationManager()
    return {name for name in METHODS if manager.get_method_class(name).__module__ in modules}


def test_every_flag_that_a_page_names_exists():
    known = set(OF_OTHERS)
    for script in SCRIPTS:
        module = importlib.import_module(script)
        parser = getattr(module, "build_parser", build_parser)()
        known |= {option for action in parser._actions for option in action.option_strings}
    for page in PAGES:
        if page.name == "results.md":
            continue
        for flag in re.findall(r"(?<![\w-])--[a-zA-Z][\w-]*", page.read_text()):
            spelled = {flag, "--" + flag[2:].replace("-", "_"), flag.replace("--no_", "--no-")}
            assert spelled & known, f"{page.name}: {flag}"


def test_what_is_generated_is_up_to_date():
    made = "run python -m tools.make_docs"
    assert (DOCS / "results.md").read_text() == results_page(sorted(RESULTS.glob("*.md"))), made
    assert (DOCS / "images" / "dataflow.svg").read_text() == dataflow(), made
    assert markdown_table(read_table()) in README.read_text(), made
    assert frontier_table(read_frontier()) in (RESULTS / "frontier.md").read_text()


def test_the_plot_of_the_frontier_has_a_panel_for_each_pair_and_the_same_bytes_twice(
    tmp_path, real_plots
):
    rows = read_frontier()
    pages = [tmp_path / name for name in ("one.svg", "two.svg")]
    for page in pages:
        draw_frontier(rows, page)
    one, two = (page.read_text() for page in pages)
    assert one == two
    titles = {"W" + row[2].replace("/", "A") for row in rows}
    assert titles == set(re.findall(r"<!-- (W\dA\d) -->", one))


def test_the_method_of_the_guide_works_as_it_is_written(tiny_network, tiny_images, monkeypatch):
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    method, test = blocks(DOCS / "extending.md", "python")[:2]
    names: dict = {"__name__": "guide"}
    exec(compile(method, "method", "exec"), names)
    assert "minmax" in QuantizationManager().list_available_methods()
    exec(compile(test, "test", "exec"), names)
    names["test_the_ends_of_every_channel_are_levels"](tiny_network, tiny_images)
    arguments = ["--quant_method", "minmax", "--n_bits_w", "3", "--print_config"]
    assert main_imagenet.main(arguments) == 0
    assert main_imagenet.main([*arguments, "--n_bits_a", "4"]) == 2
