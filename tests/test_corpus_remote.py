import base64
import hashlib
import io
import lzma
import multiprocessing
import os
import random
import socket
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from http_server import Page, WebServer, web_server
from object_stores import AzureAnswers, GoogleAnswers, ObjectStore, object_store
from s3_server import S3Server, starting_s3_server

from nima.corpus.sources import streams
from nima.corpus.sources.files import SourceFile
from nima.corpus.sources.sources import files_of
from nima.corpus.stores import buckets, failures
from nima.workspace.errors import SourceError
from nima.workspace.params import LimitsParams, SourceParams

BODY = random.Random(7).randbytes(4500)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small blocks, and less patience with servers than outside tests."""
    monkeypatch.setattr(streams, "WAITS_SECONDS", (0.01, 0.02))
    monkeypatch.setattr(streams, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(failures, "TIMEOUT_SECONDS", 5)
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


@pytest.fixture
def web() -> Iterator[WebServer]:
    with web_server() as server:
        yield server


def listed(
    url: str | list[str], folder: Path, limits: LimitsParams | None = None, **how: Any
) -> list[SourceFile]:
    source = SourceParams(name="s", url=url, **how)
    return list(files_of(source, Path("none"), limits or LimitsParams(), folder / "downloads"))


def content_of(file: SourceFile) -> bytes:
    with file.open() as stream:
        return stream.read()


def read(url: str | list[str], folder: Path, **how: Any) -> dict[str, bytes]:
    return {file.key: content_of(file) for file in listed(url, folder, **how)}


def refusal(url: str | list[str], folder: Path, **how: Any) -> str:
    """What the error says, without the server's address."""
    with pytest.raises(SourceError) as caught:
        read(url, folder, **how)
    message = str(caught.value)
    assert "\n" not in message
    return message.partition("127.0.0.1")[2].partition("/")[2] or message


def zipped(**members: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in members.items():
            archive.writestr(f"docs/{name}.md", text)
    return buffer.getvalue()


# ----------------------------------------------------------------------------------------------- the web


def test_a_url_is_a_file_that_is_read_in_blocks(web: WebServer, tmp_path: Path) -> None:
    (file,) = listed(web.put("/docs/a.md", BODY), tmp_path)
    assert (file.key, file.place, file.num_bytes) == ("a.md", f"{web.url}/docs/a.md", len(BODY))
    with file.open() as stream:
        assert stream.readline() == io.BytesIO(BODY).readline()
        stream.seek(-700, io.SEEK_END)
        assert stream.read() == BODY[-700:]
        stream.seek(0)
        assert stream.read() == BODY
    assert "bytes=1000-1999" in [headers.get("Range") for _, headers in web.requests]
    assert {headers["Accept-Encoding"] for _, headers in web.requests} == {"identity"}


def test_several_urls_have_keys_from_what_they_share(web: WebServer, tmp_path: Path) -> None:
    urls = [web.put("/docs/a.md", b"1"), web.put("/docs/x/a.md", b"2"), web.put("/docs/x/b%20c.md", b"3")]
    assert read(urls, tmp_path) == {"a.md": b"1", "x/a.md": b"2", "x/b c.md": b"3"}


def test_a_server_that_gives_files_only_whole_is_good_enough(web: WebServer, tmp_path: Path) -> None:
    known, unknown = {"has_ranges": False}, {"has_ranges": False, "tells_length": False}
    urls = [web.put("/a", BODY, **known), web.put("/b", BODY, **unknown), web.put("/c", b"", **known)]
    assert [file.num_bytes for file in listed(urls, tmp_path)] == [4500, None, 0]
    assert read(urls, tmp_path) == {"a": BODY, "b": BODY, "c": b""}


def test_a_parquet_file_on_a_server_is_read_from_its_end(web: WebServer, tmp_path: Path) -> None:
    table = pa.table({"text": [f"line {number}" for number in range(2000)]})
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    (file,) = listed(web.put("/t.parquet", buffer.getvalue()), tmp_path)
    with file.open() as stream:
        assert pq.ParquetFile(stream).read() == table


def test_an_empty_file_is_read(web: WebServer, tmp_path: Path) -> None:
    assert read(web.put("/empty", b""), tmp_path) == {"empty": b""}


def test_a_server_that_fails_for_a_moment_is_asked_again(web: WebServer, tmp_path: Path) -> None:
    page = web.put("/a", BODY, statuses=[500, 429, 206, 503, 0, 206, 0, 0])
    assert read(page, tmp_path) == {"a": BODY}


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ({"statuses": [500] * 9}, "a: the server answers 500; try again later (after 3 tries)"),
        ({"statuses": [403] * 9}, "a: access refused (403); check the user and password in the url"),
        ({"login": "Basic dXNlcjpzZWNyZXQ="}, "a: access refused (401); check the user and password"),
        ({"statuses": [404] * 9}, "a: not found (404); check the url"),
        ({"statuses": [418] * 9}, "a: the server answers 418"),
        ({"statuses": [0] * 9}, "a: the connection broke off before the end (after 3 tries)"),
        ({"breaks_after": 700}, "a: the connection broke off before the end (after 3 tries)"),
        ({"breaks_after": 700, "has_ranges": False}, "a: the connection broke off before the end (after 3"),
        ({"headers": {"Content-Encoding": "gzip"}}, "a: the server sends it packed (gzip), which was not"),
    ],
)
def test_what_a_server_does_wrong_is_one_clear_line(
    web: WebServer, tmp_path: Path, page: dict[str, Any], message: str
) -> None:
    assert refusal(web.put("/a", BODY, **page), tmp_path).startswith(message)


