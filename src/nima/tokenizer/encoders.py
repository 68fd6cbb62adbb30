"""Encoders that are faster than `tokenizers` and certain to give the same ids.

Each states on which tokenizers it may stand in; for all others there is none.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import tiktoken
import tokenizers
from tokenizers import pre_tokenizers

from nima.tokenizer.vocabulary import Vocabulary, byte_alphabet, parts_of

if TYPE_CHECKING:
    from nima.tokenizer.ascii_pieces import PieceEncoder

# GPT-4's pattern with three changes. Marks belong to words: they are vowels and accents in many scripts.
# Numbers split into pairs of digits: of 4,096 tokens learnt from the AWS CLI's documentation, groups of three
# spend 82 more on numbers for 0.2 % shorter text. Contractions are lower case only, so that no engine's rules
# of case folding matter. As there, spaces stay together but for the last, which belongs to the word behind:
# indentation is one token.
PATTERN = (
    r"'(?:[sdmt]|ll|ve|re)"
    r"|[^\r\n\p{L}\p{M}\p{N}]?+[\p{L}\p{M}]++"
    r"|\p{N}{1,2}"
    r"| ?[^\s\p{L}\p{M}\p{N}]++[\r\n]*+"
    r"|\s*[\r\n]+"
    r"|\s+(?!\S)"
    r"|\s"
)

GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# Digits by themselves first, GPT-2's pattern between them: there, spaces before a digit end a piece.
DIGITS_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"

# What models took from GPT-4 differs in the length of numbers and in where marks belong.
GPT4_PATTERNS = tuple(
    rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?{letters}+|{numbers}"
    rf"| ?[^\s{others}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    for letters, others in ((r"\p{L}", r"\p{L}\p{N}"), (r"[\p{L}\p{M}]", r"\p{L}\p{M}\p{N}"))
    for numbers in (r"\p{N}{1,3}", r"\p{N}")
)

# GPT-4o's words begin anew at a capital behind small letters, and keep their contractions.
CAPITALS, SMALL = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
GPT4O_PATTERN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{CAPITALS}*{SMALL}+{CONTRACTIONS}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{CAPITALS}+{SMALL}*{CONTRACTIONS}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

READ_ALIKE = (PATTERN, GPT2_PATTERN, *GPT4_PATTERNS, GPT4O_PATTERN)
"""Patterns that `tokenizers` and tiktoken read the same; tests compare the two on each."""

LOOK_AHEAD = r"|\s+(?!"
"""How the first alternative with one begins, in all of them."""

FORMS = ("NFC", "NFD", "NFKC", "NFKD")
"""Unicode's normal forms. A part of a text in such a form is in it too."""


@dataclass(frozen=True)
class Encoder:
    """Gives the ids of a text as uint32."""

    name: str
    encode: Callable[[str], np.ndarray | None]
    """None for a text that is beyond it. Raises UnicodeEncodeError on a lone surrogate."""
    encode_ended: Callable[[Sequence[str], str], np.ndarray | None] | None = None
    """The ids of many texts at once, each followed by that of a special token; None if it can't be sure."""


