"""Qdrant collections: the embedded form for real, and a loopback server that speaks enough of its REST."""

import json
import os
import pickle
import re
import socket
import sqlite3
import sys
import threading
import time
import uuid
import warnings
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qdrant_client import QdrantClient, models

from nima.corpus.sources import pages, vectors
from nima.corpus.sources.vectors import POINT_CLASSES, classes_in, qdrant_files
from nima.workspace.errors import SourceError, UserError
from nima.workspace.params import SourceParams

KINDS = ("lesson", "exercise", "exam")


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No key of whoever runs the tests; small pages."""
    monkeypatch.delenv("QDRANT_API_KEY", raising=False)
    monkeypatch.setattr(pages, "PAGE_RECORDS", 10)


def payload(number: int) -> dict[str, Any]:
    kind = KINDS[number % 3]
    return {
        "data_type": kind,
        "grade": f"grade_{number % 5 + 1}",
        "content": f"Bài {number}: Tính diện tích hình vuông cạnh {number} cm.",
        "origin": {"book": "Toán 5", "page": number},
        "points": number / 2,
        "checked": number % 2 == 0,
    }


def source_at(place: Path | str, source: dict[str, Any] | None = None, **settings: Any) -> SourceParams:
    where = {"url": place} if str(place).startswith("http") else {"path": str(place)}
    qdrant = {"collection": "bai_tap", **where, **settings}
    return SourceParams(name="maths", qdrant=qdrant, **(source or {}))


def records(source: SourceParams, downloads: Path) -> list[dict[str, Any]]:
    found = []
    for file in qdrant_files(source, downloads):
        with file.open() as stream:
            found += [json.loads(line) for line in stream]
    return found


def fail(source: SourceParams, downloads: Path) -> str:
    """The one line that reading `source` fails with."""
    with pytest.raises(SourceError) as caught:
        list(qdrant_files(source, downloads))
    message = str(caught.value)
    assert "\n" not in message
    return message


def content_of(downloads: Path) -> dict[str, bytes]:
    """What lies in the only download's folder, by name."""
    (folder,) = downloads.iterdir()
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


# ------------------------------------------------------------------------------------- the embedded form


def write_database(folder: Path, ids: list[int | str]) -> Path:
    """A persistent embedded database whose collection holds `payload(n)` at the n-th id."""
    client = QdrantClient(path=str(folder))
    size = models.VectorParams(size=2, distance=models.Distance.COSINE)
    client.create_collection("bai_tap", vectors_config=size)
    points = [
        models.PointStruct(id=name, vector=[0.1, 0.2], payload=payload(n)) for n, name in enumerate(ids)
    ]
    if points:
        client.upsert("bai_tap", points)
    client.close()
    return folder


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_database(tmp_path_factory.mktemp("qdrant") / "db", list(range(60)))


def test_each_point_is_a_record_of_its_payload_and_id(database: Path, tmp_path: Path) -> None:
    found = records(source_at(database), tmp_path)
    assert found == [{**payload(n), "_id": n} for n in range(60)]
    assert "Tính diện tích".encode() in content_of(tmp_path)["page-00000.jsonl"]


def test_records_come_in_order_of_ids_numbers_before_uuids(tmp_path: Path) -> None:
    names = [str(uuid.UUID(int=n)) for n in (5, 3)]
    found = records(source_at(write_database(tmp_path / "db", [names[0], 7, names[1], 2])), tmp_path / "d")
    assert [record["_id"] for record in found] == [2, 7, names[1], names[0]]


@pytest.mark.parametrize(
    ("wanted", "matches"),
    [
        ({"data_type": "exercise"}, lambda p: p["data_type"] == "exercise"),
        ({"data_type": ["lesson", "exam"]}, lambda p: p["data_type"] in ("lesson", "exam")),
        (
            {"data_type": "exercise", "grade": ["grade_5", "grade_4"]},
            lambda p: p["data_type"] == "exercise" and p["grade"] in ("grade_4", "grade_5"),
        ),
        ({"origin.page": [3, 4, 99]}, lambda p: p["origin"]["page"] in (3, 4)),
        ({"origin.page": 7}, lambda p: p["origin"]["page"] == 7),
        ({"points": 2.5}, lambda p: p["points"] == 2.5),
        ({"points": [2.5, 3]}, lambda p: p["points"] in (2.5, 3)),
        ({"checked": True}, lambda p: p["checked"]),
    ],
)
def test_a_filter_takes_exactly_the_matching_points(
    database: Path, tmp_path: Path, wanted: dict[str, Any], matches: Any
) -> None:
    expected = [n for n in range(60) if matches(payload(n))]
    if wanted == {"points": [2.5, 3]}:
        expected = [5]  # the whole number 3 does not match 3.0
    assert [record["_id"] for record in records(source_at(database, filter=wanted), tmp_path)] == expected


