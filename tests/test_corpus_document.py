from contextlib import suppress
from pathlib import Path

import pytest

from nima.corpus.document import (
    Document,
    Message,
    Rejection,
    document_id,
    document_writer,
    read_documents,
    read_rejections,
    write_documents,
    write_rejections,
)
from nima.workspace.errors import UserError


def documents(num_documents: int) -> list[Document]:
    return [
        Document(
            id=document_id("s", str(number)),
            source="s",
            key=str(number),
            group="0123456789abcdef",
            weight=1.5,
            licence="MIT",
            text="" if number % 3 == 0 else f"text {number} \u00e9\U0001f600\n",
            messages=(Message("user", "q?"), Message("assistant", "a\n")) if number % 3 == 0 else None,
        )
        for number in range(num_documents)
    ]


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_documents_come_back_as_they_were_written(tmp_path: Path) -> None:
    assert write_documents(tmp_path / "d", documents(2500)) == 2500
    assert list(read_documents(tmp_path / "d")) == documents(2500)


def test_rejections_come_back_with_their_raw_bytes(tmp_path: Path) -> None:
    rejections = [
        Rejection(document_id("s", "k"), "s", "k", "invalid_utf8", "byte 1", "a\\xff", b"a\xff"),
        Rejection(document_id("s", "l"), "s", "l", "too_short", "1 character", "a"),
    ]
    assert write_rejections(tmp_path / "r", rejections) == 2
    assert list(read_rejections(tmp_path / "r")) == rejections


def test_equal_documents_give_equal_bytes(tmp_path: Path) -> None:
    write_documents(tmp_path / "a", documents(1500))
    write_documents(tmp_path / "b", iter(documents(1500)))
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")


def test_a_new_shard_begins_when_one_is_full(tmp_path: Path) -> None:
    write_documents(tmp_path / "d", documents(30), max_shard_bytes=100)
    names = sorted(bytes_of(tmp_path / "d"))
    assert names[:2] == ["documents-00000.parquet", "documents-00001.parquet"]
    assert 2 < len(names) < 6
    assert list(read_documents(tmp_path / "d")) == documents(30)


def test_a_folder_is_rewritten_whole(tmp_path: Path) -> None:
    write_documents(tmp_path / "d", documents(30), max_shard_bytes=100)
    write_documents(tmp_path / "d", documents(2))
    assert list(bytes_of(tmp_path / "d")) == ["documents-00000.parquet"]
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_a_failure_half_way_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    write_documents(tmp_path / "d", documents(5))
    before = bytes_of(tmp_path / "d")
    with suppress(ZeroDivisionError), document_writer(tmp_path / "d") as writer:
        writer.write(documents(1)[0])
        raise ZeroDivisionError
    assert bytes_of(tmp_path / "d") == before
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_a_folder_linked_elsewhere_is_replaced_and_its_target_left_alone(tmp_path: Path) -> None:
    write_documents(tmp_path / "cache", documents(5))
    before = bytes_of(tmp_path / "cache")
    (tmp_path / "d").symlink_to(tmp_path / "cache")
    write_documents(tmp_path / "d", documents(1))
    assert bytes_of(tmp_path / "cache") == before
    assert len(list(read_documents(tmp_path / "d"))) == 1


def test_no_documents_make_one_empty_shard(tmp_path: Path) -> None:
    assert write_documents(tmp_path / "d", []) == 0
    assert list(read_documents(tmp_path / "d")) == []


def test_a_place_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^.*file/d: cannot be written: Not a directory; [^\n]*$"):
        write_documents(tmp_path / "file" / "d", documents(1))


def test_a_folder_without_shards_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run the stage prepare first"):
        next(read_documents(tmp_path))


def test_a_truncated_shard_is_named(tmp_path: Path) -> None:
    write_documents(tmp_path / "d", documents(5))
    shard = tmp_path / "d" / "documents-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"documents-00000.parquet: broken: [^\n]*$"):
        list(read_documents(tmp_path / "d"))


def test_ids_are_stable_and_tell_source_from_key() -> None:
    assert document_id("aws-cli", "a.rst") == "ce5cfa47b58616fd"
    assert document_id("a", "bc") != document_id("ab", "c")
