import datetime
import json
from io import BytesIO
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from held_files import read, rejected, source_of, summary

from nima.corpus.formats.formats import read_records
from nima.corpus.sources.files import local_file
from nima.workspace.params import LimitsParams


def parquet(rows: list[dict[str, Any]] | pa.Table, **options: Any) -> bytes:
    table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows)
    stream = BytesIO()
    pq.write_table(table, stream, **options)
    return stream.getvalue()


def test_rows_are_records_over_all_row_groups() -> None:
    rows = [{"text": f"text {number}", "n": number} for number in range(100)]
    records = read("a.parquet", parquet(rows, row_group_size=7))
    assert [record.text for record in records] == [row["text"] for row in rows]
    assert (records[99].key, records[99].raw) == ("a.parquet#99", '{"text": "text 99", "n": 99}')


def test_nested_columns_hold_conversations() -> None:
    turns = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]
    rows = [{"messages": turns, "meta": {"tags": ["x"]}}, {"messages": turns[:1], "meta": None}]
    assert summary(read("a.parquet", parquet(rows))) == ["user: u | assistant: a", "incomplete"]
    fields = {"text": "meta.body"}
    assert read("a.parquet", parquet([{"meta": {"body": "b"}}]), fields=fields)[0].text == "b"


def test_empty_and_nan_cells_are_missing_fields() -> None:
    table = pa.table({"text": pa.array([None, "", "t"]), "n": [1, 2, 3]})
    outcomes = read("a.parquet", parquet(table))
    assert summary(outcomes) == ["missing_field", "missing_field", "t"]
    assert json.loads(outcomes[0].text) == {"text": None, "n": 1}
    (nan,) = read("a.parquet", parquet(pa.table({"text": [np.nan]})))
    assert (nan.reason, nan.detail) == ("missing_field", "record 0: field 'text' is NaN")


def test_values_that_are_no_text_are_of_the_wrong_type() -> None:
    for value, found in ((b"x", "bytes"), (datetime.date(2020, 1, 1), "date"), (1.5, "a number")):
        rejection = rejected("a.parquet", parquet([{"text": value}]))
        assert rejection.detail == f"record 0: field 'text' must be text, found {found}"


def test_a_text_that_is_not_utf8_loses_only_its_row() -> None:
    column = pa.array([b"a", b"\xff", b"c"], pa.binary()).view(pa.string())
    outcomes = read("a.parquet", parquet(pa.table({"text": column})))
    assert summary(outcomes) == ["a", "damaged", "c"]
    assert outcomes[1].detail.startswith("record 1: a value is broken: ")


def test_columns_of_the_same_name_are_refused() -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    assert rejected("a.parquet", parquet(table)).reason == "duplicate_key"


def test_a_record_beyond_the_limit_is_rejected_and_its_neighbours_survive() -> None:
    rows = [{"text": "a"}, {"text": "x" * 1001}, {"text": "b"}]
    outcomes = read("a.parquet", parquet(rows), {"max_record_bytes": 1000})
    assert summary(outcomes) == ["a", "too_large", "b"]


@pytest.mark.parametrize("cut", [3, 100, -1, -9])
def test_a_truncated_file_is_one_rejection(cut: int) -> None:
    content = parquet([{"text": "t" * 300}])[:cut]
    rejection = rejected("a.parquet", content)
    assert (rejection.reason, rejection.key) == ("damaged", "a.parquet#0")
    assert rejection.detail.startswith("no Parquet, or not whole: ")


def test_rows_before_damage_survive() -> None:
    rows = [
        {"text": "".join(np.random.default_rng(number).choice(list("abcdef"), 500))} for number in range(64)
    ]
    content = bytearray(parquet(rows, row_group_size=32, compression="snappy", use_dictionary=False))
    start = pq.ParquetFile(BytesIO(bytes(content))).metadata.row_group(1).column(0).data_page_offset
    content[start + 40 : start + 4000] = b"\xff" * 3960
    *whole, last = read("a.parquet", bytes(content))
    assert [record.text for record in whole] == [row["text"] for row in rows[:32]]
    assert (last.reason, last.key) == ("damaged", "a.parquet#32")
    assert "record 32 and all behind it" in last.detail


def test_checksums_of_pages_are_checked() -> None:
    text = "a unique text to be found again"
    options = {"use_dictionary": False, "write_statistics": False, "write_page_checksum": True}
    content = parquet([{"text": text}], compression="none", **options)
    damaged = content.replace(text.encode(), text.replace("unique", "Unique").encode(), 1)
    assert damaged != content
    assert summary(read("a.parquet", content)) == [text]
    assert rejected("a.parquet", damaged).reason == "damaged"


def test_a_text_that_is_repeated_a_million_times_takes_no_memory(tmp_path) -> None:
    path = tmp_path / "a.parquet"
    column = pa.DictionaryArray.from_arrays(np.zeros(200_000, np.int32), pa.array(["x" * 1_000_000]))
    pq.write_table(pa.table({"text": column}), path)
    assert path.stat().st_size < 2_000_000
    records = read_records(local_file(path, "a.parquet"), source_of())
    assert [len(next(records).text) for _ in range(40)] == [1_000_000] * 40  # type: ignore[union-attr]


def test_packed_parquet_is_unpacked_up_to_the_limit() -> None:
    import gzip

    content = gzip.compress(parquet([{"text": "t"}]))
    assert summary(read("a.parquet.gz", content)) == ["t"]
    assert rejected("a.parquet.gz", content[:-9]).reason == "truncated"
    assert rejected("a.parquet.gz", content, {"max_file_bytes": 50}).reason == "too_large"


def test_a_file_on_disk_may_be_larger_than_what_is_read_whole(tmp_path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(parquet([{"text": "t"}]))
    limits = LimitsParams(max_file_bytes=50)
    assert summary(list(read_records(local_file(path, "a.parquet"), source_of(), limits))) == ["t"]
