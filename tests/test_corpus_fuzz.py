"""Whatever the bytes are, readers tell records from rejections, and lose neither."""

import bz2
import gzip
import itertools
import json
import lzma
import zlib
from io import BytesIO
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from held_files import read, summary
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from nima.corpus.document import Rejection, document_id
from nima.corpus.formats.formats import Record
from nima.corpus.formats.json_text import JsonParser, value_end

TEXTS = ["plain", 'quotes " and \\ and [{', "two\nlines", "ümläut \U0001f600", "commas, and: colons"]
PACKERS = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstandard.compress}
FUZZ = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])


def json_lines() -> bytes:
    return "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in TEXTS).encode()


def json_array(first: str = "", last: str = "") -> bytes:
    records = ",\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in TEXTS)
    return f"{first}[{records}]{last}".encode()


def table() -> bytes:
    rows = ['"' + text.replace('"', '""') + '"' for text in TEXTS]
    return "\n".join(["text,n", *(f"{row},{number}" for number, row in enumerate(rows)), ""]).encode()


def yaml_list() -> bytes:
    return "".join(f"- text: {json.dumps(text, ensure_ascii=False)}\n" for text in TEXTS).encode()


def conversations() -> bytes:
    answers = (json.dumps(text, ensure_ascii=False) for text in TEXTS)
    return "".join(["conversations:\n", *(f"- - q\n  - {answer}\n" for answer in answers)]).encode()


def parquet() -> bytes:
    stream = BytesIO()
    pq.write_table(pa.table({"text": TEXTS, "n": list(range(len(TEXTS)))}), stream, row_group_size=2)
    return stream.getvalue()


def page() -> bytes:
    items = "".join(f"<li>{text}<pre><code class=language-sh>{text}</code></pre>" for text in TEXTS)
    return f"<title>T</title><h1>H</h1><ul>{items}</ul><table><tr><td>a<td>b</table>".encode()


GOOD = {
    "a.jsonl": json_lines(),
    "a.json": json_array(),
    "object.json": json_array('{"version": 1, "data": ', ', "more": {}}'),
    "ids.json": json.dumps({f"id {number}": {"text": text} for number, text in enumerate(TEXTS)}).encode(),
    "a.csv": table(),
    "a.yaml": yaml_list(),
    "chats.yaml": conversations(),
    "a.parquet": parquet(),
    "a.html": page(),
    "a.md": TEXTS[2].encode(),
    "a.py": TEXTS[3].encode(),
}
NAMES = [
    *GOOD,
    *(f"{name}.{suffix}" for name in ("a.jsonl", "a.json", "a.csv", "a.md") for suffix in PACKERS),
]


def content_of(name: str) -> bytes:
    stem, _, suffix = name.rpartition(".")
    return PACKERS[suffix](GOOD[stem]) if suffix in PACKERS else GOOD[name]


def check(name: str, content: bytes, **settings: Any) -> list[Record | Rejection]:
    """What holds for the outcomes of any bytes."""
    outcomes = read(name, content, **settings)
    keys = [outcome.key for outcome in outcomes]
    assert len(set(keys)) == len(keys)
    for outcome in outcomes:
        assert outcome.key.partition("#")[0] == name
        if isinstance(outcome, Rejection):
            assert outcome.id == document_id("s", outcome.key)
            assert outcome.reason
            assert outcome.detail
            texts = [outcome.text, outcome.detail]
        else:
            texts = [outcome.raw, outcome.text, *(message.content for message in outcome.messages or ())]
            assert not any("\0" in text or "\r" in text for text in texts[1:])
        assert all(text.encode() is not None for text in texts)
    return outcomes