@pytest.mark.parametrize("page_points", [1, 7, 10, 60, 1000])
def test_the_size_of_a_request_changes_no_byte_and_fetches_nothing_anew(
    database: Path, tmp_path: Path, page_points: int
) -> None:
    list(qdrant_files(source_at(database), tmp_path / "usual"))
    list(qdrant_files(source_at(database, page_points=page_points), tmp_path / "other"))
    assert content_of(tmp_path / "usual") == content_of(tmp_path / "other")


@pytest.mark.parametrize("page_points", [1, 7, 10, 256])
@pytest.mark.parametrize("num_pages", [1, 3, 6])
def test_a_scroll_that_stops_goes_on_exactly_there(
    database: Path, tmp_path: Path, page_points: int, num_pages: int
) -> None:
    source = source_at(database, page_points=page_points)
    list(qdrant_files(source, tmp_path / "straight"))
    files = qdrant_files(source, tmp_path / "stopped")
    for _ in range(num_pages):
        next(files)
    files.close()  # type: ignore[attr-defined]
    assert [record["_id"] for record in records(source, tmp_path / "stopped")] == list(range(60))
    assert content_of(tmp_path / "stopped") == content_of(tmp_path / "straight")


def test_an_embedded_database_that_changed_is_read_anew(tmp_path: Path) -> None:
    database = write_database(tmp_path / "db", [1, 2])
    assert len(records(source_at(database), tmp_path / "downloads")) == 2
    client = QdrantClient(path=str(database))
    client.upsert("bai_tap", [models.PointStruct(id=3, vector=[0, 1], payload={"content": "mới"})])
    client.close()
    assert len(records(source_at(database), tmp_path / "downloads")) == 3


def test_a_database_in_use_by_another_client_is_one_line(tmp_path: Path) -> None:
    database = write_database(tmp_path / "db", [1, 2])
    client = QdrantClient(path=str(database))
    message = fail(source_at(database), tmp_path / "downloads")
    client.close()
    assert message == (
        f"source maths: collection 'bai_tap' at {database}: another client has this folder open; "
        "close it, or run a Qdrant server"
    )
    assert len(records(source_at(database), tmp_path / "downloads")) == 2


def test_a_folder_that_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    for folder in (tmp_path / "missing", tmp_path):
        message = fail(source_at(folder), tmp_path / "downloads")
        assert "holds no embedded Qdrant database (no meta.json); a server is named by 'url'" in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damaged", ["meta.json", "collection/bai_tap/storage.sqlite"])
def test_a_damaged_database_is_one_line(tmp_path: Path, damaged: str) -> None:
    database = write_database(tmp_path / "db", [1, 2])
    (database / damaged).write_text("not what it was, and longer than the header of a database" * 20)
    message = fail(source_at(database), tmp_path / "downloads")
    assert message.startswith(f"source maths: collection 'bai_tap' at {database}: cannot be read: ")


def test_a_missing_or_empty_collection_or_a_filter_without_a_match_is_one_line(tmp_path: Path) -> None:
    database = write_database(tmp_path / "db", [])
    missing = SourceParams(name="maths", qdrant={"collection": "de_thi", "path": str(database)})
    assert "collection 'de_thi'" in fail(missing, tmp_path / "1")
    assert "Collection de_thi not found" in fail(missing, tmp_path / "1")
    assert fail(source_at(database), tmp_path / "2").endswith("holds no points")
    filtered = source_at(database, filter={"grade": "grade_9"})
    assert fail(filtered, tmp_path / "3").endswith("holds no points that match its filter")
    empty = source_at(database, filter={"grade": []})
    assert "filter 'grade' is an empty list; name the wanted values" in fail(empty, tmp_path / "4")


def test_without_the_package_the_extra_is_named(
    database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "qdrant_client", None)
    with pytest.raises(
        UserError, match=r"^source maths: needs the extra qdrant: pip install 'nima-lm\[qdrant\]'$"
    ):
        list(qdrant_files(source_at(database), tmp_path))


# ------------------------------------------------------------------------------------ pickles in databases


class Bomb:
    def __reduce__(self) -> Any:
        return os.mkdir, ("exploded",)


def plant(database: Path, point: bytes) -> None:
    with sqlite3.connect(database / "collection" / "bai_tap" / "storage.sqlite") as storage:
        storage.execute("INSERT INTO points VALUES ('planted', ?)", (point,))
    storage.close()


