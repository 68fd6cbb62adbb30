import hashlib
import io
import os
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nima.corpus.sources import fetch_packages, files_of, glob_pattern
from nima.errors import SourceError
from nima.params import PackageParams, SourceParams

ROOT_USER, NOBODY = 0, 65534


def local(path: Path, glob: str = "**/*", exclude: tuple[str, ...] = ()) -> SourceParams:
    return SourceParams(name="s", path=str(path), glob=glob, exclude=list(exclude))


def packed(archive: Path, glob: str = "**/*", sha256: str | None = None) -> SourceParams:
    found = hashlib.sha256(archive.read_bytes()).hexdigest() if sha256 is None else sha256
    package = PackageParams(index="pypi", name="corpus-demo", version="1.0", sha256=found)
    return SourceParams(name="s", package=package, glob=glob)


def read(source: SourceParams, packages: Path = Path("none")) -> dict[str, bytes]:
    content = {}
    for file in files_of(source, packages):
        with file.open() as stream:
            content[file.key] = stream.read()
    return content


def plant(root: Path, *keys: str) -> None:
    for key in keys:
        (root / key).parent.mkdir(parents=True, exist_ok=True)
        (root / key).write_text(key)


def write_wheel(folder: Path, members: dict[str, str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "corpus_demo-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return path


def write_sdist(folder: Path, members: dict[str, str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "corpus_demo-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, text in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    return path


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
    ],
)
def test_globs_match_whole_paths(glob: str, matching: list[str], other: list[str]) -> None:
    pattern = glob_pattern(glob)
    assert [key for key in matching + other if pattern.fullmatch(key)] == matching


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


# -------------------------------------------------------------------------------------- package files

MEMBERS = {"demo/docs/b.rst": "b", "demo/docs/x/y/a.rst": "a", "demo/docs/a.rst": "c", "demo/code.py": "d"}


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Where the package corpus-demo 1.0 is kept."""
    return tmp_path / "packages" / "corpus-demo-1.0"


def test_files_inside_a_wheel_are_read_in_order_without_unpacking(cache: Path) -> None:
    wheel = write_wheel(cache, MEMBERS)
    found = read(packed(wheel, "demo/docs/**/*.rst"), cache.parent)
    assert list(found.items()) == [
        ("demo/docs/a.rst", b"c"),
        ("demo/docs/b.rst", b"b"),
        ("demo/docs/x/y/a.rst", b"a"),
    ]
    assert list(cache.iterdir()) == [wheel]


def test_the_folder_around_an_sdist_is_no_part_of_its_keys(cache: Path) -> None:
    sdist = write_sdist(cache, {f"corpus_demo-1.0/{name}": text for name, text in MEMBERS.items()})
    assert read(packed(sdist, "demo/docs/**/*.rst"), cache.parent) == {
        "demo/docs/a.rst": b"c",
        "demo/docs/b.rst": b"b",
        "demo/docs/x/y/a.rst": b"a",
    }


@pytest.mark.parametrize("name", ["../evil.rst", "/evil.rst", "demo/../../evil.rst", "..\\evil.rst"])
@pytest.mark.parametrize("write", [write_wheel, write_sdist])
def test_a_name_that_points_outside_the_package_is_refused(cache: Path, write, name: str) -> None:
    archive = write(cache, MEMBERS | {name: "evil"})
    with pytest.raises(SourceError, match="points outside the package"):
        read(packed(archive), cache.parent)


def test_the_right_checksum_is_required_of_a_kept_package(cache: Path) -> None:
    wheel = write_wheel(cache, MEMBERS)
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    with pytest.raises(SourceError, match=rf"wrong checksum: expected sha256 {'0' * 64}, found {found}"):
        read(packed(wheel, sha256="0" * 64), cache.parent)


def test_a_package_damaged_after_fetching_is_noticed(cache: Path) -> None:
    wheel = write_wheel(cache, MEMBERS)
    source = packed(wheel)
    read(source, cache.parent)
    wheel.write_bytes(wheel.read_bytes()[:-1] + b"x")
    with pytest.raises(SourceError, match=r"py3-none-any\.whl: wrong checksum"):
        read(source, cache.parent)


def test_a_package_that_is_no_archive_is_named(cache: Path) -> None:
    cache.mkdir(parents=True)
    (cache / "corpus_demo-1.0.tar.gz").write_bytes(b"not an archive")
    with pytest.raises(SourceError, match=r"1\.0\.tar\.gz: neither a wheel \(zip\) nor an sdist"):
        read(packed(cache / "corpus_demo-1.0.tar.gz"), cache.parent)


def test_a_damaged_member_is_named(cache: Path) -> None:
    wheel = write_wheel(cache, {"a.txt": "a" * 1000, "b.txt": "b"})
    content = bytearray(wheel.read_bytes())
    content[45] ^= 0xFF
    wheel.write_bytes(content)
    with pytest.raises(SourceError, match=r"none-any\.whl:a\.txt: cannot be read: "):
        read(packed(wheel), cache.parent)


# ------------------------------------------------------------------------------------ fetching packages


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place where pip looks for packages: a folder."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


METADATA = """Metadata-Version: 2.1
Name: corpus-demo
Version: 1.0
Requires-Python: >=99
Requires-Dist: none-such
"""
WHEEL = {
    "corpus_demo-1.0.dist-info/METADATA": METADATA,
    "corpus_demo-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "corpus_demo-1.0.dist-info/RECORD": "",
    "demo/a.rst": "a",
}
BACKEND = """
from pathlib import Path
def prepare_metadata_for_build_wheel(folder, config_settings=None):
    info = Path(folder, "corpus_demo-1.0.dist-info")
    info.mkdir()
    info.joinpath("METADATA").write_text("Metadata-Version: 2.1\\nName: corpus-demo\\nVersion: 1.0\\n")
    return info.name
"""
SDIST = {
    "corpus_demo-1.0/PKG-INFO": METADATA,
    "corpus_demo-1.0/pyproject.toml": (
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    ),
    "corpus_demo-1.0/backend.py": BACKEND,
    "corpus_demo-1.0/demo/a.rst": "a",
}


def test_a_wheel_is_fetched_once_and_then_needs_no_index(tmp_path: Path, index: Path, cache: Path) -> None:
    wheel = write_wheel(index, WHEEL)
    source = packed(wheel, "demo/*.rst")
    assert fetch_packages([source, local(tmp_path)], cache.parent) == [cache / wheel.name]
    wheel.unlink()
    assert read(source, cache.parent) == {"demo/a.rst": b"a"}
    assert [path.name for path in cache.parent.iterdir()] == [cache.name]


def test_an_sdist_is_fetched_where_its_checksum_is_pinned(index: Path, cache: Path) -> None:
    write_wheel(index, WHEEL)
    sdist = write_sdist(index, SDIST)
    assert read(packed(sdist, "demo/*.rst"), cache.parent) == {"demo/a.rst": b"a"}
    assert [path.name for path in cache.iterdir()] == [sdist.name]


def test_a_fetched_package_with_another_checksum_is_refused_and_not_kept(index: Path, cache: Path) -> None:
    wheel = write_wheel(index, WHEEL)
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    with pytest.raises(SourceError, match=rf"expected sha256 {'0' * 64}, found {found}; "):
        read(packed(wheel, sha256="0" * 64), cache.parent)
    assert list(cache.parent.iterdir()) == []


def test_a_package_that_pip_cannot_find_is_one_clear_line(index: Path, cache: Path) -> None:
    package = PackageParams(index="pypi", name="corpus-demo", version="1.0", sha256="0" * 64)
    with pytest.raises(
        SourceError, match=r"^package corpus-demo 1\.0: cannot be fetched; pip says: No matching [^\n]*$"
    ):
        read(SourceParams(name="s", package=package), cache.parent)


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    plant(tmp_path, "file")
    package = PackageParams(index="pypi", name="corpus-demo", version="1.0", sha256="0" * 64)
    with pytest.raises(SourceError, match=r"file/corpus-demo-1\.0: cannot be written: .*NIMA_CACHE"):
        read(SourceParams(name="s", package=package), tmp_path / "file")
