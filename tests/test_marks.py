"""The suite replaces and deletes what it wrote, and nothing else."""

from __future__ import annotations

import pytest

from common.errors import InputError
from common.marks import (
    MARK,
    clear,
    foreign_files,
    is_marked,
    mark,
    mark_whole,
    own_files,
    replace_link,
    require_replaceable,
)


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
