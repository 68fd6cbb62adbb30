import json
import shutil
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nima.corpus.document import Document, Message, document_id, write_documents
from nima.dataset import tokens as tokens_on_disk
from nima.dataset.tokens import HEADER, Tokens, TokenShard
from nima.encoding.conversation import TokenizedDocument
from nima.encoding.token_writer import TokenWriter, halved
from nima.tokenizer import Tokenizer
from nima.workspace import runtime
from nima.workspace.errors import UserError
from nima.workspace.params import params_file

ROOT = Path(__file__).parent.parent


def document(number: int, tokens: list[int], spans: list[tuple[int, int]] | None = None) -> TokenizedDocument:
    spans = [(0, len(tokens))] if spans is None else spans
    return TokenizedDocument(
        id=f"{number:016x}",
        source=f"source-{number % 2}",
        group=f"{number + 1000:016x}",
        weight=1 + number / 4,
        tokens=np.array(tokens, dtype=np.uint32),
        spans=np.array(spans, dtype=np.int64).reshape(-1, 2),
        num_bytes=3 * len(tokens),
    )


def write(
    folder: Path, documents: Iterable[TokenizedDocument], vocab_size: int = 300, shard_tokens: int = 10**9
) -> None:
    with TokenWriter(folder, vocab_size, shard_tokens) as writer:
        for one in documents:
            writer.write(one)


THREE = [document(0, [5, 6, 7]), document(1, [8], []), document(2, [9, 10, 11, 12, 0], [(1, 2), (3, 5)])]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "tokens", THREE)
    return tmp_path / "tokens"


# --------------------------------------------------------------------------------- written and read back


def test_documents_come_back_with_their_spans_and_origin(folder: Path) -> None:
    tokens = Tokens.open(folder)
    assert (tokens.num_documents, tokens.num_tokens) == (3, 9)
    assert [tokens.document(index).tolist() for index in range(3)] == [one.tokens.tolist() for one in THREE]
    assert [tokens.spans(index).tolist() for index in range(3)] == [one.spans.tolist() for one in THREE]
    assert tokens.lengths.tolist() == [3, 1, 5]
    assert tokens.lengths.dtype == np.int64
    assert tokens.spans(1).shape == (0, 2)
    assert tokens.ids == [one.id for one in THREE]
    assert tokens.groups.tolist() == [one.group.encode() for one in THREE]
    assert tokens.sources.tolist() == ["source-0", "source-1", "source-0"]
    assert tokens.weights.tolist() == [1.0, 1.25, 1.5]
    assert tokens.text_bytes.tolist() == [9, 3, 15]
    assert tokens.trained_tokens.tolist() == [3, 0, 3]


@given(
    st.lists(st.lists(st.integers(0, 69_999), max_size=12), max_size=20),
    st.integers(1, 30),
    st.booleans(),
    st.data(),
)
@settings(max_examples=60, deadline=None)
def test_any_documents_in_shards_of_any_size_come_back(
    tmp_path_factory: pytest.TempPathFactory,
    lists: list[list[int]],
    shard_tokens: int,
    wide: bool,
    data: st.DataObject,
) -> None:
    folder = tmp_path_factory.mktemp("tokens") / "tokens"
    limit = 70_000 if wide else 65_536
    documents = []
    for number, ids in enumerate(lists):
        edges = data.draw(st.sets(st.integers(0, len(ids)), max_size=6).map(sorted))
        spans = list(zip(edges[0::2], edges[1::2], strict=False))
        documents.append(document(number, [token % limit for token in ids], spans))
    write(folder, documents, limit, shard_tokens)
    tokens = Tokens.open(folder)
    assert [tokens.document(index).tolist() for index in range(len(lists))] == [
        d.tokens.tolist() for d in documents
    ]
    assert [tokens.spans(index).tolist() for index in range(len(lists))] == [
        d.spans.tolist() for d in documents
    ]


