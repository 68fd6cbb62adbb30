"""Hub data sets: local folders, and a loopback server that speaks enough of the hub's protocol."""

import gzip
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import date, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nima.corpus.sources import pages
from nima.corpus.sources.hub import hub_files
from nima.workspace.errors import SourceError, UserError
from nima.workspace.params import SourceParams

FIRST, SECOND = "a" * 40, "b" * 40
ABSENT = {"X-Error-Code": "EntryNotFound"}


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No token, no cache and no hub of whoever runs the tests; small pages; no import of torch."""
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", tmp_path / "datasets-cache")
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(datasets.config, "TORCH_AVAILABLE", False)
    monkeypatch.setenv("USE_TORCH", "0")
    monkeypatch.setattr(pages, "PAGE_RECORDS", 10)


def hub(dataset: Path | str, source: dict[str, Any] | None = None, **settings: Any) -> SourceParams:
    return SourceParams(name="set", hub={"dataset": str(dataset), **settings}, **(source or {}))


def records(source: SourceParams, downloads: Path) -> list[dict[str, Any]]:
    found = []
    for file in hub_files(source, downloads):
        with file.open() as stream:
            found += [json.loads(line) for line in stream]
    return found


def fail(source: SourceParams, downloads: Path) -> str:
    """The one line that reading `source` fails with."""
    with pytest.raises(SourceError) as caught:
        list(hub_files(source, downloads))
    message = str(caught.value)
    assert "\n" not in message
    return message


def content_of(downloads: Path) -> dict[str, bytes]:
    """What lies in the only download's folder, by name."""
    (folder,) = downloads.iterdir()
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def rows(start: int, end: int) -> list[dict[str, Any]]:
    return [{"question": f"Tính {n} + 1", "answer": str(n + 1), "grade": n % 5} for n in range(start, end)]


def jsonl(values: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values).encode()


def write_data_set(folder: Path, kind: str = "parquet", num_files: int = 3) -> Path:
    """Files of 25 records each, in row groups of 10 where there are such."""
    folder.mkdir(parents=True)
    for number in range(num_files):
        values = rows(number * 25, number * 25 + 25)
        path = folder / f"train-{number}.{kind}"
        if kind == "parquet":
            pq.write_table(pa.Table.from_pylist(values), path, row_group_size=10)
        elif kind == "json":
            path.write_text(json.dumps(values))
        else:
            path.write_bytes(gzip.compress(jsonl(values)) if kind.endswith("gz") else jsonl(values))
    return folder


# ----------------------------------------------------------------------------------------- local folders


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "jsonl.gz"])
def test_a_local_data_set_is_streamed_record_by_record(tmp_path: Path, kind: str) -> None:
    source = hub(write_data_set(tmp_path / "in", kind))
    assert records(source, tmp_path / "downloads") == rows(0, 75)
    assert len(list(hub_files(source, tmp_path / "downloads"))) == 8


def test_config_split_and_data_files_choose(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("algebra-train", "algebra-test", "geometry-train"):
        (folder / f"{name}.jsonl").write_bytes(jsonl([{"text": name}]))
    (folder / "README.md").write_text(
        "---\nconfigs:\n"
        "- config_name: algebra\n  data_files:\n"
        "  - {split: train, path: algebra-train.jsonl}\n  - {split: test, path: algebra-test.jsonl}\n"
        "- config_name: geometry\n  data_files: geometry-train.jsonl\n---\n"
    )
    downloads = tmp_path / "downloads"
    assert records(hub(folder, config="algebra", split="test"), downloads) == [{"text": "algebra-test"}]
    assert records(hub(folder, config="geometry"), downloads) == [{"text": "geometry-train"}]
    files = ["geometry-train.jsonl", "algebra-test.jsonl"]
    found = records(hub(folder, data_files=files), downloads)
    assert [record["text"] for record in found] == ["geometry-train", "algebra-test"]
    assert len(list(downloads.iterdir())) == 3


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "jsonl.gz", "json"])
@pytest.mark.parametrize("num_pages", [2, 5, 7])
def test_a_download_that_stops_goes_on_exactly_there(tmp_path: Path, kind: str, num_pages: int) -> None:
    source = hub(write_data_set(tmp_path / "in", kind))
    list(hub_files(source, tmp_path / "straight"))
    files = hub_files(source, tmp_path / "stopped")
    for _ in range(num_pages):
        next(files)
    files.close()  # type: ignore[attr-defined]
    assert "progress.json" in content_of(tmp_path / "stopped")
    assert records(source, tmp_path / "stopped") == rows(0, 75)
    stopped, straight = content_of(tmp_path / "stopped"), content_of(tmp_path / "straight")
    assert {k: v for k, v in stopped.items() if "page" in k} == {
        k: v for k, v in straight.items() if "page" in k
    }
    assert "complete.json" in stopped