@pytest.mark.parametrize("protocol", range(6))
def test_a_database_that_would_run_code_is_refused_before_it_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: int
) -> None:
    monkeypatch.chdir(tmp_path)
    database = write_database(tmp_path / "db", [1, 2])
    point = models.PointStruct(id=5, vector=[0, 1], payload={"content": "x"})
    point.payload = {"content": Bomb()}
    plant(database, pickle.dumps(point, protocol))
    message = fail(source_at(database), tmp_path / "downloads")
    assert re.search(r"row 3 holds [\w. ]+, which is no part of a point and could run code", message)
    assert not (tmp_path / "exploded").exists()


def test_a_name_put_together_behind_the_scanners_back_is_refused() -> None:
    """Text below the top of the stack must not pass for what STACK_GLOBAL takes."""
    text = {name: b"\x8c" + bytes([len(name)]) + name.encode() for name in ("os", "mkdir", "uuid", "UUID")}
    popped = b"\x80\x04" + text["os"] + text["mkdir"] + text["uuid"] + text["UUID"] + b"00\x93."
    assert pickle.loads(popped) is os.mkdir
    assert set(classes_in(popped)) - POINT_CLASSES
    remembered = b"\x80\x04" + text["uuid"] + b"\x94" + text["UUID"] + b"\x94" + b"h\x00h\x01\x93."
    assert pickle.loads(remembered) is uuid.UUID
    assert set(classes_in(remembered)) == {"uuid.UUID"}


@given(
    st.dictionaries(
        st.text(max_size=5),
        st.none() | st.text() | st.floats() | st.integers() | st.dates() | st.datetimes() | st.uuids(),
        max_size=4,
    )
)
@settings(max_examples=60, deadline=None)
def test_points_as_the_client_stores_them_pass(values: dict[str, Any]) -> None:
    point = models.PointStruct(id=1, vector={"v": [0.5], "s": models.SparseVector(indices=[1], values=[1])})
    point.payload = values
    assert set(classes_in(pickle.dumps(point))) <= POINT_CLASSES


# ---------------------------------------------------------------------------------------------- a server


class FakeQdrant(ThreadingHTTPServer):
    """Scrolls and counts one collection of points 0 to n; misbehaves where it is told to."""

    daemon_threads = True

    def __init__(self, num_points: int) -> None:
        super().__init__(("127.0.0.1", 0), FakeQdrantAnswers)
        self.num_points = num_points
        self.refusal: int | None = None
        self.hangs_up_at: int | None = None
        self.pause_seconds = 0.0
        self.repeats = False
        self.garbles = False
        self.scrolls: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class FakeQdrantAnswers(BaseHTTPRequestHandler):
    server: FakeQdrant

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.keys.add(self.headers.get("api-key"))
        if self.server.refusal is not None:
            return self.answer(self.server.refusal, {"status": {"error": "no, for a reason"}})
        if self.path == "/collections/bai_tap/points/count":
            return self.count(body)
        if self.path == "/collections/bai_tap/points/scroll":
            return self.scroll(body)
        return self.answer(404, {"status": {"error": f"Not found: {self.path}"}})

    def count(self, body: dict[str, Any]) -> None:
        assert body["exact"] is True
        self.answer(200, {"result": {"count": self.server.num_points}, "status": "ok", "time": 0.0})

    def scroll(self, body: dict[str, Any]) -> None:
        self.server.scrolls.append(body)
        start = 0 if self.server.repeats else body.get("offset") or 0
        if self.server.hangs_up_at is not None and start >= self.server.hangs_up_at:
            return self.connection.shutdown(socket.SHUT_RDWR)
        time.sleep(self.server.pause_seconds)
        if self.server.garbles:
            return self.answer(200, {"hello": "world"})
        end = min(start + body["limit"], self.server.num_points)
        points = [{"id": n, "payload": payload(n)} for n in range(start, end)]
        following = end if end < self.server.num_points else None
        result = {"points": points, "next_page_offset": following}
        return self.answer(200, {"result": result, "status": "ok", "time": 0.0})

    def answer(self, status: int, value: dict[str, Any]) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def server() -> Iterator[FakeQdrant]:
    with FakeQdrant(35) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_server_is_scrolled_page_by_page_without_vectors(server: FakeQdrant, tmp_path: Path) -> None:
    wanted = {"data_type": "exercise", "origin.page": [1, 2]}
    found = records(source_at(server.url, page_points=8, filter=wanted), tmp_path)
    assert [record["_id"] for record in found] == list(range(35))
    assert [scroll.get("offset") for scroll in server.scrolls] == [None, 8, 16, 24, 32]
    for scroll in server.scrolls:
        assert scroll["limit"] == 8
        assert scroll["with_payload"] is True
        assert scroll["with_vector"] is False
        first, second = scroll["filter"]["must"]
        assert (first["key"], first["match"]) == ("data_type", {"value": "exercise"})
        assert [(one["key"], one["match"]["value"]) for one in second["should"]] == [
            ("origin.page", 1),
            ("origin.page", 2),
        ]


