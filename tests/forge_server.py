"""A server in GitHub's and GitLab's place, which keeps what is posted."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread


class Recorder(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.posts.append((self.path, self.headers, body))
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def forge(status: int = 201) -> Iterator[ThreadingHTTPServer]:
    """Its `posts` are path, headers and body of each request, which it answers with the status."""
    web = ThreadingHTTPServer(("127.0.0.1", 0), Recorder)
    web.posts, web.status = [], status
    Thread(target=web.serve_forever, daemon=True).start()
    try:
        yield web
    finally:
        web.shutdown()
        web.server_close()