def test_a_shard_begins_before_the_document_that_would_not_fit(tmp_path: Path) -> None:
    sizes = [4, 4, 3, 20, 1, 9]
    write(tmp_path / "tokens", [document(n, [7] * size) for n, size in enumerate(sizes)], shard_tokens=10)
    tokens = Tokens.open(tmp_path / "tokens")
    assert [np.diff(shard.offsets).tolist() for shard in tokens.shards] == [[4, 4], [3], [20], [1, 9]]
    assert [len(tokens.document(index)) for index in range(6)] == sizes
    assert sorted(path.name for path in (tmp_path / "tokens").iterdir()) == [
        "documents.parquet",
        "dropped.jsonl",
        *(f"tokens-0000{number}.bin" for number in range(4)),
    ]


def test_what_waits_for_the_shards_end_takes_four_bytes_where_it_fits() -> None:
    assert halved(np.array([0, 2**32 - 1])).tolist() == [0, 2**32 - 1]
    assert halved(np.array([0, 2**32 - 1])).itemsize == 4
    assert halved(np.array([2**32])).tolist() == [2**32]


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65_536, "uint16"), (65_537, "uint32")])
def test_ids_take_the_smallest_type_that_fits_the_vocabulary(
    tmp_path: Path, vocab_size: int, dtype: str
) -> None:
    write(tmp_path / "tokens", [document(0, [vocab_size - 1, 0, 3])], vocab_size)
    tokens = Tokens.open(tmp_path / "tokens")
    assert tokens.dtype == np.dtype(dtype)
    assert tokens.document(0).tolist() == [vocab_size - 1, 0, 3]


def test_tokens_are_mapped_and_read_only(folder: Path) -> None:
    ids = Tokens.open(folder).document(0)
    assert not ids.flags.writeable
    assert not ids.flags.owndata


def test_arrays_lie_on_multiples_of_eight_bytes(folder: Path) -> None:
    content = (folder / "tokens-00000.bin").read_bytes()
    assert struct.unpack("<8sIIQQQ24x", content[:64]) == (b"NIMATOKS", 1, 2, 9, 3, 3)
    assert len(content) == 64 + 24 + 8 * 4 + 8 * 4 + 16 * 3
    assert np.frombuffer(content, "<u2", 9, 64).tolist() == [5, 6, 7, 8, 9, 10, 11, 12, 0]
    assert np.frombuffer(content, "<u8", 4, 88).tolist() == [0, 3, 4, 9]


def test_the_same_documents_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write(tmp_path / name, THREE, shard_tokens=4)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_no_documents_are_an_empty_folder_that_opens(tmp_path: Path) -> None:
    write(tmp_path / "tokens", [])
    tokens = Tokens.open(tmp_path / "tokens")
    assert (tokens.num_documents, tokens.num_tokens, tokens.totals()["bytes_per_token"]) == (0, 0, 0.0)


def test_totals_count_in_all_and_by_source(folder: Path) -> None:
    tokens = Tokens.open(folder)
    first = {"documents": 2, "bytes": 24, "tokens": 8, "trained_tokens": 6, "bytes_per_token": 3.0}
    second = {"documents": 1, "bytes": 3, "tokens": 1, "trained_tokens": 0, "bytes_per_token": 3.0}
    total = {"documents": 3, "bytes": 27, "tokens": 9, "trained_tokens": 6, "bytes_per_token": 3.0}
    assert tokens.totals() == {**total, "sources": {"source-0": first, "source-1": second}}
    assert tokens.totals(np.array([1])) == {**second, "sources": {"source-1": second}}


# ----------------------------------------------------------------------------------- whole or not at all


def test_an_error_while_writing_leaves_the_old_folder_whole(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def documents() -> Iterator[TokenizedDocument]:
        yield from THREE
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write(folder, documents(), shard_tokens=2)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["tokens"]


def test_rewriting_leaves_no_old_shard_behind(tmp_path: Path) -> None:
    write(tmp_path / "tokens", THREE, shard_tokens=1)
    write(tmp_path / "tokens", THREE)
    assert sorted(path.name for path in (tmp_path / "tokens").iterdir()) == [
        "documents.parquet",
        "dropped.jsonl",
        "tokens-00000.bin",
    ]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"file/tokens: cannot be written"):
        write(tmp_path / "file" / "tokens", THREE)


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 100, -1, -8])
def test_a_truncated_shard_is_named(folder: Path, size: int) -> None:
    path = folder / "tokens-00000.bin"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(
        UserError, match=r"tokens-00000\.bin: broken: \d+ bytes, .*run the stage tokenize again"
    ):
        Tokens.open(folder)


