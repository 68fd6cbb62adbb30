import multiprocessing
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nima.corpus.sources.files import SourceFile
from nima.corpus.sources.globs import glob_pattern
from nima.corpus.sources.sources import files_of
from nima.workspace.errors import SourceError
from nima.workspace.params import SourceParams

ROOT_USER, NOBODY = 0, 65534


def local(path: Path | list[Path], glob: Any = "**/*", exclude: tuple[str, ...] = ()) -> SourceParams:
    paths: Any = list(map(str, path)) if isinstance(path, list) else str(path)
    return SourceParams(name="s", path=paths, glob=glob, exclude=list(exclude))


def read(source: SourceParams) -> dict[str, bytes]:
    return {file.key: content_of(file) for file in files_of(source, Path("none"))}


def content_of(file: SourceFile) -> bytes:
    with file.open() as stream:
        return stream.read()


def plant(root: Path, *keys: str) -> None:
    for key in keys:
        (root / key).parent.mkdir(parents=True, exist_ok=True)
        (root / key).write_text(key)


@contextmanager
def without_privileges() -> Iterator[None]:
    """As an ordinary user: root may read everything."""
    privileged = os.geteuid() == ROOT_USER
    if privileged:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if privileged:
            os.seteuid(ROOT_USER)


# ----------------------------------------------------------------------------------------------- globs


@pytest.mark.parametrize(
    ("glob", "matching", "other"),
    [
        ("a/**/*.rst", ["a/x.rst", "a/b/x.rst", "a/b/c/x.rst"], ["x.rst", "ab/x.rst", "a/x.md", "b/a/x.rst"]),
        ("**/*.md", ["x.md", "a/x.md", "a/b/x.md"], ["x.mdx", "a/x.txt", "xmd"]),
        ("a/**", ["a/x", "a/b/x"], ["a", "b/x"]),
        ("*.md", ["x.md"], ["a/x.md"]),
        ("./x?.md", ["x1.md"], ["x.md", "x12.md", "x/.md"]),
        ("[a-c]*.md", ["a.md", "cx.md"], ["d.md"]),
        ("[!a-c].md", ["d.md"], ["a.md", "/.md"]),
        ("a.(b)+.md", ["a.(b)+.md"], ["axb.md"]),
        ("**/b/**/*.md", ["b/x.md", "a/b/x.md", "a/b/c/x.md"], ["x.md", "a/x.md"]),
        ("**/**/*.md", ["x.md", "a/b/x.md"], ["x.rst"]),
    ],
)
def test_globs_match_whole_paths(glob: str, matching: list[str], other: list[str]) -> None:
    pattern = glob_pattern(glob)
    assert [key for key in matching + other if pattern.fullmatch(key)] == matching


def test_a_glob_that_means_nothing_is_named(tmp_path: Path) -> None:
    plant(tmp_path, "a.md")
    with pytest.raises(SourceError, match=r"^glob '\[z-a\]\.md': bad character range z-a$"):
        read(local(tmp_path, "[z-a].md"))


# ----------------------------------------------------------------------------------------- local files


def test_a_folder_gives_the_matching_files_sorted_by_key(tmp_path: Path) -> None:
    plant(tmp_path, "b.md", "a/z.md", "a.md", "a/b/c.md", "a-b/c.md", "note.txt")
    assert list(read(local(tmp_path, "**/*.md"))) == ["a-b/c.md", "a.md", "a/b/c.md", "a/z.md", "b.md"]
    assert read(local(tmp_path, "*.txt")) == {"note.txt": b"note.txt"}


def test_excluded_and_hidden_files_are_left_out(tmp_path: Path) -> None:
    plant(tmp_path, "a.md", "drafts/b.md", "deep/README.md", ".hidden.md", ".git/c.md", "deep/.d/e.md")
    assert list(read(local(tmp_path, "**/*", ("drafts/**", "**/README.md")))) == ["a.md"]


def test_a_single_file_is_a_source(tmp_path: Path) -> None:
    plant(tmp_path, "qa.jsonl")
    assert read(local(tmp_path / "qa.jsonl")) == {"qa.jsonl": b"qa.jsonl"}


