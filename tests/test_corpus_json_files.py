import itertools
import json
import time
import tracemalloc
from io import BytesIO
from typing import Any

import pytest
from held_files import HeldFile, read, rejected, source_of, summary

from nima.corpus.document import Rejection
from nima.corpus.formats.formats import Span, read_records
from nima.corpus.sources.files import local_file
from nima.workspace.params import LimitsParams

# ---------------------------------------------------------------------------------- shapes of a JSON file


def test_an_array_gives_its_records_with_their_raw_text() -> None:
    raw = '{"question": "Q1?",\r\n "answer": "A1"}'
    first, second = read("a.json", f'[\n  {raw},\n  {{"question": "Q2", "answer": "A2"}}\n]\n'.encode())
    assert (first.key, first.raw, second.key) == ("a.json#0", raw, "a.json#1")
    assert summary([first, second]) == ["user: Q1? | assistant: A1", "user: Q2 | assistant: A2"]


def test_a_file_of_bad_records_only_takes_no_longer_than_one_of_good_ones() -> None:
    content = b"[" + b"{'text':\n\n'python, not JSON'},\n" * 50_000 + b'{"text": "a"}]'
    started = time.process_time()
    outcomes = read("a.json", content)
    assert time.process_time() - started < 10
    assert summary(outcomes) == ["malformed_json"] * 50_000 + ["a"]


def test_many_brackets_in_a_text_are_no_depth() -> None:
    brackets = "[" * 500 + "{" * 500
    assert summary(read("a.jsonl", json.dumps({"text": brackets}).encode())) == [brackets]
    assert summary(read("a.jsonl", json.dumps(brackets).encode())) == ["wrong_type"]
    assert summary(read("a.json", json.dumps({brackets: [{"text": "a"}]}).encode())) == ["a"]


def test_one_object_is_one_record_under_the_files_own_key() -> None:
    (record,) = read("a.json", b' {"text": "hello\\r\\n"} ')
    assert (record.key, record.text, record.messages) == ("a.json", "hello\n", None)


@pytest.mark.parametrize("name", ["data", "examples", "rows", "train", "anything"])
def test_an_object_with_one_list_gives_the_records_of_the_list(name: str) -> None:
    content = json.dumps({"version": 1, "tags": ["x"], name: [{"text": "a"}, {"text": "b"}], "more": {}})
    first, second = read("a.json", content.encode())
    assert (first.key, first.text, first.raw) == ("a.json#0", "a", '{"text": "a"}')
    assert (second.key, second.text) == ("a.json#1", "b")


def test_several_lists_are_never_chosen_from() -> None:
    lists = {"train": [{"text": "a"}], "test": [{"text": "b"}]}
    rejection = rejected("a.json", json.dumps(lists).encode())
    assert (rejection.reason, rejection.key) == ("ambiguous", "a.json")
    assert "'train', 'test'" in rejection.detail


def test_an_object_of_objects_maps_ids_to_records() -> None:
    content = b'{"x7": {"text": "a"},\n "b2": {"question": "q", "answer": "a"}, "c": {}}'
    first, second, bad = read("a.json", content)
    assert (first.key, first.raw) == ("a.json#0", '{"text": "a"}')
    assert summary([second]) == ["user: q | assistant: a"]
    assert bad.detail.startswith("record 2 (line 2, 'c'): field 'text' is missing")


def test_an_id_that_stands_twice_loses_only_its_later_record() -> None:
    outcomes = read("a.json", b'{"x": {"text": "a"}, "x": {"text": "b"}, "y": {"text": "c"}}')
    assert summary(outcomes) == ["a", "duplicate_key", "c"]


def test_ids_may_lead_to_conversations() -> None:
    turns = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]
    content = {"x": {"messages": turns}, "y": {"messages": turns}}
    assert summary(read("a.json", json.dumps(content).encode())) == ["user: u | assistant: a"] * 2
    assert summary(read("a.json", json.dumps({"x": turns, "y": turns}).encode())) == [
        "user: u | assistant: a",
        "user: u | assistant: a",
    ]