def test_a_refusal_is_not_asked_again(web: WebServer, tmp_path: Path) -> None:
    refusal(web.put("/a", BODY, statuses=[403] * 9), tmp_path)
    assert len(web.requests) == 1


def test_a_slow_server_ends_with_a_clear_line(
    web: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failures, "TIMEOUT_SECONDS", 0.2)
    message = refusal(web.put("/a", BODY, delay_seconds=60), tmp_path)
    assert message.startswith("a: no answer for 0.2 seconds, or no end of it in 600; is the server well?")


def test_a_server_that_sends_drop_by_drop_is_not_waited_for(
    web: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failures, "BLOCK_SECONDS", 0.3)
    message = refusal(web.put("/a", BODY, drip_seconds=0.1), tmp_path)
    assert message.startswith("a: no answer for 5 seconds, or no end of it in 0.3; is the server well?")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (
            "http://127.0.0.1:{closed}/a",
            "a: cannot be reached: Connection refused; check the url (after 3 tries)",
        ),
        ("http://no-such-host.invalid/a", "http://no-such-host.invalid/a: cannot be reached: "),
        ("https://127.0.0.1:{open}/a", "a: no trusted connection: "),
        ("http://127.0.0.1:{open}/docs/", "docs/: web servers list no folders; name the files"),
        (
            "ftp://127.0.0.1/a",
            "source s: 'ftp://127.0.0.1/a': expected https://, http://, s3://, gs:// or az://",
        ),
        ("http:///a", "source s: 'http:///a': expected https://, "),
        ("http://127.0.0.1:99999/a", "source s: 'http://127.0.0.1:99999/a': expected https://, "),
        ("s3:///a", "source s: 's3:///a': expected https://, "),
    ],
)
def test_a_server_that_is_not_there_is_one_clear_line(
    web: WebServer, tmp_path: Path, url: str, message: str
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = url.format(closed=closed.getsockname()[1], open=web.url.rpartition(":")[2])
        with pytest.raises(SourceError) as caught:
            read(url, tmp_path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_secrets_in_a_url_are_used_and_never_shown(web: WebServer, tmp_path: Path) -> None:
    url = web.put("/a", BODY, login="Basic dXNlcjpzZWNyZXQ=").replace("//", "//user:secret@")
    (file,) = listed(f"{url}?X-Signature=hidden%2Fsign", tmp_path)
    assert content_of(file) == BODY
    assert web.requests[-1][0] == "/a?X-Signature=hidden%2Fsign"
    assert not {"secret", "hidden"} & set(file.place.replace("/", " ").split())
    web.pages["/a"].statuses = [500] * 9
    down = url.replace("user:secret@127.0.0.1:", "user:secret@127.0.0.1:1")
    for each in (url, f"{url}/gone?sig=hidden", f"{down}?sig=hidden", f"ftp{url[4:]}?sig=hidden"):
        with pytest.raises(SourceError) as caught:
            read(each, tmp_path)
        assert "secret" not in str(caught.value)
        assert "hidden" not in str(caught.value)


def test_a_file_that_changes_between_its_blocks_is_named(web: WebServer, tmp_path: Path) -> None:
    def change(page: Page) -> None:
        if len(web.requests) == 3:
            page.etag = '"v2"'

    message = refusal(web.put("/a", BODY, after_request=change), tmp_path)
    assert message == "a: changed or went away after it was listed; start again once it is at rest"


@pytest.mark.parametrize("has_ranges", [True, False])
def test_a_file_that_changes_after_it_was_listed_is_named(
    web: WebServer, tmp_path: Path, has_ranges: bool
) -> None:
    date = {"Last-Modified": "Mon, 02 Mar 2026 10:00:00 GMT"}
    (file,) = listed(web.put("/a", BODY, etag=None, headers=date, has_ranges=has_ranges), tmp_path)
    web.pages["/a"].headers["Last-Modified"] = "Tue, 03 Mar 2026 10:00:00 GMT"
    with pytest.raises(SourceError, match="/a: changed or went away after it was listed"):
        content_of(file)


@pytest.mark.parametrize("has_ranges", [True, False])
def test_a_file_without_a_version_that_grows_is_named(
    web: WebServer, tmp_path: Path, has_ranges: bool
) -> None:
    (file,) = listed(web.put("/a", BODY, etag=None, has_ranges=has_ranges), tmp_path)
    web.pages["/a"].content += b"more"
    with pytest.raises(SourceError, match="/a: changed or went away after it was listed"):
        content_of(file)


def test_the_version_tells_files_apart(web: WebServer, tmp_path: Path) -> None:
    (before,) = listed(web.put("/a", BODY), tmp_path)
    (same,) = listed(web.put("/a", BODY), tmp_path)
    (other,) = listed(web.put("/a", BODY, etag='"v2"'), tmp_path)
    assert before.identity() == same.identity() != other.identity()
    unknown = [listed(web.put("/a", BODY, etag=None), tmp_path)[0] for _ in range(2)]
    assert unknown[0].identity() != unknown[1].identity()
    assert [content_of(file) for file in unknown] == [BODY, BODY]


# --------------------------------------------------------------------------------------------- downloads


def test_an_archive_on_a_server_is_fetched_once_and_read_in_place(web: WebServer, tmp_path: Path) -> None:
    url = web.put("/corpus.zip", zipped(a="1" * 3000, b="2"))
    assert read(url, tmp_path, glob="docs/*.md") == {"docs/a.md": b"1" * 3000, "docs/b.md": b"2"}
    fetched = len(web.requests)
    (a, _) = listed(url, tmp_path)
    assert a.place == f"{web.url}/corpus.zip:docs/a.md"
    assert len(web.requests) == fetched + 1, "only asked whether it is still the same"
    (kept,) = (tmp_path / "downloads").iterdir()
    assert kept.name.endswith("-corpus.zip")


def test_a_new_version_of_an_archive_is_fetched_anew(web: WebServer, tmp_path: Path) -> None:
    assert read(web.put("/corpus.zip", zipped(a="1")), tmp_path) == {"docs/a.md": b"1"}
    assert read(web.put("/corpus.zip", zipped(a="2"), etag='"v2"'), tmp_path) == {"docs/a.md": b"2"}
    unknown = {"etag": None, "has_ranges": False}
    assert read(web.put("/corpus.zip", zipped(a="3"), **unknown), tmp_path) == {"docs/a.md": b"3"}
    assert read(web.put("/corpus.zip", zipped(a="4"), **unknown), tmp_path) == {"docs/a.md": b"4"}


def test_a_compressed_tar_on_a_server_is_read(web: WebServer, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        member = tarfile.TarInfo("docs/a.md")
        member.size = 4
        archive.addfile(member, io.BytesIO(b"text"))
    assert read(web.put("/a.tar.xz", lzma.compress(buffer.getvalue())), tmp_path) == {"docs/a.md": b"text"}


def test_an_interrupted_download_is_gone_on_with(web: WebServer, tmp_path: Path) -> None:
    content = zipped(a="1" * 5000)
    url = web.put("/corpus.zip", content, statuses=[206, 206, 206] + [503] * 3)
    assert "answers 503" in refusal(url, tmp_path)
    (part,) = (tmp_path / "downloads").iterdir()
    assert part.read_bytes() == content[:2000]
    web.requests.clear()
    assert read(url, tmp_path) == {"docs/a.md": b"1" * 5000}
    assert [headers["Range"] for _, headers in web.requests][:2] == ["bytes=0-0", "bytes=2000-2999"]
    assert [path.name[-4:] for path in (tmp_path / "downloads").iterdir()] == [".zip"]


@pytest.mark.parametrize("name", ["corpus.zip", "corpus.jsonl"])
def test_a_file_with_a_checksum_needs_no_server_once_it_is_there(
    web: WebServer, tmp_path: Path, name: str
) -> None:
    content = zipped(a="1" * 3000)
    url, sha256 = web.put(f"/{name}", content), hashlib.sha256(content).hexdigest()
    expected = {"docs/a.md": b"1" * 3000} if name.endswith("zip") else {name: content}
    assert read(url, tmp_path, sha256=sha256) == expected
    web.pages.clear()
    assert read(f"{url}?sig=another", tmp_path, sha256=sha256) == expected
    (kept,) = (tmp_path / "downloads").iterdir()
    kept.write_bytes(content[:-1])
    assert "wrong checksum: expected sha256" in refusal(url, tmp_path, sha256=sha256)


def test_a_file_with_another_checksum_is_refused_and_not_kept(web: WebServer, tmp_path: Path) -> None:
    url = web.put("/corpus.zip", zipped(a="1"))
    message = refusal(url, tmp_path, sha256="0" * 64)
    assert message.startswith(f"corpus.zip: wrong checksum: expected sha256 {'0' * 64}, found ")
    assert list((tmp_path / "downloads").iterdir()) == []


def test_a_server_without_parts_cannot_fill_the_disk(web: WebServer, tmp_path: Path) -> None:
    url = web.put("/corpus.zip", zipped(a="1" * 5000), has_ranges=False, tells_length=False)
    message = refusal(url, tmp_path, limits=LimitsParams(max_archive_bytes=4000))
    assert message == "corpus.zip: has more bytes than prepare.limits.max_archive_bytes (4000)"


def test_a_folder_that_cannot_hold_downloads_is_named(web: WebServer, tmp_path: Path) -> None:
    (tmp_path / "downloads").write_text("a file")
    message = refusal(web.put("/corpus.zip", zipped(a="1")), tmp_path)
    assert message.endswith("-corpus.zip: cannot be written: File exists")


# ---------------------------------------------------------------------------------------------------- S3


@pytest.fixture(scope="module", autouse=True)
def starting_s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], S3Server]]:
    """It takes seconds to start: the tests of web servers go on meanwhile."""
    with starting_s3_server(tmp_path_factory.mktemp("s3")) as ready:
        yield ready


