import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from nima.corpus import collection, portions, refinement
from nima.corpus.document import Document, read_documents, read_rejections
from nima.workspace.errors import SourceError, UserError
from nima.workspace.params import Params, PrepareParams
from nima.workspace.params.params_file import load
from nima.workspace.runtime import Runtime
from nima.workspace.runtime import load as load_runtime
from stages import prepare

DEFAULTS = Path(__file__).resolve().parent.parent / "params.yaml"
GUIDE = "# Pods\n\nA pod runs.   \n\n```sh\nkubectl get pods   \n\tname\n```\n"


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data" / "raw"
    folder.mkdir(parents=True)
    (folder / "a.md").write_text(GUIDE)
    (folder / "b.md").write_text(GUIDE.replace("runs.   ", "runs."))
    (folder / "c.md").write_text("x")
    (folder / "d.md").write_bytes(b"caf\xe9")
    records = [{"question": "What is a pod? ", "answer": "A group."}, {"question": "What is a node?"}]
    (folder / "qa.json").write_text(json.dumps(records))
    return folder


def runtime() -> Runtime:
    return load_runtime(Path.cwd())


def params(**settings: Any) -> Params:
    sources = [
        {"name": "guides", "path": "data/raw", "glob": "*.md", "weight": 2.0, "licence": "MIT"},
        {"name": "questions", "path": "data/raw", "glob": "*.json"},
    ]
    prepare_params = PrepareParams.model_validate(
        {"sources": sources, "quality": {"min_chars": 10}} | settings
    )
    return load(DEFAULTS).model_copy(update={"prepare": prepare_params})


def documents() -> dict[str, Document]:
    return {document.key: document for document in read_documents(prepare.DOCUMENTS)}


def figures() -> dict[str, Any]:
    return json.loads(Path("metrics/prepare.json").read_text())


def test_every_record_becomes_a_document_or_a_rejection_with_its_reason(raw: Path) -> None:
    prepare.main(params(), runtime())
    assert list(documents()) == ["a.md", "qa.json#0"]
    rejections = {rejection.key: rejection for rejection in read_rejections(prepare.REJECTED)}
    assert {key: rejection.reason for key, rejection in rejections.items()} == {
        "b.md": "exact_duplicate",
        "c.md": "too_short",
        "d.md": "invalid_utf8",
        "qa.json#1": "incomplete",
    }
    assert rejections["b.md"].detail == f"same text as document {documents()['a.md'].id}"
    assert rejections["b.md"].text == documents()["a.md"].text  # a duplicate is shown as it was cleaned
    assert rejections["d.md"].raw == b"caf\xe9"
    assert rejections["qa.json#1"].text == '{"question": "What is a node?"}'


def test_documents_carry_cleaned_text_and_their_sources_settings(raw: Path) -> None:
    prepare.main(params(), runtime())
    guide = documents()["a.md"]
    assert guide.text == "# Pods\n\nA pod runs.\n\n```sh\nkubectl get pods   \n\tname\n```\n"
    assert (guide.source, guide.weight, guide.licence, guide.messages) == ("guides", 2.0, "MIT", None)
    question = documents()["qa.json#0"]
    assert question.text == ""
    assert [message.content for message in question.messages or ()] == ["What is a pod?", "A group."]
    assert (question.weight, question.licence) == (1.0, "")


def test_metrics_count_each_source_and_all(raw: Path) -> None:
    prepare.main(params(), runtime())
    found = figures()
    assert found["sources"]["guides"] == {
        "num_files": 4,
        "num_records": 4,
        "num_documents": 1,
        "text_bytes": len(documents()["a.md"].text.encode()),
        "num_rejected": 3,
        "rejected": {"exact_duplicate": 1, "invalid_utf8": 1, "too_short": 1},
        "num_near_duplicates": 0,
        "masked": {},
    }
    assert found["num_files"] == 5
    assert found["num_records"] == found["num_documents"] + found["num_rejected"] == 6
    assert found["rejected"]["incomplete"] == 1


