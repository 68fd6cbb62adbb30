"""Downloads in pages: resumable, exact, lazy, shared between runs."""

import datetime
import json
import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nima.corpus.sources import pages
from nima.corpus.sources.files import SourceFile
from nima.corpus.sources.pages import Page, Progress, json_line, page_files, read_progress, state_of
from nima.workspace.errors import SourceError, UserError
from nima.workspace.params import SourceParams

SOURCE = SourceParams(name="far", qdrant={"collection": "c", "url": "http://nowhere"})


class Far:
    """A place with numbered records; remembers what was taken from it, and breaks where it is told to."""

    def __init__(self, num_records: int, breaks_at: int | None = None, pause_seconds: float = 0.0) -> None:
        self.num_records = num_records
        self.breaks_at = breaks_at
        self.pause_seconds = pause_seconds
        self.taken: list[int] = []
        self.num_opened = self.num_closed = 0

    @contextmanager
    def __call__(self, progress: Progress) -> Iterator["FarStream"]:
        self.num_opened += 1
        try:
            yield FarStream(self, progress.cursor or 0, progress.origin or "version 1")
        finally:
            self.num_closed += 1


class FarStream:
    def __init__(self, far: Far, start: int, origin: str) -> None:
        self.far, self.position, self.origin = far, start, origin
        self.lines = self.read()

    def read(self) -> Iterator[bytes]:
        while self.position < self.far.num_records:
            if self.position == self.far.breaks_at:
                raise SourceError("far: the line went dead")
            time.sleep(self.far.pause_seconds)
            self.far.taken.append(self.position)
            self.position += 1
            yield json_line({"n": self.position - 1})

    def cursor(self) -> int:
        return self.position

    def finish(self, num_records: int) -> None:
        if num_records != self.far.num_records:
            raise SourceError(f"far: {num_records} records of {self.far.num_records}")


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "PAGE_RECORDS", 10)


def fetch(far: Far, downloads: Path, source: SourceParams = SOURCE, **decides: Any) -> Iterator[SourceFile]:
    return page_files(source, downloads, {"of": "numbers", **decides}, far)


def numbers_in(files: list[SourceFile]) -> list[int]:
    found = []
    for file in files:
        with file.open() as stream:
            found += [json.loads(line)["n"] for line in stream]
    return found


def folder_in(downloads: Path) -> Path:
    (folder,) = downloads.iterdir()
    return folder


def content_of(downloads: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder_in(downloads).iterdir())}


def test_records_become_pages_in_order(tmp_path: Path) -> None:
    files = list(fetch(Far(25), tmp_path))
    assert [file.key for file in files] == ["page-00000.jsonl", "page-00001.jsonl", "page-00002.jsonl"]
    assert numbers_in(files) == list(range(25))
    assert sorted(content_of(tmp_path)) == ["complete.json", "lock", *(file.key for file in files)]


@pytest.mark.parametrize("num_records", [1, 9, 10, 11, 20])
def test_the_last_page_is_whole_and_none_is_empty(tmp_path: Path, num_records: int) -> None:
    files = list(fetch(Far(num_records), tmp_path))
    assert numbers_in(files) == list(range(num_records))
    assert len(files) == -(-num_records // 10)


def test_a_page_ends_at_its_bytes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "PAGE_BYTES", 20)  # a line has 9 bytes
    assert [file.num_bytes for file in fetch(Far(7), tmp_path)] == [27, 27, 9]


def test_pages_grow_so_that_much_data_is_few_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "GROWTH_PAGES", 2)
    monkeypatch.setattr(pages, "MAX_GROWTH", 3)
    list(fetch(Far(150), tmp_path))
    sizes = [page.num_records for page in read_progress(folder_in(tmp_path)).pages]
    assert sizes == [10, 10, 20, 20, 30, 30, 30]


def test_a_page_is_fetched_only_when_it_is_asked_for(tmp_path: Path) -> None:
    far = Far(1000)
    files = fetch(far, tmp_path)
    next(files), next(files)
    assert far.taken == list(range(20))
    files.close()
    assert far.num_closed == far.num_opened == 1


def test_a_finished_download_needs_the_place_no_more(tmp_path: Path) -> None:
    first = numbers_in(list(fetch(Far(25), tmp_path)))
    gone = Far(0)
    assert numbers_in(list(fetch(gone, tmp_path))) == first
    assert gone.num_opened == 0


