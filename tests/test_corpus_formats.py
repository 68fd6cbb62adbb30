import gzip
import json
import pickle
from pathlib import Path

import pytest
from held_files import HeldFile, read, rejected, source_of, summary

from nima.corpus.formats.formats import Record, is_splittable, read_records
from nima.corpus.quality.blocks import verbatim_lines
from nima.workspace.errors import SourceError
from nima.workspace.params import LimitsParams


@pytest.mark.parametrize(
    ("name", "markup"),
    [
        ("a.md", "markdown"),
        ("a.MARKDOWN", "markdown"),
        ("a.mdx", "markdown"),
        ("a.rst", "rst"),
        ("a.txt", "text"),
        ("LICENSE", "text"),
        ("a.py", "code"),
        ("a.jsx", "code"),
        ("a.ts", "code"),
        ("a.xml", "code"),
    ],
)
def test_a_text_file_is_one_record_in_the_markup_of_its_name(name: str, markup: str) -> None:
    expected = Record(name, "one\n  two\n", None, markup, "one\n  two\n")
    assert read(name, b"one\n  two\n") == [expected]


def test_the_format_in_params_wins_over_the_name() -> None:
    (record,) = read("a.txt", b"x", format="rst")
    assert record.markup == "rst"


@pytest.mark.parametrize("name", ["python", "javascript", "typescript", "xml"])
def test_source_code_stays_to_the_byte_when_it_is_cleaned(name: str) -> None:
    (record,) = read("a.txt", b"if x:   \n\n\n\n\ty = '\x07'  \n# \xc2\xa0\n", format=name)
    lines = record.text.split("\n")
    assert verbatim_lines(lines, record.markup) == [True] * len(lines)
    assert record.text == "if x:   \n\n\n\n\ty = '\x07'  \n# \xa0\n"


def test_mdx_keeps_its_imports_and_components() -> None:
    page = "import Tabs from '@theme/Tabs'\n\n<Tabs groupId=\"os\">\n  **bold** {value}\n</Tabs>\n"
    (record,) = read("a.mdx", page.encode())
    assert (record.text, record.markup) == (page, "markdown")


def test_byte_order_mark_and_foreign_newlines_go_and_the_raw_text_stays() -> None:
    (record,) = read("a.md", b"\xef\xbb\xbfa\r\nb\rc\n")
    assert (record.text, record.raw) == ("a\nb\nc\n", "a\r\nb\rc\n")


def test_invalid_utf8_is_rejected_with_its_byte_and_kept_whole() -> None:
    rejection = rejected("a.md", b"\xef\xbb\xbfcaf\xe9!")
    assert (rejection.reason, rejection.detail) == ("invalid_utf8", "byte 6: invalid continuation byte")
    assert rejection.raw == b"\xef\xbb\xbfcaf\xe9!"
    assert rejection.text.endswith("caf\\xe9!")


def test_a_nul_byte_is_rejected_and_kept_whole() -> None:
    rejection = rejected("a.md", b"a\0b")
    assert (rejection.reason, rejection.raw) == ("nul_byte", b"a\0b")
    assert "character 1 is NUL" in rejection.detail


def test_a_text_longer_than_a_record_may_be_is_rejected_and_its_beginning_kept() -> None:
    rejection = rejected("a.md", b"x" * 200_001, {"max_record_bytes": 200_000})
    assert rejection.reason == "too_large"
    assert "prepare.limits.max_record_bytes" in rejection.detail
    assert "its first 65536 bytes are kept" in rejection.detail
    assert rejection.text == "x" * 65_536
    assert len(read("a.md", b"x" * 200_000, {"max_record_bytes": 200_000})[0].text) == 200_000


def test_an_endless_file_is_left_once_it_is_too_long() -> None:
    class Endless(HeldFile):
        def open(self):  # type: ignore[no-untyped-def]
            return Path("/dev/zero").open("rb")

    file, source = Endless("a.txt", b""), source_of()
    limits = LimitsParams(max_record_bytes=1_000_000, max_file_bytes=1_000_000)
    for name in ("text", "json", "yaml", "html", "python"):
        (outcome,) = read_records(file, source.model_copy(update={"format": name}), limits)
        assert outcome.reason == "too_large"