def test_a_shard_with_more_than_its_header_says_is_named(folder: Path) -> None:
    with (folder / "tokens-00000.bin").open("ab") as file:
        file.write(bytes(8))
    with pytest.raises(UserError, match="its header says"):
        Tokens.open(folder)


@pytest.mark.parametrize(
    ("offset", "bytes_there", "found"),
    [
        (0, b"PK\x03\x04", r"begins with b'PK.*this is no token shard"),
        (8, b"\x02", "version 2, expected 1"),
        (12, b"\x03", "3 bytes per token, expected 2 or 4"),
        (16, b"\xff" * 8, "its header says"),
        (88, b"\x01", "document offsets do not ascend from 0 to 9"),
        (96, b"\x05", "document offsets do not ascend"),
        (112, b"\x08", "document offsets do not ascend from 0 to 9"),
        (128, b"\x09", "span offsets do not ascend from 0 to 3"),
        (160, b"\xff", "a loss span lies outside its document"),
        (184, b"\x00", "a loss span lies outside its document"),
        (192, b"\x01", "a loss span lies outside its document"),
    ],
)
def test_a_foreign_or_damaged_shard_is_named(
    folder: Path, offset: int, bytes_there: bytes, found: str
) -> None:
    path = folder / "tokens-00000.bin"
    content = bytearray(path.read_bytes())
    assert content[offset : offset + len(bytes_there)] != bytes_there
    content[offset : offset + len(bytes_there)] = bytes_there
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"tokens-00000\.bin: broken: .*{found}") as raised:
        TokenShard(path)
    assert "\n" not in str(raised.value)


def test_spans_are_checked_in_every_part_of_a_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = [document(n, [1] * (n % 4 + 1), [(0, 1)] * (n % 3 > 0)) for n in range(50)]
    folder = tmp_path / "tokens"
    write(folder, documents)
    monkeypatch.setattr(tokens_on_disk, "CHECKED_AT_ONCE", 7)
    tokens = Tokens.open(folder)
    assert [len(tokens.spans(n)) for n in range(50)] == [int(n % 3 > 0) for n in range(50)]
    path = folder / "tokens-00000.bin"
    content = bytearray(path.read_bytes())
    content[-8:] = (9).to_bytes(8, "little")  # the end of the last span
    path.write_bytes(content)
    with pytest.raises(UserError, match="a loss span lies outside its document"):
        TokenShard(path)


def test_missing_files_are_named(folder: Path, tmp_path: Path) -> None:
    (folder / "tokens-00000.bin").unlink()
    with pytest.raises(UserError, match=r"tokens-00000\.bin: broken: No such file"):
        Tokens.open(folder)
    with pytest.raises(UserError, match=r"documents\.parquet: broken: .*run the stage tokenize again"):
        Tokens.open(tmp_path / "nowhere")


def test_a_table_of_other_documents_is_named(folder: Path, tmp_path: Path) -> None:
    for others in ([document(0, [1, 2]), document(1, [3])], THREE[:2], [*THREE, document(3, [1])]):
        write(tmp_path / "other", others)
        shutil.copy(tmp_path / "other" / "documents.parquet", folder)
        with pytest.raises(UserError, match=r"documents\.parquet: broken: its numbers of tokens are not"):
            Tokens.open(folder)
    (folder / "documents.parquet").write_bytes(b"no parquet")
    with pytest.raises(UserError, match=r"documents\.parquet: broken"):
        Tokens.open(folder)


def test_the_header_has_the_size_that_the_format_says() -> None:
    assert HEADER.size == 64


# -------------------------------------------------------------------------------------------- the stage