SLOW_DOWNLOAD = """
import sys, time
from pathlib import Path
from nima.corpus.sources import hub, pages
from nima.workspace.params import SourceParams
line = hub.json_line
hub.json_line = lambda record: (time.sleep(0.005), line(record))[1]
pages.PAGE_RECORDS = 10
list(hub.hub_files(SourceParams(name="set", hub={"dataset": sys.argv[1]}), Path(sys.argv[2])))
"""


def test_kill_9_in_the_middle_of_a_data_set_leaves_every_record_once(tmp_path: Path) -> None:
    folder = write_data_set(tmp_path / "in", num_files=8)
    downloads = tmp_path / "downloads"
    process = subprocess.Popen([sys.executable, "-c", SLOW_DOWNLOAD, folder, downloads])
    while not list(downloads.glob("*/page-00004.jsonl")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was to be killed before it was through"
    assert "complete.json" not in content_of(downloads)
    assert records(hub(folder), downloads) == rows(0, 200)
    assert "complete.json" in content_of(downloads)


def test_a_finished_download_is_used_without_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = hub(write_data_set(tmp_path / "in"))
    first = records(source, tmp_path / "downloads")
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert records(source, tmp_path / "downloads") == first


def test_without_the_package_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = hub(write_data_set(tmp_path / "in"))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"^source set: needs the extra hub: pip install 'nima-lm\[hub\]'$"):
        list(hub_files(source, tmp_path / "downloads"))


def test_a_local_data_set_that_changed_is_read_anew(tmp_path: Path) -> None:
    source = hub(write_data_set(tmp_path / "in", "jsonl", num_files=1))
    records(source, tmp_path / "downloads")
    (tmp_path / "in" / "train-0.jsonl").write_bytes(jsonl(rows(500, 501)))
    assert records(source, tmp_path / "downloads") == rows(500, 501)


def test_what_max_samples_weight_and_fields_say_does_not_fetch_anew(tmp_path: Path) -> None:
    folder = write_data_set(tmp_path / "in")
    records(hub(folder), tmp_path / "downloads")
    records(
        hub(folder, {"max_samples": 3, "weight": 2.0, "fields": {"text": "answer"}}), tmp_path / "downloads"
    )
    assert len(list((tmp_path / "downloads").iterdir())) == 1


# ------------------------------------------------------------------------------------------------ values


def write_values(folder: Path, columns: dict[str, list[Any]]) -> Path:
    folder.mkdir(parents=True)
    pq.write_table(pa.table(columns), folder / "train.parquet")
    return folder


def test_dates_become_text_and_empty_values_and_bytes_are_left_out(tmp_path: Path) -> None:
    folder = write_values(
        tmp_path / "in",
        {
            "text": ["một", None, "ba"],
            "day": [date(2024, 2, 29)] * 3,
            "at": [datetime(2024, 2, 29, 7, 5)] * 3,
            "score": [0.5, float("nan"), None],
            "scan": [b"\x89PNG", None, b"\xff"],
            "parts": [[{"page": b"x"}], [], None],
        },
    )
    found = records(hub(folder), tmp_path / "downloads")
    dates = {"day": "2024-02-29", "at": "2024-02-29T07:05:00"}
    assert found == [
        {"text": "một", "score": 0.5, **dates},
        {"score": None, "parts": [], **dates},
        {"text": "ba", **dates},
    ]
    complete = json.loads(content_of(tmp_path / "downloads")["complete.json"])
    assert complete["cursor"]["left_out"] == {"parts": 1, "scan": 2}


