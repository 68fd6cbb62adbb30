"""Which language a text is written in: py3langid, a naive Bayes model over byte n-grams.

It tells about 140 languages apart (Lui and Baldwin 2012, https://aclanthology.org/P12-3005). The model lies
inside the package, so it works without the network.
"""

import re
from functools import cache

from py3langid.langid import MODEL_FILE, LanguageIdentifier

from nima.workspace.errors import UserError
from nima.workspace.params.data import LanguageParams

MIN_LETTERS = 40
"""Texts with fewer letters get no verdict."""
SAMPLE_CHARS = 200
"""Length of each of three samples: beginning, middle and end."""
NO_LANGUAGE = "zxx"
# Commands, paths, identifiers, numbers: they belong to no language.
TECHNICAL = re.compile(r"[0-9_/\\@=<>{}$|#~`]|[A-Za-z][.:][A-Za-z]|^-")
MARKS = '*:[]()"+'


@cache
def identifier() -> LanguageIdentifier:
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


@cache
def check_languages(keep: tuple[str, ...]) -> None:
    known = identifier().labels
    unknown = [code for code in keep if code not in known]
    if unknown:
        raise UserError(
            f"params.yaml: prepare.quality.language.keep: {unknown[0]!r} is not a language that can be "
            f"recognised; these are: {', '.join(sorted(known))}"
        )


def foreign_language(text: str, rules: LanguageParams) -> str | None:
    """What speaks against `text` being in the languages that are kept; None if nothing does.

    It is in them if its most likely language is one of them, and they have together at least
    `min_confidence` of the probability. Too few letters, or what is no language, speak against nothing.
    Raises `UserError` for an unknown language.
    """
    check_languages(tuple(rules.keep))
    words = sample_of(text)
    if sum(map(str.isalpha, words)) < MIN_LETTERS:
        return None
    ranking = identifier().rank(words)
    likeliest, confidence = ranking[0]
    kept = sum(share for code, share in ranking if code in rules.keep)
    if likeliest == NO_LANGUAGE:
        return None
    if likeliest not in rules.keep:
        return f"{likeliest} ({confidence:.2f}), keep is {', '.join(rules.keep)}"
    if kept < rules.min_confidence:
        return f"{likeliest} ({kept:.2f}), min_confidence is {rules.min_confidence:g}"
    return None


def sample_of(text: str) -> str:
    """Words from the beginning, the middle and the end of `text`, without what is no word of a language."""
    if len(text) > 3 * SAMPLE_CHARS:
        middle = (len(text) - SAMPLE_CHARS) // 2
        parts = text[:SAMPLE_CHARS], text[middle : middle + SAMPLE_CHARS], text[-SAMPLE_CHARS:]
        text = " ".join(parts)
    words = (word.strip(MARKS) for word in text.split() if not (word.isascii() and TECHNICAL.search(word)))
    return " ".join(filter(None, words))