def test_logs_of_two_senders_by_id_are_conversations() -> None:
    groups = [[{"text": "hi", "sender": "p"}], [{"text": "yo", "sender": "q"}, {"text": "!", "sender": "q"}]]
    content = {"t_1": {"messages": groups, "ratings": {"p": 1}}, "t_2": {"messages": groups[:1]}}
    outcomes = read("a.json", json.dumps(content).encode())
    assert summary(outcomes) == ["user: hi | assistant: yo\n!", "incomplete"]


def test_conversations_may_be_lists_of_texts() -> None:
    content = json.dumps({"categories": ["x"], "conversations": [["q", "a"], ["q", "a", "q2"]]})
    assert summary(read("a.json", content.encode())) == [
        "user: q | assistant: a",
        "user: q | assistant: a | user: q2",
    ]


def test_squad_gives_each_question_below_its_paragraph() -> None:
    asked = [
        {"question": "Q1", "id": "1", "answers": [{"text": "A1"}, {"text": "other"}]},
        {"question": "Q2", "id": "2", "answers": [], "is_impossible": True},
    ]
    articles = [{"title": "T", "paragraphs": [{"context": "C", "qas": asked}]}] * 2
    outcomes = read("a.json", json.dumps({"version": "2", "data": articles}).encode())
    assert summary(outcomes) == ["user: C\n\nQ1 | assistant: A1", "incomplete"] * 2
    assert [outcome.key for outcome in outcomes] == [f"a.json#{number}" for number in range(4)]
    assert json.loads(outcomes[0].raw)["id"] == "1"


def test_json_lines_are_known_under_the_name_of_a_json_file() -> None:
    content = b'{"text": "a"}\n\n{"text": \n{"text": "b"}\n'
    outcomes = read("a.json", content)
    assert summary(outcomes) == ["a", "malformed_json", "b"]
    assert [outcome.key for outcome in outcomes] == ["a.json#0", "a.json#2", "a.json#3"]


def test_a_bare_value_is_no_record() -> None:
    rejection = rejected("a.json", b"3")
    assert (rejection.reason, rejection.key) == ("wrong_type", "a.json")
    assert rejection.detail.endswith("expected an array of records or one record, found a number")


def test_an_empty_array_holds_no_records() -> None:
    assert read("a.json", b" [ ] ") == []
    assert read("a.json", b'{"data": []}') == []


# --------------------------------------------------------------------------------------- damage in JSON


def test_rejected_records_name_their_number_and_line() -> None:
    outcomes = read("a.json", b'[\n{"text": "a"},\n\n{"text": ""}, {"text": "b"}\n]')
    assert summary(outcomes) == ["a", "missing_field", "b"]
    assert outcomes[1].detail == "record 1 (line 4): field 'text' is empty"


@pytest.mark.parametrize(
    ("bad", "reason", "detail"),
    [
        ('{"text": }', "malformed_json", "Expecting value: character 9"),
        ('{"text": "a "quoted" word"}', "malformed_json", "Expecting ',' delimiter: character 13"),
        ('{"text": "a\tb"}', "malformed_json", "Invalid control character at: character 11"),
        ('{"text": "b", "score": NaN}', "malformed_json", "NaN is no JSON"),
        ('{"text": "b", "score": [-Infinity]}', "malformed_json", "-Infinity is no JSON"),
        ('{"text": "b", "text": "c"}', "duplicate_key", "the key 'text' stands twice in one object"),
        ('{"text": "b", "x": [{"y": 1, "y": 2}]}', "duplicate_key", "the key 'y' stands twice"),
        ('{"text": "b", "n": ' + "9" * 5000 + "}", "huge_number", "thousands of digits"),
        ('{"text": "b", "x": ' + "[" * 500 + "]" * 500 + "}", "too_deep", "deeper than 200"),
        ("[" * 100_000 + "]" * 100_000, "too_deep", "deeper than 200"),
        ('{"text": "b\\ud800"}', "invalid_unicode", "half a surrogate pair"),
        ("'text'", "malformed_json", "Expecting value: character 0"),
        ("nil", "malformed_json", "Expecting value: character 0"),
    ],
)
def test_a_bad_record_is_passed_over_and_the_good_ones_around_it_survive(bad, reason, detail) -> None:
    good = '{"text": "[{\\"}"}'
    first, rejection, last = read("a.json", f"[{good},\n{bad},\n{good}]".encode())
    assert first.text == last.text == '[{"}'
    assert (rejection.reason, rejection.text, rejection.key) == (reason, bad, "a.json#1")
    assert rejection.detail.startswith("record 1 (line 2): ")
    assert detail in rejection.detail
    if "\n" not in bad:
        (rejection,) = read("a.jsonl", bad.encode())
        assert (rejection.reason, rejection.text) == (reason, bad)


