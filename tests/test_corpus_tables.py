import csv
import io

import pytest
from held_files import read, rejected, summary

from nima.corpus.document import Message


def test_a_row_is_a_record_by_the_names_of_the_first_row() -> None:
    first, second = read("a.csv", b"id,title,text\n1,T,body\n2,,other\n")
    assert (first.key, first.text, first.raw) == ("a.csv#0", "T\n\nbody", "1,T,body")
    assert (second.key, second.text) == ("a.csv#1", "other")


def test_tabs_part_the_cells_of_tsv() -> None:
    (record,) = read("a.tsv", b"question\tanswer\nq, really?\ta\n")
    assert record.messages == (Message("user", "q, really?"), Message("assistant", "a"))


def test_quoted_cells_keep_their_newlines_quotes_and_commas() -> None:
    rows = [["n", "text"], ["1", 'a "b",\n\n  c'], ["2", "x\r\ny"], ["3", ""]]
    for ending in ("\n", "\r\n"):
        written = io.StringIO()
        csv.writer(written, lineterminator=ending).writerows(rows)
        first, second, empty = read("a.csv", b"\xef\xbb\xbf" + written.getvalue().encode())
        assert (first.text, second.text) == (rows[1][1], "x\ny")
        assert empty.reason == "missing_field"


def test_a_cell_that_says_null_or_nan_is_text_and_an_empty_one_is_missing() -> None:
    outcomes = read("a.csv", b'text,x\nnan,1\nnull,1\n,1\n"",1\n')
    assert summary(outcomes) == ["nan", "null", "missing_field", "missing_field"]
    assert outcomes[2].detail == "record 2 (line 4): field 'text' is empty"


def test_blank_lines_are_no_rows() -> None:
    assert summary(read("a.csv", b"\ntext\n\na\n\r\nb")) == ["a", "b"]


@pytest.mark.parametrize(
    ("row", "reason", "detail"),
    [
        ("1,b,c", "ragged_row", "record 1 (line 3): 3 cells, the row of names has 2"),
        ("1", "ragged_row", "1 cells, the row of names has 2"),
        ('1,"b"c', "malformed_row", "',' expected after '\"'"),
        ('"1\n2",b,c', "ragged_row", "record 1 (lines 3 to 4): 3 cells"),
        ("1,\ud800", "invalid_utf8", "record 1 (line 3): byte 2: invalid"),
        ('1,"b\n\ud800"', "invalid_utf8", "record 1 (lines 3 to 4): byte 5: invalid"),
        ("1,\0", "nul_byte", "record 1 (line 3): field 'text': character 0 is NUL"),
    ],
)
def test_a_bad_row_is_rejected_with_its_lines_and_the_others_survive(row, reason, detail) -> None:
    content = f"n,text\n0,a\n{row}\n2,b\n".encode(errors="surrogatepass")
    first, rejection, last = read("a.csv", content)
    assert (first.text, last.text) == ("a", "b")
    assert (rejection.reason, rejection.key) == (reason, "a.csv#1")
    assert detail in rejection.detail
    assert rejection.raw == (row.encode(errors="surrogatepass") if "\ud800" in row else None)


def test_what_an_open_quote_swallows_is_one_rejection() -> None:
    first, rest = read("a.csv", b'n,text\n0,a\n1,"b\n2,c\n')
    assert first.text == "a"
    assert rest.reason == "malformed_row"
    assert rest.detail == "record 1 (lines 3 to 4): unexpected end of data"
    assert rest.text == '1,"b\n2,c'


def test_a_row_beyond_the_limit_is_passed_over_to_where_its_quotes_close() -> None:
    cell = "line\n" * 100 + 'a ""quote""\n'
    for long in (f'1,"{cell}"', f'1,"{"x" * 500}",\n2,"\nx"\n'.partition(",\n")[0]):
        content = f"n,text\n0,a\n{long}\n2,b\n".encode()
        outcomes = read("a.csv", content, {"max_record_bytes": 200})
        assert summary(outcomes) == ["a", "too_large", "b"]
        assert "prepare.limits.max_record_bytes" in outcomes[1].detail


def test_a_long_line_that_opens_a_quote_is_passed_over_with_all_its_lines() -> None:
    content = f'n,text\n1,"{"x" * 500}\n5,not a row\n"\n2,b\n'.encode()
    outcomes = read("a.csv", content, {"max_record_bytes": 200})
    assert summary(outcomes) == ["too_large", "b"]
    assert outcomes[0].detail.startswith("record 0 (lines 2 to 4): ")


def test_cells_may_be_as_long_as_records() -> None:
    (record,) = read("a.csv", b'text\n"' + b"x" * 1_000_000 + b'"\n')
    assert len(record.text) == 1_000_000


@pytest.mark.parametrize(
    ("content", "reason", "detail"),
    [
        (b"a,b,a\n1,2,3\n", "duplicate_key", "the name 'a' stands twice"),
        (b"a,\xff\n1,2\n", "malformed_row", "it cannot be read"),
        (b'a,"b\n1,2\n', "malformed_row", "unexpected end of data"),
    ],
)
def test_without_names_the_file_is_one_rejection(content, reason, detail) -> None:
    rejection = rejected("a.csv", content)
    assert (rejection.reason, rejection.key) == (reason, "a.csv")
    assert rejection.detail.startswith("row of names (line")
    assert detail in rejection.detail