def test_finished_pages_of_an_unfinished_download_need_it_no_more(tmp_path: Path) -> None:
    next(fetch(Far(100), tmp_path))
    gone = Far(0)
    assert numbers_in([next(fetch(gone, tmp_path))]) == list(range(10))
    assert gone.num_opened == 0


@pytest.mark.parametrize("breaks_at", [0, 1, 9, 10, 11, 20, 24])
def test_an_interrupted_download_goes_on_and_ends_in_the_same_bytes(tmp_path: Path, breaks_at: int) -> None:
    list(fetch(Far(25), tmp_path / "straight"))
    with pytest.raises(SourceError, match="went dead"):
        list(fetch(Far(25, breaks_at), tmp_path / "broken"))
    assert "complete.json" not in content_of(tmp_path / "broken")
    second = Far(25)
    assert numbers_in(list(fetch(second, tmp_path / "broken"))) == list(range(25))
    assert second.taken[0] == breaks_at // 10 * 10, "finished pages are not fetched again"
    assert content_of(tmp_path / "broken") == content_of(tmp_path / "straight")


def download_slowly(downloads: Path) -> None:
    pages.PAGE_RECORDS = 10
    list(fetch(Far(300, pause_seconds=0.002), downloads))


def test_kill_9_in_the_middle_loses_no_page_and_doubles_no_record(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=download_slowly, args=(tmp_path / "killed",))
    process.start()
    while not list(tmp_path.glob("killed/*/page-00003.jsonl")):
        time.sleep(0.005)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    rest = Far(300)
    assert numbers_in(list(fetch(rest, tmp_path / "killed"))) == list(range(300))
    assert rest.taken[0] >= 30
    list(fetch(Far(300), tmp_path / "straight"))
    assert content_of(tmp_path / "killed") == content_of(tmp_path / "straight")


def test_two_runs_at_once_share_the_pages(tmp_path: Path) -> None:
    one, other = Far(120, pause_seconds=0.001), Far(120, pause_seconds=0.001)
    results: dict[int, list[int]] = {}

    def run(far: Far) -> None:
        results[id(far)] = numbers_in(list(fetch(far, tmp_path)))

    threads = [threading.Thread(target=run, args=(far,)) for far in (one, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results[id(one)] == results[id(other)] == list(range(120))
    assert sorted(one.taken + other.taken) == list(range(120)), "no record is fetched twice"


def test_the_stream_hears_what_the_first_one_found(tmp_path: Path) -> None:
    next(fetch(Far(30), tmp_path))
    heard = []

    @contextmanager
    def opened(progress: Progress) -> Iterator[FarStream]:
        heard.append((progress.origin, progress.cursor, progress.num_records))
        yield FarStream(Far(30), progress.cursor, progress.origin)

    list(page_files(SOURCE, tmp_path, {"of": "numbers"}, opened))
    assert heard == [("version 1", 10, 10)]


def test_an_end_that_cannot_be_the_end_is_not_taken_as_complete(tmp_path: Path) -> None:
    far = Far(25)

    def fail(num_records: int) -> None:
        raise SourceError(f"only {num_records} of 30 came")

    @contextmanager
    def opened(progress: Progress) -> Iterator[FarStream]:
        with far(progress) as stream:
            stream.finish = fail  # type: ignore[method-assign]
            yield stream

    with pytest.raises(SourceError, match="only 25 of 30 came"):
        list(page_files(SOURCE, tmp_path, {}, opened))
    assert not read_progress(folder_in(tmp_path)).is_complete
    assert len(read_progress(folder_in(tmp_path)).pages) == 2


def test_other_settings_or_another_source_have_another_folder(tmp_path: Path) -> None:
    other = SOURCE.model_copy(update={"name": "other"})
    list(fetch(Far(5), tmp_path))
    list(fetch(Far(6), tmp_path, revision="v2"))
    list(fetch(Far(7), tmp_path, other))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert [name[:-13] for name in names] == ["far", "far", "other"]
    assert all(len(name.rpartition("-")[2]) == 12 for name in names)


@pytest.mark.parametrize("damage", ["missing", "changed", "cut"])
def test_a_damaged_page_is_named_with_the_way_out(tmp_path: Path, damage: str) -> None:
    list(fetch(Far(25), tmp_path))
    page = folder_in(tmp_path) / "page-00001.jsonl"
    content = page.read_bytes()
    if damage == "missing":
        page.unlink()
    else:
        page.write_bytes(content[:-1] if damage == "cut" else content.replace(b"12", b"21"))
    with pytest.raises(SourceError, match=r"page-00001\.jsonl: missing or damaged; delete the folder .*far-"):
        list(fetch(Far(25), tmp_path))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"pages": [{}]}', '{"pages": 1, "cursor": 0}'])
def test_a_damaged_progress_is_named_with_the_way_out(tmp_path: Path, content: str) -> None:
    next(fetch(Far(25), tmp_path))
    (folder_in(tmp_path) / "progress.json").write_text(content)
    with pytest.raises(SourceError, match=r"progress\.json: damaged; delete the folder"):
        list(fetch(Far(25), tmp_path))


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "downloads").write_text("a file")
    with pytest.raises(UserError, match=r"cannot be written: Not a directory"):
        list(fetch(Far(5), tmp_path / "downloads"))


