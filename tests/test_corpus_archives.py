import bz2
import contextlib
import gzip
import io
import lzma
import multiprocessing
import random
import stat
import struct
import subprocess
import sys
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nima.corpus.sources.archives import is_archive
from nima.corpus.sources.files import SourceFile
from nima.corpus.sources.sources import files_of
from nima.workspace.errors import SourceError
from nima.workspace.params import LimitsParams, SourceParams

MEMBERS = {"docs/b.rst": b"b", "docs/x/y/a.rst": b"a", "docs/a.rst": b"c" * 300_000, "code.py": b"d"}
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".tar": bytes,
    ".tar.gz": gzip.compress,
    ".tgz": gzip.compress,
    ".tar.bz2": bz2.compress,
    ".tar.xz": lzma.compress,
    ".tar.zst": zstandard.compress,
}


def write_zip(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def write_tar(path: Path, members: dict[str, bytes], *others: tarfile.TarInfo) -> Path:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for other in others:
            archive.addfile(other)
    path.write_bytes(PACKERS["." + path.name.partition(".")[2]](buffer.getvalue()))
    return path


def write(path: Path, members: dict[str, bytes]) -> Path:
    return (write_zip if path.suffix in (".zip", ".whl") else write_tar)(path, members)


def listed(
    path: Path | list[Path], glob: str = "**/*", limits: LimitsParams | None = None, **how: object
) -> list[SourceFile]:
    where = list(map(str, path)) if isinstance(path, list) else str(path)
    source = SourceParams(name="s", path=where, glob=glob, **how)  # type: ignore[arg-type]
    top = path[0] if isinstance(path, list) else path
    return list(files_of(source, Path("none"), limits or LimitsParams(), top.parent / "scratch"))


def content_of(file: SourceFile) -> bytes:
    with file.open() as stream:
        return stream.read()


def read(path: Path | list[Path], glob: str = "**/*", **how: object) -> dict[str, bytes]:
    return {file.key: content_of(file) for file in listed(path, glob, **how)}  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------- reading in place


@pytest.mark.parametrize("suffix", [".zip", ".whl", *PACKERS])
def test_files_inside_an_archive_are_read_in_order_of_their_names(tmp_path: Path, suffix: str) -> None:
    archive = write(tmp_path / f"a{suffix}", MEMBERS)
    found = read(archive, "docs/**/*.rst", exclude=["docs/x/**"])
    assert list(found.items()) == [("docs/a.rst", MEMBERS["docs/a.rst"]), ("docs/b.rst", b"b")]


@pytest.mark.parametrize("suffix", [".zip", ".whl", *PACKERS, ".TAR.GZ"])
def test_a_name_tells_an_archive(suffix: str) -> None:
    assert is_archive(f"a{suffix}")
    assert not is_archive(f"a{suffix}.txt")


def test_a_file_in_an_archive_is_called_by_both_names(tmp_path: Path) -> None:
    (file,) = listed(write_zip(tmp_path / "a.zip", {"docs/a.md": b"text"}))
    assert (file.key, file.place, file.num_bytes) == ("docs/a.md", f"{tmp_path}/a.zip:docs/a.md", 4)


def test_several_archives_have_their_own_names_before_the_keys(tmp_path: Path) -> None:
    archives = [write_zip(tmp_path / "a.zip", {"x.md": b"1"}), write_tar(tmp_path / "b.tar", {"x.md": b"2"})]
    assert read(archives) == {"a.zip/x.md": b"1", "b.tar/x.md": b"2"}
    assert read(tmp_path / "*.zip") == {"a.zip/x.md": b"1"}


def test_an_archive_in_a_folder_or_in_an_archive_is_a_file_like_any_other(tmp_path: Path) -> None:
    inner = write_zip(tmp_path / "inner.zip", {"x.md": b"1"}).read_bytes()
    outer = write_zip(tmp_path / "outer.zip", {"inner.zip": inner, "y.md": b"2"})
    assert read(outer) == {"inner.zip": inner, "y.md": b"2"}
    assert read(tmp_path, "inner.*") == {"inner.zip": inner}


@pytest.mark.parametrize("name", ["a.zip", "a.tar"])
def test_keys_are_names_without_dots_and_hidden_files_are_left_out(tmp_path: Path, name: str) -> None:
    members = {"./docs/a.md": b"1", ".git/config": b"2", "docs/.b.md": b"3"}
    assert read(write(tmp_path / name, members)) == {"docs/a.md": b"1"}


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz"])
def test_a_file_in_an_archive_can_be_searched_like_one_on_disk(tmp_path: Path, suffix: str) -> None:
    table = pa.table({"text": [f"line {number}" for number in range(50_000)]})
    pq.write_table(table, tmp_path / "t.parquet")
    archive = write(tmp_path / f"a{suffix}", {"t.parquet": (tmp_path / "t.parquet").read_bytes()})
    (file,) = listed(archive)
    with file.open() as stream:
        assert pq.read_table(stream) == table
    with file.open() as stream:
        assert stream.seek(-4, io.SEEK_END) == file.num_bytes - 4
        assert stream.read() == b"PAR1"
        stream.seek(0)
        assert stream.read(4) == b"PAR1"
        assert stream.seek(0, io.SEEK_CUR) == 4
        assert stream.seek(10**9) == 10**9
        assert stream.read() == b""


def test_opening_a_file_in_a_zip_does_not_read_the_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = listed(write_zip(tmp_path / "a.zip", MEMBERS))
    monkeypatch.delattr(zipfile, "ZipFile")
    assert {file.key: content_of(file) for file in files} == MEMBERS


def test_nothing_of_a_zip_is_written_to_disk(tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "a.zip", MEMBERS)
    read(archive)
    assert list(tmp_path.iterdir()) == [archive]


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz"])
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes_read_the_same_archive_at_once(tmp_path: Path, suffix: str, method: str) -> None:
    draw = random.Random(3)
    members = {f"{number}.txt": draw.randbytes(50_000) for number in range(20)}
    files = listed(write(tmp_path / f"a{suffix}", members))
    with files[0].open() as stream, multiprocessing.get_context(method).Pool(2) as pool:
        stream.read(1)
        found = pool.map(content_of, files, chunksize=1)
    assert found == [members[file.key] for file in files]


# --------------------------------------------------------------------------------------- compressed tars


def test_a_compressed_tar_is_unpacked_once_and_gone_when_the_program_ends(tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "a.tar.gz", MEMBERS)
    code = f"""
from pathlib import Path
from nima.corpus.sources.sources import files_of
from nima.workspace.params import LimitsParams, SourceParams
scratch = Path({str(tmp_path / "scratch")!r})
files = list(files_of(SourceParams(name="s", path={str(archive)!r}), Path("none"), LimitsParams(), scratch))
plain, = scratch.iterdir()
stamp = plain.stat().st_mtime_ns
for file in files:
    with file.open() as stream:
        stream.read()
assert plain.stat().st_mtime_ns == stamp and [plain] == list(scratch.iterdir())
"""
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_compressed_tar_is_unpacked_again_where_its_plain_form_is_missing(tmp_path: Path) -> None:
    files = listed(write_tar(tmp_path / "a.tar.xz", MEMBERS))
    (plain,) = (tmp_path / "scratch").iterdir()
    plain.unlink()
    assert content_of(files[1]) == MEMBERS[files[1].key]


def test_a_folder_that_cannot_hold_the_plain_form_is_named(tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "a.tar.gz", MEMBERS)
    (tmp_path / "scratch").write_text("a file")
    with pytest.raises(SourceError, match=r"scratch: cannot be written: File exists$"):
        read(archive)


# -------------------------------------------------------------------------------------- hostile archives


@pytest.mark.parametrize("name", ["../evil.rst", "/evil.rst", "docs/../../evil.rst", "..\\evil.rst"])
@pytest.mark.parametrize("archive", ["a.zip", "a.tar.gz"])
def test_a_name_that_points_outside_the_archive_is_refused(tmp_path: Path, archive: str, name: str) -> None:
    path = write(tmp_path / archive, MEMBERS | {name: b"evil"})
    with pytest.raises(
        SourceError, match=r"holds a file named '.*evil\.rst', which points outside the archive"
    ):
        read(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("archive", ["a.zip", "a.tar"])
def test_two_files_of_one_name_are_refused(tmp_path: Path, archive: str) -> None:
    path = write(tmp_path / archive, {"a.md": b"1", "./a.md": b"2"})
    with pytest.raises(SourceError, match=r"holds two files named 'a\.md'; pack the archive anew$"):
        read(path)


def directory_entry(archive: bytes, name: bytes) -> int:
    """Where the zip directory's entry of a file begins."""
    return archive.index(name, archive.index(b"PK\x01\x02")) - 46


def patched(path: Path, offset: int, layout: str, *values: int) -> None:
    content = bytearray(path.read_bytes())
    struct.pack_into(layout, content, offset, *values)
    path.write_bytes(content)


def test_entries_that_share_bytes_are_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"a.txt": b"a" * 10_000, "b.txt": b"b" * 10_000})
    entry = directory_entry(path.read_bytes(), b"b.txt")
    patched(path, entry + 42, "<L", 0)
    with pytest.raises(SourceError, match=r"a\.zip: '.\.txt' overlaps what follows it"):
        read(path)