def test_what_is_left_out_is_counted_across_an_interruption(tmp_path: Path) -> None:
    folder = write_values(tmp_path / "in", {"text": ["a"] * 40, "scan": [b"x", None] * 20})
    files = hub_files(hub(folder), tmp_path / "downloads")
    next(files), next(files)
    files.close()  # type: ignore[attr-defined]
    list(hub_files(hub(folder), tmp_path / "downloads"))
    complete = json.loads(content_of(tmp_path / "downloads")["complete.json"])
    assert complete["cursor"]["left_out"] == {"scan": 20}


def test_images_are_left_out_without_being_decoded(tmp_path: Path) -> None:
    folder = write_values(tmp_path / "in", {"text": ["a", "b"]})
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    pixels = pa.array([{"bytes": b"no image at all", "path": None}] * 2, kind)
    features = datasets.Features({"text": datasets.Value("string"), "image": datasets.Image()})
    table = pa.table({"text": ["a", "b"], "image": pixels})
    schema = table.schema.with_metadata(
        {"huggingface": json.dumps({"info": {"features": features.to_dict()}})}
    )
    pq.write_table(table.cast(schema), folder / "train.parquet")
    assert records(hub(folder), tmp_path / "downloads") == [{"text": "a"}, {"text": "b"}]


@pytest.mark.parametrize("name", ["scan", "scan.bytes"])
def test_a_column_of_bytes_that_fields_need_is_refused_by_name(tmp_path: Path, name: str) -> None:
    folder = write_values(tmp_path / "in", {"text": ["a"], "scan": [{"bytes": b"x"}]})
    message = fail(hub(folder, {"fields": {"text": name}}), tmp_path / "downloads")
    assert re.search(r"column 'scan' holds bytes, which is neither text nor data; set 'fields'", message)


@pytest.mark.parametrize(
    "settings",
    [
        {"fields": {"question": "prompt"}},
        {"fields": {"question": "prompt.text"}},
        {"group_by": "field:prompt"},
    ],
)
def test_an_unknown_column_is_named_with_those_there_are(tmp_path: Path, settings: dict[str, Any]) -> None:
    source = hub(write_data_set(tmp_path / "in"), settings)
    message = fail(source, tmp_path / "downloads")
    assert re.search(r"has no column 'prompt(\.text)?'; it has answer, grade, question$", message)
    assert not list(tmp_path.glob("downloads/*/page-*"))


def test_the_names_inside_messages_are_no_columns(tmp_path: Path) -> None:
    folder = write_values(tmp_path / "in", {"talk": [[{"from": "human", "value": "chào"}]]})
    fields = {"messages": "talk", "role": "from", "content": "value"}
    found = records(hub(folder, {"fields": fields}), tmp_path / "downloads")
    assert found == [{"talk": [{"from": "human", "value": "chào"}]}]


# ------------------------------------------------------------------------------------------- what is wrong


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"split": "exam"}, r"split exam: cannot be read: Bad split: exam\. Available splits: \['train'\]"),
        ({"config": "hard"}, r"\(hard\), split train: .*'hard' not found\. Available: \['default'\]"),
        ({"data_files": "none-*.jsonl"}, r"cannot be read: No \(supported\) data files found"),
    ],
)
def test_a_wrong_choice_is_answered_with_the_right_ones(
    tmp_path: Path, settings: dict[str, str], reason: str
) -> None:
    message = fail(hub(write_data_set(tmp_path / "in"), **settings), tmp_path / "downloads")
    assert re.match(f"source set: hub data set {tmp_path / 'in'}.*{reason}", message)


@pytest.mark.parametrize("name", ["json", "/no/such/folder", "a/b/c", "./maths", "owner name/set", ""])
def test_what_is_neither_a_folder_nor_a_name_is_refused_before_any_look(tmp_path: Path, name: str) -> None:
    if name:
        message = fail(hub(name), tmp_path / "downloads")
        assert message.endswith("no such folder, and the hub's names look like owner/name")


def test_a_data_set_that_is_a_program_is_refused(tmp_path: Path) -> None:
    folder = write_data_set(tmp_path / "maths")
    (folder / "maths.py").write_text("raise SystemExit('it ran')")
    message = fail(hub(folder), tmp_path / "downloads")
    assert "it is a program (maths.py), and no data set's program is run here" in message


