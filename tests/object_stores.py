"""Stand-ins for Google Cloud Storage and Azure Blob Storage: the few answers that reading files needs.

They keep to the two services' public descriptions: versions (generation, ETag) are checked as there.
"""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from http_server import QuietServer

RANGE = re.compile(r"bytes=(\d+)-(\d+)")
DATE = "Mon, 02 Mar 2026 10:00:00 GMT"


@dataclass
class ObjectStore:
    url: str
    bucket: str
    objects: dict[str, tuple[bytes, int]] = field(default_factory=dict)
    """Content and version by name."""
    refuses: bool = False
    """Whoever asks."""

    def put(self, name: str, content: bytes) -> None:
        version = self.objects[name][1] + 1 if name in self.objects else 1001
        self.objects[name] = (content, version)

    def below(self, prefix: str) -> list[tuple[str, bytes, int]]:
        return [(name, *found) for name, found in sorted(self.objects.items()) if name.startswith(prefix)]


class StoreAnswers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    store: ObjectStore

    def send(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_part(self, content: bytes, wanted: str, **headers: str) -> None:
        match = RANGE.fullmatch(wanted)
        if match is None:
            return self.send(200, content, **headers)
        start, end = int(match[1]), min(int(match[2]) + 1, len(content))
        if start >= len(content):
            return self.send(416, Content_Range=f"bytes */{len(content)}")
        part = f"bytes {start}-{end - 1}/{len(content)}"
        return self.send(206, content[start:end], Content_Range=part, **headers)

    def log_message(self, *_: object) -> None:
        pass


class GoogleAnswers(StoreAnswers):
    """https://cloud.google.com/storage/docs/json_api"""

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        if self.store.refuses:
            return self.send_json(403, {"error": {"code": 403, "message": "no access"}})
        match = re.search(r"/storage/v1/b/([^/]+)(/o/?)?(.*)$", parts.path)
        if match is None or match[1] != self.store.bucket:
            return self.send_json(404, {"error": {"code": 404, "message": "no such bucket"}})
        name = unquote(match[3])
        if not name:
            return self.send_json(200, self.listing(query) if match[2] else {"name": self.store.bucket})
        content, version = self.store.objects.get(name, (b"", 0))
        if not version or query.get("generation", str(version)) != str(version):
            return self.send_json(404, {"error": {"code": 404, "message": "no such object"}})
        if query.get("alt") == "media":
            return self.send_part(content, self.headers.get("Range", ""))
        return self.send_json(200, self.about(name, content, version))

    def listing(self, query: dict[str, str]) -> dict[str, Any]:
        found = self.store.below(query.get("prefix", ""))
        return {"kind": "storage#objects", "items": [self.about(*each) for each in found]}

    def about(self, name: str, content: bytes, version: int) -> dict[str, Any]:
        return {
            "kind": "storage#object",
            "name": name,
            "bucket": self.store.bucket,
            "size": str(len(content)),
            "generation": str(version),
            "updated": "2026-03-02T10:00:00Z",
        }

    def send_json(self, status: int, value: Any) -> None:
        self.send(status, json.dumps(value).encode(), Content_Type="application/json")


class AzureAnswers(StoreAnswers):
    """https://learn.microsoft.com/rest/api/storageservices"""

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        if self.store.refuses:
            return self.send(403, x_ms_error_code="AuthorizationFailure")
        _, _account, container, *rest = unquote(parts.path).split("/", 3)
        if container != self.store.bucket:
            return self.send(404, x_ms_error_code="ContainerNotFound")
        if not rest:
            return self.send(200, self.listing(query).encode(), Content_Type="application/xml")
        content, version = self.store.objects.get(rest[0], (b"", 0))
        if not version:
            return self.send(404, x_ms_error_code="BlobNotFound")
        etag = f'"{version:#x}"'
        if self.headers.get("If-Match", etag) != etag:
            return self.send(412, x_ms_error_code="ConditionNotMet")
        wanted = self.headers.get("x-ms-range") or self.headers.get("Range", "")
        kind = {"x_ms_blob_type": "BlockBlob", "x_ms_version": "2021-08-06"}
        return self.send_part(content, wanted, ETag=etag, Last_Modified=DATE, **kind)

    do_HEAD = do_GET  # noqa: N815 - http.server calls it so

    def listing(self, query: dict[str, str]) -> str:
        entries = []
        folders = set()
        prefix = query.get("prefix", "")
        for name, content, version in self.store.below(prefix):
            inside, slash, _ = name[len(prefix) :].partition("/")
            if slash and query.get("delimiter"):
                folders.add(f"{prefix}{inside}/")
                continue
            entries.append(
                f"<Blob><Name>{escape(name)}</Name><Properties><Etag>{version:#x}</Etag>"
                f"<Content-Length>{len(content)}</Content-Length><Last-Modified>{DATE}</Last-Modified>"
                "<BlobType>BlockBlob</BlobType></Properties></Blob>"
            )
        entries += [f"<BlobPrefix><Name>{escape(name)}</Name></BlobPrefix>" for name in sorted(folders)]
        where = f'ServiceEndpoint="{self.store.url}" ContainerName="{self.store.bucket}"'
        blobs = f"<Blobs>{''.join(entries)}</Blobs>"
        return f'<?xml version="1.0"?><EnumerationResults {where}>{blobs}<NextMarker/></EnumerationResults>'


@contextmanager
def object_store(kind: type[StoreAnswers], bucket: str) -> Iterator[ObjectStore]:
    """On a free port, until the block ends."""
    answers = type("Answers", (kind,), {})
    with QuietServer(("127.0.0.1", 0), answers) as server:
        answers.store = store = ObjectStore(f"http://127.0.0.1:{server.server_port}", bucket)  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield store
        finally:
            server.shutdown()
            thread.join()
