"""What compressors make of a text."""

import lzma
import random
import shutil
import subprocess
from collections.abc import Callable

import pytest
import zstandard

from nima.evaluation.compression import floors, xz, zstd

TEXT = b"aws ec2 describe-instances --filters Name=instance-type,Values=t2.micro\n" * 50


def noise(num_bytes: int) -> bytes:
    return random.Random(0).randbytes(num_bytes)


def test_what_was_compressed_comes_back() -> None:
    assert lzma.decompress(xz(TEXT), format=lzma.FORMAT_XZ) == TEXT
    assert zstandard.ZstdDecompressor().decompress(zstd(TEXT)) == TEXT


def test_a_floor_is_eight_bits_per_compressed_byte_over_the_texts_bytes() -> None:
    found = floors(TEXT)
    assert found == {"xz_9": 8 * len(xz(TEXT)) / len(TEXT), "zstd_19": 8 * len(zstd(TEXT)) / len(TEXT)}
    assert max(found.values()) < 0.5


def test_noise_does_not_compress() -> None:
    assert all(8 <= bits < 8.1 for bits in floors(noise(100_000)).values())


def test_the_same_text_gives_the_same_floors() -> None:
    assert floors(TEXT) == floors(TEXT)


@pytest.mark.parametrize(("command", "compress"), [("xz -9", xz), ("zstd -19", zstd)])
def test_the_size_is_that_of_the_command_line_tool(command: str, compress: Callable[[bytes], bytes]) -> None:
    if shutil.which(command.split()[0]) is None:
        pytest.skip(f"no {command.split()[0]} on this machine")
    text = TEXT + noise(5000)
    made = subprocess.run([*command.split(), "--stdout"], input=text, capture_output=True, check=True).stdout
    assert len(compress(text)) == pytest.approx(len(made), abs=16), "headers and checksums differ slightly"