@pytest.mark.parametrize("name", ["train.jsonl", "train.csv"])
def test_an_empty_data_set_is_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_text("question,answer\n" if name.endswith("csv") else "")
    message = fail(hub(tmp_path / "in"), tmp_path / "downloads")
    assert message.endswith("split train: holds no records; check its split and data_files")


@pytest.mark.parametrize("kind", ["parquet", "jsonl.gz"])
def test_a_file_that_is_cut_short_ends_the_download_and_what_came_before_is_kept(
    tmp_path: Path, kind: str
) -> None:
    folder = write_data_set(tmp_path / "in", kind)
    broken = folder / f"train-2.{kind}"
    broken.write_bytes(broken.read_bytes()[:-30])
    assert "split train: cannot be read: " in fail(hub(folder), tmp_path / "downloads")
    found = content_of(tmp_path / "downloads")
    assert "page-00004.jsonl" in found
    assert "complete.json" not in found


def test_a_malformed_line_is_told_in_one_line(tmp_path: Path) -> None:
    folder = write_data_set(tmp_path / "in", "jsonl", num_files=1)
    with (folder / "train-0.jsonl").open("ab") as file:
        file.write(b'{"question": "half\n')
    assert "split train: cannot be read: " in fail(hub(folder), tmp_path / "downloads")


# --------------------------------------------------------------------------------------------- on the hub


class FakeHub(ThreadingHTTPServer):
    """One data set `owner/maths` at several commits; refuses or hangs up where it is told to."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), FakeHubAnswers)
        self.commits: dict[str, dict[str, bytes]] = {}
        self.main = FIRST
        self.refusal: tuple[int, dict[str, str]] | None = None
        self.hangs_up_on: str | None = None
        self.requests: list[tuple[str, str | None]] = []
        """Path and Authorization of each."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class FakeHubAnswers(BaseHTTPRequestHandler):
    server: FakeHub

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.requests.append((self.path, self.headers.get("Authorization")))
        if self.server.refusal is not None:
            return self.answer(self.server.refusal[0], b'{"error": "refused"}', self.server.refusal[1])
        if match := re.fullmatch(r"/api/datasets/owner/maths(?:/revision/(\w+))?", path):
            return self.tell_commit(match[1])
        if match := re.fullmatch(r"/api/datasets/owner/maths/tree/(\w+)(/\w+)?", path):
            return self.list_files(match[1]) if match[2] is None else self.answer(404, b"", ABSENT)
        if match := re.fullmatch(r"/datasets/owner/maths/resolve/(\w+)/(.+)", path):
            return self.send_file(match[1], match[2])
        return self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET  # noqa: N815

    def tell_commit(self, revision: str | None) -> None:
        commit = revision if revision in self.server.commits else self.server.main
        if revision == "v9":
            return self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        return self.answer_json({"id": "owner/maths", "sha": commit, "private": False, "siblings": []})

    def list_files(self, commit: str) -> None:
        files = self.server.commits[commit].items()
        listing = [{"type": "file", "path": name, "size": len(data), "oid": "0" * 40} for name, data in files]
        self.answer_json(listing)

    def send_file(self, commit: str, name: str) -> None:
        data = self.server.commits[commit].get(name)
        if data is None:
            return self.answer(404, b"", ABSENT)
        if name == self.server.hangs_up_on:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return None
        etag = hashlib.sha256(data).hexdigest()
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end = int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
            return self.answer(206, data[start : end + 1], headers)
        return self.answer(200, data, headers)

    def answer_json(self, value: Any) -> None:
        self.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with FakeHub() as server:
        card = b"---\nlicense: mit\n---\n"
        for commit, start in ((FIRST, 0), (SECOND, 1000)):
            files = {f"train-{n}.jsonl": jsonl(rows(start + n * 25, start + n * 25 + 25)) for n in range(3)}
            server.commits[commit] = {"README.md": card, **files}
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", server.url)
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client's pauses between attempts are skipped."""
    monkeypatch.setattr(time, "sleep", lambda _: None)


