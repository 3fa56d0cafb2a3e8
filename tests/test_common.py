from __future__ import annotations

from common.start import run_main

import builtins
import errno
import io
import json
import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from common import files, torch_setup
from common import provenance as provenance_module
from common.console import (
    EXIT_USAGE,
    log_to_file,
    setup_logging,
    write_stdout,
)
from common.errors import InputError, RunError, closest_names, first_line, require_known
from common.files import (
    atomic_file,
    atomic_folder,
    locked,
    require_writable,
    sha256_file,
    write_json,
)
from common.provenance import SaveLog, StageClock, provenance
from common.torch_setup import pick_device, seed_all
from tests.conftest import PROJECT

NO_PROCESS = 1 << 30  # above every process id


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_an_unwritable_stdout_is_said_in_one_line():
    body = "run_main(lambda: write_stdout('x') or 0)"
    code = f"import sys; from common.start import *; from common.console import *; sys.exit({body})"
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=PROJECT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 1
    assert done.stderr.startswith("error: stdout must be writable, got [Errno 28]")
    assert done.stderr.count("\n") == 1


def test_a_full_disk_ends_the_log_file_and_not_the_run(tmp_path, capsys):
    setup_logging()
    with log_to_file(Path("/dev/full")):
        for index in range(3):
            logging.getLogger("x").info("line %d", index)
    error = capsys.readouterr().err
    assert "/dev/full ends here: [Errno 28]" in error
    assert "Traceback" not in error
    assert "line 2" in error


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_file(path) as part:
        part.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    with atomic_file(path) as part:
        part.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "out"
    for name in ("first", "second"):
        with atomic_folder(path) as part:
            (part / name).touch()
    assert [p.name for p in path.iterdir()] == ["second"]
    with pytest.raises(RuntimeError), atomic_folder(path) as part:
        (part / "third").touch()
        raise RuntimeError
    assert [p.name for p in path.iterdir()] == ["second"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path):
    path = tmp_path / "out"
    with atomic_folder(path) as part:
        (part / "first").touch()
    part = files._temporary(path)
    path.rename(part.with_suffix(files.OLD))
    ended = part.name.replace(f"-{os.getpid()}-", f"-{NO_PROCESS}-")
    (tmp_path / ended).mkdir()
    with pytest.raises(RuntimeError), atomic_folder(path):
        raise RuntimeError
    assert names_in(tmp_path) == ["out"]
    assert [p.name for p in path.iterdir()] == ["first"]


@pytest.mark.parametrize("other_exists", [False, True])
def test_folders_whose_long_names_begin_alike_are_not_mixed_up(tmp_path, other_exists):
    path, other = (tmp_path / f"{'long' * 30}_seed{seed}" for seed in (1, 2))
    with atomic_folder(path) as part:
        (part / "first").touch()
    path.rename(files._temporary(path).with_suffix(files.OLD))
    if other_exists:
        other.mkdir()
    with atomic_folder(other) as part:
        (part / "second").touch()
    assert names_in(other) == ["second"]
    with pytest.raises(RuntimeError), atomic_folder(path):
        raise RuntimeError
    assert names_in(path) == ["first"]


def test_temporary_files_of_a_living_process_stay(tmp_path):
    path = tmp_path / "out"
    with atomic_file(path) as first, atomic_file(path) as second:
        first.write_text("first")
        second.write_text("second")
        assert first != second
        assert files.is_temporary(first.name)
    assert path.read_text() == "first"
    assert names_in(tmp_path) == ["out"]


def test_only_one_process_at_a_time_has_a_lock(tmp_path):
    add = f"""
import sys, pathlib
from common.files import locked
count = pathlib.Path({str(tmp_path / "count")!r})
for _ in range(100):
    with locked(count.with_suffix(".lock")):
        count.write_text(str(1 + int(count.read_text())))
"""
    (tmp_path / "count").write_text("0")
    processes = [subprocess.Popen([sys.executable, "-c", add], cwd=PROJECT) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert (tmp_path / "count").read_text() == "300"
    assert names_in(tmp_path) == ["count"]


def test_who_waits_for_a_lock_says_so_once(tmp_path):
    waits = []
    with locked(tmp_path / "x.lock"):
        thread = threading.Thread(target=_take, args=(tmp_path / "x.lock", waits))
        thread.start()
        while not waits:
            time.sleep(0.01)
    thread.join()
    assert waits == ["waits", "has it"]


def _take(path, told):
    with locked(path, lambda: told.append("waits")):
        told.append("has it")


@pytest.mark.parametrize("kind", ["link", "file"])
def test_a_link_in_place_of_a_folder_is_refused(tmp_path, kind):
    (tmp_path / "users").mkdir()
    (tmp_path / "users" / "file").touch()
    path = tmp_path / "out"
    if kind == "link":
        path.symlink_to("users")
    else:
        path.touch()
    with (
        pytest.raises(InputError, match="out: must be a folder or new, got a"),
        atomic_folder(path),
    ):
        pass
    assert names_in(tmp_path) == ["out", "users"]
    assert names_in(tmp_path / "users") == ["file"]


def test_json_is_written_as_readable_text(tmp_path):
    write_json(tmp_path / "a.json", {"name": "größe", "n": 1.5})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))["name"] == "größe"
    assert "größe" in (tmp_path / "a.json").read_text(encoding="utf-8")