@pytest.mark.parametrize(
    ("group_by", "key", "group"),
    [
        (None, "a/b/c.jsonl", ""),
        ("file", "a/b/c.jsonl", "a/b/c.jsonl"),
        ("folder", "a/b/c.jsonl", "a/b"),
        ("folder", "c.jsonl", "."),
        ("field:topic", "a/b/c.jsonl", "dns"),
        ("field:meta.number", "a/b/c.jsonl", "7"),
    ],
)
def test_records_carry_the_group_that_their_source_asks_for(group_by, key, group) -> None:
    content = b'{"text": "t", "topic": "dns", "meta": {"number": 7}}'
    (record,) = read(key, content, group_by=group_by)
    assert record.group == group


def test_a_record_without_the_field_that_groups_is_rejected() -> None:
    assert (
        "by which the source groups" in rejected("a.jsonl", b'{"text": "t"}', group_by="field:topic").detail
    )
    assert rejected("a.md", b"text", group_by="field:topic").reason == "missing_field"
    assert rejected("a.jsonl", b'{"text": "t", "topic": []}', group_by="field:topic").reason == "wrong_type"


def test_a_text_file_is_grouped_by_its_folder() -> None:
    assert read("x/y.md", b"t", group_by="folder")[0].group == "x"


def test_an_unknown_encoding_is_one_clear_line() -> None:
    for name in ("klingon", "rot13", "a\0b"):
        with pytest.raises(SourceError, match=r"^data/a\.md: encoding .* is unknown; [^\n]*$"):
            read("a.md", b"x", encoding=name)


def test_records_and_rejections_travel_between_processes() -> None:
    outcomes = read("a.jsonl", b'{"text": "a"}\n{"question": "q", "answer": "a"}\nx\n')
    assert pickle.loads(pickle.dumps(outcomes)) == outcomes


def test_the_raw_text_of_a_row_is_written_only_when_it_is_asked_for() -> None:
    row = {"text": "a", "bytes": b"\xff", "lone": "\udc80"}
    record = Record("k", "a", None, "markdown", row)
    assert record.origin is row
    assert json.loads(record.raw)["text"] == "a"
    assert record.raw.encode()


def test_json_lines_are_split_only_where_a_byte_ends_every_line(tmp_path) -> None:
    from nima.corpus.sources.files import local_file

    content = '{"text": "ä"}\n'
    for name, data, encoding, expected in [
        ("a.jsonl", content.encode(), "utf-8", True),
        ("a.ndjson", b"\xef\xbb\xbf" + content.encode(), "utf-8", True),
        ("b.jsonl", content.encode("cp1252"), "cp1252", True),
        ("c.jsonl", content.encode("cp1252"), "auto", True),
        ("d.jsonl", content.encode("utf-16"), "utf-8", False),
        ("e.jsonl", content.encode("utf-16-le"), "utf-16", False),
        ("a.jsonl.gz", gzip.compress(content.encode()), "utf-8", False),
        ("a.json", content.encode(), "utf-8", False),
        ("a.md", content.encode(), "utf-8", False),
        ("f.jsonl", content.encode(), "klingon", False),
    ]:
        (tmp_path / name).write_bytes(data)
        source = source_of(encoding=encoding)
        assert is_splittable(local_file(tmp_path / name, name), source) is expected, name


def test_a_file_that_is_gone_is_not_splittable(tmp_path) -> None:
    from nima.corpus.sources.files import local_file

    path = tmp_path / "a.jsonl"
    path.write_text("{}\n")
    file = local_file(path, "a.jsonl")
    path.unlink()
    assert not is_splittable(file, source_of())


def test_files_of_all_formats_with_nothing_in_them_hold_no_record() -> None:
    for name in ("a.jsonl", "a.csv", "a.tsv", "a.yaml"):
        assert read(name, b"") == [], name
        assert read(f"{name}.gz", gzip.compress(b"")) == [], name
    assert summary(read("a.json", b"")) == ["malformed_json"]
    assert summary(read("a.parquet", b"")) == ["damaged"]
