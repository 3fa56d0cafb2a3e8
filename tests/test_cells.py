"""Names in tables: no cell is a formula, and what the project reads back is as it was."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from common.cells import cell_text, plain_cell
from logits_io.tables import read_records, seal_holds, write_records, write_sealed
from quant.bitwidth.report import COLUMNS, read_table, write_table
from sweeps.gpfq_log import COLUMNS as LOG_COLUMNS
from sweeps.gpfq_log import append_row, read_log

NAMES = ("=1+1", "+x", "-x.layer", "@sum", "\tx", "'=1", "''@x", "'plain", "plain", "a=b", "-", "")


@pytest.mark.parametrize("name", NAMES)
def test_what_is_read_back_is_what_was_written(name):
    cell = plain_cell(name)
    assert not cell.startswith(("=", "+", "-", "@", "\t", "\r"))
    assert cell_text(cell) == name


def test_numbers_and_nothing_stay_as_they_are():
    for value in (-2.5, 3, "-2.5", "+1e-3", "-inf", True):
        assert plain_cell(value) == cell_text(value) == value
    assert plain_cell(None) == ""


def cells(path: Path) -> list[str]:
    with path.open(newline="", encoding="utf-8") as handle:
        return [cell for row in csv.reader(handle) for cell in row]


def test_metadata_tables_mark_and_unmark_names(tmp_path):
    records = [{"arch": name, "@key": -1.5} for name in NAMES if name]
    write_records(tmp_path / "a.csv", records)
    wanted = {"'=1+1", "'-x.layer", "'@key", "''=1", "'plain", "-1.5"}
    assert wanted <= set(cells(tmp_path / "a.csv"))
    assert read_records(tmp_path / "a.csv") == records
    write_sealed(tmp_path / "b.csv", {"arch": "=x"})
    assert seal_holds(tmp_path / "b.csv")
    assert read_records(tmp_path / "b.csv")[0]["arch"] == "=x"


def test_the_log_of_gpfq_marks_and_unmarks_names(tmp_path):
    row = {**dict.fromkeys(LOG_COLUMNS, "1"), "Model Name": "@nets.py:Net", "Lambda": "-0.5"}
    for _ in range(2):
        append_row(tmp_path / "log.csv", row)
    assert cells(tmp_path / "log.csv").count("'@nets.py:Net") == 2
    assert "-0.5" in cells(tmp_path / "log.csv")
    assert read_log(tmp_path / "log.csv") == [row, row]


def test_tables_of_bitwidths_mark_and_unmark_names(tmp_path):
    row = dict.fromkeys(COLUMNS) | {"config": "=1", "kind": "random", "bits": "4-8", "top1": -1.0}
    write_table(tmp_path / "t.csv", [row], COLUMNS)
    assert {"'=1", "-1.0", "4-8"} <= set(cells(tmp_path / "t.csv"))
    assert read_table(tmp_path / "t.csv") == [row]
    write_table(tmp_path / "s.csv", [{"layer": "-head"}], ("layer",))
    assert cells(tmp_path / "s.csv") == ["layer", "'-head"]
