import os
import shutil
from pathlib import Path

import pytest

from nima.workspace.errors import InputsChangedError, UserError
from nima.workspace.inputs import changed_since, contents, fingerprint, guard_inputs, snapshot

RAW = Path("data/raw")


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    plant(tmp_path)
    return tmp_path


def plant(root: Path) -> None:
    (root / RAW / "deep").mkdir(parents=True)
    (root / RAW / "a.md").write_text("a")
    (root / RAW / "deep" / "b.md").write_text("b")
    (root / "one.txt").write_text("one")


def test_a_fingerprint_is_the_same_in_a_copy_of_the_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = fingerprint([RAW, Path("one.txt")])
    plant(tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    assert fingerprint([Path("one.txt"), RAW]) == before
    assert fingerprint([RAW.absolute(), Path("one.txt")]) == before


@pytest.mark.parametrize("change", ["content", "name", "added", "removed", "moved"])
def test_a_fingerprint_tells_every_change(change: str) -> None:
    before = fingerprint([RAW])
    if change == "content":
        (RAW / "a.md").write_text("A")
    elif change == "name":
        (RAW / "a.md").rename(RAW / "c.md")
    elif change == "added":
        (RAW / "c.md").write_text("")
    elif change == "removed":
        (RAW / "a.md").unlink()
    else:
        (RAW / "a.md").rename(RAW / "deep" / "a.md")
    assert fingerprint([RAW]) != before


def test_a_fingerprint_ignores_times_and_compiled_python() -> None:
    before = fingerprint([RAW])
    os.utime(RAW / "a.md", (1, 1))
    (RAW / "__pycache__").mkdir()
    (RAW / "__pycache__" / "x.pyc").write_text("x")
    assert fingerprint([RAW]) == before


def test_a_missing_input_is_named() -> None:
    with pytest.raises(UserError, match=r"^data/gone: not found; [^\n]*$"):
        fingerprint([Path("data/gone")])


def test_changes_are_told_by_name() -> None:
    for take in (contents, snapshot):
        before = take([Path("data/raw")])
        (RAW / "a.md").write_text("longer")
        (RAW / "c.md").write_text("new")
        (RAW / "deep" / "b.md").unlink()
        assert changed_since(before, take([RAW])) == [
            "data/raw/a.md changed",
            "data/raw/c.md added",
            "data/raw/deep/b.md removed",
        ]
        shutil.rmtree("data")
        Path("one.txt").unlink()
        plant(Path())


def rewrite_unseen(path: Path, text: str) -> None:
    status = path.stat()
    path.write_text(text)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def change_ten_files() -> None:
    for number in range(9):
        (RAW / f"n{number}.md").write_text("")
    (RAW / "a.md").unlink()


def test_the_guard_gives_the_fingerprint_and_is_silent_without_changes() -> None:
    with guard_inputs([RAW]) as found:
        assert found == fingerprint([RAW])


def test_the_guard_names_what_changed() -> None:
    expected = r"^inputs changed while the stage ran: data/raw/a\.md changed; run it again$"
    with pytest.raises(InputsChangedError, match=expected), guard_inputs([RAW]):
        (RAW / "a.md").write_text("b")


def test_the_guard_sees_a_change_that_keeps_size_and_time() -> None:
    with pytest.raises(InputsChangedError, match=r"a\.md changed"), guard_inputs([RAW]):
        rewrite_unseen(RAW / "a.md", "b")


def test_the_guard_forgives_a_file_rewritten_with_the_same_content() -> None:
    with guard_inputs([RAW]):
        (RAW / "a.md").unlink()
        (RAW / "a.md").write_text("a")
        os.utime(RAW / "a.md", (1, 1))


def test_the_guard_names_added_and_removed_files_but_not_hundreds() -> None:
    expected = r"n0\.md added, .*n4\.md added and 5 more; run it again$"
    with pytest.raises(InputsChangedError, match=expected), guard_inputs([RAW]):
        change_ten_files()


def test_the_guard_notices_an_input_that_is_gone_altogether() -> None:
    with pytest.raises(InputsChangedError, match=r"one\.txt removed"), guard_inputs([RAW, Path("one.txt")]):
        Path("one.txt").unlink()


def test_the_guard_does_not_hide_a_failure_of_the_stage() -> None:
    def fail() -> None:
        (RAW / "a.md").unlink()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), guard_inputs([RAW]):
        fail()