def corpus(num_documents: int) -> list[Document]:
    texts = [
        f"Guide {n}: run `service-{n} --level {n * 7}`\n" + "\tkubectl get pods\n" * 9
        for n in range(num_documents)
    ]
    plain = [
        Document(document_id("guides", str(n)), "guides", f"{n}.md", f"{n:016x}", 2.0, "MIT", text, None)
        for n, text in enumerate(texts)
    ]
    talk = (Message("user", "Which port?"), Message("assistant", "Port 53."))
    chats = [
        Document(document_id("chats", str(n)), "chats", f"a.json#{n}", f"c{n:015x}", 1.0, "MIT", "", talk)
        for n in range(5)
    ]
    return plain + chats


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_tokenize(**changes: object) -> None:
    from stages import tokenize

    params = params_file.load(ROOT / "params.yaml")
    settings = params.tokenize.model_copy(update={"vocab_size": 400, **changes})
    tokenize.main(params.model_copy(update={"tokenize": settings}), runtime.load(Path.cwd()))


def test_the_stage_writes_tokenizer_tokens_and_metrics(project: Path) -> None:
    documents = corpus(60)
    write_documents(project / "data/documents", documents)
    run_tokenize(loss_on="assistant", max_shard_tokens=1000)
    tokenizer, tokens = Tokenizer.load(Path("models/tokenizer")), Tokens.open(Path("data/tokens"))
    assert tokens.ids == [one.id for one in documents]
    assert len(tokens.shards) > 1
    for index, one in enumerate(documents[:60]):
        assert tokens.document(index).tolist() == [*tokenizer.encode(one.text), tokenizer.end_of_text]
    [start, end], _ = tokens.spans(61)
    assert tokenizer.decode(tokens.document(61)[start:end]) == "Port 53."
    assert tokenizer.token_bytes()[tokens.document(3)].sum() == tokens.text_bytes[3]
    metrics = json.loads(Path("metrics/tokenize.json").read_text())
    assert metrics["vocab_size"] == tokenizer.vocab_size
    assert metrics["documents"] == 65
    assert set(metrics["sources"]) == {"guides", "chats"}
    assert metrics["gate"]["held_out_texts"] > 0
    assert 30 < metrics["learnt_from"]["documents"] < 65


def test_the_stage_gives_the_same_bytes_each_time(project: Path) -> None:
    write_documents(project / "data/documents", corpus(40))
    contents = []
    for _ in range(2):
        run_tokenize()
        paths = [
            path for top in ("data/tokens", "models", "metrics") for path in sorted(Path(top).rglob("*.*"))
        ]
        contents.append({str(path): path.read_bytes() for path in paths})
    assert len(contents[0]) == 6
    assert contents[0] == contents[1]


def test_whole_columns_give_the_same_bytes_as_single_documents(project: Path) -> None:
    texts = ["", "Đo nhiệt độ\n\n\tđo lại", "a" * 5000, "x 1 2 3", "end"]
    strange = [
        Document(document_id("odd", str(n)), "odd", f"{n}.md", f"e{n:015x}", 0.5, "", text, None, "train")
        for n, text in enumerate(texts)
    ]
    write_documents(project / "data/documents", [*corpus(1500), *strange])
    found = []
    for budget in (None, 1_000_000):
        run_tokenize(max_total_tokens=budget)
        found.append({path.name: path.read_bytes() for path in Path("data/tokens").iterdir()})
    assert found[0] == found[1]


def test_the_stage_gives_the_same_bytes_from_several_workers_and_after_an_interruption(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nima.corpus.document import stretches
    from nima.encoding import encoding

    def tokens() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted(Path("data/tokens").iterdir())}

    write_documents(project / "data/documents", corpus(3000))
    run_tokenize()
    expected = tokens()
    monkeypatch.setattr(encoding, "STRETCH_BYTES", 20_000)
    monkeypatch.setenv("NIMA_WORKERS", "2")
    run_tokenize()
    assert tokens() == expected
    monkeypatch.setenv("NIMA_WORKERS", "1")
    encoded: list[object] = []
    whole = encoding.tables

    def counted(stretch: object, *others: object) -> object:
        encoded.append(stretch)
        if len(encoded) == 3:
            raise KeyboardInterrupt
        return whole(stretch, *others)

    monkeypatch.setattr(encoding, "tables", counted)
    with pytest.raises(KeyboardInterrupt):
        run_tokenize()
    num_stretches = len(list(stretches(Path("data/documents"), 20_000)))
    assert num_stretches >= 3
    run_tokenize()
    assert tokens() == expected
    assert len(encoded) == num_stretches + 1, "finished stretches are encoded once"


