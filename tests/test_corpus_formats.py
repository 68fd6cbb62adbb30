import json
from io import BytesIO

import pytest

from nima.corpus.document import Message, Rejection
from nima.corpus.formats import Record, read_records
from nima.corpus.sources import SourceFile
from nima.errors import SourceError
from nima.params import SourceParams


def read(name: str, content: bytes, **settings: str) -> list[Record | Rejection]:
    source = SourceParams(name="s", path="unused", **settings)  # type: ignore[arg-type]
    return list(read_records(SourceFile(name, f"data/{name}", lambda: BytesIO(content)), source))


def rejected(name: str, content: bytes, **settings: str) -> Rejection:
    (rejection,) = read(name, content, **settings)
    assert isinstance(rejection, Rejection)
    assert (rejection.source, rejection.key.partition("#")[0]) == ("s", name)
    return rejection


@pytest.mark.parametrize(
    ("name", "markup"),
    [
        ("a.md", "markdown"),
        ("a.MARKDOWN", "markdown"),
        ("a.rst", "rst"),
        ("a.txt", "text"),
        ("LICENSE", "text"),
    ],
)
def test_a_text_file_is_one_record_in_the_markup_of_its_name(name: str, markup: str) -> None:
    assert read(name, b"one\n  two\n") == [Record(name, "one\n  two\n", None, markup, "one\n  two\n")]


def test_the_format_in_params_wins_over_the_name() -> None:
    (record,) = read("a.txt", b"x", format="rst")
    assert record.markup == "rst"


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


def test_an_array_of_questions_becomes_conversations_with_their_raw_text() -> None:
    raw = '{"question": "Q1?",\r\n "answer": "A1\\n```\\n  x\\n```"}'
    content = f'[\n  {raw},\n  {{"question": "Q2", "answer": "A2"}}\n]\n'.encode()
    first, second = read("a.json", content)
    assert first.key == "a.json#0"
    assert first.messages == (Message("user", "Q1?"), Message("assistant", "A1\n```\n  x\n```"))
    assert first.text == ""
    assert first.raw == raw
    assert second.key == "a.json#1"


def test_one_json_object_is_one_record_under_the_files_own_key() -> None:
    (record,) = read("a.json", b' {"text": "hello\\r\\n"} ')
    assert (record.key, record.text, record.messages) == ("a.json", "hello\n", None)


@pytest.mark.parametrize(
    ("record", "text"),
    [
        ({"text": "t"}, "t"),
        ({"content": "c"}, "c"),
        ({"title": "T", "content": "c"}, "T\n\nc"),
        ({"title": None, "text": "t"}, "t"),
    ],
)
def test_a_document_record_may_have_a_title(record: dict[str, str], text: str) -> None:
    (found,) = read("a.json", json.dumps(record).encode())
    assert found.text == text


@pytest.mark.parametrize(
    ("record", "settings", "reason", "detail"),
    [
        ({"question": "q"}, {}, "missing_field", "record 0 (line 1): field 'answer' is missing"),
        (
            {"question": " ", "answer": "a"},
            {},
            "missing_field",
            "record 0 (line 1): field 'question' is empty",
        ),
        ({"text": "t"}, {"record": "qa"}, "missing_field", "record 0 (line 1): field 'question' is missing"),
        ({"body": "t"}, {}, "missing_field", "record 0 (line 1): field 'text' is missing"),
        ({"text": 3}, {}, "wrong_type", "record 0 (line 1): field 'text' must be text, found a number"),
        ("text", {}, "wrong_type", "record 0 (line 1): expected an object, found text"),
        ({"text": "a\0"}, {}, "nul_byte", "character 1 is NUL"),
        ({"text": "a\ud800"}, {}, "invalid_unicode", "half a surrogate pair at character 1"),
    ],
)
def test_an_unusable_record_is_rejected_with_its_reason_and_raw_text(
    record, settings, reason, detail
) -> None:
    raw = json.dumps(record)
    rejection = rejected("a.json", f"[{raw}]".encode(), **settings)
    assert (rejection.reason, rejection.text, rejection.key) == (reason, raw, "a.json#0")
    assert detail in rejection.detail


def test_rejected_records_name_their_index_and_line() -> None:
    records = read("a.json", b'[\n{"text": "a"},\n\n{"text": ""}, {"text": "b"}\n]')
    assert [type(record) for record in records] == [Record, Rejection, Record]
    assert records[1].detail == "record 1 (line 4): field 'text' is empty"


@pytest.mark.parametrize(
    ("content", "line", "message"),
    [
        (b"", 1, "Expecting value"),
        (b'[\n{"text": "a"},\n{"text": }]', 3, "Expecting value"),
        (b'[{"text": "a"}\n{"text": "b"}]', 2, "expected ',' or ']' after a record"),
        (b'[{"text": "a"},\n', 2, "Expecting value"),
        (b'{"text": "a"}\n{"text": "b"}', 2, "nothing may follow"),
        (b"[]\nx", 2, "nothing may follow"),
        (b"[" + b"9" * 5000 + b"]", 1, "Exceeds the limit"),
        (b"\n" + b"[" * 100_000, 2, "recursion"),
    ],
)
def test_malformed_json_names_file_and_line(content: bytes, line: int, message: str) -> None:
    with pytest.raises(SourceError, match=rf"^data/a\.json:{line}: malformed JSON: .*{message}"):
        read("a.json", content)


def test_json_that_is_not_utf8_names_file_line_and_byte() -> None:
    with pytest.raises(SourceError, match=r"^data/a\.json:2: not UTF-8: byte 12: invalid start byte$"):
        read("a.json", b'\xef\xbb\xbf[\n"text":\xff]')


def test_a_bare_value_is_no_record() -> None:
    with pytest.raises(SourceError, match=r"^data/a\.json:1: expected an array .*, found a number$"):
        read("a.json", b"3")


def test_an_empty_array_holds_no_records() -> None:
    assert read("a.json", b" [ ] ") == []


def test_json_lines_are_read_one_by_one_and_bad_lines_rejected() -> None:
    content = b'\xef\xbb\xbf{"text": "a"}\r\n\n{"text": \n{"text": "\xff"}\n{"question": "q", "answer": "a"}'
    first, malformed, undecodable, last = read("a.jsonl", content)
    assert (first.key, first.text, first.raw) == ("a.jsonl#0", "a", '{"text": "a"}')
    assert (malformed.key, malformed.reason, malformed.text) == ("a.jsonl#1", "malformed_json", '{"text": ')
    assert malformed.detail.startswith("record 1 (line 3): ")
    assert undecodable.reason == "invalid_utf8"
    assert undecodable.detail == f"record 2 (line 4): byte {content.index(255)}: invalid start byte"
    assert undecodable.raw == b'{"text": "\xff"}'
    assert last.key == "a.jsonl#3"
    assert last.messages is not None


def test_json_lines_are_not_read_ahead() -> None:
    stream = BytesIO(b'{"text": "a"}\n' * 100_000)
    records = read_records(SourceFile("a.jsonl", "a.jsonl", lambda: stream), SourceParams(name="s", path="x"))
    next(records)
    assert stream.tell() == len(b'{"text": "a"}\n')
