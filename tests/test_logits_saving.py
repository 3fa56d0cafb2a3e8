"""Smoke test of saving logits, with made-up ones: pytest runs it, and so does Python.

python tests/test_logits_saving.py
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from logits_io import LogitsAnalyzer, RunName
from logits_io.checks import verify_folder

NAME = RunName("dummy_net", 4, 4, 0)


def test_dummy_logits_are_saved_in_chunks_and_read_back(tmp_path: Path) -> None:
    random = np.random.RandomState(0)
    logits = {
        kind: random.normal(0, 3, (2500, 10)).astype(np.float32)
        for kind in ("quantized", "fullprecision", "corrected")
    }
    targets = random.randint(0, 10, 2500)
    analyzer = LogitsAnalyzer(tmp_path)
    folder = analyzer.save_logits_to_csv(
        NAME.initial_folder, NAME.file_stem, logits, targets, {"arch": NAME.arch}
    )
    assert len(list(folder.glob("*_chunk*_of_003.csv"))) == 4 * 3
    saved = analyzer.load(NAME.initial_folder)
    assert all(saved.logits[kind].tobytes() == logits[kind].tobytes() for kind in logits)
    assert np.array_equal(saved.targets, targets)
    assert verify_folder(folder) == []


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        test_dummy_logits_are_saved_in_chunks_and_read_back(Path(folder))
    sys.stdout.write("saved, read back and verified: ok\n")