def test_a_ray_cluster_tokenizes_to_the_same_bytes(
    project: Path, cluster: tuple[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    from nima.corpus.document import stretches
    from nima.encoding import encoding

    def outputs() -> dict[str, bytes]:
        folders = (Path("data/tokens"), Path("models/tokenizer"))
        return {str(path): path.read_bytes() for folder in folders for path in sorted(folder.iterdir())}

    write_documents(project / "data/documents", corpus(3000))
    monkeypatch.setattr(encoding, "STRETCH_BYTES", 20_000)
    assert len(list(stretches(Path("data/documents"), 20_000))) >= 3
    monkeypatch.setenv("NIMA_WORKERS", "2")
    run_tokenize()
    expected = outputs()
    monkeypatch.setenv("RAY_ADDRESS", cluster[0])
    monkeypatch.setenv("NIMA_ENGINE", "ray")
    run_tokenize()
    assert outputs() == expected


def test_what_is_dropped_or_cut_is_counted_and_listed(project: Path) -> None:
    write_documents(project / "data/documents", corpus(40))
    run_tokenize(max_total_tokens=40)
    figures = json.loads(Path("metrics/tokenize.json").read_text())
    assert figures["num_dropped"] + figures["documents"] == 45
    assert figures["dropped"] == {"over_budget": figures["num_dropped"]}
    listed = [json.loads(line) for line in Path("data/tokens/dropped.jsonl").read_text().splitlines()]
    assert len(listed) == figures["num_dropped"] > 0
    run_tokenize(max_total_tokens=40, over_budget="truncate")
    figures = json.loads(Path("metrics/tokenize.json").read_text())
    assert figures["num_cut_documents"] > 0
    assert figures["num_cut_tokens"] >= figures["num_cut_documents"]
    with pytest.raises(UserError, match=r"tokenize\.max_total_tokens.*no document is left of 45"):
        run_tokenize(max_total_tokens=2)


def test_the_stage_learns_from_the_training_part_only(project: Path) -> None:
    from nima.dataset.splits import split_of

    parts = {n: split_of(f"{n:016x}", 0, (0.8, 0.1, 0.1)) for n in range(60)}
    held_out = [
        Document(
            f"{n:016x}",
            "guides",
            f"{n}",
            f"{n:016x}",
            1.0,
            "",
            "zyxwvut" * 50 if part != "train" else "kubectl " * 9,
            None,
        )
        for n, part in parts.items()
    ]
    assert set(parts.values()) == {"train", "validation", "test"}
    write_documents(project / "data/documents", held_out)
    run_tokenize()
    tokenizer = Tokenizer.load(Path("models/tokenizer"))
    assert len(tokenizer.encode("zyxwvut")) == 7
    assert len(tokenizer.encode("kubectl")) == 1


def test_the_stage_stops_at_a_gate_that_fails(project: Path) -> None:
    write_documents(project / "data/documents", corpus(20))
    with pytest.raises(UserError, match=r"tokenizer gate: .*min_vocab_size asks for 9999"):
        run_tokenize(min_vocab_size=9999)
    assert not Path("data/tokens").exists()


def test_the_stage_names_a_conversation_that_trains_nothing(project: Path) -> None:
    silent = Document("f" * 16, "chats", "b.json#7", "f" * 16, 1.0, "", "", (Message("user", "Hello?"),))
    write_documents(project / "data/documents", [*corpus(20), silent])
    with pytest.raises(UserError, match=r"chats: b\.json#7: the conversation trains no token"):
        run_tokenize(loss_on="assistant")


def test_the_stage_says_when_there_is_nothing_to_learn_from(project: Path) -> None:
    write_documents(project / "data/documents", [])
    with pytest.raises(UserError, match="no text to learn from: none of 0 documents"):
        run_tokenize()
