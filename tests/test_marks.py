"""The suite replaces and deletes what it wrote, and nothing else."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from common.errors import InputError
from common.files import sha256_file
from common.marks import (
    MARK,
    clear,
    foreign_files,
    is_marked,
    listed,
    mark,
    mark_whole,
    own_files,
    replace_link,
    require_own_file,
    require_own_folder,
    require_replaceable,
)
from tools import train_digits


def names(paths):
    return sorted(path.name for path in paths)


@pytest.fixture
def folder(tmp_path):
    """A folder with two files of the suite, one of them finished, and files of the user."""
    made = tmp_path / "out"
    made.mkdir()
    (made / "whole").write_text("whole")
    mark_whole(made)
    mark(made, ["growing", "not yet there"])
    (made / "growing").write_text("begun")
    (made / "users").write_text("mine")
    (made / "below").mkdir()
    return made


def test_files_are_the_user_s_unless_listed(folder):
    assert names(own_files(folder)) == ["growing", "whole"]
    assert names(foreign_files(folder)) == ["below", "users"]
    assert names(own_files(folder, ["users", "below"])) == ["growing", "users", "whole"]


def test_a_file_that_was_changed_is_the_user_s(folder):
    (folder / "growing").write_text("more")
    (folder / "whole").write_text("other")
    assert names(own_files(folder)) == ["growing"]


def test_a_link_is_the_user_s(folder, tmp_path):
    (folder / "growing").unlink()
    (folder / "growing").symlink_to(tmp_path / "elsewhere")
    assert names(own_files(folder)) == ["whole"]


@pytest.mark.parametrize("text", ["", "[]", '{"files": 3}', "{"])
def test_with_a_damaged_list_everything_is_the_user_s(folder, text):
    (folder / MARK).write_text(text)
    assert own_files(folder) == []


def test_only_own_files_are_cleared(folder):
    clear(folder)
    assert names(folder.iterdir()) == ["below", "users"]
    assert not is_marked(folder)
    clear(folder, everything=True)
    assert not folder.exists()


def test_a_folder_of_own_files_is_cleared_away(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").touch()
    mark_whole(tmp_path / "out")
    clear(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    clear(tmp_path / "out")


def test_nothing_behind_a_link_is_cleared(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    before = names(folder.iterdir())
    clear(tmp_path / "link", everything=True)
    assert names(folder.iterdir()) == before
    replace_link(tmp_path / "link")
    assert names(tmp_path.iterdir()) == ["out"]
    assert names(folder.iterdir()) == before


def test_files_of_the_user_are_named_before_anything_is_written(folder):
    require_replaceable(folder, ["whole", "growing", "new"])
    wanted = r"users: must be a file that this suite wrote and nobody changed, .*\(--force"
    with pytest.raises(InputError, match=wanted):
        require_replaceable(folder, ["users"])
    with pytest.raises(InputError, match="below: must be a file that this suite wrote"):
        require_replaceable(folder, None)
    require_replaceable(folder, ["users"], known=["users"])
    require_replaceable(folder, None, force=True)
    require_replaceable(folder.parent / "new", None)


def test_a_link_in_place_of_a_folder_is_refused(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    wanted = r"link: must be a folder or new, got a symbolic link \(--force replaces it\)"
    with pytest.raises(InputError, match=wanted):
        require_replaceable(tmp_path / "link", [])


def test_a_list_grows_and_keeps_its_digests(folder):
    mark(folder, ["third"])
    (folder / "third").touch()
    (folder / "whole").write_text("other")
    assert names(own_files(folder)) == ["growing", "third"]


def entries(folder):
    return json.loads((folder / MARK).read_text())["files"]


def test_a_file_is_listed_by_name_while_it_is_written_and_then_with_its_digest(tmp_path):
    path = tmp_path / "new" / "file"
    with listed(path):
        assert entries(path.parent) == {"file": None}
        path.write_text("one")
    assert entries(path.parent) == {"file": sha256_file(path)}
    with pytest.raises(ZeroDivisionError), listed(path):
        raise ZeroDivisionError
    assert entries(path.parent) == {"file": sha256_file(path)}
    assert names(path.parent.iterdir()) == [MARK, "file"]


def test_a_file_that_a_failure_left_unwritten_is_not_listed(tmp_path):
    with pytest.raises(ZeroDivisionError), listed(tmp_path / "file"):
        raise ZeroDivisionError
    assert entries(tmp_path) == {}


def test_a_file_must_be_new_listed_or_known_by_its_content(tmp_path):
    path = tmp_path / "file"
    require_own_file(path)
    path.write_text("mine")
    with pytest.raises(InputError, match=r"file: must be a file that this .* got another file \(-"):
        require_own_file(path, is_known=lambda path: path.read_text() == "ours")
    require_own_file(path, is_known=lambda path: path.read_text() == "mine")
    require_own_file(path, force=True)
    with listed(path):
        path.write_text("ours")
    require_own_file(path)
    path.write_text("mine")
    with pytest.raises(InputError, match="got another file"):
        require_own_file(path, is_known=lambda path: True)


def test_links_folders_and_pipes_are_no_files_of_the_suite(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"link: must be red, got a symbolic link \(--force"):
        require_own_file(tmp_path / "link", what="red")
    require_own_file(tmp_path / "link", force=True)
    with pytest.raises(InputError, match=r"must be red, got a folder$"):
        require_own_file(tmp_path, force=True, what="red")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match=r"must be red, got a device or pipe$"):
        require_own_file(tmp_path / "pipe", force=True, what="red")


def test_a_link_in_place_of_a_folder_may_be_forced_and_a_file_not(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(InputError, match=r"got a symbolic link \(--force replaces it\)"):
        require_own_folder(tmp_path / "link")
    require_own_folder(tmp_path / "link", force=True)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"must be a folder or new, got a file$"):
        require_own_folder(tmp_path / "file", force=True)


def test_the_digits_network_is_trained_over_its_own_weights_alone(tmp_path, capsys):
    assert train_digits.is_weights(train_digits.DIGITS_WEIGHTS)
    path = tmp_path / "w.pt"
    path.write_text("mine")
    assert train_digits.main(["--output", str(path)]) == 2
    wanted = "must be new or a file of weights of this network, got another file (--force replaces"
    assert f"error: {path}: {wanted}" in capsys.readouterr().err
    assert path.read_text() == "mine"


def test_lists_that_grow_at_once_lose_nothing(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: mark(tmp_path, [f"{number}"]), range(40)))
    for number in range(40):
        (tmp_path / f"{number}").touch()
    assert len(own_files(tmp_path)) == 40