MESSY = st.lists(
    st.one_of(
        st.binary(max_size=20),
        st.sampled_from(
            [
                b"\n",
                b'"',
                b"[",
                b"{",
                b"}",
                b"]",
                b",",
                b":",
                b"\\",
                b"\0",
                b"\xff\xfe",
                b"\xef\xbb\xbf",
                b"- ",
            ]
        ),
        st.sampled_from(
            [b'{"text": "a"}', b"text,n\n", b"<pre>", b"</pre>", b"<table>", b"&amp;", b"*a", b"---\n"]
        ),
        st.sampled_from([b"\x1f\x8b\x08", b"BZh9", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd", b"PAR1"]),
    ),
    max_size=30,
).map(b"".join)


@pytest.mark.parametrize("name", NAMES)
@FUZZ
@given(content=MESSY, encoding=st.sampled_from(["utf-8", "auto", "utf-16", "cp1252", "shift_jis"]))
def test_any_bytes_give_records_and_rejections(name: str, encoding: str, content: bytes) -> None:
    check(name, content, encoding=encoding)


@st.composite
def mutations(draw: st.DrawFn) -> list[tuple[float, int, bytes]]:
    """Places (from 0 to 1), how many bytes go there, and what comes instead."""
    place = st.floats(0, 1, exclude_max=True)
    return draw(st.lists(st.tuples(place, st.integers(0, 4), st.binary(max_size=4)), min_size=1, max_size=4))


@pytest.mark.parametrize("name", NAMES)
@settings(FUZZ, derandomize=True)
@given(changes=mutations())
def test_mutated_files_give_records_and_rejections(
    name: str, changes: list[tuple[float, int, bytes]]
) -> None:
    content = content_of(name)
    for place, num_bytes, instead in changes:
        start = int(place * len(content))
        content = content[:start] + instead + content[start + num_bytes :]
    check(name, content)


WITH_RECORDS = [name for name in NAMES if not name.startswith(("a.md", "a.html", "a.py"))]


@pytest.mark.parametrize("name", WITH_RECORDS)
def test_records_before_a_cut_survive_at_every_offset(name: str) -> None:
    content = content_of(name)
    outcomes = check(name, content)
    whole = summary(outcomes)
    assert len(whole) == len(TEXTS)
    for cut in range(len(content)):
        cut_outcomes = check(name, content[:cut])
        found = summary(cut_outcomes)
        equal = list(itertools.takewhile(lambda pair: pair[0] == pair[1], zip(found, whole, strict=False)))
        # What marks the end of the last record may be cut off with the rest.
        assert len(found) <= len(equal) + 1
        if "parquet" not in name:  # a Parquet file tells at its end where its rows are
            there = unpacked(name, content[:cut])
            ends = [there.index(raw) + len(raw) for raw in raws(outcomes) if raw in there]
            assert len(equal) >= sum(end < len(there) for end in ends)
        if name.rpartition(".")[2] in PACKERS:
            assert found[-1] == "truncated" or (found[-1] == "damaged" and cut < 2)


def raws(outcomes: list[Any]) -> list[bytes]:
    return [outcome.raw.encode() for outcome in outcomes]


def unpacked(name: str, content: bytes) -> bytes:
    """All that can be had from the beginning of a packed file."""
    unpackers: dict[str, Any] = {
        "gz": zlib.decompressobj(31),
        "bz2": bz2.BZ2Decompressor(),
        "xz": lzma.LZMADecompressor(),
        "zst": zstandard.ZstdDecompressor().decompressobj(),
    }
    suffix = name.rpartition(".")[2]
    return unpackers[suffix].decompress(content) if suffix in unpackers else content


@pytest.mark.parametrize("name", sorted({*NAMES} - {*WITH_RECORDS}))
def test_texts_that_are_cut_are_one_outcome(name: str) -> None:
    content = content_of(name)
    for cut in range(len(content)):
        (outcome,) = check(name, content[:cut])
        assert isinstance(outcome, Record) or outcome.reason in ("truncated", "invalid_utf8", "damaged")


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "object.json", "ids.json", "a.csv"])
@FUZZ
@given(
    number=st.integers(0, len(TEXTS) - 1),
    place=st.floats(0, 1, exclude_max=True),
    instead=st.binary(min_size=1, max_size=4).filter(lambda data: not set(data) & set(b'\n"[]{},:\\')),
)
def test_damage_inside_one_record_loses_that_record_only(name, number, place, instead) -> None:
    content = GOOD[name]
    whole = check(name, content)
    raw = whole[number].raw.encode()  # type: ignore[union-attr]
    # Neither its brackets nor its quotes: they tell where it ends.
    inside = [at for at, byte in enumerate(raw) if byte not in b'"[]{},:\\\n']
    at = content.index(raw) + inside[int(place * len(inside))]
    outcomes = check(name, content[:at] + instead + content[at + 1 :])
    assert len(outcomes) == len(whole)
    for other in range(len(TEXTS)):
        if other != number:
            assert summary([outcomes[other]]) == summary([whole[other]])


@FUZZ
@given(
    lines=st.lists(
        st.sampled_from(
            [
                b'{"text": "a"}',
                b"{}",
                b"",
                b" ",
                b"[",
                b"\xff",
                b'{"text": "b"',
                b'"',
                b"x" * 50,
                b'{"text": "c"}\r',
            ]
        ),
        max_size=12,
    )
)
@example(lines=[b""])
def test_every_line_of_json_lines_is_accounted_for(lines: list[bytes]) -> None:
    outcomes = check("a.jsonl", b"\n".join(lines), limits={"max_record_bytes": 40})
    expected = [number for number, line in enumerate(lines) if line.strip()]
    assert [outcome.key for outcome in outcomes] == [f"a.jsonl#{number}" for number in expected]


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda values: st.lists(values, max_size=4) | st.dictionaries(st.text(max_size=5), values, max_size=4),
    max_leaves=8,
)


@FUZZ
@given(
    values=st.lists(JSON, max_size=4),
    indent=st.sampled_from([None, 0, 2]),
    after=st.sampled_from(["", " ", "\n"]),
)
def test_arrays_give_the_values_that_the_standard_parser_gives(values, indent, after) -> None:
    text = json.dumps(values, indent=indent) + after
    items = list(JsonParser().items(text, 0, is_all=True))
    assert [item.value for item in items] == values
    assert all(item.flaw is None for item in items)
    assert [json.loads(text[item.start : item.end]) for item in items] == values
    assert value_end(text, 0) == len(text) - len(after)


@FUZZ
@given(value=st.dictionaries(st.text(max_size=5), JSON, max_size=4), indent=st.sampled_from([None, 1]))
def test_members_of_objects_lie_where_their_values_are(value, indent) -> None:
    text = json.dumps(value, indent=indent)
    members = JsonParser().members(text, 0)
    assert members.end == len(text)
    assert {member.name: json.loads(text[member.start : member.end]) for member in members.found} == value


@FUZZ
@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), min_size=1))
def test_code_in_a_page_is_kept_to_the_byte(text: str) -> None:
    escaped = text.replace("&", "&amp;").replace("<", "&lt;")
    (record,) = check("a.html", f"<p>x<pre>\n{escaped}</pre>".encode())
    if text.strip():
        fenced = record.text.partition("\n\n")[2]  # type: ignore[union-attr]
        fence, _, code = fenced.partition("\n")
        assert code == f"{text.removesuffix(chr(10))}\n{fence}"