def test_a_link_inside_the_folder_is_read_and_one_that_leaves_it_is_refused(tmp_path: Path) -> None:
    plant(tmp_path, "in/a.md", "out/secret.md")
    (tmp_path / "in" / "b.md").symlink_to("a.md")
    assert read(local(tmp_path / "in")) == {"a.md": b"in/a.md", "b.md": b"in/a.md"}
    (tmp_path / "in" / "c.md").symlink_to("../out/secret.md")
    with pytest.raises(SourceError, match=r"in/c\.md: a link to a place outside"):
        read(local(tmp_path / "in"))


def test_a_linked_folder_that_leaves_the_folder_is_refused(tmp_path: Path) -> None:
    plant(tmp_path, "in/a.md", "out/secret.md")
    (tmp_path / "in" / "linked").symlink_to("../out")
    with pytest.raises(SourceError, match=r"in/linked: a link to a place outside"):
        read(local(tmp_path / "in"))


def test_a_hidden_folder_is_not_entered(tmp_path: Path) -> None:
    plant(tmp_path, "in/a.md", "in/.venv/b.md", "out/secret.md")
    (tmp_path / "in" / ".venv" / "linked").symlink_to("../../out")
    assert list(read(local(tmp_path / "in"))) == ["a.md"]


def test_a_dangling_link_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.md").symlink_to("gone.md")
    with pytest.raises(SourceError, match=r"a\.md: cannot be read: No such file"):
        read(local(tmp_path))


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    plant(tmp_path, "a.md")
    os.mkfifo(tmp_path / "pipe.md")
    assert list(read(local(tmp_path))) == ["a.md"]


def test_a_missing_path_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"^source s: .*gone: not found; [^\n]*$"):
        read(local(tmp_path / "gone"))


def test_a_glob_that_matches_nothing_is_named_with_the_number_of_files(tmp_path: Path) -> None:
    plant(tmp_path, "a.md", "b/c.md")
    with pytest.raises(SourceError, match=r"^source s: glob '\*\.rst' matches none of the 2 files in "):
        read(local(tmp_path, "*.rst"))


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    plant(tmp_path, "a.md")
    (file,) = files_of(local(tmp_path), Path("none"))
    (tmp_path / "a.md").chmod(0)
    denied = pytest.raises(SourceError, match=r"a\.md: cannot be read: Permission denied$")
    with without_privileges(), denied, file.open():
        pass


def test_a_file_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.md")).write_text("x")
    with pytest.raises(SourceError, match="name is not UTF-8"):
        read(local(tmp_path))


def test_several_globs_take_what_any_of_them_takes(tmp_path: Path) -> None:
    plant(tmp_path, "a.md", "b.rst", "c/d.md", "e.txt")
    assert list(read(local(tmp_path, ["*.md", "**/*.rst"]))) == ["a.md", "b.rst"]
    with pytest.raises(SourceError, match=r"glob '\*\.x', '\*\.y' without 'e\*' matches none of the 4 files"):
        read(local(tmp_path, ["*.x", "*.y"], ("e*",)))


# ------------------------------------------------------------------------------------- wildcards, lists


def test_a_path_with_wildcards_stands_for_the_files_that_it_matches(tmp_path: Path) -> None:
    plant(tmp_path, "docs/a.md", "docs/b.md", "docs/c.txt", "docs/deep/d.md", "docs/.e.md", "docs/x.md/f.md")
    assert list(read(local(tmp_path / "docs/*.md"))) == ["a.md", "b.md"]
    assert list(read(local(tmp_path / "**/*.md", exclude=("**/b.md",)))) == [
        "docs/a.md",
        "docs/deep/d.md",
        "docs/x.md/f.md",
    ]


def test_a_wildcard_looks_no_deeper_than_it_says(tmp_path: Path) -> None:
    plant(tmp_path, "docs/a.md", "docs/deep/b.md", "outside/c.md")
    (tmp_path / "docs" / "deep" / "linked").symlink_to("../../outside")
    assert list(read(local(tmp_path / "docs/*.md"))) == ["a.md"]