@pytest.mark.parametrize("setting", [{"format": "parquet"}, {"encoding": "latin-1"}])
def test_settings_that_would_garble_the_pages_are_refused(tmp_path: Path, setting: dict[str, str]) -> None:
    source = SOURCE.model_copy(update=setting)
    ((name, value),) = setting.items()
    with pytest.raises(SourceError, match=f"source far: {name} '{value}' is for files"):
        next(fetch(Far(5), tmp_path, source))


def test_the_state_of_a_folder_tells_contents_and_names_but_not_hidden_files(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text("1")
    before = state_of(tmp_path)
    (tmp_path / ".lock").write_text("x")
    assert state_of(tmp_path) == before
    os.utime(tmp_path / "in" / "a.jsonl", ns=(1, 1))
    assert state_of(tmp_path) == [["in/a.jsonl", 1, 1]] != before


# ------------------------------------------------------------------------------------------------- JSON


def test_dates_decimals_and_ids_become_text_and_what_is_no_number_null() -> None:
    record = {
        "when": datetime.datetime(2024, 2, 29, 12, 30, tzinfo=datetime.UTC),
        "day": datetime.date(2024, 2, 29),
        "hour": datetime.time(7, 5),
        "price": Decimal("1.10"),
        "id": UUID(int=7),
        "scores": [1.5, math.nan, {"deep": -math.inf}],
        "b": "đề thi",
        "a": None,
    }
    line = json_line(record)
    assert list(json.loads(line)) == sorted(record), "in the order of the keys"
    assert json.loads(line) == {
        "when": "2024-02-29T12:30:00+00:00",
        "day": "2024-02-29",
        "hour": "07:05:00",
        "price": "1.10",
        "id": "00000000-0000-0000-0000-000000000007",
        "scores": [1.5, None, {"deep": None}],
        "b": "đề thi",
        "a": None,
    }
    assert "đề thi".encode() in line


def test_half_a_surrogate_pair_stays_in_the_line_for_its_reader_to_reject() -> None:
    line = json_line({"text": "half \ud83d", "n": math.nan})
    assert line == b'{"n": null, "text": "half \\ud83d"}\n'


@pytest.mark.parametrize("value", [b"bytes", object(), {1, 2}, datetime.timedelta(1)])
def test_what_json_cannot_hold_raises_with_its_type(value: object) -> None:
    with pytest.raises(TypeError, match=f"^{type(value).__name__}$"):
        json_line({"deep": [value]})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@given(st.dictionaries(st.text(st.characters(), max_size=5), json_values, max_size=5))
@settings(max_examples=150, deadline=None)
def test_any_record_is_one_line_that_reads_back(record: dict[str, Any]) -> None:
    line = json_line(record)
    assert line.count(b"\n") == 1
    assert b"\r" not in line
    assert line == json_line(dict(reversed(record.items())))
    assert json.loads(line) == pages.finite(record)


def test_progress_survives_its_file(tmp_path: Path) -> None:
    progress = Progress((Page(1, 2, "ab"),), {"state": [1, {"b": None}]}, "sha")
    pages.write_progress(tmp_path, progress, {"of": "numbers"})
    assert read_progress(tmp_path) == progress