@pytest.fixture(scope="module")
def s3(starting_s3: Callable[[], S3Server]) -> S3Server:
    """A real server with a bucket in it."""
    contents = {"docs/a.md": BODY, "docs/deep/b.md": b"b", "docs/.c.md": b"", "docs/empty.md": b""}
    contents |= {"d.txt": b"d", "docs.zip": zipped(a="1", b="2")}
    server = starting_s3()
    bucket = server.filesystem()
    bucket.mkdir("corpus")
    for key, content in contents.items():
        bucket.pipe(f"corpus/{key}", content)
    return server


@pytest.fixture
def as_tester(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Who may read the bucket."""
    for key, value in s3.environment.items():
        monkeypatch.setenv(key, value)
    return monkeypatch


@pytest.fixture
def as_other(as_tester: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """For tests that change who asks, or where: no client of another test is used, nor this one's later."""
    from s3fs import S3FileSystem

    S3FileSystem.clear_instance_cache()
    yield as_tester
    S3FileSystem.clear_instance_cache()


ALL = {"a.md": BODY, "deep/b.md": b"b", "empty.md": b""}


@pytest.mark.usefixtures("as_tester")
@pytest.mark.parametrize(
    ("url", "glob", "expected"),
    [
        ("s3://corpus/docs/a.md", "**/*", {"a.md": BODY}),
        ("s3://corpus/docs", "**/*", ALL),
        ("s3://corpus/docs/", "**/*.md", ALL),
        ("s3://corpus", "*.txt", {"d.txt": b"d"}),
        ("s3://corpus/docs/*.md", "**/*", {"a.md": BODY, "empty.md": b""}),
        ("s3://corpus/**/b.md", "**/*", {"docs/deep/b.md": b"b"}),
        ("s3://corpus/docs.zip", "**/a.md", {"docs/a.md": b"1"}),
        ("s3://corpus/*.zip", "**/a.md", {"docs.zip/docs/a.md": b"1"}),
        (
            ["s3://corpus/docs/deep/b.md", "s3://corpus/d.txt"],
            "**/*",
            {"d.txt": b"d", "docs/deep/b.md": b"b"},
        ),
    ],
)
def test_files_folders_wildcards_and_archives_of_a_bucket_are_read(
    tmp_path: Path, url: str | list[str], glob: str, expected: dict[str, bytes]
) -> None:
    found = read(url, tmp_path, glob=glob)
    assert list(found.items()) == sorted(expected.items())


@pytest.mark.usefixtures("as_tester")
@pytest.mark.parametrize(
    ("url", "message"),
    [
        (
            "s3://corpus/docs/gone.md",
            r"^s3://corpus/docs/gone\.md: not found \(404\); check bucket and path, and",
        ),
        ("s3://other-bucket/a.md", r"^s3://other-bucket/a\.md: not found \(404\); check bucket and path"),
        ("s3://other-bucket/docs/", r"^s3://other-bucket/docs/: not found \(404\); check bucket and path"),
        ("s3://corpus/gone/", r"glob '\*\*/\*' matches none of the 0 files in s3://corpus/gone/"),
        ("s3://corpus/docs/*.rst", r"s3://corpus/docs/\*\.rst: matches none of the 3 files there"),
    ],
)
def test_what_is_not_in_a_bucket_is_named(tmp_path: Path, url: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        read(url, tmp_path)


@pytest.mark.parametrize(("key", "secret"), [("stranger", "not-a-secret"), ("tester", "wrong"), ("", "")])
def test_wrong_or_missing_keys_are_one_clear_line(
    as_other: pytest.MonkeyPatch, tmp_path: Path, key: str, secret: str
) -> None:
    as_other.setenv("AWS_ACCESS_KEY_ID", key)
    as_other.setenv("AWS_SECRET_ACCESS_KEY", secret)
    why = r"access refused \(403\)" if key else "no credentials"
    for url in ("s3://corpus/docs/a.md", "s3://corpus/docs/"):
        with pytest.raises(SourceError, match=rf"^{url}: {why}; set AWS_ACCESS_KEY_ID and AWS_SECRET[^\n]*$"):
            read(url, tmp_path)


def test_a_public_bucket_needs_no_keys_where_that_is_said(
    as_other: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        as_other.delenv(key)
    as_other.setitem(fsspec.config.conf, "s3", {"anon": "true"})
    with pytest.raises(SourceError, match="access refused"):  # it was asked without keys, and is not public
        read("s3://corpus/docs/a.md", tmp_path)


@pytest.mark.parametrize("how", ["closed", "silent"])
def test_an_s3_server_that_is_down_is_one_clear_line(
    as_other: pytest.MonkeyPatch, tmp_path: Path, how: str
) -> None:
    as_other.setattr(failures, "TIMEOUT_SECONDS", 0.2)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if how == "silent":
            server.listen()
        as_other.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        why = "cannot be reached: Could not connect to" if how == "closed" else "no answer for 0.2 seconds"
        with pytest.raises(SourceError, match=rf"^s3://corpus/docs/a\.md: {why}[^\n]* \(after 3 tries\)$"):
            read("s3://corpus/docs/a.md", tmp_path)


def test_a_slow_s3_server_is_asked_three_times_in_all(
    as_other: pytest.MonkeyPatch, web: WebServer, tmp_path: Path
) -> None:
    as_other.setattr(failures, "TIMEOUT_SECONDS", 0.2)
    as_other.setenv("AWS_ENDPOINT_URL", web.url)
    web.put("/corpus/docs/a.md", BODY, delay_seconds=60)
    file = streams.RemoteFile("s3://corpus/docs/a.md", len(BODY), '"v1"', has_ranges=True, max_bytes=1)
    with pytest.raises(SourceError, match=r"no answer for 0\.2 seconds[^\n]*\(after 3 tries\)$"):
        file.block(0, 10)
    assert len(web.requests) == 3


@pytest.mark.parametrize("change", ["overwritten", "removed"])
def test_an_object_that_changes_after_it_was_listed_is_named(
    as_tester: pytest.MonkeyPatch, s3: S3Server, tmp_path: Path, change: str
) -> None:
    bucket = s3.filesystem()
    bucket.pipe("corpus/moving/a.md", BODY)
    (file,) = listed("s3://corpus/moving/", tmp_path)
    changed = pytest.raises(SourceError, match=r"^s3://corpus/moving/a\.md: changed or went away after it")
    with changed, file.open() as stream:
        assert stream.read(10) == BODY[:10]
        if change == "overwritten":
            bucket.pipe("corpus/moving/a.md", BODY[::-1])
        else:
            bucket.rm("corpus/moving/a.md")
        stream.read()


@pytest.mark.usefixtures("as_tester")
def test_other_processes_read_the_same_bucket(tmp_path: Path) -> None:
    files = listed("s3://corpus/docs/", tmp_path)
    content_of(files[0])
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert pool.map(content_of, files, chunksize=1) == list(ALL.values())


# ------------------------------------------------------------------------------------ Google and Azure

AZURE_KEY = base64.b64encode(b"a key for tests only").decode()


@pytest.fixture(params=["gs", "az"])
def store(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, ObjectStore]]:
    """A url and the service behind it."""
    package, answers = {"gs": ("gcsfs", GoogleAnswers), "az": ("adlfs", AzureAnswers)}[request.param]
    pytest.importorskip(package)
    with object_store(answers, "corpus") as service:
        account = f"AccountName=tester;AccountKey={AZURE_KEY};BlobEndpoint={service.url}/tester"
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", service.url)
        monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", f"DefaultEndpointsProtocol=http;{account}")
        for name, content in (ALL | {".c.md": b""}).items():
            service.put(f"docs/{name}", content)
        buckets.store(request.param).clear_instance_cache()
        yield f"{request.param}://corpus", service
        buckets.store(request.param).clear_instance_cache()


def test_files_folders_and_wildcards_of_both_services_are_read(
    store: tuple[str, ObjectStore], tmp_path: Path
) -> None:
    url, service = store
    service.put("docs.zip", zipped(a="1"))
    assert read(f"{url}/docs/a.md", tmp_path) == {"a.md": BODY}
    assert list(read(f"{url}/docs", tmp_path).items()) == list(ALL.items())
    assert read(f"{url}/docs/*.md", tmp_path) == {"a.md": BODY, "empty.md": b""}
    assert read(f"{url}/docs.zip", tmp_path) == {"docs/a.md": b"1"}


def test_what_both_services_refuse_is_one_clear_line(store: tuple[str, ObjectStore], tmp_path: Path) -> None:
    url, service = store
    with pytest.raises(SourceError, match=rf"^{url}/gone\.md: not found \(404\); check [^\n]*$"):
        read(f"{url}/gone.md", tmp_path)
    service.refuses = True
    for each in ("docs/a.md", "docs/"):
        with pytest.raises(SourceError, match=rf"^{url}/{each}: access refused \(403\); set [^\n]*$"):
            read(f"{url}/{each}", tmp_path)


def test_an_object_of_both_services_that_changes_is_named(
    store: tuple[str, ObjectStore], tmp_path: Path
) -> None:
    url, service = store
    (file,) = listed(f"{url}/docs/a.md", tmp_path)
    changed = pytest.raises(SourceError, match=r"/docs/a\.md: changed or went away after it was listed")
    with changed, file.open() as stream:
        assert stream.read(10) == BODY[:10]
        service.put("docs/a.md", BODY)
        stream.read()


def test_azure_without_an_account_is_one_clear_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("adlfs")
    for name in [name for name in os.environ if name.startswith("AZURE_")]:
        monkeypatch.delenv(name)
    with pytest.raises(SourceError, match=r"^az://corpus/a\.md: no credentials; set AZURE_STORAGE_"):
        read("az://corpus/a.md", tmp_path)


def test_a_scheme_without_its_extra_says_what_to_install(tmp_path: Path) -> None:
    code = f"""
import sys
sys.modules["s3fs"] = None
from pathlib import Path
from nima.corpus.sources.sources import files_of
from nima.workspace.params import SourceParams
list(files_of(SourceParams(name="s", url="s3://corpus/a.md"), Path({str(tmp_path)!r})))
"""
    environment = {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment
    )
    assert done.stderr.splitlines()[-1].endswith("s3:// needs the extra s3: pip install 'nima-lm[s3]'")