def test_an_entry_that_reaches_beyond_the_files_is_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"a.txt": b"a" * 10_000})
    patched(path, directory_entry(path.read_bytes(), b"a.txt") + 20, "<L", 5_000)
    with pytest.raises(SourceError, match=r"a\.zip: 'a\.txt' overlaps what follows it"):
        read(path)


def test_a_file_that_unpacks_without_end_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = write_zip(
        tmp_path / "a.zip", {"bomb.txt": bytes(5_000_000), "small.txt": bytes(500_000), "a.md": b"a"}
    )
    message = (
        r"a\.zip:'bomb\.txt': it unpacks from \d+ to 5000000 bytes, more than prepare\.limits\.max_archive_"
    )
    with pytest.raises(SourceError, match=message + r"ratio \(200\) allows; exclude the file, or"):
        read(path)
    assert set(read(path, exclude=["bomb.txt"])) == {"small.txt", "a.md"}
    assert len(read(path, limits=LimitsParams(max_archive_ratio=2000))["bomb.txt"]) == 5_000_000


def test_a_bomb_that_lies_about_its_size_fills_no_memory(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"bomb.txt": bytes(80_000_000)})
    patched(path, directory_entry(path.read_bytes(), b"bomb.txt") + 24, "<L", 90_000)
    (file,) = listed(path)
    tracemalloc.start()
    with pytest.raises(SourceError, match=r"bomb\.txt: cannot be read: holds more than the 90000 bytes"):
        content_of(file)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 2_000_000


