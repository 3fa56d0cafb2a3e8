"""A run neither replaces nor deletes a file of the user, and says so before it starts."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import yaml

from common.errors import InputError
from common.files import lock_of, locked
from logits_io.runs import read_run
from main_imagenet import main
from pipeline import prepare
from pipeline.command import read_command
from pipeline.flags import build_parser
from pipeline.folders import open_folder, require_own_folders
from pipeline.job import Job
from tests.conftest import QUICK, TAG
from tests.script_process import ScriptProcess
from verify_logits import verify_csv

FLAGS = [*QUICK, "--no-plots", "--chunk_size", "200"]
RUN, SUMMARY, INITIAL = f"run_{TAG}", f"logits_summary_{TAG}", f"initial_logits_{TAG}"
RESULTS = "results_alpha0.5_clusters4_pca2_digits_resnet_w4bit_a4bit"


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    assert main([*FLAGS, "--output_dir", str(folder)]) == 0
    return folder


@pytest.fixture
def root(written, tmp_path) -> Path:
    """The folder of a method, with the files of a finished run."""
    shutil.copytree(written, tmp_path / "out")
    return tmp_path / "out" / "rtn"


@cache
def prepared() -> Job:
    """A job of the run; where it writes and what it may replace is set by ``job_in``."""
    return prepare(read_command(build_parser(""), FLAGS).options, FLAGS)


def job_in(root: Path, *flags: str) -> Job:
    options = prepared().options
    options = replace(
        options,
        output=replace(options.output, output_dir=root.parent),
        force="--force" in flags,
        resume="--resume" in flags,
    )
    return replace(prepared(), options=options)


def content_of(folder: Path) -> dict[str, bytes | str]:
    return {
        str(path.relative_to(folder)): str(path.readlink())
        if path.is_symlink()
        else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def test_a_run_may_replace_its_own_files(root):
    require_own_folders(job_in(root))
    require_own_folders(job_in(root, "--resume"))


@pytest.mark.parametrize(
    "place",
    [
        f"{SUMMARY}/notes.txt",
        f"{SUMMARY}/{SUMMARY}.csv",
        f"{RUN}/tensorboard/mine",
        f"{RUN}/tensorboard/events.out.tfevents.1.mine",
        f"{RUN}/state/unit_099.pt",
        f"{RUN}/state/folder/file",
        f"{RUN}/quantized_model.onnx",
        "run.json",
    ],
)
def test_a_file_of_the_user_is_named_and_stays(root, place, capsys):
    path = root / place
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    before = content_of(root)
    named = path.parent if path.parent.name == "folder" else path
    with pytest.raises(
        InputError, match=rf"^{re.escape(str(named))}: must be .*\(--force (replaces|deletes)"
    ):
        require_own_folders(job_in(root))
    if place == "run.json":
        assert main([*FLAGS, "--output_dir", str(root.parent)]) == 2
        assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {named}: must be ")
    assert content_of(root) == before
    require_own_folders(job_in(root, "--force"))


@pytest.mark.parametrize(
    "place", [RUN, f"{RUN}/state", f"{RUN}/tensorboard", SUMMARY, INITIAL, RESULTS]
)
def test_a_link_in_place_of_a_folder_is_never_followed(root, place, tmp_path):
    users = tmp_path / "users"
    (root / place).rename(users)
    (root / place).symlink_to(users)
    before = content_of(users)
    with pytest.raises(InputError, match="must be a folder or new, got a symbolic link"):
        require_own_folders(job_in(root))
    forced = job_in(root, "--force")
    require_own_folders(forced)
    open_folder(forced)
    assert not (root / place).is_symlink()
    assert content_of(users) == before


def test_with_force_the_run_takes_the_place_of_files_of_the_user(root, written, capsys):
    for place in (
        f"{SUMMARY}/notes.txt",
        f"{RUN}/state/mine",
        f"{RUN}/tensorboard/mine",
        "run.json",
    ):
        (root / place).write_text("mine")
    (root / RUN / "notes.txt").write_text("mine")
    assert main([*FLAGS, "--output_dir", str(root.parent), "--force"]) == 0
    told = capsys.readouterr().err
    for name in (f"{SUMMARY}/notes.txt", f"{RUN}/state/mine", f"{RUN}/tensorboard/mine"):
        assert f"--force deletes {root / name}, which this suite did not write" in told
    here, there = content_of(root), content_of(written / "rtn")
    logits = [name for name in there if "logits_" in name and name.endswith(".csv")]
    assert {name: here.get(name) for name in logits} == {name: there[name] for name in logits}
    assert not [name for name, content in here.items() if content == b"mine" and RUN not in name]
    assert (root / RUN / "notes.txt").read_text() == "mine"
    assert not (root / RUN / "state" / "mine").exists()


def test_folders_of_an_earlier_version_are_taken_for_the_suite_s(root):
    for path in root.rglob(".written.json"):
        path.unlink()
    for path in root.rglob("run.json"):
        record = json.loads(path.read_text())
        del record["sha256_of_this_record"], record["folders"], record["files"]
        path.write_text(json.dumps(record))
    require_own_folders(job_in(root))
    require_own_folders(job_in(root, "--resume"))
    assert verify_csv(root) == 0
    config = yaml.safe_load((root / RUN / "config.yaml").read_text())
    (root / RUN / "config.yaml").write_text(yaml.safe_dump({"seed": config["seed"]}))
    with pytest.raises(InputError, match="must be a file that this suite wrote"):
        require_own_folders(job_in(root))


@pytest.mark.parametrize("place", [".", RUN, f"{RUN}/state", f"{RUN}/tensorboard", SUMMARY])
def test_a_damaged_list_stops_no_run(root, place):
    path = root / place / ".written.json"
    path.write_bytes(path.read_bytes()[:-40])
    job = job_in(root)
    require_own_folders(job)
    open_folder(job)
    (root / SUMMARY / "mine.txt").touch()
    with pytest.raises(InputError, match=r"mine\.txt: must be a file that this suite wrote"):
        require_own_folders(job)


@pytest.mark.parametrize("kept", [0, 1, 5, 500, -3])
def test_a_damaged_record_of_the_last_run_is_replaced(root, kept):
    path = root / "run.json"
    path.write_bytes(path.read_bytes()[:kept])
    require_own_folders(job_in(root))
    path.write_bytes(b"[" * 50_000)
    with pytest.raises(InputError, match=r"run\.json: must be the record of a run, got another"):
        require_own_folders(job_in(root))


def test_a_run_waits_for_the_same_run(root, tmp_path_factory):
    job = job_in(root)
    flags = [*FLAGS, "--output_dir", root.parent]
    with locked(lock_of(job.folder)):
        process = ScriptProcess("main_imagenet", flags, tmp_path_factory.mktemp("streams"))
        process.wait_for("another process writes")
        before = {name: text for name, text in content_of(root).items() if ".lock" not in name}
    assert process.wait() == 0
    after = content_of(root)
    assert not [name for name in before if name not in after and "tfevents" not in name]
    logits = [name for name in before if "logits_" in name and name.endswith(".csv")]
    assert {name: before[name] for name in logits} == {name: after[name] for name in logits}


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        (INITIAL, "must be there as run.json says, got nothing"),
        (RESULTS, "must be there as run.json says, got nothing"),
        (f"{INITIAL}/logits_{TAG}_metadata.csv", "must be there as run.json says, got nothing"),
        (f"{RUN}/quantized_model.pt", "must be there as run.json says, got nothing"),
        (f"{RUN}/run.json", "run.json: must be there, as initial_logits_"),
        (RUN, "run.json: must be there, as initial_logits_"),
    ],
)
def test_what_a_run_promised_and_is_gone_is_noticed(root, lost, said, capsys):
    assert verify_csv(root.parent) == 0
    capsys.readouterr()
    path = root / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert verify_csv(root.parent) == 1
    text = capsys.readouterr().out
    assert said in text
    assert text.splitlines()[-1].startswith("VERIFICATION FAILED")


def test_a_record_or_a_model_that_was_changed_is_noticed(root, capsys):
    path = root / RUN / "run.json"
    content = path.read_text()
    path.write_text(content.replace('"fullprecision"', '"fullPrecision"', 1))
    assert verify_csv(root) == 1
    assert "run.json: must be the record of a run as it was written" in capsys.readouterr().out
    path.write_text(content)
    (root / RUN / "config.yaml").write_text("seed: 1\n")
    assert verify_csv(root) == 1
    assert "config.yaml: must be as the run wrote it, got other bytes" in capsys.readouterr().out


@pytest.mark.parametrize(
    "promised",
    [
        {"folders": 3},
        {"files": ["a"]},
        {"files": {"a": 1}},
        {"folders": {"a": {"stem": "s"}}},
        {"folders": {"a": 1}},
    ],
)
def test_a_record_with_other_promises_is_no_record(root, promised):
    path = root / RUN / "run.json"
    record = json.loads(path.read_text())
    del record["sha256_of_this_record"]
    path.write_text(json.dumps({**record, **promised}))
    assert read_run(path) is None
    path.write_text(json.dumps(record))
    assert read_run(path) == record
