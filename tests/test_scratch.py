"""Unfinished work: kept when interrupted, removed when done, never shared."""

from contextlib import suppress
from pathlib import Path

import pytest

from nima.workers.scratch import own_folder
from nima.workspace.errors import UserError


def interrupted(parent: Path, name: str) -> None:
    with suppress(KeyboardInterrupt), own_folder(parent, name) as folder:
        (folder / "part").touch()
        raise KeyboardInterrupt


def test_finished_work_is_removed_with_that_of_past_settings(tmp_path: Path) -> None:
    interrupted(tmp_path, "past")
    assert (tmp_path / "past/part").is_file()
    with own_folder(tmp_path, "past") as again:
        assert (again / "part").is_file()
    assert list(tmp_path.iterdir()) == []
    interrupted(tmp_path, "past")
    with own_folder(tmp_path, "present"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_work_that_another_holds_is_refused_and_left_alone(tmp_path: Path) -> None:
    with own_folder(tmp_path, "one") as one:
        with pytest.raises(UserError, match=r"one: process \d+ does this very work"):
            own_folder(tmp_path, "one").__enter__()
        with own_folder(tmp_path, "two"):
            pass
        assert one.is_dir()