@pytest.mark.parametrize(
    ("content", "outcomes", "detail"),
    [
        (b"", ["malformed_json"], "record 0 (line 1): Expecting value"),
        (b"\n[" + b"[" * 100_000, ["too_deep"], "record 0 (line 2): brackets"),
        (b'[{"text": "a"}\n{"text": "b"}]', ["a", "malformed_json"], "(line 2): expected ',' or ']'"),
        (b'[{"text": "a"},\n', ["a", "malformed_json"], "record 1 (line 2): Expecting value"),
        (b'[{"text": "a"},\n]', ["a", "malformed_json"], "record 1 (line 2): Expecting value"),
        (b'[{"text": "a"}, {"te', ["a", "malformed_json"], "Unterminated string"),
        (b'[{"text": "a"}]\nx', ["a", "malformed_json"], "(line 2): nothing may follow the end"),
        (b'{"text": "a"} x', ["malformed_json"], "nothing may follow the value"),
        (b'{"text": "a"}\n[]', ["malformed_json"], "nothing may follow the value"),
        (b'{"text": "a', ["malformed_json"], "Unterminated string"),
        (b'{"text" "a"}', ["malformed_json"], "Expecting ':' delimiter"),
        (b'{"data": [{"text": "a"}, {"te', ["a", "malformed_json"], "Unterminated string"),
        (b'{"data": [{"text": "a"}', ["a", "malformed_json"], "expected ',' or ']'"),
        (b'{"data": [{"text": "a"}]', ["a", "malformed_json"], "expected ',' or '}' after a member"),
        (b'{"data": [{"text": "a"}], 3', ["a", "malformed_json"], "Expecting a name and ':'"),
        (b'{"x": {"text": "a"}, "y": {"te', ["a", "malformed_json"], "Unterminated string"),
    ],
)
def test_where_json_cannot_be_followed_the_rest_is_one_rejection(content, outcomes, detail) -> None:
    found = read("a.json", content)
    assert summary(found) == outcomes
    assert detail in found[-1].detail


def test_the_rest_of_a_file_is_kept_up_to_a_limit() -> None:
    content = b'[{"text": "a"},\n{"text": "' + b"b" * 300_000
    first, rest = read("a.json", content, {"max_record_bytes": 100_000})
    assert first.text == "a"
    assert rest.text == '{"text": "' + "b" * (65_536 - 10)
    assert rest.detail.endswith("only its first 65536 bytes are kept")


def test_bytes_that_are_no_text_lose_only_their_record() -> None:
    content = b'[\n{"text": "\xc3\xa4"},\n{"text": "\xff"},\n{"text": "\xc3\xb6"}]'
    first, rejection, last = read("a.json", content)
    assert (first.text, last.text) == ("ä", "ö")
    assert (rejection.reason, rejection.raw) == ("invalid_utf8", b'{"text": "\xff"}')
    assert rejection.detail == "record 1 (line 3): byte 10: invalid start byte"


def test_a_record_beyond_the_limit_is_rejected_and_its_neighbours_survive() -> None:
    content = json.dumps([{"text": "a"}, {"text": "ü" * 600}, {"text": "b"}], ensure_ascii=False).encode()
    outcomes = read("a.json", content, {"max_record_bytes": 1000})
    assert summary(outcomes) == ["a", "too_large", "b"]
    assert summary(read("a.json", b'{"text": "' + b"a" * 1000 + b'"}', {"max_record_bytes": 1000})) == [
        "too_large"
    ]


