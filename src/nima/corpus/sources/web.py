"""Files of web servers (`http://`, `https://`), in answers whose version is checked each time."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from nima.corpus.sources.inner import READ_BYTES
from nima.corpus.stores import failures
from nima.corpus.stores.failures import Changed, Failure, refused

if TYPE_CHECKING:
    import aiohttp

CONTENT_RANGE = re.compile(r"bytes (?:\d+-\d+|\*)/(\d+|\*)")


@dataclass(frozen=True)
class Answer:
    """What the head of an answer says about the whole file."""

    num_bytes: int | None
    version: str
    """ETag or date of change; empty if the server tells neither."""
    has_ranges: bool


def described(url: str) -> Answer:
    """Asks for the first byte: unlike HEAD, signed urls allow that, and it shows whether parts can be had."""

    async def ask(session: "aiohttp.ClientSession") -> Answer:
        async with request(session, url, "bytes=0-0") as response:
            refuse_failure(response)
            return answer_of(response)

    return in_session(ask, failures.BLOCK_SECONDS)


def block(url: str, known: Answer, start: int, end: int) -> bytes:
    """The bytes from `start` to before `end`. Raises `Changed`."""

    async def ask(session: "aiohttp.ClientSession") -> bytes:
        async with request(session, url, f"bytes={start}-{end - 1}") as response:
            refuse_failure(response)
            answer = answer_of(response)
            refuse_change(answer, known)
            if start and not answer.has_ranges:
                raise Changed
            return await response.content.readexactly(end - start)

    return in_session(ask, failures.BLOCK_SECONDS)


def copy_whole(url: str, known: Answer, max_bytes: int, target: BinaryIO) -> None:
    """The whole file in one answer. Raises `Changed`, and `Failure` beyond `max_bytes`."""

    async def ask(session: "aiohttp.ClientSession") -> None:
        async with request(session, url) as response:
            refuse_failure(response)
            refuse_change(answer_of(response), known)
            async for part in response.content.iter_chunked(READ_BYTES):
                target.write(part)
                if target.tell() > max_bytes:
                    raise Failure(f"has more bytes than prepare.limits.max_archive_bytes ({max_bytes})")

    in_session(ask, total_seconds=None)


def in_session(ask: Any, total_seconds: float | None) -> Any:
    """What the coroutine `ask(session)` returns, in fsspec's thread and session."""
    import aiohttp
    import fsspec
    from fsspec.asyn import sync

    seconds = failures.TIMEOUT_SECONDS
    timeout = aiohttp.ClientTimeout(total=total_seconds, connect=seconds, sock_read=seconds)
    options = {"timeout": timeout, "trust_env": True, "auto_decompress": False}
    filesystem = fsspec.filesystem("http", client_kwargs=options)

    async def run() -> Any:
        return await ask(await filesystem.set_session())

    return sync(filesystem.loop, run)


def request(session: "aiohttp.ClientSession", url: str, part: str | None = None) -> Any:
    """Asks for the file as it is stored, or for a part of it; to be entered for the answer."""
    import yarl

    headers = {"Accept-Encoding": "identity"} | ({"Range": part} if part else {})
    # A signature covers the url as it is written.
    address = yarl.URL(url, encoded=url.isascii() and " " not in url)
    return session.get(address, headers=headers)


def refuse_failure(response: "aiohttp.ClientResponse") -> None:
    """Raises `Failure` for an answer without the file's own bytes."""
    is_empty_file = response.status == 416 and "*/0" in response.headers.get("Content-Range", "")
    if response.status >= 400 and not is_empty_file:
        raise refused(response.status, "http")
    if (encoding := response.headers.get("Content-Encoding", "identity")) != "identity":
        raise Failure(f"the server sends it packed ({encoding}), which was not asked for")


def answer_of(response: "aiohttp.ClientResponse") -> Answer:
    headers = response.headers
    version = headers.get("ETag", "").removeprefix("W/") or headers.get("Last-Modified", "")
    if response.status in (206, 416):
        match = CONTENT_RANGE.match(headers.get("Content-Range", ""))
        total = match[1] if match else "*"
        return Answer(None if total == "*" else int(total), version, has_ranges=total != "*")
    return Answer(response.content_length, version, has_ranges=False)


def refuse_change(answer: Answer, known: Answer) -> None:
    """Raises `Changed` if an answer is of another file than the one that is `known`."""
    if (answer.version, answer.num_bytes) != (known.version, known.num_bytes):
        raise Changed
