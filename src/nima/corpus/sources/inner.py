"""Streams over bytes that lie somewhere inside something larger."""

from io import SEEK_CUR, SEEK_SET, RawIOBase
from typing import BinaryIO

READ_BYTES = 1 << 20


class InnerStream(RawIOBase):
    """A stream of `num_bytes` that can seek. Subclasses give the bytes at `position` and move it on."""

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes
        self.position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = SEEK_SET) -> int:
        start = 0 if whence == SEEK_SET else self.position if whence == SEEK_CUR else self.num_bytes
        if start + offset < 0:
            raise ValueError(f"cannot seek to {start + offset}")
        self.position = start + offset
        return self.position

    def readall(self) -> bytes:
        # RawIOBase's own takes 8 kB at a time.
        blocks = iter(lambda: self.read(min(READ_BYTES, max(self.num_bytes - self.position, 0) + 1)), b"")
        return b"".join(blocks)


class Window(InnerStream):
    """The bytes of `stream` from `start` on."""

    def __init__(self, stream: BinaryIO, start: int, num_bytes: int) -> None:
        super().__init__(num_bytes)
        self.stream = stream
        self.start = start

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override] # the stub's Buffer has no length
        size = min(len(buffer), self.num_bytes - self.position)
        if size <= 0:
            return 0
        self.stream.seek(self.start + self.position)
        block = self.stream.read(size)
        if not block:
            raise EOFError(f"ends after {self.position} of {self.num_bytes} bytes")
        buffer[: len(block)] = block
        self.position += len(block)
        return len(block)

    def close(self) -> None:
        self.stream.close()
        super().close()
