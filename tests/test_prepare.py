import hashlib
import json
import os
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nima.corpus.document import Document, read_documents, read_rejections
from nima.errors import SourceError, UserError
from nima.params import Params, PrepareParams
from nima.params_file import load
from nima.runtime import Runtime
from nima.runtime import load as load_runtime
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
        "qa.json#1": "missing_field",
    }
    assert rejections["b.md"].detail == f"same text as document {documents()['a.md'].id}"
    assert rejections["b.md"].text == (raw / "b.md").read_text()
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
    }
    assert found["num_files"] == 5
    assert found["num_records"] == found["num_documents"] + found["num_rejected"] == 6
    assert found["rejected"]["missing_field"] == 1


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
    expected = r"^no document is left of 6 records \(1 invalid_utf8, 1 missing_field, 4 too_short\); [^\n]*$"
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
    (raw / "qa.json").write_text('[{"question": "q",\n]')
    with pytest.raises(SourceError, match=re.escape("data/raw/qa.json:2: malformed JSON")):
        prepare.main(params(), runtime())
    assert documents() == before


def test_metrics_that_cannot_be_written_are_one_clear_line(raw: Path) -> None:
    Path("metrics").write_text("a file, not a folder")
    with pytest.raises(UserError, match=r"^metrics: cannot be written: [^\n]*$"):
        prepare.main(params(), runtime())


def test_an_unwritable_output_folder_is_one_clear_line(raw: Path) -> None:
    arguments = params(), runtime()
    raw.parent.chmod(0o500)
    expected = r"^data/rejected: cannot be written: Permission denied; [^\n]*$"
    with without_privileges(), pytest.raises(UserError, match=expected):
        prepare.main(*arguments)


@contextmanager
def without_privileges() -> Iterator[None]:
    """As an ordinary user: root may write everywhere."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)
