"""Two versions of a file: what differs in it, told by its kind."""

import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from nima.network.tensors import write_tensors
from nima.verification.differences import difference, differences


def text_of(tmp_path: Path, name: str, before: object, after: object) -> str:
    """What is said of two versions, given as bytes, text, tensors, an array or rows."""
    places = []
    for folder, content in (("before", before), ("after", after)):
        (tmp_path / folder).mkdir()
        # A cache keeps no names.
        place = tmp_path / folder / (name if folder == "after" else "0123456789")
        match content:
            case bytes():
                place.write_bytes(content)
            case str():
                place.write_text(content, encoding="utf-8")
            case dict():
                write_tensors(place, content)
            case np.ndarray():
                with place.open("wb") as file:
                    np.save(file, content)
            case list():
                pq.write_table(pa.Table.from_pylist(content), place)
        places.append(place)
    return difference(name, *places).text


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        ({"a": 1}, {"a": 3}, "a 1 → 3 (+2)"),
        ({"a": {"b": 0.5}}, {"a": {"b": 0.25}}, "a.b 0.5 → 0.25 (-0.25)"),
        ({"a": True}, {"a": False}, "a true → false"),
        ({"a": "x"}, {"a": None}, 'a "x" → null'),
        ({"a": 1, "b": 2}, {"a": 1}, "b is gone (2)"),
        ({"a": 1}, {"a": 1, "c": [1, 2]}, "c is new ([1, 2])"),
        ({"a": 1.0}, {"a": 1.0 + 2**-40}, "a 1 → 1 (+9.09e-13)"),
    ],
)
def test_keys_of_json_and_by_how_much_they_differ(
    tmp_path: Path, before: dict, after: dict, text: str
) -> None:
    assert text_of(tmp_path, "m.json", json.dumps(before), json.dumps(after)) == text


def test_json_that_is_only_written_in_another_way(tmp_path: Path) -> None:
    told = text_of(tmp_path, "m.json", '{"a": 1}', '{"a":1}')
    assert told == "the same keys and values, written in another way"


def test_many_keys_are_counted_but_all_are_in_the_figures(tmp_path: Path) -> None:
    before, after = ({f"k{number}": number + extra for number in range(25)} for extra in (0, 1))
    (tmp_path / "before").write_text(json.dumps(before))
    (tmp_path / "after.json").write_text(json.dumps(after))
    found = difference("m.json", tmp_path / "before", tmp_path / "after.json")
    assert found.text.endswith(", and 5 more keys")
    assert len(found.figures["keys"]) == 25


def test_tensors_by_number_and_largest_difference(tmp_path: Path) -> None:
    before = {"a": torch.zeros(3), "b": torch.ones(2, 2, dtype=torch.bfloat16), "c": torch.zeros(1)}
    after = {"a": torch.tensor([0.0, -0.5, 0.25]), "b": before["b"] * 3, "c": torch.zeros(1)}
    assert text_of(tmp_path, "m.safetensors", before, after) == "2 of 3 tensors differ, by 2 at most (b)"


def test_tensors_that_are_not_numbers_or_not_comparable(tmp_path: Path) -> None:
    before = {"a": torch.tensor([1.0, math.nan]), "b": torch.zeros(2), "c": torch.zeros(1)}
    after = {"a": torch.tensor([math.nan, math.nan]), "b": torch.zeros(3), "d": torch.zeros(1)}
    told = text_of(tmp_path, "m.safetensors", before, after)
    assert told == "1 of 3 tensors differ, by inf at most (a); 3 have other names or shapes"


def test_arrays_rows_and_lines(tmp_path: Path) -> None:
    array = np.arange(6)
    (tmp_path / "1").mkdir()
    assert text_of(tmp_path / "1", "a.npy", array, array % 5) == "1 of 6 values differ"
    rows = [{"id": number, "names": ["x"]} for number in range(4)]
    changed = [rows[0], {"id": 1, "names": ["y"]}, *rows[2:], {"id": 9, "names": []}]
    (tmp_path / "2").mkdir()
    assert text_of(tmp_path / "2", "r.parquet", rows, changed) == "1 of 4 rows differ, 4 → 5 rows"
    (tmp_path / "3").mkdir()
    assert text_of(tmp_path / "3", "s.jsonl", "a\nb\nc\n", "a\nx\n") == "1 of 2 lines differ, 3 → 2 lines"
    (tmp_path / "4").mkdir()
    assert text_of(tmp_path / "4", "a.npy", array, array[:5]) == "int64 [6] → int64 [5]"


def test_other_files_by_length_and_first_byte(tmp_path: Path) -> None:
    for name in ("1", "2", "3"):
        (tmp_path / name).mkdir()
    block = bytes(3_000_000)
    changed = block[:2_500_000] + b"\1" + block[2_500_001:]
    told = text_of(tmp_path / "1", "t.bin", block, changed)
    assert told == "3,000,000 bytes, different from byte 2,500,000 on"
    assert text_of(tmp_path / "2", "t.bin", b"ab", b"abc") == "2 → 3 bytes, different from byte 2 on"
    assert text_of(tmp_path / "3", "t.json", b"\xff{", b"{}").startswith("2 bytes, different from byte 0")


def test_files_that_came_or_went(tmp_path: Path) -> None:
    same, other = tmp_path / "same", tmp_path / "other"
    same.write_text("x")
    other.write_text("y")
    found = differences({"a": same, "b": same, "c": same}, {"b": same, "c": other, "d": other})
    assert [(each.file, each.text) for each in found] == [
        ("a", "is missing now"),
        ("c", "1 bytes, different from byte 0 on"),
        ("d", "is new"),
    ]