def test_few_records_are_few_requests(server: FakeQdrant, tmp_path: Path) -> None:
    next(qdrant_files(source_at(server.url, page_points=5), tmp_path))
    assert len(server.scrolls) == 2


def test_a_server_that_dies_in_the_middle_costs_only_the_unfinished_page(
    server: FakeQdrant, tmp_path: Path
) -> None:
    source = source_at(server.url, page_points=5)
    server.hangs_up_at = 25
    message = fail(source, tmp_path)
    assert re.search(r"the server does not answer \(.+\); run again to go on from the last finished", message)
    assert "complete.json" not in content_of(tmp_path)
    server.hangs_up_at = None
    server.scrolls.clear()
    assert [record["_id"] for record in records(source, tmp_path)] == list(range(35))
    assert server.scrolls[0]["offset"] == 20


def test_a_finished_collection_needs_no_server(server: FakeQdrant, tmp_path: Path) -> None:
    first = records(source_at(server.url), tmp_path)
    server.refusal = 500
    assert records(source_at(server.url), tmp_path) == first


def test_a_server_that_is_slow_is_one_line(
    server: FakeQdrant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vectors, "TIMEOUT_SECONDS", 1)
    server.pause_seconds = 1.5
    message = fail(source_at(server.url), tmp_path)
    assert "no answer within 1 seconds; run again to go on from the last finished page, with fewer" in message


def test_a_server_that_is_down_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        message = fail(source_at(url), tmp_path)
    assert re.match(rf"source maths: collection 'bai_tap' at {url}: the server does not answer \(", message)


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (401, "access refused (401); set QDRANT_API_KEY to a key that may read it"),
        (403, "access refused (403); set QDRANT_API_KEY to a key that may read it"),
        (404, "not found there; check url and collection"),
        (400, "cannot be read: Unexpected Response: 400 (Bad Request)"),
        (500, "cannot be read: Unexpected Response: 500 (Internal Server Error)"),
    ],
)
def test_a_refusal_is_one_line_with_a_way_out(
    server: FakeQdrant, tmp_path: Path, status: int, reason: str
) -> None:
    server.refusal = status
    message = fail(source_at(server.url), tmp_path)
    assert message.startswith(f"source maths: collection 'bai_tap' at {server.url}: {reason}")
    assert status not in (400, 500) or "no, for a reason" in message


def test_what_is_no_qdrant_is_one_line(server: FakeQdrant, tmp_path: Path) -> None:
    server.garbles = True
    assert "cannot be read: " in fail(source_at(server.url), tmp_path)


def test_the_key_is_the_environments_and_in_no_file(
    server: FakeQdrant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QDRANT_API_KEY", "secret-key")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it goes over plain http, here within the machine
        records(source_at(server.url), tmp_path)
    assert server.keys == {"secret-key"}
    assert b"secret-key" not in b"".join(content_of(tmp_path).values())


def test_a_password_in_the_url_is_in_no_message_and_no_file(server: FakeQdrant, tmp_path: Path) -> None:
    source = source_at(server.url.replace("//", "//me:pass-word@"))
    server.refusal = 500
    assert "pass-word" not in fail(source, tmp_path)
    server.refusal = None
    records(source, tmp_path)
    assert b"pass-word" not in b"".join(content_of(tmp_path).values())


@pytest.mark.parametrize("now", [34, 36])
def test_a_collection_that_changes_while_it_is_scrolled_is_an_error(
    server: FakeQdrant, tmp_path: Path, now: int
) -> None:
    files = qdrant_files(source_at(server.url, page_points=5), tmp_path)
    next(files), next(files), next(files)
    server.num_points = now
    with pytest.raises(SourceError) as caught:
        list(files)
    assert re.search(
        rf"changed while it was read: 35 points at first, ({now} now|more came); delete the folder maths-\*",
        str(caught.value),
    )
    assert "complete.json" not in content_of(tmp_path)


def test_a_collection_that_changed_between_two_runs_is_an_error(server: FakeQdrant, tmp_path: Path) -> None:
    next(qdrant_files(source_at(server.url), tmp_path))
    server.num_points = 36
    server.scrolls.clear()
    assert "35 points at first, 36 now" in fail(source_at(server.url), tmp_path)
    assert server.scrolls == [], "it is noticed before anything is fetched"


def test_a_server_that_goes_round_in_circles_is_noticed(server: FakeQdrant, tmp_path: Path) -> None:
    server.repeats = True
    message = fail(source_at(server.url, page_points=5), tmp_path)
    assert "35 points at first, more came" in message
