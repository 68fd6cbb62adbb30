"""A web server on this machine that can be slow, refuse, break off and change its files, as tests want it."""

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

RANGE = re.compile(r"bytes=(\d+)-(\d*)")


@dataclass
class Page:
    """What a path gives, and how badly."""

    content: bytes
    etag: str | None = '"v1"'
    type: str = "application/octet-stream"
    headers: dict[str, str] = field(default_factory=dict)
    has_ranges: bool = True
    tells_length: bool = True
    statuses: list[int] = field(default_factory=list)
    """Answers before the good one, first to last; 0 breaks the connection off."""
    breaks_after: int | None = None
    """Bytes of each answer's body, then the connection ends."""
    delay_seconds: float = 0.0
    """Before each answer, or until the server stops."""
    drip_seconds: float = 0.0
    """Between each hundred bytes."""
    login: str | None = None
    """The Authorization header that it wants."""
    after_request: Callable[["Page"], None] | None = None
    """Called behind each answer, to change the page."""


@dataclass
class WebServer:
    url: str
    pages: dict[str, Page] = field(default_factory=dict)
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    """Path with query, and headers, of each request."""
    stopping: threading.Event = field(default_factory=threading.Event)

    def put(self, path: str, content: bytes, **how: object) -> str:
        """The url of the page."""
        self.pages[path] = Page(content, **how)  # type: ignore[arg-type]
        return self.url + path


class Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    site: WebServer

    def do_GET(self) -> None:
        self.site.requests.append((self.path, dict(self.headers)))
        page = self.site.pages.get(urlsplit(self.path).path)
        if page is None:
            return self.refuse(404)
        if page.delay_seconds and self.site.stopping.wait(page.delay_seconds):
            return None
        status = page.statuses.pop(0) if page.statuses else 200
        if page.login is not None and self.headers.get("Authorization") != page.login:
            status = 401
        if status == 0:
            self.close_connection = True
        elif status >= 400:
            self.refuse(status)
        else:
            self.give(page)
        if page.after_request is not None:
            page.after_request(page)
        return None

    def refuse(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def give(self, page: Page) -> None:
        wanted = RANGE.match(self.headers.get("Range", "")) if page.has_ranges else None
        total = len(page.content)
        start = int(wanted[1]) if wanted else 0
        end = min(int(wanted[2] or total), total - 1) + 1 if wanted else total
        if wanted and start >= total:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{total}")
            body = b""
        else:
            body = page.content[start:end]
            self.send_response(206 if wanted else 200)
            if wanted:
                self.send_header("Content-Range", f"bytes {start}-{end - 1}/{total}")
        if page.tells_length or wanted:
            self.send_header("Content-Length", str(len(body)))
        else:
            self.close_connection = True
            self.send_header("Connection", "close")
        headers = {"Content-Type": page.type} | ({"ETag": page.etag} if page.etag else {}) | page.headers
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if page.breaks_after is not None and len(body) > page.breaks_after:
            body = body[: page.breaks_after]
            self.close_connection = True
        if not page.drip_seconds:
            self.wfile.write(body)
            return
        for start in range(0, len(body), 100):
            self.wfile.write(body[start : start + 100])
            if self.site.stopping.wait(page.drip_seconds):
                break

    def log_message(self, *_: object) -> None:
        pass


class QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """A client that went away is part of a test."""


@contextmanager
def web_server() -> Iterator[WebServer]:
    """On a free port, until the block ends."""
    answers = type("SiteAnswers", (Answers,), {})
    with QuietServer(("127.0.0.1", 0), answers) as server:
        answers.site = site = WebServer(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield site
        finally:
            site.stopping.set()
            server.shutdown()
            thread.join()