def pre_tokenizer() -> Any:
    """Splits text by Nima's pattern and spells its bytes as characters."""
    split = pre_tokenizers.Split(tokenizers.Regex(PATTERN), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def encoder_of(
    reference: tokenizers.Tokenizer, description: dict[str, Any], vocabulary: Vocabulary
) -> Encoder | None:
    """The fast encoder that certainly gives the ids of `reference`; None if there is none."""
    if not is_plain_bpe(description["model"]):
        return None
    if not description["model"]["merges"]:
        return table_of_bytes(description, vocabulary) or table_of_characters(description, vocabulary)
    return merges_of(reference, description, vocabulary)


def is_plain_bpe(model: dict[str, Any]) -> bool:
    extras = ("dropout", "continuing_subword_prefix", "end_of_word_suffix")
    return model["type"] == "BPE" and not any(model[key] for key in extras)


# ---------------------------------------------------------------------------------------------- tables


def table_of_bytes(description: dict[str, Any], vocabulary: Vocabulary) -> Encoder | None:
    """Without merges, byte-level BPE gives each byte's token, wherever the text is split."""
    pieces = description["pre_tokenizer"] or {"type": None}
    is_whole = pieces["type"] == "ByteLevel" and not pieces["add_prefix_space"]
    if description["normalizer"] or not (is_whole or pattern_of(pieces)):
        return None
    ids = ids_of(description, byte_alphabet().keys())
    if ids is None or vocabulary.verbatim or is_shortened(description, vocabulary):
        return None
    table = np.zeros(256, dtype=np.uint32)
    table[list(byte_alphabet().values())] = ids
    return Encoder("table", lambda text: table[np.frombuffer(text.encode(), dtype=np.uint8)])


def table_of_characters(description: dict[str, Any], vocabulary: Vocabulary) -> Encoder | None:
    """Without merges and splits, BPE gives each character's token, or those of its bytes if it has none."""
    bytes_ids = ids_of(description, [f"<0x{byte:02X}>" for byte in range(256)])
    if description["normalizer"] or description["pre_tokenizer"] or vocabulary.verbatim:
        return None
    if not description["model"]["byte_fallback"] or bytes_ids is None:
        return None
    if is_shortened(description, vocabulary):
        return None
    table = np.full(0x110000, -1, dtype=np.int64)
    for name, number in description["model"]["vocab"].items():
        if len(name) == 1:
            table[ord(name)] = number
    return Encoder("table", lambda text: characters_of(text, table, np.array(bytes_ids)))


def ids_of(description: dict[str, Any], names: Any) -> list[int] | None:
    vocab = description["model"]["vocab"]
    return [vocab[name] for name in names] if all(name in vocab for name in names) else None


def is_shortened(description: dict[str, Any], vocabulary: Vocabulary) -> bool:
    """Whether whole pieces are looked up, or a single character names a special token."""
    return bool(description["model"]["ignore_merges"]) or any(len(name) == 1 for name in vocabulary.special)


def characters_of(text: str, table: np.ndarray, bytes_ids: np.ndarray) -> np.ndarray:
    points = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
    ids = table[points]
    unknown = np.flatnonzero(ids < 0)
    if len(unknown):
        spelled = [bytes_ids[list(text[place].encode())] for place in unknown]
        counts = np.ones(len(ids), dtype=np.int64)
        counts[unknown] = list(map(len, spelled))
        known = np.repeat(ids >= 0, counts)
        expanded = np.empty(len(known), dtype=np.int64)
        expanded[known] = ids[ids >= 0]
        expanded[~known] = np.concatenate(spelled)
        ids = expanded
    return ids.astype(np.uint32)


# ---------------------------------------------------------------------------------------------- merges


def merges_of(
    reference: tokenizers.Tokenizer, description: dict[str, Any], vocabulary: Vocabulary
) -> Encoder | None:
    """tiktoken on the same merges, where it is certain to give the same ids.

    `tokenizers` merges the listed pairs in their order, tiktoken any two neighbours whose bytes together are
    a token, in the order of ids. They agree on every text if (1) the listed pairs come in the order of the
    ids that they make, and (2) the bytes of each token, alone, come to that token.

    For take the first step at which they differ: both hold [.. l r ..], and l + r is a token T. No merge has
    crossed the edges of this stretch, so T alone would also have come to [l, r]. T alone comes to two tokens
    in one way only, and goes on to [T] by (2): so (l, r) is listed, and no other pair for T ever stands in
    any text. Then both choose by the same order.

    A tokenizer that looks up whole pieces first, as tiktoken does, needs less of (2): the bytes of a token
    may also come to three tokens or more. Then they never came to two, and no neighbours ever make it.
    """
    pattern, form = pattern_of(description["pre_tokenizer"]), normal_form(description)
    if pattern is None or description["model"]["byte_fallback"] or (description["normalizer"] and not form):
        return None
    if not pairs_follow_ids(description["model"], vocabulary):
        return None
    if not names_are_apart(description, vocabulary) or not tokens_come_to_themselves(reference, vocabulary):
        return None
    ranks = ranks_of(description["model"], vocabulary)
    if not all(bytes([byte]) in ranks for byte in range(256)):
        return None
    names = [token["content"] for token in description["added_tokens"]]
    return tiktoken_encoder(pattern, ranks, vocabulary, form, reference, names)


def pattern_of(part: dict[str, Any] | None) -> str | None:
    """The one regular expression by which a pre-tokenizer splits, if both packages read it the same."""
    pieces = parts_of(part, "pretokenizers")
    if not pieces or pieces[-1]["type"] != "ByteLevel" or pieces[-1]["add_prefix_space"]:
        return None
    if pieces[-1]["use_regex"]:
        if len(pieces) == 1:
            return GPT2_PATTERN
        is_digits = pieces[0]["type"] == "Digits" and pieces[0]["individual_digits"]
        return DIGITS_PATTERN if len(pieces) == 2 and is_digits else None
    if len(pieces) != 2 or pieces[0]["type"] != "Split":
        return None
    found = pieces[0]["pattern"].get("Regex")
    keeps_matches = (pieces[0]["behavior"], pieces[0]["invert"]) in (("Isolated", False), ("Removed", True))
    return found if found in READ_ALIKE and keeps_matches else None


def pairs_follow_ids(model: dict[str, Any], vocabulary: Vocabulary) -> bool:
    """Condition (1); and no special token is in reach of the model."""
    vocab = model["vocab"]
    made = [vocab.get(first + second, -1) for first, second in model["merges"]]
    if made != sorted(made) or made[0] < 0 or not vocabulary.special.keys().isdisjoint(byte_alphabet()):
        return False
    if model["ignore_merges"] and not vocabulary.special.keys().isdisjoint(vocab):
        return False
    return set(made).isdisjoint(vocabulary.special.values())


def tokens_come_to_themselves(reference: tokenizers.Tokenizer, vocabulary: Vocabulary) -> bool:
    """Condition (2)."""
    model = reference.model
    looks_up = model.ignore_merges
    added = vocabulary.special.keys() | vocabulary.verbatim.keys()
    names = [name for name in reference.get_vocab(with_added_tokens=False) if name not in added]
    model.ignore_merges = False
    try:
        lengths = {len(model.tokenize(name)) for name in names}
    finally:
        model.ignore_merges = looks_up
    return 2 not in lengths if looks_up else lengths == {1}


def names_are_apart(description: dict[str, Any], vocabulary: Vocabulary) -> bool:
    """Whether both packages find the verbatim tokens at the same places in any text.

    They do if no two names of added tokens can overlap, whatever the order of the search.
    """
    added = {token["content"]: token for token in description["added_tokens"]}
    for name in vocabulary.verbatim:
        if any(added[name][flag] for flag in ("single_word", "lstrip", "rstrip")):
            return False
        if description["normalizer"] and not name.isascii():
            return False
    return not any(
        overlap(name, other) for name, other in itertools.product(vocabulary.verbatim, added) if name != other
    )


def overlap(name: str, other: str) -> bool:
    shorter = min(len(name), len(other))
    touching = any(name[-n:] == other[:n] or other[-n:] == name[:n] for n in range(1, shorter))
    return touching or name in other or other in name


def ranks_of(model: dict[str, Any], vocabulary: Vocabulary) -> dict[bytes, int]:
    """The model's own tokens by their bytes; none if the name of one is not spelled in bytes."""
    added = vocabulary.special.keys() | vocabulary.verbatim.keys()
    names = [name for name in model["vocab"] if name not in added]
    if not all(map(frozenset(byte_alphabet()).issuperset, names)):
        return {}
    return {vocabulary.tokens[model["vocab"][name]]: model["vocab"][name] for name in names}


def normal_form(description: dict[str, Any]) -> str | None:
    """The normal form of Unicode that a tokenizer brings text into, if that is all it does to text."""
    kinds = [part["type"] for part in parts_of(description["normalizer"], "normalizers")]
    return kinds[0] if len(kinds) == 1 and kinds[0] in FORMS else None


def fast_form(pattern: str) -> str:
    """A pattern of `READ_ALIKE` as tiktoken's engine is fastest on it: it splits every text the same.

    What stands before the first look-ahead becomes one group, which an automaton then matches at once, unless
    a possessive quantifier bars it. Such a quantifier in front of characters that it cannot match changes
    nothing: what it took could never be given back to them.
    """
    simple, look_ahead, rest = pattern.partition(LOOK_AHEAD)
    return f"(?:{simple.replace('?+', '?').replace('++', '+').replace('*+', '*')}){look_ahead}{rest}"


def tiktoken_encoder(
    pattern: str,
    ranks: dict[bytes, int],
    vocabulary: Vocabulary,
    form: str | None,
    reference: tokenizers.Tokenizer,
    names: Sequence[str],
) -> Encoder:
    # With no name at all to look for it would look at each character.
    encoding = tiktoken.Encoding(
        "nima",
        pat_str=fast_form(pattern),
        mergeable_ranks=ranks,
        special_tokens=vocabulary.special | vocabulary.verbatim,
    )
    allowed = frozenset(vocabulary.verbatim)

    def encode(text: str, allowed: frozenset[str] = allowed) -> np.ndarray | None:
        if form and not (text.isascii() or reference.normalizer.normalize_str(text) == text):
            return None
        try:
            return encoding.encode_to_numpy(text, allowed_special=allowed, disallowed_special=())
        except UnicodeEncodeError:
            raise
        except ValueError:  # its regular expressions give up on runs of hundreds of thousands of blanks
            return None

    def encode_joined(texts: Sequence[str], end: str) -> np.ndarray | None:
        return encode(end.join([*texts, ""]), allowed | {end})

    @cache
    def by_pieces(end: str) -> PieceEncoder:
        from nima.tokenizer.ascii_pieces import PieceEncoder  # pyarrow: only where corpora are encoded

        return PieceEncoder(partial(encode_joined, end=end), vocabulary.special[end])

    def encode_ended(texts: Sequence[str], end: str) -> np.ndarray | None:
        joined = end.join([*texts, ""])
        if joined.count(end) != len(texts) or not stands_apart(end, names):
            return None
        plain = [text.isascii() for text in texts]
        if pattern != PATTERN or not any(plain) or any(name in joined for name in allowed - {end}):
            return encode(joined, allowed | {end})
        if all(plain):
            return by_pieces(end).encode_ended(texts)
        ids = by_pieces(end).encode_ended(list(itertools.compress(texts, plain)))
        others = encode_joined([text for text in texts if not text.isascii()], end)
        if ids is None or others is None:
            return None
        return merged(ids, others, plain, vocabulary.special[end])

    return Encoder("tiktoken", encode, encode_ended)


def merged(first: np.ndarray, second: np.ndarray, is_first: Sequence[bool], end: int) -> np.ndarray:
    """The ids of texts, each with the `end` behind it, in the order in which they came from two arrays."""
    texts = [iter(np.split(ids, np.flatnonzero(ids == end) + 1)) for ids in (second, first)]
    return np.concatenate([next(texts[source]) for source in is_first])


def stands_apart(name: str, names: Iterable[str]) -> bool:
    """Whether this name of an added token is found wherever it is put between texts, and only there."""
    repeats = any(name[-n:] == name[:n] for n in range(1, len(name)))
    return not repeats and not any(overlap(name, other) for other in names if other != name)
