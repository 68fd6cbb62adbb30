"""The gate: proof that a tokenizer loses nothing and reads no control token out of text."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from nima.tokenizer.folders import TOKENIZER_FILE
from nima.tokenizer.learning import short
from nima.workspace.errors import UserError

if TYPE_CHECKING:
    from nima.tokenizer.tokenizer import Tokenizer

GATE_MAX_BYTES = 64_000_000
"""Held-out text that the gate reads at most."""

MAX_PAIRED_NAMES = 4
"""Of so many special tokens each is tried behind each; of more, each behind itself and the one before."""

# What tokenizers are known to trip over: case, runs of blanks, line ends, numbers, names of their own tokens.
PLAIN_TEXTS = (
    "It's the DNS of Kubernetes, isn't it?",
    "  two spaces  before\tand after  \r\n\r\n\n    12345.678 = 0x1F  ",
    "▁▂▃ <0x41> ##ing Ġĉ Ünïcödé ﬁ Å",
)

# Where software that handles text goes wrong: controls, spaces, letters with marks, joiners and bidirectional
# controls, surrogate neighbours, private use, full width, emoji, unassigned planes.
FUZZED_RANGES = (
    *((0x00, 0x7F), (0x80, 0xFF), (0x300, 0x36F), (0x600, 0x6FF), (0x900, 0x97F), (0xE00, 0xE7F)),
    *((0x1100, 0x11FF), (0x2000, 0x206F), (0x3000, 0x30FF), (0x4E00, 0x9FFF), (0xD700, 0xD7FF)),
    *((0xE000, 0xE0FF), (0xFE00, 0xFE0F), (0xFEFF, 0xFEFF), (0xFF00, 0xFFFF), (0x1F300, 0x1FAFF)),
    *((0x20000, 0x200FF), (0xE0000, 0xE01FF), (0x10FF00, 0x10FFFF)),
)


def gate(
    tokenizer: Tokenizer, texts: Iterable[str], min_vocab_size: int, kind: str = "bpe"
) -> dict[str, int | float]:
    """Proves that a tokenizer of a kind of tokenize.kind may be used; `texts` are held-out ones.

    Returns what was checked. Raises `UserError` naming the check that failed and the text that it failed on.
    """
    check_bytes(tokenizer)
    check_vocabulary(tokenizer, min_vocab_size, kind)
    hostile = map(tokenizer.normalized, fuzzed_texts(list(tokenizer.special_ids)))
    num_fuzzed, _, _ = check_texts(tokenizer, hostile, "fuzzed text")
    num_texts, num_bytes, num_tokens = check_texts(tokenizer, texts, "held-out text")
    return {
        "fuzzed_texts": num_fuzzed,
        "held_out_texts": num_texts,
        "held_out_bytes": num_bytes,
        "held_out_bytes_per_token": round(num_bytes / num_tokens, 6) if num_tokens else 0.0,
    }


def failed(what: str) -> UserError:
    return UserError(f"tokenizer gate: {what}")


def check_vocabulary(tokenizer: Tokenizer, min_vocab_size: int, kind: str) -> None:
    """Enough tokens; in vocabularies that Nima made, special ones come first."""
    found = list(tokenizer.special_ids.values())
    if kind != "pretrained" and found != list(range(len(found))):
        raise failed(f"special tokens have the ids {found}, expected the first ones")
    if tokenizer.pad == tokenizer.end_of_text:
        raise failed("the pad is the end of text too, which no model would learn; expected two tokens")
    if tokenizer.vocab_size < min_vocab_size:
        raise failed(
            f"{tokenizer.vocab_size} tokens were learnt, tokenize.min_vocab_size asks for {min_vocab_size}; "
            "add text or lower it"
        )
    if kind in ("bpe", "unigram") and tokenizer.token_bytes().max() < 2:
        raise failed("no token is longer than a byte; add text or raise tokenize.train_max_bytes")


def check_bytes(tokenizer: Tokenizer) -> None:
    """Every byte is a token, so that no text is out of reach."""
    single = {tokenizer.decode_bytes([token]): token for token in range(tokenizer.vocab_size)}
    for byte in range(256):
        if bytes([byte]) not in single:
            raise failed(
                f"byte 0x{byte:02X} has no token, so that some text would be lost; expected a byte-level "
                "vocabulary or one with byte fallback"
            )
    invalid = bytes(reversed(range(256)))
    ids = [single[bytes([byte])] for byte in invalid]
    if tokenizer.decode_bytes(ids) != invalid:
        raise failed("tokens of single bytes do not decode to these bytes")


def check_texts(tokenizer: Tokenizer, texts: Iterable[str], kind: str) -> tuple[int, int, int]:
    """Checks texts up to `GATE_MAX_BYTES`; returns how many, their bytes and their tokens."""
    special = {token: name for name, token in tokenizer.special_ids.items()}
    num_texts = num_bytes = num_tokens = 0
    for text in texts:
        ids = tokenizer.encode(text)
        if found := special.keys() & ids:
            name = special[min(found)]
            raise failed(f"{kind} {short(text)} encodes to a special token, {name!a}; expected only text")
        check_text(tokenizer, text, ids, kind)
        num_texts, num_tokens = num_texts + 1, num_tokens + len(ids)
        num_bytes += len(text.encode())
        if num_bytes >= GATE_MAX_BYTES:
            break
    return num_texts, num_bytes, num_tokens


def check_text(tokenizer: Tokenizer, text: str, ids: list[int], kind: str) -> None:
    if (decoded := tokenizer.decode(ids)) != text:
        form = tokenizer.normal_form
        hint = f"; the tokenizer brings text into {form}: set prepare.cleaning.unicode to it" if form else ""
        start = max(0, first_difference(text, decoded) - 20)
        shown, back = short(text[start:]), short(decoded[start:])
        raise failed(f"{kind} {shown} does not survive encoding: it comes back as {back}{hint}")
    if ids != tokenizer.reference_ids(text):
        raise failed(f"{kind} {short(text)} has other ids in {TOKENIZER_FILE} than from the fast encoder")


def first_difference(text: str, other: str) -> int:
    different = (place for place, (one, two) in enumerate(zip(text, other, strict=False)) if one != two)
    return next(different, min(len(text), len(other)))


def fuzzed_texts(names: list[str], num_texts: int = 500, seed: int = 0) -> Iterator[str]:
    """The same hostile texts on each call: plain ones, names of special tokens, then random characters."""
    yield from PLAIN_TEXTS
    for name, other in pairs_of(names):
        yield f"{name}{other} in {name}\ntext {other}"
    generator = np.random.Generator(np.random.PCG64(seed))
    for _ in range(num_texts):
        starts = generator.integers(0, len(FUZZED_RANGES), size=generator.integers(1, 60))
        points = [generator.integers(*FUZZED_RANGES[start], endpoint=True) for start in starts]
        yield "".join(map(chr, points))


def pairs_of(names: list[str]) -> Iterator[tuple[str, str]]:
    if len(names) <= MAX_PAIRED_NAMES:
        yield from itertools.product(names, names)
    else:
        yield from zip(names, names, strict=True)
        yield from itertools.pairwise(names)
