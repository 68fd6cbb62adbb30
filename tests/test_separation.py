"""The split stage: who is where, what is shared all the same, and the page about the data."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from nima.dataset import splits
from nima.dataset.tokens import Tokens
from nima.workspace import runtime
from nima.workspace.errors import UserError
from nima.workspace.params import Params, params_file
from stages import prepare, split, tokenize

ROOT = Path(__file__).parent.parent
SENTENCE = (
    "Step {0}: open valve {0}, wait for {1} bar on gauge {2}, then close the drain of tank {3} by hand."
)


def text(number: int, lines: int = 8) -> str:
    return "\n".join(
        SENTENCE.format(*(number * 97 + line * 13 + k * 7 for k in range(4))) for line in range(lines)
    )


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Forty documents to divide, and one that is declared for the test part."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data/raw"
    folder.mkdir(parents=True)
    for number in range(40):
        (folder / f"{number:02d}.txt").write_text(text(number))
    (folder / "bad.txt").write_text("<script>alert(1)</script>")
    (folder / "exam.jsonl").write_text(json.dumps({"text": text(1000)}) + "\n")
    return folder


def settings(**leakage: Any) -> Params:
    shipped = params_file.load(ROOT / "params.yaml")
    sources = [
        {"name": "exam", "path": "data/raw/exam.jsonl", "split": "test"},
        {"name": "manual", "path": "data/raw", "glob": "*.txt"},
    ]
    changes = {
        "prepare": {"sources": sources, "quality": {"min_chars": 30}},
        "tokenize": {"vocab_size": 400},
        "split": {"seed": 0, "train": 0.7, "validation": 0.15, "test": 0.15, "leakage": leakage},
    }
    return Params.model_validate(shipped.model_dump() | changes)


def run_stages(params: Params) -> dict[str, Any]:
    """metrics/split.json after the data stages."""
    place = runtime.load(Path.cwd())
    prepare.main(params, place)
    tokenize.main(params, place)
    split.main(params, place)
    return json.loads(Path("metrics/split.json").read_text())


def test_the_stage_writes_indices_and_counts(raw: Path) -> None:
    metrics = run_stages(settings())
    found, tokens = splits.load(Path("data/splits")), Tokens.open(Path("data/tokens"))
    expected = splits.assign(tokens.groups, 0, (0.7, 0.15, 0.15), declared=tokens.splits)
    assert {name: indices.tolist() for name, indices in found.items()} == {
        name: indices.tolist() for name, indices in expected.items()
    }
    for name in splits.SPLITS:
        assert metrics[name]["documents"] == len(found[name]) > 0
        assert metrics[name]["tokens"] == tokens.lengths[found[name]].sum()
        assert metrics[name]["bytes"] == tokens.text_bytes[found[name]].sum()
        assert sum(one["documents"] for one in metrics[name]["sources"].values()) == len(found[name])


def test_the_stage_stops_at_an_empty_split(raw: Path) -> None:
    shares = {"seed": 0, "train": 0.999, "validation": 0.001, "test": 0.0}
    params = Params.model_validate(settings().model_dump() | {"split": shares})
    with pytest.raises(UserError, match=r"split\.validation = 0\.001: no document of 41 falls there"):
        run_stages(params)
    assert not Path("data/splits").exists()


def copied_into_training(raw: Path) -> None:
    """Long documents hold the exam: too long to be its near duplicates, too many to be all held out."""
    for number in range(50, 60):
        (raw / f"{number}.txt").write_text(f"{text(number, 40)}\n{text(1000)}\n{text(number + 100, 40)}")


def test_a_declared_document_is_where_its_source_says(raw: Path) -> None:
    found = run_stages(settings())
    assert found["test"]["sources"]["exam"]["documents"] == 1
    assert "exam" not in found["train"]["sources"]
    assert found["leakage"]["parts"]["test"]["num_leaked"] == 0


def test_leaked_text_is_counted_listed_and_shown(raw: Path) -> None:
    copied_into_training(raw)
    found = run_stages(settings())
    assert found["leakage"]["parts"]["test"]["num_leaked"] >= 1
    listed = [json.loads(line) for line in Path("data/report/leaked.jsonl").read_text().splitlines()]
    assert any(one["part"] == "test" and one["share"] > 0.9 for one in listed)
    page = Path("data/report/index.html").read_text()
    assert all(one["id"] in page and one["document"] in page for one in listed)


def test_leaking_training_documents_are_dropped_or_end_the_stage(raw: Path) -> None:
    copied_into_training(raw)
    kept = run_stages(settings())["train"]["documents"]
    found = run_stages(settings(action="drop"))
    assert found["leakage"]["num_dropped"] == kept - found["train"]["documents"] > 0
    with pytest.raises(UserError, match=r"texts are leaked: first .*split\.leakage\.action to drop"):
        run_stages(settings(action="fail"))


def test_a_benchmark_is_a_source_whose_questions_training_must_not_hold(raw: Path) -> None:
    questions = [{"prompt": text(3)}, {"prompt": text(2000)}]
    (raw / "benchmark.jsonl").write_text("".join(json.dumps(one) + "\n" for one in questions))
    source = {"name": "exercises", "path": "data/raw/benchmark.jsonl", "fields": {"text": "prompt"}}
    params = settings(benchmarks=[source])
    found = run_stages(params)
    counts = found["leakage"]["parts"]["exercises"]
    assert counts["num_judged"] == 2
    in_training = 3 in [
        int(document.key[:2])
        for document, number in zip(documents(), assigned(), strict=True)
        if number == splits.SPLITS.index("train") and document.source == "manual"
    ]
    assert counts["num_leaked"] == int(in_training)


def documents() -> list[Any]:
    from nima.corpus.document import read_documents

    return list(read_documents(Path("data/documents")))


def assigned() -> list[int]:
    return splits.numbered(splits.load(Path("data/splits")), len(documents())).tolist()


def test_the_report_names_sources_and_reasons_and_escapes_text(raw: Path) -> None:
    run_stages(settings())
    page = Path("data/report/index.html").read_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page
    for word in ("manual", "exam", "too_short", "min_chars is 30"):
        assert word in page
    assert not re.search(r"https?://", page)
    assert Path("plots/data/rejected.csv").read_text() == "reason,records\ntoo_short,1\n"
    lengths = Path("plots/data/document_lengths.csv").read_text().splitlines()[1:]
    assert sum(int(line.split(",")[1]) for line in lengths) == len(documents())


def test_the_report_opens_in_a_browser(raw: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = Path("/usr/bin/chromium")
    if not chromium.exists():
        pytest.skip("Chromium is not on this machine")
    run_stages(settings())
    problems: list[str] = []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(chromium), args=["--no-sandbox"])
        page = browser.new_page(color_scheme="dark")
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(f"file://{Path('data/report/index.html').resolve()}")
        bars = page.locator("td.bars i").evaluate_all("bars => bars.map(bar => bar.offsetWidth)")
        browser.close()
    assert problems == []
    assert max(bars) > 100
