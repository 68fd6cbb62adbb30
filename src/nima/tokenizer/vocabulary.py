"""What the tokens of a vocabulary stand for: bytes of text, or nothing."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import tokenizers

from nima.workspace.errors import UserError

BYTE_NAME = re.compile(r"<0x([0-9A-F]{2})>")
"""How vocabularies with byte fallback name the token of a byte."""

PLAIN_DECODERS = {"ByteLevel", "Metaspace", "Replace", "ByteFallback", "Fuse"}
"""Decoders that give every token the same bytes wherever it stands."""


@dataclass(frozen=True)
class Vocabulary:
    """Every token of a tokenizer."""

    tokens: list[bytes]
    """The bytes of each token by id; empty for special ones and for ids that are not in use."""
    special: dict[str, int]
    """Tokens that stand for no text; their names are text like any other."""
    verbatim: dict[str, int]
    """Tokens that were added to the model's and stand for their own name wherever text has it."""
    unspellable: re.Pattern[str] | None
    """Text that the model reads as something else, such as SentencePiece's mark for a space."""

    def single_bytes(self) -> dict[bytes, int]:
        """The token of each byte that has one."""
        return {spelled: token for token, spelled in enumerate(self.tokens) if len(spelled) == 1}


def described(reference: tokenizers.Tokenizer) -> dict[str, Any]:
    """The content of tokenizer.json."""
    content: dict[str, Any] = json.loads(reference.to_str())
    return content


def vocabulary_of(reference: tokenizers.Tokenizer, description: dict[str, Any]) -> Vocabulary:
    """Reads a tokenizer of the `tokenizers` package that takes names of special tokens in text for text.

    `description` is its tokenizer.json.
    """
    added = reference.get_added_tokens_decoder()
    special = {token.content: number for number, token in sorted(added.items()) if token.special}
    verbatim = {token.content: number for number, token in sorted(added.items()) if not token.special}
    names = reference.get_vocab(with_added_tokens=True)
    if not names:
        raise UserError("the tokenizer has no token")
    bytes_of = spelling(reference, description)
    tokens = [b""] * (max(names.values()) + 1)
    for name, number in names.items():
        if number not in added:
            tokens[number] = bytes_of(name)
    for name, number in verbatim.items():
        tokens[number] = name.encode()
    return Vocabulary(tokens, special, verbatim, unspellable(reference, description, special))


# ------------------------------------------------------------------------------------- tokens to bytes


def spelling(reference: tokenizers.Tokenizer, description: dict[str, Any]) -> Callable[[str], bytes]:
    """The bytes of a token by its name, as the tokenizer's decoders give them."""
    decoders = parts_of(description["decoder"], "decoders")
    kinds = {decoder["type"] for decoder in decoders}
    if "ByteLevel" in kinds:
        return byte_level
    marks = marks_of_spaces(decoders)
    has_byte_names = "ByteFallback" in kinds and description["model"].get("byte_fallback")

    numbers = reference.get_vocab(with_added_tokens=True)

    def decoded(name: str) -> bytes:
        text: str = reference.decode([numbers[name]], skip_special_tokens=False)
        return text.encode()

    def spelled(name: str) -> bytes:
        if has_byte_names and (found := BYTE_NAME.fullmatch(name)):
            return bytes.fromhex(found[1])
        for mark in marks:
            name = name.replace(mark, " ")
        return name.encode()

    is_plain = kinds and kinds <= PLAIN_DECODERS and all(map(is_replaced_mark, decoders))
    return spelled if is_plain else decoded


def is_replaced_mark(decoder: dict[str, Any]) -> bool:
    """Whether a decoder, if it replaces anything, only puts spaces for a mark."""
    if decoder["type"] != "Replace":
        return True
    return decoder["content"] == " " and "String" in decoder["pattern"]


def parts_of(part: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    """A normalizer, pre-tokenizer or decoder as a flat list; `key` is where sequences keep their parts."""
    if part is None:
        return []
    if part["type"] != "Sequence":
        return [part]
    return [inner for each in part[key] for inner in parts_of(each, key)]


def marks_of_spaces(decoders: list[dict[str, Any]]) -> list[str]:
    """What stands for a space in the names of tokens."""
    marks = [decoder["replacement"] for decoder in decoders if decoder["type"] == "Metaspace"]
    replaced = [decoder for decoder in decoders if decoder["type"] == "Replace" and is_replaced_mark(decoder)]
    return list(dict.fromkeys([*marks, *(decoder["pattern"]["String"] for decoder in replaced)]))


def byte_level(name: str) -> bytes:
    """The bytes that GPT-2's spelling stands for; a name that is spelled otherwise is itself."""
    alphabet = byte_alphabet()
    try:
        return bytes(map(alphabet.__getitem__, name))
    except KeyError:
        return name.encode()


@cache
def byte_alphabet() -> dict[str, int]:
    """GPT-2's spelling: printable bytes are themselves, the others the characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


# ---------------------------------------------------------------------------- text that has to be spelled


def unspellable(
    reference: tokenizers.Tokenizer, description: dict[str, Any], special: dict[str, int]
) -> re.Pattern[str] | None:
    """Text that would come back as something else.

    These are marks of spaces and, as Unigram takes every name for a piece of text, names of bytes and of
    special tokens.
    """
    names = marks_of_spaces(parts_of(description["decoder"], "decoders"))
    model = description["model"]
    if model["type"] == "Unigram":
        names += [name for name, number in special.items() if gives(reference, name, number)]
    patterns = list(map(re.escape, names))
    if model["type"] == "Unigram" and model["byte_fallback"]:
        patterns.append(BYTE_NAME.pattern)
    return re.compile("|".join(patterns)) if patterns else None


def gives(reference: tokenizers.Tokenizer, text: str, token: int) -> bool:
    """Whether a text has this token among its own."""
    try:
        return token in reference.encode(text, add_special_tokens=False).ids
    except Exception:  # a text that the model cannot encode; `tokenizers` raises nothing more special
        return False