def test_sha256_of_a_known_file(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_file(tmp_path / "a") == expected


def test_a_name_that_contains_the_unknown_one_is_the_closest():
    known = ["resnet18", "resnet50", "cifar_resnet20", "cifar_resnet32"]
    assert closest_names("resnet20", known)[0] == "cifar_resnet20"
    assert closest_names("ResNet20", known)[0] == "cifar_resnet20"
    assert closest_names("xyz", known) == ["cifar_resnet20", "cifar_resnet32", "resnet18"]


def test_names_that_go_on_behind_the_unknown_one_are_all_proposed():
    known = ["prob", "n_bits_w", "n_bits_a", "export_n_bits"]
    assert closest_names("n_bits", known) == ["n_bits_w", "n_bits_a"]
    with pytest.raises(InputError, match="closest: n_bits_w, n_bits_a; known: export_n_bits, "):
        require_known("flag", "n_bits", known)


def test_an_unknown_name_is_answered_with_the_closest_and_the_others_when_few():
    with pytest.raises(InputError) as caught:
        require_known("arch", "resnet81", ["resnet18", "vgg"])
    assert str(caught.value) == (
        "arch must be a known name, got 'resnet81'; closest: resnet18; known: resnet18, vgg"
    )
    with pytest.raises(InputError) as caught:
        require_known("n", "x1", [f"x{i}" for i in range(10, 40)])
    assert "known:" not in str(caught.value)
    assert require_known("n", "b", ["a", "b"]) == "b"


def test_input_errors_are_one_line_and_status_2(capsys):
    def body():
        raise InputError("alpha must be between 0 and 1, got 3")

    assert run_main(body) == EXIT_USAGE == 2
    assert capsys.readouterr().err == "error: alpha must be between 0 and 1, got 3\n"


def test_an_interrupt_is_status_130(capsys):
    def body():
        raise KeyboardInterrupt

    assert run_main(body) == 130
    assert "stay valid" in capsys.readouterr().err


def test_other_errors_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        run_main(lambda: 1 // 0)


def test_devices():
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type in ("cpu", "cuda")
    for name in ("gpu", "meta", "cuda:x"):
        with pytest.raises(
            InputError, match=f"device must be auto, cpu, cuda or cuda:i, got '{name}'"
        ):
            pick_device(name)
    with pytest.raises(InputError, match="device 'cuda:99' must be one of the"):
        pick_device("cuda:99")


def test_seeds_reach_every_global_generator():
    import random

    import numpy as np

    draws = []
    for _ in range(2):
        seed_all(4)
        draws.append((random.random(), np.random.random(), torch.rand(1).item()))
    assert draws[0] == draws[1]


def test_a_folder_that_cannot_be_written_is_refused_without_being_made(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="output folder must be writable"):
        require_writable(tmp_path / "a\0b")
    require_writable(tmp_path / "a" / "b")
    assert not (tmp_path / "a").exists()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="output folder must be writable, got"):
        require_writable(tmp_path / "file" / "sub")
    monkeypatch.setattr("os.access", lambda *arguments: False)
    with pytest.raises(InputError, match="output folder must be writable"):
        require_writable(tmp_path / "x")


def test_a_failed_save_is_logged_and_remembered(caplog):
    saves = SaveLog()
    with saves.attempt("the table"):
        raise OSError("disk full")
    with saves.attempt("the model"):
        pass
    assert saves.failures == ["the table"]
    assert caplog.messages == ["could not save the table: disk full"]
    with pytest.raises(ValueError, match="bug"), saves.attempt("x"):
        raise ValueError("bug")


def test_stages_are_timed_in_order(caplog):
    clock = StageClock()
    with caplog.at_level(logging.INFO), clock("first"):
        pass
    with clock("second"):
        time.sleep(0.2)
    assert list(clock.seconds) == list(clock.cpu_seconds) == ["first", "second"]
    assert all(0 <= value < 1 for value in clock.seconds.values())
    assert clock.seconds["second"] >= 0.2 > clock.cpu_seconds["second"]  # asleep
    assert "first: 0.0 s" in caplog.text


def test_provenance_names_command_commit_and_versions():
    record = provenance(["--n_bits_w", "4"])
    assert record["argv"] == ["--n_bits_w", "4"]
    assert record["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert record["versions"]["python"].startswith(f"{sys.version_info.major}.")
    git = ["git", "-C", str(PROJECT), "rev-parse", "HEAD"]
    asked = subprocess.run(git, capture_output=True, text=True, check=False)
    assert record["commit"] == (asked.stdout.strip() if asked.returncode == 0 else None)


def test_outside_a_repository_the_commit_is_unknown(monkeypatch, tmp_path):
    monkeypatch.setattr(provenance_module, "PROJECT", tmp_path)
    assert provenance([])["commit"] is None


def test_a_torchvision_that_does_not_fit_torch_is_explained(monkeypatch):
    original = builtins.__import__

    def broken(name, *arguments, **options):
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist")
        return original(name, *arguments, **options)

    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.setattr(builtins, "__import__", broken)
    with pytest.raises(
        InputError, match=r"built for the installed torch.*nms does not exist.*pip install"
    ):
        torch_setup.import_torchvision()


def test_stdout_shows_what_its_encoding_can(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    write_stdout("é ✓ \udc80")
    assert stream.buffer.getvalue() == b"\\xe9 \\u2713 \\udc80\n"
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(RunError, match="stdout must be open"):
        write_stdout("x")


@pytest.mark.parametrize(("number", "status"), [(errno.ENAMETOOLONG, 2), (errno.ENOSPC, 1)])
def test_errors_of_the_system_are_one_line(number, status, capsys):
    def body():
        raise OSError(number, os.strerror(number))

    assert run_main(body) == status
    assert capsys.readouterr().err.startswith("error: files and folders must be usable, got [Errno")


@pytest.mark.parametrize(
    ("text", "line"),
    [("one\ntwo", "one"), ("\n\n  two \nthree", "two"), ("", "OSError"), ("\n", "OSError")],
)
def test_the_first_line_of_an_error_says_something(text, line):
    assert first_line(OSError(text)) == line
