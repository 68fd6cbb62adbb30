"""Floors for a language model: the bits per byte that general-purpose compressors need for the same text."""

import lzma

import zstandard

XZ_PRESET = 9
ZSTD_LEVEL = 19


def floors(text: bytes) -> dict[str, float]:
    """Bits per byte of `text`, which must not be empty, under `xz -9` and `zstd -19`."""
    return {"xz_9": bits_per_byte(xz(text), text), "zstd_19": bits_per_byte(zstd(text), text)}


def bits_per_byte(compressed: bytes, text: bytes) -> float:
    return 8 * len(compressed) / len(text)


def xz(text: bytes) -> bytes:
    return lzma.compress(text, format=lzma.FORMAT_XZ, preset=XZ_PRESET)


def zstd(text: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(text)
