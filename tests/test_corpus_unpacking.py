import bz2
import gzip
import json
import lzma
import random

import pytest
import zstandard
from held_files import HeldFile, read, rejected, source_of, summary

from nima.corpus.formats.formats import read_records
from nima.workspace.errors import SourceError
from nima.workspace.params import LimitsParams

PACKERS = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstandard.compress}
SUFFIXES = sorted(PACKERS)


def lines(count: int, chars: int = 100) -> bytes:
    words = random.Random(0)
    return b"".join(
        json.dumps({"text": f"{number} {words.randbytes(chars // 2).hex()}"}).encode() + b"\n"
        for number in range(count)
    )


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_packed_files_read_like_plain_ones(suffix: str) -> None:
    pack = PACKERS[suffix]
    content = lines(500)
    plain = read("a.jsonl", content)
    assert summary(read(f"a.JSONL.{suffix}", pack(content))) == summary(plain)
    assert summary(read(f"a.txt.{suffix}", pack(b"text"))) == ["text"]
    assert summary(read(f"a.csv.{suffix}", pack(b"text\na\n"))) == ["a"]
    assert read(f"a.{suffix}", pack(b"text"), format="markdown")[0].markup == "markdown"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_streams_that_follow_each_other_are_one_file(suffix: str) -> None:
    pack = PACKERS[suffix]
    assert summary(read(f"a.txt.{suffix}", pack(b"one ") + pack(b"") + pack(b"two"))) == ["one two"]


def test_what_follows_a_whole_stream_of_gz_does_not_spoil_it() -> None:
    outcomes = read("a.jsonl.gz", gzip.compress(lines(3)) + b"garbage")
    assert summary(outcomes) == [*summary(read("a.jsonl", lines(3))), "damaged"]


def test_skippable_frames_of_zstd_are_skipped() -> None:
    skipped = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"abcde"
    assert summary(read("a.txt.zst", skipped + zstandard.compress(b"text") + skipped)) == ["text"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_records_before_a_cut_survive_and_the_rest_is_one_rejection(suffix: str) -> None:
    content = lines(6000)
    packed = PACKERS[suffix](content)
    *whole, last = read(f"a.jsonl.{suffix}", packed[: len(packed) * 2 // 3])
    assert len(whole) > 500 or suffix == "bz2"
    assert summary(whole) == summary(read("a.jsonl", content))[: len(whole)]
    assert (last.reason, last.key) == ("truncated", f"a.jsonl.{suffix}#{len(whole)}")
    assert last.detail.startswith(f"line {len(whole) + 1}: {suffix}: ")
    assert "reading ended here" in last.detail


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", ["json", "csv", "txt", "yaml", "html"])
def test_every_format_tells_of_a_cut(suffix: str, name: str) -> None:
    content = b"[" + lines(3000).replace(b"\n", b",\n")[:-2] + b"]"
    content = content if name in ("json", "yaml") else content.replace(b'"', b"").replace(b",", b"")
    packed = PACKERS[suffix](content)
    assert read(f"a.{name}.{suffix}", packed)
    outcomes = read(f"a.{name}.{suffix}", packed[: len(packed) // 2])
    assert [outcome for outcome in summary(outcomes) if outcome == "truncated"] == ["truncated"]
    assert outcomes[-1].reason == "truncated"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_of_a_file_that_is_damaged_inside_nothing_is_trusted(suffix: str) -> None:
    pack = PACKERS[suffix] if suffix != "zst" else zstandard.ZstdCompressor(write_checksum=True).compress
    packed = bytearray(pack(lines(6000)))
    packed[len(packed) // 2 : len(packed) // 2 + 50] = bytes(50)
    (rejection,) = read(f"a.jsonl.{suffix}", bytes(packed))
    assert (rejection.reason, rejection.text) == ("damaged", "")
    assert rejection.detail.startswith(f"line 1: {suffix}: ")
    assert rejected(f"a.json.{suffix}", bytes(packed)).reason == "damaged"
    assert rejected(f"a.csv.{suffix}", bytes(packed)).reason == "damaged"
    assert rejected(f"a.txt.{suffix}", bytes(packed)).reason == "damaged"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_not_packed_is_told_as_such(suffix: str) -> None:
    rejection = rejected(f"a.txt.{suffix}", b"plain text")
    assert rejection.reason == "damaged"
    assert rejection.detail.startswith(f"{suffix}: ")
    assert rejected(f"a.txt.{suffix}", b"").reason == "truncated"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_bomb_goes_no_further_than_the_ratio_allows(suffix: str) -> None:
    bomb = PACKERS[suffix](b'{"text": "a"}\n' + b"\0" * 100_000_000)
    limits = {"max_record_bytes": 1_000_000, "max_archive_ratio": 50}
    first, last = read(f"a.jsonl.{suffix}", bomb, limits)
    assert first.text == "a"
    assert last.reason == "too_large"
    assert last.detail.endswith("(prepare.limits.max_archive_ratio)")
    assert len(last.text) <= 1_000_000


def test_unpacked_bytes_have_a_limit() -> None:
    packed = gzip.compress(lines(1000))
    outcomes = read("a.jsonl.gz", packed, {"max_archive_bytes": 50_000})
    assert 1 < len(outcomes) < 1000
    assert outcomes[-1].reason == "too_large"
    assert "more than 50000 bytes" in outcomes[-1].detail
    assert outcomes[-1].detail.endswith("(prepare.limits.max_archive_bytes)")


def test_short_files_may_be_packed_at_any_ratio() -> None:
    assert (
        len(read("a.txt.gz", gzip.compress(b"x" * 5_000_000), {"max_archive_ratio": 1})[0].text) == 5_000_000
    )


def test_an_error_of_the_disk_is_no_damage_of_the_file() -> None:
    class Failing(HeldFile):
        def open(self):  # type: ignore[no-untyped-def]
            raise SourceError(f"{self.place}: cannot be read: Input/output error")

    class FailingLater(HeldFile):
        def open(self):  # type: ignore[no-untyped-def]
            return Stream()

    class Stream:
        def __enter__(self):  # type: ignore[no-untyped-def]
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def read(self, size: int = -1) -> bytes:
            raise OSError(5, "Input/output error")

        def fileno(self) -> int:
            raise OSError("none")

    for name in ("a.txt", "a.jsonl.gz", "a.csv.zst", "a.json.xz", "a.txt.bz2", "a.parquet"):
        with pytest.raises(SourceError):
            list(read_records(Failing(name, b""), source_of(), LimitsParams()))
        with pytest.raises(OSError, match="Input/output error"):
            list(read_records(FailingLater(name, b""), source_of(), LimitsParams()))
