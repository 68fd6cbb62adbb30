"""What repeats inside one text: lines, paragraphs and word n-grams.

The measures are those of Gopher (Rae et al. 2021, https://arxiv.org/abs/2112.11446, A1.1 and table A1). Where
the paper leaves room: an item counts as a duplicate if an equal one came before it, so a text said twice has
a share of one half; words are what stands between white space; characters are those of the words, lines or
paragraphs themselves, without the space between them.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

from nima.workspace.params.data import RepetitionParams

PARAGRAPH_BREAK = re.compile(r"\n\s*\n")
TOP_NGRAMS = range(2, 5)
DUPLICATE_NGRAMS = range(5, 11)


class Excess(NamedTuple):
    """A limit that a text exceeds."""

    rule: str
    """The key of the limit in `RepetitionParams`."""
    found: float
    limit: float


def excess_in(text: str, rules: RepetitionParams) -> Excess | None:
    """The first limit of `rules` that `text` exceeds, in their order. Linear time in the text."""
    for rule, found in shares(text):
        limit = getattr(rules, rule)
        if limit is not None and found > limit:
            return Excess(rule, found, limit)
    return None


def shares(text: str) -> Iterator[tuple[str, float]]:
    """Each measure by its name in `RepetitionParams`, and the text's share, 0 to 1; computed on demand."""
    lines = [line for line in map(str.strip, text.split("\n")) if line]
    paragraphs = [part for part in map(str.strip, PARAGRAPH_BREAK.split(text)) if part]
    of_lines, of_line_chars = duplicate_shares(lines)
    of_paragraphs, of_paragraph_chars = duplicate_shares(paragraphs)
    yield "duplicate_lines", of_lines
    yield "duplicate_paragraphs", of_paragraphs
    yield "duplicate_line_chars", of_line_chars
    yield "duplicate_paragraph_chars", of_paragraph_chars
    yield from ngram_shares(text.split())


def duplicate_shares(items: Sequence[str]) -> tuple[float, float]:
    """The shares of items, and of their characters, that repeat an earlier item."""
    seen: set[str] = set()
    num_duplicates = num_chars = 0
    for item in items:
        if item in seen:
            num_duplicates += 1
            num_chars += len(item)
        seen.add(item)
    return num_duplicates / max(len(items), 1), num_chars / max(sum(map(len, items)), 1)


def ngram_shares(words: Sequence[str]) -> Iterator[tuple[str, float]]:
    """The shares of characters in the most frequent n-gram, then in all duplicate n-grams.

    The most frequent n-gram covers all its places; one that occurs once covers nothing. Duplicate n-grams
    cover the places after their first. A character that several n-grams cover counts once.
    """
    char_ends = [0, *accumulate(map(len, words))]
    num_chars = max(char_ends[-1], 1)
    for num_words, groups in repeated_ngrams(words, max(DUPLICATE_NGRAMS)):
        if num_words in TOP_NGRAMS:
            covered = top_chars(groups, num_words, char_ends)
            yield f"top_{num_words}gram_chars", covered / num_chars
        elif num_words in DUPLICATE_NGRAMS:
            starts = sorted(start for group in groups for start in group[1:])
            covered = covered_chars(starts, num_words, char_ends)
            yield f"duplicate_{num_words}gram_chars", covered / num_chars


def repeated_ngrams(words: Sequence[str], max_words: int) -> Iterator[tuple[int, list[list[int]]]]:
    """For n = 1 to `max_words`: the places of each n-gram that occurs more than once, by its first place.

    Only an n-gram that repeats can begin a longer one that does, so each round looks at what is left over.
    """
    groups = [list(range(len(words)))]
    for num_words in range(1, max_words + 1):
        longer: list[list[int]] = []
        for starts in groups:
            by_next: dict[str, list[int]] = {}
            for start in starts:
                if start + num_words <= len(words):
                    by_next.setdefault(words[start + num_words - 1], []).append(start)
            longer += [same for same in by_next.values() if len(same) > 1]
        groups = longer
        yield num_words, groups


def top_chars(groups: Sequence[Sequence[int]], num_words: int, char_ends: Sequence[int]) -> int:
    """Characters in all places of the most frequent n-gram; of several, the one with most characters."""
    most = max(map(len, groups), default=0)
    covered = (covered_chars(group, num_words, char_ends) for group in groups if len(group) == most)
    return max(covered, default=0)


def covered_chars(starts: Sequence[int], num_words: int, char_ends: Sequence[int]) -> int:
    """Characters of the words in the n-grams that begin at `starts`, ascending; each once."""
    num_chars = covered_to = 0
    for start in starts:
        num_chars += char_ends[start + num_words] - char_ends[max(start, covered_to)]
        covered_to = start + num_words
    return num_chars
