"""Scripts end in one line and a plain exit status, from their first instruction on."""

from __future__ import annotations

from common.start import Interrupted, run_main

import os
import platform
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import frontier
from common import machine, start
from common.errors import InputError
from tests.conftest import PROJECT


@pytest.fixture(autouse=True)
def signals_that_are_not_ignored():
    """Shells start what runs in the background with SIGINT ignored."""
    former = {number: signal.signal(number, signal.default_int_handler) for number in start.SIGNALS}
    yield
    for number, handler in former.items():
        signal.signal(number, handler)


def is_caught(process: subprocess.Popen, number: int) -> bool:
    """Whether a process has a handler of its own for a signal."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    mask = re.search(r"SigCgt:\s*([0-9a-f]+)", status)
    return mask is not None and bool(int(mask[1], 16) >> number - 1 & 1)


@pytest.mark.parametrize(
    ("script", "number"),
    [
        ("main_imagenet.py", signal.SIGINT),
        ("train_any_precision.py", signal.SIGTERM),
        ("run_script.py", signal.SIGHUP),
    ],
)
def test_a_signal_during_the_imports_ends_in_one_line(script, number):
    process = subprocess.Popen(
        [sys.executable, script],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: [signal.signal(each, signal.SIG_DFL) for each in start.SIGNALS],
    )
    deadline = time.monotonic() + 60
    while not is_caught(process, start.SIGNALS[-1]) and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(number)
    out, err = process.communicate()
    assert (process.returncode, out) == (128 + number, "")
    assert err.count("\n") == 1
    assert err.startswith("interrupted; ")


@pytest.mark.parametrize("number", start.SIGNALS)
def test_a_signal_in_the_body_is_an_exit_status(number, capsys):
    former = [signal.getsignal(other) for other in start.SIGNALS]

    def body() -> int:
        os.kill(os.getpid(), number)
        time.sleep(10)
        return 0

    assert run_main(body, "it can go on") == 128 + number
    line = "interrupted; files already finished stay valid; it can go on\n"
    assert capsys.readouterr().err == line
    assert [signal.getsignal(other) for other in start.SIGNALS] == former


def test_an_error_that_a_signal_led_to_is_the_signal(capsys):
    def body() -> int:
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except Interrupted:
            raise InputError("of a library") from None
        return 0

    assert run_main(body) == 130
    assert capsys.readouterr().err == "interrupted; files already finished stay valid\n"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_in_a_destructor_is_not_lost(capsys):
    class Closing:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)

    def body() -> int:
        closing = Closing()
        del closing
        return 0

    assert run_main(body) == 143
    assert capsys.readouterr().err == "interrupted; files already finished stay valid\n"


def test_a_signal_that_is_ignored_stays_ignored():
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert run_main(lambda: os.kill(os.getpid(), signal.SIGHUP) or 0) == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, former)


def test_other_programs_keep_their_handlers():
    code = (
        "import signal, sys; before = [signal.getsignal(n) for n in (2, 15, 1)], sys.stderr\n"
        "import common.start\n"
        "assert before == ([signal.getsignal(n) for n in (2, 15, 1)], sys.stderr)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=True)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
@pytest.mark.parametrize(
    ("file", "choice", "kept"),
    [
        ("main_imagenet.py", {}, True),
        ("main_imagenet.py", {"MALLOC_TRIM_THRESHOLD_": "131072"}, False),
        ("elsewhere/program.py", {}, False),
    ],
)
def test_scripts_keep_the_memory_that_they_free(file, choice, kept):
    code = (
        "import ctypes, resource, sys\n"
        "ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: all pages are small\n"
        f"sys.modules['__main__'].__file__ = {file!r}\n"
        "import common.start\n"
        "def pages(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "b'x' * 100_000_000\n"
        "before = pages()\n"
        "for _ in range(3): b'x' * 100_000_000\n"
        "print((pages() - before) * resource.getpagesize())"
    )
    environment = {
        n: v for n, v in os.environ.items() if n not in machine.MALLOC_VARIABLES
    } | choice
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, env=environment, capture_output=True, check=True
    )
    cleared = int(done.stdout)  # bytes
    assert cleared < 1e7 if kept else cleared > 2e8


def test_a_reader_of_stderr_that_is_gone_stops_nothing():
    code = "import sys; from common.start import *; from common.start import _PatientStream as P\n"
    code += "sys.stderr = P(sys.stderr)\nfor _ in range(9): print('x' * 99999, file=sys.stderr)\n"
    code += "sys.stderr.flush(); print(sys.stderr.encoding)"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        process.stderr.close()
        assert process.stdout is not None
        assert process.stdout.read() == "utf-8\n"
    assert process.returncode == 0


def test_no_file_takes_the_place_of_a_closed_stderr(tmp_path):
    code = (
        "from common.start import _open_streams; _open_streams(); import logging, sys\n"
        "from common.console import progress, setup_logging; setup_logging()\n"
        "with open(sys.argv[1], 'w') as file:\n"
        "    logging.getLogger().warning('lost')\n"
        "    sys.stderr.write('lost')\n"
        "    file.write(' '.join(map(str, progress(range(3), 'count'))))\n"
        "assert file.name == sys.argv[1]\n"
    )
    command = ["sh", "-c", 'exec "$@" 2>&-', "sh", sys.executable, "-c", code]
    subprocess.run([*command, str(tmp_path / "out")], cwd=PROJECT, check=True)
    assert (tmp_path / "out").read_text() == "0 1 2"


BENCHMARKS = [
    path
    for path in sorted(Path(PROJECT, "benchmarks").glob("*.py"))
    if "def main(" in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_benchmarks_run_as_scripts_do(path):
    assert path.read_text(encoding="utf-8").endswith("    raise SystemExit(run_main(main))\n")


def test_a_benchmark_refuses_unusable_input_in_one_line(tmp_path, capsys):
    options = ["--data_path", ".", "--checkpoint", "x.pt", "--output_dir", str(tmp_path)]
    assert run_main(lambda: frontier.main([*options, "--bits", "2,2", "2x"])) == 2
    assert capsys.readouterr().err == "error: bits must be W,A as in 4,2, got '2x'\n"