def test_a_relative_wildcard_starts_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(tmp_path, "a.md", "docs/b.md")
    monkeypatch.chdir(tmp_path)
    assert list(read(local(Path("*.md")))) == ["a.md"]
    assert [file.place for file in files_of(local(Path("docs/*.md")), Path("none"))] == ["docs/b.md"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("docs/*.rst", r"docs/\*\.rst: matches none of the 1 files there; \*\* stands for any number"),
        ("gone/*.md", r"gone/\*\.md: there is no folder .*gone$"),
    ],
)
def test_a_wildcard_that_matches_nothing_is_named(tmp_path: Path, path: str, message: str) -> None:
    plant(tmp_path, "docs/a.md")
    with pytest.raises(SourceError, match=message):
        read(local(tmp_path / path))


def test_a_name_with_wildcard_characters_is_taken_as_it_stands(tmp_path: Path) -> None:
    plant(tmp_path, "[draft]/a*.md", "[draft]/ab.md", "d/a*.md")
    assert read(local(tmp_path / "[draft]" / "a*.md")) == {"a*.md": b"[draft]/a*.md"}


def test_several_paths_have_keys_from_the_folder_they_share(tmp_path: Path) -> None:
    plant(tmp_path, "x/docs/a.md", "x/docs/b/c.md", "x/notes/d.md", "x/e.md")
    paths = [tmp_path / "x/notes/*.md", tmp_path / "x/e.md", tmp_path / "x/docs"]
    assert list(read(local(paths))) == ["docs/a.md", "docs/b/c.md", "e.md", "notes/d.md"]


def test_a_file_that_two_paths_name_is_read_once(tmp_path: Path) -> None:
    plant(tmp_path, "docs/a.md", "docs/b/c.md")
    paths = [tmp_path / "docs", tmp_path / "docs/b/c.md", tmp_path / "docs/**/*.md"]
    assert list(read(local(paths))) == ["a.md", "b/c.md"]


def test_each_of_several_paths_must_be_there(tmp_path: Path) -> None:
    plant(tmp_path, "a.md")
    with pytest.raises(SourceError, match=r"gone\.md: not found; "):
        read(local([tmp_path / "a.md", tmp_path / "gone.md"]))


# ------------------------------------------------------------------------------ files that move, workers


@pytest.mark.parametrize("change", ["longer", "later", "gone"])
def test_a_file_that_changes_while_it_is_read_is_named(tmp_path: Path, change: str) -> None:
    plant(tmp_path, "a.md")
    (file,) = files_of(local(tmp_path), Path("none"))
    moved = pytest.raises(
        SourceError, match=r"a\.md: (changed while it was read; |cannot be read: No such file)"
    )
    with moved, file.open() as stream:
        stream.read()
        if change == "longer":
            (tmp_path / "a.md").write_text("a.md and more")
        elif change == "later":
            os.utime(tmp_path / "a.md", ns=(0, 0))
        else:
            (tmp_path / "a.md").unlink()


def test_a_file_that_changed_after_it_was_listed_is_named(tmp_path: Path) -> None:
    plant(tmp_path, "a.md")
    (file,) = files_of(local(tmp_path), Path("none"))
    before = file.identity()
    (tmp_path / "a.md").write_text("another text")
    with pytest.raises(SourceError, match=r"a\.md: changed while it was read"):
        content_of(file)
    (again,) = files_of(local(tmp_path), Path("none"))
    assert (before, file.num_bytes, again.num_bytes) == (file.identity(), 4, 12)
    assert again.identity() != before


def test_a_reader_that_stops_early_need_not_know_of_changes(tmp_path: Path) -> None:
    plant(tmp_path, "a.md")
    (file,) = files_of(local(tmp_path), Path("none"))

    def lines() -> Iterator[bytes]:
        with file.open() as stream:
            yield from stream

    reader = lines()
    next(reader)
    (tmp_path / "a.md").write_text("another text")
    reader.close()  # type: ignore[attr-defined]


def test_any_process_in_any_folder_can_open_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(tmp_path, "docs/a.md", "docs/b.md")
    monkeypatch.chdir(tmp_path)
    files = list(files_of(local(Path("docs")), Path("none")))
    monkeypatch.chdir("/")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(content_of, pickle.loads(pickle.dumps(files))) == [b"docs/a.md", b"docs/b.md"]
