"""Writing a logits folder while the network runs: borders, failures, memory."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from common.errors import InputError
from logits_io import LogitsAnalyzer
from logits_io.checks import verify_folder
from tests.conftest import PROJECT
from tests.logits_lab import META, STEM, TARGETS, made_up_logits


@pytest.fixture
def logits() -> dict[str, np.ndarray]:
    return made_up_logits()


@pytest.mark.parametrize("sizes", [[25], [1] * 25, [7, 11, 7], [10, 10, 5], [24, 1]])
def test_batches_of_any_size_give_the_files_of_the_whole(tmp_path, logits, sizes):
    analyzer = LogitsAnalyzer(tmp_path, 10)
    whole = analyzer.save_logits_to_csv("whole", STEM, logits, TARGETS, META)
    with analyzer.writer("parts", STEM, META) as writer:
        for end, size in zip(np.cumsum(sizes), sizes, strict=True):
            part = slice(end - size, end)
            writer.add({kind: array[part] for kind, array in logits.items()}, TARGETS[part])
        assert not (tmp_path / "parts").exists()
    assert {p.name: p.read_bytes() for p in whole.iterdir()} == {
        p.name: p.read_bytes() for p in (tmp_path / "parts").iterdir()
    }
    assert not [t for t in threading.enumerate() if t.name == "logits writer"]


def test_a_block_that_fails_leaves_nothing(tmp_path, logits):
    with (
        pytest.raises(RuntimeError, match="the network broke"),
        LogitsAnalyzer(tmp_path).writer("out", STEM, META) as writer,
    ):
        writer.add(logits, TARGETS)
        raise RuntimeError("the network broke")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_told_at_the_end_and_does_not_stop_the_block(tmp_path, logits, monkeypatch):
    def full(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr("logits_io.writer.write_array", full)
    done = False
    with (
        pytest.raises(OSError, match="disk full"),
        LogitsAnalyzer(tmp_path, 5).writer("out", STEM, META) as writer,
    ):
        for _ in range(50):
            writer.add(logits, TARGETS)
        done = True
    assert done and not list(tmp_path.iterdir())


def test_no_batch_is_no_folder(tmp_path):
    with (
        pytest.raises(InputError, match="out must hold at least one sample, got none"),
        LogitsAnalyzer(tmp_path).writer("out", STEM, META),
    ):
        pass
    assert not list(tmp_path.iterdir())


def test_batches_that_differ_are_refused(tmp_path, logits):
    with (
        pytest.raises(InputError, match=r"batches must hold .* of 4 classes as the first did, got"),
        LogitsAnalyzer(tmp_path).writer("out", STEM, META) as writer,
    ):
        writer.add(logits, TARGETS)
        writer.add({"quantized": logits["quantized"]}, TARGETS)


@pytest.mark.parametrize("after", [0.05, 0.4])
def test_killed_while_writing_nothing_half_written_has_a_final_name(tmp_path, logits, after):
    code = f"""
import numpy as np
from logits_io import LogitsAnalyzer
batch = np.random.default_rng(0).standard_normal((500, 1000), dtype=np.float32)
with LogitsAnalyzer({str(tmp_path)!r}, 100).writer("out", {STEM!r}, {{}}) as writer:
    print("started", flush=True)
    while True:
        writer.add({{"quantized": batch}}, np.zeros(500))
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=PROJECT, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout.readline() == "started\n"
        time.sleep(after)
        child.kill()
    assert not (tmp_path / "out").exists()
    analyzer = LogitsAnalyzer(tmp_path, 10)
    analyzer.save_logits_to_csv("out", STEM, logits, TARGETS, META)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert verify_folder(tmp_path / "out") == []


@pytest.mark.slow
def test_a_stream_of_200000_rows_stays_below_1_gb(tmp_path):
    code = f"""
import resource
import numpy as np
from logits_io import LogitsAnalyzer
batch = np.random.default_rng(0).standard_normal((500, 1000), dtype=np.float32)
with LogitsAnalyzer({str(tmp_path)!r}).writer("out", "logits_x", {{}}) as writer:
    for i in range(400):
        writer.add({{"quantized": batch + i}}, np.zeros(500))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT, check=True)
    assert int(result.stdout) < 1_000_000
    assert len(list((tmp_path / "out").glob("*_quantized_chunk*_of_200.csv"))) == 200


def test_what_is_added_may_change_afterwards(tmp_path, logits):
    buffer = logits["quantized"].copy()
    with LogitsAnalyzer(tmp_path, 10).writer("out", STEM, META) as writer:
        writer.add({"quantized": buffer}, TARGETS)
        buffer *= 0
    saved = LogitsAnalyzer(tmp_path).load("out").logits["quantized"]
    assert saved.tobytes() == logits["quantized"].tobytes()
    for call in (lambda: writer, lambda: LogitsAnalyzer(tmp_path).writer("o", STEM, META)):
        with pytest.raises(InputError, match="writer must be open"):
            call().add(logits, TARGETS)
