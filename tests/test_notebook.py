"""``notebooks/explore_run.ipynb`` is stored without outputs, and runs on the embedded digits."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from tests.conftest import PROJECT

NOTEBOOK = PROJECT / "notebooks" / "explore_run.ipynb"


def test_the_notebook_is_stored_without_outputs():
    content = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    cells = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    assert len(cells) >= 10
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    assert all("execution" not in cell["metadata"] for cell in cells)


def test_the_data_set_is_read_with_the_flags_of_the_run(tmp_path):
    """Image folders, which ``dataset: auto`` names, with the order of the classes of the run."""
    for name in ("2", "10"):
        folder = tmp_path / "images" / "val" / name
        folder.mkdir(parents=True)
        for index in range(int(name)):
            Image.new("RGB", (8, 8)).save(folder / f"{index}.png")
    flags = {"arch": "digits_resnet", "data_path": str(tmp_path / "images"), "dataset": "auto"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(flags | {"class_order": "natural"}))
    content = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    (cell,) = (
        "".join(c["source"]) for c in content["cells"] if "open_dataset(" in "".join(c["source"])
    )
    found = {"run_folder": tmp_path, "np": np, "pd": pd}
    exec(cell, found)
    assert list(found["names"]) == ["2", "10"]
    assert found["counts"].loc["10"].sum() > found["counts"].loc["2"].sum()
    assert found["counts"].loc["all"].sum() == 12


@pytest.mark.notebook
@pytest.mark.filterwarnings("ignore")
def test_the_notebook_runs_on_the_digits():
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    place = {"metadata": {"path": str(NOTEBOOK.parent)}}
    nbclient.NotebookClient(notebook, timeout=300, resources=place).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    texts = [str(part.get("text") or part.get("data", {}).get("text/plain")) for part in outputs]
    pictures = [part for part in outputs if "image/png" in part.get("data", {})]
    assert len(pictures) == 2  # one of each class, and the changed decisions
    shown = "\n".join(texts)
    assert "all           500   1297" in shown
    assert "'quantized': (500, 10), 'fullprecision': (500, 10)" in shown
    top1, agreement = (
        float(shown.partition(f"\n{name} ")[2].split()[0]) for name in ("top1_pct", "agreement_pct")
    )
    assert f"quantized {top1:.2f} ±" in shown
    changed = int(shown.partition(" of 500 decisions changed")[0].split()[-1].strip("'"))
    assert changed == round(5 * (100 - agreement))
