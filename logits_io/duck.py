"""All logits below a root in one DuckDB file, for queries in SQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import InputError
from common.files import atomic_file, require_writable
from common.marks import require_own_file
from logits_io.naming import CORRECTED, TARGETS, find_stems, metadata_file
from logits_io.records import read_file_records
from logits_io.tables import read_records

ROWS = """CREATE TABLE logits (
    run VARCHAR, folder VARCHAR, kind VARCHAR, sample BIGINT, target BIGINT, prediction BIGINT,
    logits FLOAT[])"""

KNOWN_COLUMNS = {
    *(("logits", name) for name in ("run", "folder", "kind", "sample", "target", "logits")),
    *(("metadata", name) for name in ("run", "folder", "stem", "samples", "classes")),
}

Folder = tuple[Path, str]  # path and the stem of its files


def logits_folders(root: Path) -> list[Folder]:
    """Every folder of logits below ``root`` with each stem in it, initial folders first."""
    paths = {path.parent for path in root.rglob("logits_*_metadata.csv")}
    found = [(path, stem) for path in sorted(paths) for stem in find_stems(path)]
    found = [item for item in found if not item[0].name.startswith((".", "logits_summary_"))]
    return sorted(found, key=lambda item: not item[0].name.startswith("initial_logits_"))


def is_database(path: Path) -> bool:
    """Whether a file is a DuckDB file with the tables of ``write_database`` and no others."""
    import duckdb

    query = "SELECT table_name, column_name FROM information_schema.columns"
    try:
        with duckdb.connect(str(path), read_only=True) as database:
            columns = set(database.execute(query).fetchall())
    except (duckdb.Error, OSError, UnicodeError):
        return False
    tables = {table for table, _ in columns}
    return tables == {"logits", "metadata"} and columns >= KNOWN_COLUMNS


def write_database(root: Path, path: Path, load: Any, force: bool = False) -> None:
    """Write the tables ``metadata``, a row per folder, and ``logits``, a row per kind and sample.

    A results folder shares quantized and full-precision logits with the initial folder of its run;
    if that exists, only the corrected logits of the results folder are stored.

    Args:
        load: (folder below the root, stem) -> SavedLogits.
        force: replace a file that is no former database of logits.

    Raises:
        InputError: duckdb or pyarrow is missing, there are no logits below ``root``, or ``path``
            is another file.
    """
    try:
        import duckdb
        import pyarrow
    except ImportError as error:
        raise InputError(f"to_duckdb needs duckdb and pyarrow, got: {error}") from None
    folders = logits_folders(root)
    import pandas as pd

    if not folders:
        raise InputError(f"{root}: must hold folders of logits, got none")
    require_writable(path.parent)
    if path.is_dir() or not path.parent.is_dir():
        raise InputError(f"database must be a file in an existing folder, got {path}")
    require_own_file(path, force, is_database, "new or a former output of to_duckdb")
    with atomic_file(path) as part:
        part.unlink(missing_ok=True)
        with duckdb.connect(str(part)) as database:
            rows = pd.DataFrame([_describe(root, *item) for item in folders])
            database.register("rows", rows)
            database.execute("CREATE TABLE metadata AS SELECT * FROM rows")
            database.execute(ROWS)
            for columns in _tables(root, folders, load):
                database.register("part", pyarrow.table(columns))
                database.execute("INSERT INTO logits SELECT * FROM part")


def _run_of(root: Path, folder: Path, stem: str) -> str:
    """The name of a run: the folder of its method, and its tag."""
    method = folder.parent.relative_to(root).as_posix()
    tag = stem.removeprefix("logits_")
    return tag if method == "." else f"{method}/{tag}"


def _describe(root: Path, folder: Path, stem: str) -> dict[str, Any]:
    row = read_records(folder / metadata_file(stem))[0]
    kept = {
        key: value
        for key, value in row.items()
        if not str(key).startswith(("file_", "sha256", "row_sum", "weighted_row_sum"))
    }
    return {"run": _run_of(root, folder, stem), "folder": folder.name, **kept}


def _tables(root: Path, folders: list[Folder], load: Any) -> Iterator[dict[str, Any]]:
    import pyarrow

    initial = {
        (folder.parent, stem) for folder, stem in folders if folder.name.startswith("initial_")
    }
    for folder, stem in folders:
        shared = not folder.name.startswith("initial_") and (folder.parent, stem) in initial
        kinds = {record.kind for record in read_file_records(folder, stem)} - {TARGETS}
        saved = load(folder.relative_to(root), stem)
        for kind in sorted({CORRECTED} & kinds if shared else kinds):
            values = saved.logits[kind]
            count, classes = values.shape
            lists = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(values.ravel()), classes)
            yield {
                "run": pyarrow.array([_run_of(root, folder, stem)] * count),
                "folder": pyarrow.array([folder.name] * count),
                "kind": pyarrow.array([kind] * count),
                "sample": np.arange(count),
                "target": pyarrow.array(
                    [None] * count if saved.targets is None else saved.targets, pyarrow.int64()
                ),
                "prediction": values.argmax(axis=1),
                "logits": lists.cast(pyarrow.list_(pyarrow.float32())),
            }