def test_kept_duplicates_share_a_group_so_that_they_share_a_split(raw: Path) -> None:
    prepare.main(params(duplicates={"exact": False}), runtime())
    first, second = documents()["a.md"], documents()["b.md"]
    assert first.group == second.group
    assert first.id != second.id


def test_a_duplicate_is_found_in_another_source(raw: Path) -> None:
    sources = [{"name": name, "path": "data/raw", "glob": "a.md"} for name in ("first", "second")]
    prepare.main(params(sources=sources), runtime())
    assert [document.source for document in documents().values()] == ["first"]


def test_max_samples_caps_the_documents_that_are_kept(raw: Path) -> None:
    sources = [{"name": "s", "path": "data/raw", "glob": "*.md", "max_samples": 1}]
    prepare.main(params(sources=sources), runtime())
    assert figures()["num_records"] == 1


def test_other_documents_do_not_change_ids_and_groups(raw: Path) -> None:
    prepare.main(params(), runtime())
    before = {key: (document.id, document.group) for key, document in documents().items()}
    (raw / "0.md").write_text("A new guide, which is read first.\n")
    prepare.main(params(), runtime())
    after = {key: (document.id, document.group) for key, document in documents().items()}
    assert before.items() < after.items()


def test_a_second_run_gives_the_same_bytes(raw: Path) -> None:
    def output() -> list[bytes]:
        paths = [*prepare.DOCUMENTS.iterdir(), *prepare.REJECTED.iterdir(), Path("metrics/prepare.json")]
        return [path.read_bytes() for path in sorted(paths)]

    prepare.main(params(), runtime())
    first = output()
    prepare.main(params(), runtime())
    assert output() == first


def test_a_package_is_a_source(raw: Path) -> None:
    folder = runtime().packages / "demo-1.0"
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "demo-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("demo/a.rst", "Run this::\n\n  demo --all  \n")
    sha256 = hashlib.sha256((folder / "demo-1.0-py3-none-any.whl").read_bytes()).hexdigest()
    package = {"index": "pypi", "name": "demo", "version": "1.0", "sha256": sha256}
    prepare.main(params(sources=[{"name": "p", "package": package, "glob": "**/*.rst"}]), runtime())
    assert documents()["demo/a.rst"].text == "Run this::\n\n  demo --all  \n"


def test_no_document_left_says_how_many_were_rejected_and_why(raw: Path) -> None:
    expected = r"^no document is left of 6 records \(1 incomplete, 1 invalid_utf8, 4 too_short\); [^\n]*$"
    with pytest.raises(UserError, match=expected):
        prepare.main(params(quality={"min_chars": 1000}), runtime())
    assert len(list(read_rejections(prepare.REJECTED))) == 6


def test_an_empty_corpus_is_one_clear_line(raw: Path) -> None:
    (raw / "qa.json").write_text("[]")
    sources = [{"name": "questions", "path": "data/raw", "glob": "*.json"}]
    with pytest.raises(UserError, match=r"^no document is left of 0 records \(none was read\)"):
        prepare.main(params(sources=sources), runtime())


def test_a_failing_source_leaves_the_former_documents(raw: Path) -> None:
    prepare.main(params(), runtime())
    before = documents()
    (raw / "qa.json").unlink()
    with pytest.raises(SourceError, match=r"source questions: glob '\*\.json' matches none"):
        prepare.main(params(), runtime())
    assert documents() == before


def test_metrics_that_cannot_be_written_are_one_clear_line(raw: Path) -> None:
    Path("metrics").write_text("a file, not a folder")
    with pytest.raises(UserError, match=r"^metrics: cannot be written: [^\n]*$"):
        prepare.main(params(), runtime())