def test_a_data_set_of_the_hub_is_streamed(tmp_path: Path, server: FakeHub) -> None:
    assert records(hub("owner/maths"), tmp_path / "downloads") == rows(0, 75)
    complete = json.loads(content_of(tmp_path / "downloads")["complete.json"])
    assert complete["origin"] == FIRST
    server.refusal = (500, {})
    assert records(hub("owner/maths"), tmp_path / "downloads") == rows(0, 75)


def test_a_revision_is_taken_at_its_commit(tmp_path: Path, server: FakeHub) -> None:
    assert records(hub("owner/maths", revision=SECOND), tmp_path / "downloads") == rows(1000, 1075)


@pytest.mark.usefixtures("impatient")
def test_a_download_that_broke_goes_on_at_the_same_commit_though_the_branch_moved(
    tmp_path: Path, server: FakeHub
) -> None:
    server.hangs_up_on = "train-1.jsonl"
    message = fail(hub("owner/maths"), tmp_path / "downloads")
    assert "the hub does not answer; run again to go on from the last finished page" in message
    assert "page-00001.jsonl" in content_of(tmp_path / "downloads")
    server.hangs_up_on, server.main = None, SECOND
    assert records(hub("owner/maths"), tmp_path / "downloads") == rows(0, 75)


def test_the_token_is_the_environments_and_nobody_elses(
    tmp_path: Path, server: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = tmp_path / "token"
    stored.write_text("hf_stored")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(stored))
    records(hub("owner/maths"), tmp_path / "without")
    assert {sent for _, sent in server.requests} == {None}
    server.requests.clear()
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    records(hub("owner/maths", revision=SECOND), tmp_path / "with")
    assert {sent for path, sent in server.requests if "maths" in path} == {"Bearer hf_mine"}
    assert b"hf_mine" not in b"".join(content_of(tmp_path / "with").values())


@pytest.mark.parametrize(
    ("status", "code", "reason"),
    [
        (401, "RepoNotFound", "not found, or private: check the name, and set HF_TOKEN if it is private"),
        (401, "GatedRepo", "gated: ask for access on its page, and set HF_TOKEN to a token of yours"),
        (403, "GatedRepo", "gated: ask for access on its page, and set HF_TOKEN to a token of yours"),
        (401, "", "the hub refuses access; check HF_TOKEN: "),
        (403, "", "the hub refuses access; check HF_TOKEN: "),
        (503, "", "the hub does not answer; run again to go on"),
        (418, "", "cannot be read: "),
    ],
)
def test_a_refusal_is_one_line_with_a_way_out(
    tmp_path: Path, server: FakeHub, status: int, code: str, reason: str
) -> None:
    server.refusal = (status, {"X-Error-Code": code, "X-Error-Message": "No."} if code else {})
    message = fail(hub("owner/maths"), tmp_path / "downloads")
    assert message.startswith(f"source set: hub data set owner/maths, split train: {reason}")


def test_an_unknown_data_set_revision_or_program_is_told(tmp_path: Path, server: FakeHub) -> None:
    assert "not found, or private" in fail(hub("owner/other"), tmp_path / "1")
    assert "has no revision 'v9'" in fail(hub("owner/maths", revision="v9"), tmp_path / "2")
    server.commits[FIRST]["maths.py"] = b"raise SystemExit('it ran')"
    message = fail(hub("owner/maths"), tmp_path / "3")
    assert "it is a program (maths.py)" in message
    assert "revision refs/convert/parquet" in message


@pytest.mark.usefixtures("impatient")
def test_a_hub_that_is_down_or_forbidden_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        assert "the hub does not answer; run again" in fail(hub("owner/maths"), tmp_path / "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE forbids to fetch it; unset it" in fail(hub("owner/maths"), tmp_path / "2")


def test_reading_leaves_nothing_in_the_caches_of_datasets(
    tmp_path: Path, server: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", cache / "downloads")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    records(hub("owner/maths"), tmp_path / "1")
    records(hub(write_data_set(tmp_path / "in")), tmp_path / "2")
    assert not [path for path in cache.rglob("*") if path.is_file()]
    assert os.listdir(temporary) == []  # noqa: PTH208
    assert not [path for path, _ in server.requests if "maths" not in path]