def test_a_file_beyond_the_limit_is_rejected_whole() -> None:
    content = json.dumps([{"text": "a"}] * 100).encode()
    rejection = rejected("a.json", content, {"max_file_bytes": 1000})
    assert (rejection.reason, rejection.key) == ("too_large", "a.json")
    assert "over 1000 bytes (prepare.limits.max_file_bytes)" in rejection.detail


# -------------------------------------------------------------------------------------------- JSON Lines


def test_json_lines_are_read_one_by_one_and_bad_lines_rejected() -> None:
    content = b'\xef\xbb\xbf{"text": "a"}\r\n\n{"text": \n{"text": "\xff"}\n{"question": "q", "answer": "a"}'
    first, malformed, undecodable, last = read("a.jsonl", content)
    assert (first.key, first.text, first.raw) == ("a.jsonl#0", "a", '{"text": "a"}')
    assert (malformed.key, malformed.reason, malformed.text) == ("a.jsonl#2", "malformed_json", '{"text": ')
    assert malformed.detail.startswith("line 3: ")
    assert undecodable.reason == "invalid_utf8"
    assert undecodable.detail == f"line 4: byte {content.index(255)}: invalid start byte"
    assert undecodable.raw == b'{"text": "\xff"}'
    assert last.key == "a.jsonl#4"
    assert last.messages is not None


def test_only_a_piece_of_a_long_file_is_read_ahead() -> None:
    class Watched(HeldFile):
        def open(self) -> Any:
            return stream

    stream = BytesIO(b'{"text": "a"}\n' * 100_000)
    records = read_records(Watched("a.jsonl", b""), source_of())  # type: ignore[arg-type]
    next(records)
    assert stream.tell() <= 300_000


def test_a_line_beyond_the_limit_is_never_held_in_memory() -> None:
    class Long(HeldFile):
        def open(self) -> Any:
            return Stream()

    class Stream:
        """A good line, one of 3 GB, and another good one."""

        pieces = 3000

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def read(self, size: int) -> bytes:
            self.pieces -= 1
            if self.pieces == 2999:
                return b'{"text": "a"}\n{"text": "'
            return (
                b"x" * 1_000_000 if self.pieces > 0 else b'"}\n{"text": "b"}\n' if self.pieces == 0 else b""
            )

    limits = LimitsParams(max_record_bytes=2_000_000)
    tracemalloc.start()
    outcomes = list(read_records(Long("a.jsonl", b""), source_of(), limits))  # type: ignore[arg-type]
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 10_000_000
    assert summary(outcomes) == ["a", "too_large", "b"]
    assert outcomes[1].detail.startswith("line 2: over 2000000 bytes (prepare.limits.max_record_bytes)")
    assert len(outcomes[1].text) == 65_536
    assert outcomes[2].key == "a.jsonl#2"


LINES = [
    b'{"text": "a"}',
    b"",
    b'{"text": "\xc3\xa4"}\r',
    b'{"text": "\xff"}',
    b"not json",
    b'{"text": "' + b"long" * 30 + b'"}',
    b'{"question": "q"}',
    b'{"text": "b", "text": "c"}',
    b"  ",
    b'{"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]}',
]


@pytest.mark.parametrize("encoding", ["utf-8", "auto", "cp1252"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"", b"\n"])
def test_any_cutting_into_spans_gives_what_the_whole_file_gives(tmp_path, encoding, mark, end) -> None:
    content = mark + b"\n".join(LINES) + end
    (tmp_path / "a.jsonl").write_bytes(content)
    file, source = local_file(tmp_path / "a.jsonl", "x/a.jsonl"), source_of(encoding=encoding)
    limits = LimitsParams(max_record_bytes=100)
    whole = list(read_records(file, source, limits))
    assert len(whole) == 8
    cuts = [0, *(at + 1 for at, byte in enumerate(content) if byte == 10), len(content)]
    for pattern in range(1 << (len(cuts) - 2)):
        chosen = [0, *(cut for at, cut in enumerate(cuts[1:-1]) if pattern >> at & 1), len(content)]
        parts: list[Any] = []
        for start, stop in itertools.pairwise(chosen):
            span = Span(start, stop, content[:start].count(b"\n"))
            parts += read_records(file, source, limits, span)
        assert parts == whole
        assert any(isinstance(outcome, Rejection) for outcome in parts)
