"""Pipes and devices in place of files are refused or reported, never waited for."""

from __future__ import annotations

import dataclasses
import logging
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.console import log_to_file
from common.errors import InputError
from common.files import locked, sha256_file
from common.marks import MARK, mark, require_replaceable
from common.provenance import SaveLog
from common.reading import limited_text, regular_bytes, regular_text
from common.sealed import read_record, write_record
from loaders.class_order import read_names
from loaders.imageset import FileImages
from loaders.label_file import read_labels
from loaders.plan import read_id_list
from loaders.transforms import Preprocess
from logits_io.runs import verify_runs
from verify_logits import main as verify


@pytest.fixture
def pipe(tmp_path) -> Path:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    return path


@pytest.mark.parametrize("read", [regular_bytes, regular_text, sha256_file])
def test_only_regular_files_and_links_to_them_are_read(read, pipe, tmp_path):
    for path in (pipe, tmp_path, Path("/dev/zero")):
        with pytest.raises(OSError, match="must be a regular file, got a folder, pipe or device"):
            read(path)
    (tmp_path / "file").write_text("abc")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert read(tmp_path / "link") == read(tmp_path / "file")
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none")


def test_a_record_that_is_a_pipe_is_not_believed(pipe):
    assert read_record(pipe) is None
    write_record(pipe, {"a": 1})
    assert read_record(pipe) == {"a": 1}


@pytest.mark.parametrize(
    "read", [read_id_list, lambda path: read_names(str(path)), lambda p: read_labels(p, [], None)]
)
def test_an_endless_list_is_refused(read, monkeypatch):
    monkeypatch.setattr("common.reading.MAX_LIST", 1000)
    with pytest.raises(InputError, match=r"/dev/zero.*more than 1000 bytes"):
        read(Path("/dev/zero"))


def test_a_list_of_the_size_limit_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("common.reading.MAX_LIST", 4)
    (tmp_path / "list").write_text("abcd")
    assert limited_text(tmp_path / "list") == "abcd"


def test_a_pipe_among_images_is_named_or_skipped(tmp_path, caplog):
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    os.mkfifo(tmp_path / "b.png")
    found = FileImages(
        tmp_path, np.array([0, 1]), ["a.png", "b.png"], Preprocess((0.5,) * 3, (0.5,) * 3)
    )
    with pytest.raises(InputError, match=r"b\.png: must be a readable image, got OSError"):
        list(found.batches(2))
    kept = dataclasses.replace(found, skip_bad=True).loaded(tmp_path / "cache")
    assert kept.ids == ["a.png"]
    assert "skipped unreadable image" in caplog.text


def test_verification_names_pipes_and_broken_records(tmp_path, capsys):
    run = tmp_path / "rtn" / "run_x"
    run.mkdir(parents=True)
    os.mkfifo(run / "run.json")
    (tmp_path / "rtn" / "run.json").write_text("[[1]]")
    os.mkfifo(tmp_path / "sweep_summary.csv")
    text = "must be the record of a run as it was written"
    *found, sweep = verify_runs(tmp_path)
    assert sweep.startswith(f"{tmp_path / 'sweep_summary.csv'}: must be the summary of a sweep")
    assert found == [
        f"{run / 'run.json'}: {text}",
        f"{tmp_path / 'rtn' / 'run.json'}: {text}",
    ]
    assert verify(["--csv-dir", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-1].startswith("VERIFICATION FAILED: 3 failures in 0 of 0")
    assert "made anew" not in captured.err


def test_a_list_that_is_no_file_and_one_without_a_seal(tmp_path):
    (tmp_path / "a").write_text("mine")
    (tmp_path / MARK).write_text('{"files": {"a": null}}')
    with pytest.raises(InputError, match="a: must be a file that this suite wrote"):
        require_replaceable(tmp_path, ["a"])
    mark(tmp_path, ["b"])
    (tmp_path / MARK).unlink()
    (tmp_path / MARK).mkdir()
    wanted = re.escape(f"{tmp_path / MARK}: must be a file that this suite wrote")
    with pytest.raises(InputError, match=wanted):
        require_replaceable(tmp_path, ["b"])


def test_a_lock_leaves_a_file_of_the_user(tmp_path):
    path = tmp_path / ".x.lock"
    path.write_text("mine")
    with locked(path):
        pass
    assert path.read_text() == "mine"
    path.write_text("")
    with locked(path):
        pass
    assert not path.exists()


@pytest.mark.parametrize("append", [False, True])
@pytest.mark.parametrize("join", [os.link, os.symlink])
def test_a_log_is_never_written_through_another_name(tmp_path, join, append):
    (tmp_path / "mine").write_text("precious\n")
    join(tmp_path / "mine", tmp_path / "run.log")
    with log_to_file(tmp_path / "run.log", append):
        logging.getLogger().warning("a line")
    assert (tmp_path / "mine").read_text() == "precious\n"
    text = (tmp_path / "run.log").read_text()
    assert text.endswith("a line\n") and not (tmp_path / "run.log").is_symlink()
    assert text.startswith("precious") == (append and join is os.link)


def test_what_cannot_be_saved_is_one_line(caplog):
    log = SaveLog()
    with log.attempt("the model"):
        raise OSError(28, "No space left on device", "x")
    line = "could not save the model: [Errno 28] No space left on device: 'x'"
    assert [r.getMessage() for r in caplog.records if r.levelno > logging.DEBUG] == [line]
    assert not [r for r in caplog.records if r.levelno > logging.DEBUG and r.exc_info]
    assert log.failures == ["the model"]