def test_an_unwritable_output_folder_is_one_clear_line(raw: Path) -> None:
    Path("data/.rejected.partial").write_text("a file where a folder must be")
    with pytest.raises(UserError, match=r"^data/rejected: cannot be written: File exists; [^\n]*$"):
        prepare.main(params(), runtime())


# ---------------------------------------------------------------------------------- many portions, many hands


LONG = "The server keeps {0} logs in its journal, and number {0} is read by the operator every morning."


@pytest.fixture
def records(raw: Path) -> Path:
    """A JSONL file of 300 records: some repeated, some nearly, some unusable."""
    path = raw / "many.jsonl"
    with path.open("w") as file:
        for number in range(300):
            text = " ".join(LONG.format(number * 7 + line) for line in range(4))
            if number % 10 == 3:
                text = " ".join(LONG.format((number - 3) * 7 + line) for line in range(4))
            if number % 50 == 7:
                text = "x"
            file.write(json.dumps({"text": text, "n": number}) + "\n" if number % 40 else "{broken\n")
    return path


def many(path: Path, **settings: Any) -> Params:
    return params(sources=[{"name": "many", "path": str(path)} | settings.pop("source", {})], **settings)


def output_bytes() -> dict[str, bytes]:
    paths = [*prepare.DOCUMENTS.iterdir(), *prepare.REJECTED.iterdir(), Path("metrics/prepare.json")]
    return {str(path): path.read_bytes() for path in paths}


def run_with(monkeypatch: pytest.MonkeyPatch, settings: Params, workers: int, portion_bytes: int) -> None:
    monkeypatch.setenv("NIMA_WORKERS", str(workers))
    monkeypatch.setattr(portions, "PORTION_BYTES", portion_bytes)
    monkeypatch.setattr(portions, "BLOCK_BYTES", 1 << 10)
    prepare.main(settings, runtime())