@pytest.mark.parametrize("suffix", [".tar.gz", ".tar.xz", ".tar.bz2", ".tar.zst"])
def test_a_compressed_tar_that_unpacks_without_end_is_stopped(tmp_path: Path, suffix: str) -> None:
    path = write_tar(tmp_path / f"a{suffix}", {"bomb.txt": bytes(20_000_000)})
    limits = LimitsParams(max_archive_ratio=2)
    message = (
        r"a\.tar\.\w+: unpacks to more than 1000000 bytes, which prepare\.limits\.max_archive_ratio \(2\)"
    )
    with pytest.raises(SourceError, match=message):
        read(path, limits=limits)
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz"])
def test_an_archive_may_hold_so_many_bytes_in_all(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"a{suffix}", {"a.txt": bytes(30_000), "b.txt": bytes(30_000)})
    assert len(read(path, limits=LimitsParams(max_archive_bytes=100_000))) == 2
    with pytest.raises(SourceError, match=r"prepare\.limits\.max_archive_bytes \(50000\)"):
        read(path, limits=LimitsParams(max_archive_bytes=50_000))


def test_an_encrypted_file_is_named_if_it_is_wanted(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"a.txt": b"a", "b.txt": b"b"})
    patched(path, directory_entry(path.read_bytes(), b"b.txt") + 8, "<H", 1)
    assert read(path, "a.txt") == {"a.txt": b"a"}
    with pytest.raises(SourceError, match=r"a\.zip:'b\.txt': it is encrypted; exclude the file, or pack"):
        read(path)


def test_a_packing_that_is_not_known_is_named(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"a.txt": b"a" * 100}, zipfile.ZIP_BZIP2)
    with pytest.raises(SourceError, match=r"'a\.txt': it is packed by method 12; only stored and deflated"):
        read(path)


def test_links_and_devices_hold_no_text(tmp_path: Path) -> None:
    others = []
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
        other = tarfile.TarInfo(f"other-{kind!r}")
        other.type, other.linkname = kind, "/etc/passwd"
        others.append(other)
    assert read(write_tar(tmp_path / "a.tar", {"a.md": b"a"}, *others)) == {"a.md": b"a"}
    path = write_zip(tmp_path / "a.zip", {"a.md": b"a"})
    with zipfile.ZipFile(path, "a") as archive:
        link = zipfile.ZipInfo("link.md")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    assert read(path) == {"a.md": b"a"}


