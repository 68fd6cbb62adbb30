"""Which documents are good enough, and why the others are not.

The rules on words, symbols and lines are those of Gopher (Rae et al. 2021, https://arxiv.org/abs/2112.11446,
A1.1) and C4 (Raffel et al. 2020, https://arxiv.org/abs/1910.10683, 2.2). They look at prose only: code and
tables are neither words nor lines of a language, and a text that is all code passes them.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from nima.corpus.quality.blocks import Markup, verbatim_lines
from nima.corpus.quality.languages import foreign_language
from nima.corpus.quality.repetition import excess_in
from nima.workspace.params import QualityParams

STOP_WORDS = frozenset(["the", "be", "to", "of", "and", "that", "have", "with"])
STOP_WORD = re.compile(r"\b(?:the|be|to|of|and|that|have|with)\b", re.IGNORECASE)
LETTER = re.compile(r"[^\W\d_]")
HEADING_MARKS = re.compile(r"^ {0,3}(#{1,6})(?=[ \t]|$)", re.MULTILINE)
BULLET = re.compile(r"[-*+\u2022\u2023\u25aa\u25cf\u25e6\u2043\u2219\u00b7\u2013](?:[ \t]|$)")
ELLIPSES = ("...", "\u2026")
SENTENCE_END = re.compile(r"[.!?\u2026]+[\"'\u201d\u2019\u00bb)\]*_`]*(?=\s|$)|[\u3002\uff01\uff1f]")
TERMINAL = (".", "!", "?", '"', "\u201d", "\u00bb", "\u2026", "\u3002", "\uff01", "\uff1f")
CLOSING_MARKUP = "*_`)]}'\u2019"
FILLER = "lorem ipsum dolor"
NOTICE_WORDS = ("javascript", "intentionally", "robot", "human")
NOTICE = re.compile(
    r"javascript (?:must be|needs to be|is|has been|seems to be|appears to be)"
    r" (?:currently )?(?:enabled|disabled|turned off|switched off|required)"
    r"|(?:enable|turn on|activate) javascript\b|browser does not support javascript"
    r"|this page (?:(?:is|was|has been) )?intentionally (?:left )?blank|are you a (?:robot|human)\?"
    r"|verify (?:that )?you are (?:a )?human"
)
NOTICE_MAX_WORDS = 100
"""A notice such as "enable JavaScript" stands in the place of a text up to so many words."""


class Flaw(NamedTuple):
    reason: str
    """One word for counting, such as `too_short`."""
    detail: str
    """What was found and what would be right."""


def flaw_in(text: str, rules: QualityParams, markup: Markup) -> Flaw | None:
    """The first flaw of a cleaned text, or None. Space around the text does not count as length."""
    flaw = length_flaw(text, rules)
    if flaw is not None or not rules.judges_prose:
        return flaw
    prose = prose_of(text, markup)
    words = prose.split()
    if not words:
        return None
    return next(prose_flaws(prose, words, rules, markup), None)


def length_flaw(text: str, rules: QualityParams) -> Flaw | None:
    num_chars = len(text.strip())
    if num_chars == 0:
        return Flaw("empty", "no text")
    if num_chars < rules.min_chars:
        return Flaw("too_short", f"{num_chars} characters, min_chars is {rules.min_chars}")
    if num_chars > rules.max_chars:
        return Flaw("too_long", f"{num_chars} characters, max_chars is {rules.max_chars}")
    return None


def prose_of(text: str, markup: Markup) -> str:
    """The text with an empty line in the place of each line of code or table."""
    lines = text.split("\n")
    verbatim = verbatim_lines(lines, markup)
    return "\n".join("" if is_verbatim else line for line, is_verbatim in zip(lines, verbatim, strict=True))


def prose_flaws(prose: str, words: Sequence[str], rules: QualityParams, markup: Markup) -> Iterator[Flaw]:
    """Every flaw of the prose, in the order of the rules; each is looked for on demand."""
    yield from word_flaws(prose, words, rules, markup)
    yield from line_flaws(prose, rules)
    if rules.placeholder_text and (placeholder := placeholder_in(prose, len(words))):
        yield Flaw("placeholder_text", f"{placeholder!r} stands in the place of a text")
    if rules.repetition is not None and (excess := excess_in(prose, rules.repetition)):
        yield over(excess.rule, excess.found, excess.rule, excess.limit)
    if rules.language is not None and (found := foreign_language(prose, rules.language)):
        yield Flaw("other_language", found)


def word_flaws(prose: str, words: Sequence[str], rules: QualityParams, markup: Markup) -> Iterator[Flaw]:
    if rules.min_words is not None and len(words) < rules.min_words:
        yield Flaw("too_few_words", f"{len(words)} words, min_words is {rules.min_words}")
    if rules.max_words is not None and len(words) > rules.max_words:
        yield Flaw("too_many_words", f"{len(words)} words, max_words is {rules.max_words}")
    mean_chars = sum(map(len, words)) / len(words)
    least, most = rules.min_mean_word_chars, rules.max_mean_word_chars
    if least is not None and mean_chars < least:
        yield Flaw("words_too_short", f"{mean_chars:.2f} characters, min_mean_word_chars is {least:g}")
    if most is not None and mean_chars > most:
        yield Flaw("words_too_long", f"{mean_chars:.2f} characters, max_mean_word_chars is {most:g}")
    if (limit := rules.max_symbols_per_word) is not None:
        found = max(num_hashes(prose, markup), num_ellipses(prose)) / len(words)
        if found > limit:
            yield over("too_many_symbols", found, "max_symbols_per_word", limit)
    if (limit := rules.min_alphabetic_words) is not None:
        found = sum(word.isalpha() or LETTER.search(word) is not None for word in words) / len(words)
        if found < limit:
            yield over("too_few_alphabetic_words", found, "min_alphabetic_words", limit)
    if (least_words := rules.min_stop_words) is not None:
        num_found = num_stop_words(prose, least_words)
        if num_found < least_words:
            detail = f"{num_found} of {', '.join(sorted(STOP_WORDS))}, min_stop_words is {least_words}"
            yield Flaw("too_few_stop_words", detail)


def line_flaws(prose: str, rules: QualityParams) -> Iterator[Flaw]:
    lines = [line for line in map(str.strip, prose.split("\n")) if line]
    if (limit := rules.max_bullet_lines) is not None:
        found = sum(BULLET.match(line) is not None for line in lines) / len(lines)
        if found > limit:
            yield over("too_many_bullets", found, "max_bullet_lines", limit)
    if (limit := rules.max_ellipsis_lines) is not None:
        found = sum(line.endswith(ELLIPSES) for line in lines) / len(lines)
        if found > limit:
            yield over("too_many_ellipses", found, "max_ellipsis_lines", limit)
    if (least := rules.min_sentences) is not None:
        num_found = sum(1 for _ in islice(SENTENCE_END.finditer(prose), least))
        if num_found < least:
            yield Flaw("too_few_sentences", f"{num_found} sentence ends, min_sentences is {least}")
    if (limit := rules.min_punctuated_lines) is not None:
        found = sum(line.rstrip(CLOSING_MARKUP).endswith(TERMINAL) for line in lines) / len(lines)
        if found < limit:
            yield over("too_few_punctuated_lines", found, "min_punctuated_lines", limit)


def over(reason: str, found: float, rule: str, limit: float) -> Flaw:
    return Flaw(reason, f"{found:.3g}, {rule} is {limit:g}")


def num_hashes(prose: str, markup: Markup) -> int:
    """Hash signs; those that mark Markdown's headings are no symbols."""
    num_signs = prose.count("#")
    if num_signs and markup == "markdown":
        num_signs -= sum(len(match[1]) for match in HEADING_MARKS.finditer(prose))
    return num_signs


def num_ellipses(prose: str) -> int:
    return sum(map(prose.count, ELLIPSES))


def num_stop_words(prose: str, enough: int) -> int:
    """How many of Gopher's eight stop words occur; the count ends when it reaches `enough`."""
    found: set[str] = set()
    for match in STOP_WORD.finditer(prose):
        found.add(match[0].lower())
        if len(found) >= enough:
            break
    return len(found)


def placeholder_in(prose: str, num_words: int) -> str | None:
    """What says that a text is missing here: filler, or a notice on a page that holds little else."""
    lower = prose.lower()
    if FILLER in lower:
        return FILLER
    if num_words > NOTICE_MAX_WORDS or not any(word in lower for word in NOTICE_WORDS):
        return None
    notice = NOTICE.search(lower)
    return notice[0] if notice else None