def test_documents_are_written_while_others_are_still_to_be_read(
    records: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    read, write = collection.refined, collection.Collection.write_portion
    monkeypatch.setattr(collection, "refined", lambda *a, **k: (order.append("read"), read(*a, **k))[1])
    monkeypatch.setattr(
        collection.Collection, "write_portion", lambda *a: (order.append("write"), write(*a))[1]
    )
    run_with(monkeypatch, many(records), workers=1, portion_bytes=9_000)
    assert order[:4] == ["read", "write", "read", "write"]


@pytest.mark.parametrize("near", [None, {"action": "group"}, {"action": "drop"}])
@pytest.mark.parametrize("cap", [None, 41])
def test_workers_and_portions_do_not_change_the_output(
    records: Path, monkeypatch: pytest.MonkeyPatch, near: Any, cap: int | None
) -> None:
    settings = many(records, duplicates={"near": near}, source={"max_samples": cap})
    run_with(monkeypatch, settings, workers=1, portion_bytes=1 << 30)
    expected = output_bytes()
    run_with(monkeypatch, settings, workers=2, portion_bytes=9_000)
    assert output_bytes() == expected
    run_with(monkeypatch, settings, workers=1, portion_bytes=2_000)
    assert output_bytes() == expected
    assert "exact_duplicate" in figures()["rejected"]
    if cap is not None:
        assert figures()["num_documents"] == cap or near == {"action": "drop"}


def test_an_interrupted_run_takes_up_finished_portions(
    records: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = many(records)
    run_with(monkeypatch, settings, workers=1, portion_bytes=9_000)
    expected = output_bytes()
    read: list[str] = []
    whole = refinement.outcome

    def counted(record: Any, *others: Any) -> Any:
        read.append(record.key)
        if len(read) == 200:
            raise KeyboardInterrupt
        return whole(record, *others)

    monkeypatch.setattr(refinement, "outcome", counted)
    with pytest.raises(KeyboardInterrupt):
        run_with(monkeypatch, settings, workers=1, portion_bytes=9_000)
    assert list(Path(".nima/prepare").iterdir()) != []
    run_with(monkeypatch, settings, workers=1, portion_bytes=9_000)
    assert output_bytes() == expected
    assert 300 < len(read) < 300 + 60, "finished portions are read once"
    assert list(Path(".nima/prepare").iterdir()) == []


def test_a_cap_counts_documents_that_are_kept_and_stops_reading(records: Path) -> None:
    prepare.main(many(records, source={"max_samples": 10}), runtime())
    found = figures()
    assert found["num_documents"] == 10
    assert (
        found["rejected"] == {"exact_duplicate": 1, "malformed_json": 1, "too_short": 1} or found["rejected"]
    )
    assert found["num_records"] == 10 + found["num_rejected"] < 20


def test_near_duplicates_share_a_group_or_go(raw: Path) -> None:
    text = " ".join(LONG.format(line) for line in range(12))
    (raw / "x.txt").write_text(text)
    (raw / "y.txt").write_text(text.replace("operator", "engineer", 1))
    sources = [{"name": "texts", "path": "data/raw", "glob": "*.txt"}]
    prepare.main(params(sources=sources, duplicates={"near": {"action": "group"}}), runtime())
    first, second = documents().values()
    assert first.group == second.group
    assert figures()["num_near_duplicates"] == 1
    prepare.main(params(sources=sources, duplicates={"near": {"action": "drop"}}), runtime())
    assert list(documents()) == ["x.txt"]
    (rejected,) = read_rejections(prepare.REJECTED)
    assert (rejected.reason, rejected.key) == ("near_duplicate", "y.txt")
    assert first.id in rejected.detail


def test_private_data_is_masked_in_documents_and_in_rejected_records(raw: Path) -> None:
    (raw / "x.txt").write_text("Write to jane.doe@klinik-kiel.de, who knows how the pager works.")
    (raw / "y.txt").write_text("jane.doe@klinik-kiel.de")
    sources = [{"name": "texts", "path": "data/raw", "glob": "*.txt"}]
    settings = params(sources=sources, privacy={"emails": "mask"}, quality={"min_chars": 30})
    prepare.main(settings, runtime())
    assert documents()["x.txt"].text.startswith("Write to <email>, who")
    (rejected,) = read_rejections(prepare.REJECTED)
    assert "jane" not in rejected.text
    assert figures()["masked"] == {"emails": 2}


def test_lines_that_many_documents_share_go_from_their_edges(raw: Path) -> None:
    for number in range(4):
        body = f"Chapter {number} tells what happened to the {number} clusters of the region."
        (raw / f"{number}.txt").write_text(f"Company handbook, all rights reserved\n\n{body}\n")
    sources = [{"name": "texts", "path": "data/raw", "glob": "*.txt"}]
    settings = params(sources=sources, cleaning={"boilerplate": {"min_documents": 4}})
    prepare.main(settings, runtime())
    assert all(document.text.lstrip().startswith("Chapter") for document in documents().values())
    settings = params(sources=sources, cleaning={"boilerplate": {"min_documents": 5}})
    prepare.main(settings, runtime())
    assert all(document.text.startswith("Company") for document in documents().values())


def test_a_source_declares_the_split_and_the_group_of_its_documents(raw: Path) -> None:
    sources = [{"name": "held-out", "path": "data/raw/a.md", "split": "test", "group_by": "folder"}]
    prepare.main(params(sources=sources), runtime())
    assert documents()["a.md"].split == "test"


def test_a_ray_cluster_gives_the_same_bytes(
    records: Path, cluster: tuple[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = many(records, duplicates={"near": {"action": "group"}})
    run_with(monkeypatch, settings, workers=1, portion_bytes=9_000)
    expected = output_bytes()
    monkeypatch.setenv("RAY_ADDRESS", cluster[0])
    monkeypatch.setenv("NIMA_ENGINE", "ray")
    run_with(monkeypatch, settings, workers=1, portion_bytes=9_000)
    assert output_bytes() == expected