def test_a_file_with_holes_is_named(tmp_path: Path) -> None:
    holes = tarfile.TarInfo("holes.txt")
    holes.type = tarfile.GNUTYPE_SPARSE
    path = write_tar(tmp_path / "a.tar", {"a.md": b"a"}, holes)
    with pytest.raises(SourceError, match=r"'holes\.txt': it is stored with holes \(sparse\)"):
        read(path)


def test_a_name_that_is_not_utf8_is_refused_if_it_is_wanted(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"a.md": b"a", "caf\udce9.md": b"b"})
    assert read(path, "a.*") == {"a.md": b"a"}
    with pytest.raises(SourceError, match=r"'caf\\udce9\.md': its name is not UTF-8"):
        read(path)


# -------------------------------------------------------------------------------------- broken archives


@pytest.mark.parametrize("suffix", [".zip", *PACKERS])
def test_what_is_no_archive_is_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"this is no archive, whatever its name says" * 50)
    with pytest.raises(
        SourceError, match=rf"^{path}: (no \w+ archive, or a broken one|cannot be unpacked): "
    ):
        read(path)


@pytest.mark.parametrize("suffix", [".zip", *PACKERS])
def test_an_archive_that_is_cut_off_is_named(tmp_path: Path, suffix: str) -> None:
    draw = random.Random(1)
    path = write(tmp_path / f"a{suffix}", {f"{name}.txt": draw.randbytes(4000) for name in "abc"})
    content = path.read_bytes()
    for length in range(0, min(len(content) - 1, 13_000), 1111):
        path.write_bytes(content[:length])
        with pytest.raises(SourceError, match=rf"^{path}: "):
            read(path)


def test_a_tar_that_ends_between_two_files_is_cut_off(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"a.txt": bytes(512), "b.txt": bytes(512)})
    path.write_bytes(path.read_bytes()[:1024])
    with pytest.raises(SourceError, match=r"a\.tar: cut off or damaged at byte 1024"):
        read(path)


def test_a_tar_with_a_damaged_header_loses_nothing_in_silence(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"a.txt": b"a", "b.txt": b"b", "c.txt": b"c"})
    patched(path, 1024 + 10, "<L", 12345)
    with pytest.raises(SourceError, match=r"a\.tar: cut off or damaged at byte 1024"):
        read(path)


def test_two_tars_in_one_file_are_refused(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"a.txt": b"a"})
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(SourceError, match=r"a\.tar: cut off or damaged at byte 1024"):
        read(path)


def test_a_header_that_claims_gigabytes_is_refused(tmp_path: Path) -> None:
    huge = tarfile.TarInfo("././@LongLink")
    huge.type, huge.size = tarfile.GNUTYPE_LONGNAME, 5_000_000_000
    path = tmp_path / "a.tar"
    path.write_bytes(huge.tobuf() + bytes(2_000_000))
    with pytest.raises(
        SourceError, match=r"a\.tar: no tar archive, or a broken one: a file's header claims 50"
    ):
        read(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_damaged_file_in_a_zip_is_named(tmp_path: Path, method: int) -> None:
    path = write_zip(tmp_path / "a.zip", {"a.txt": bytes(range(256)) * 4, "b.txt": b"b"}, method)
    patched(path, 60, "<B", path.read_bytes()[60] ^ 0xFF)
    assert read(path, "b.txt") == {"b.txt": b"b"}
    with pytest.raises(SourceError, match=r"a\.zip:a\.txt: cannot be read: "):
        read(path)


def test_an_archive_that_changes_while_it_is_read_is_named(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", MEMBERS)
    file = listed(path)[0]
    changed = pytest.raises(SourceError, match=r"a\.zip:code\.py: changed while it was read")
    with changed, file.open() as stream:
        stream.read()
        write_zip(path, MEMBERS | {"more.txt": b"more"})


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    suffix=st.sampled_from([".zip", ".tar", ".tar.gz", ".tar.zst"]),
    changes=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8
    ),
)
def test_a_damaged_archive_ends_in_contents_or_in_a_clear_error(
    tmp_path: Path, suffix: str, changes: list[tuple[float, int]]
) -> None:
    members = {"docs/a.md": b"some text " * 30, "b.txt": b"b"}
    path = write(tmp_path / f"a{suffix}", members)
    content = bytearray(path.read_bytes())
    for where, value in changes:
        content[int(where * len(content))] = value
    path.write_bytes(content)
    with contextlib.suppress(SourceError):
        assert len(read(path)) <= len(members)
