import pytest

from nima.corpus.quality.quality import flaw_in
from nima.workspace.params import QualityParams

GOOD = """# Backups

A backup that was never restored is a hope, not a backup. Plan the restore first, and write down how long
it may take and how much of the data may be lost.

- Keep three copies of the data, on two kinds of media.
- Keep one of them in another building.

```sh
restic -r /srv/restic backup /home
```

Test the restore with a calendar entry. Every quarter, pick a file and a database, and have a colleague
bring them back with nothing but the runbook.
"""
CODE_ONLY = "```python\nfor x in y: # # # ... ... ...\n    z(x)\n```\n"
# What a page must be like, by the authors of Gopher and C4, scaled to a short text.
STRICT = {
    "min_words": 50,
    "max_words": 100_000,
    "min_mean_word_chars": 3.0,
    "max_mean_word_chars": 10.0,
    "max_symbols_per_word": 0.1,
    "max_bullet_lines": 0.9,
    "max_ellipsis_lines": 0.3,
    "min_alphabetic_words": 0.8,
    "min_stop_words": 2,
    "min_sentences": 3,
    "min_punctuated_lines": 0.5,
    "placeholder_text": True,
    "repetition": {},
    "language": {"keep": ["en"]},
}


def flaw(text: str, markup="markdown", **rules):
    return flaw_in(text, QualityParams(**rules), markup)


def reason(text: str, markup="markdown", **rules) -> str | None:
    found = flaw(text, markup, **rules)
    return None if found is None else found.reason


def words(count: int, word: str = "word") -> str:
    return " ".join([word] * count)


# -------------------------------------------------------------------------------------------- lengths


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", "empty"), (" \n\t", "empty"), ("abc \n", "too_short"), ("a" * 11, "too_long")],
)
def test_a_flawed_text_is_told_why(text: str, expected: str) -> None:
    assert reason(text, min_chars=4, max_chars=10) == expected


def test_lengths_at_the_limits_are_good() -> None:
    assert flaw("abcd", min_chars=4, max_chars=10) is None
    assert flaw("\n" + "a" * 10 + "\n", min_chars=4, max_chars=10) is None


def test_a_flaw_names_the_length_found_and_the_limit() -> None:
    assert flaw("abc", min_chars=4, max_chars=10) == ("too_short", "3 characters, min_chars is 4")


def test_code_counts_for_lengths() -> None:
    assert reason(CODE_ONLY, max_chars=20) == "too_long"


# ------------------------------------------------------------------------------- words, symbols, lines


def test_a_good_text_passes_all_rules_at_once() -> None:
    assert flaw(GOOD, **STRICT) is None


@pytest.mark.parametrize("rule", STRICT)
def test_a_text_that_is_all_code_passes_every_rule_on_prose(rule: str) -> None:
    assert flaw(CODE_ONLY, **{rule: STRICT[rule]}) is None
    assert flaw("| a | b |\n|---|---|\n| # | ... |\n", **{rule: STRICT[rule]}) is None


def test_code_is_no_prose() -> None:
    text = f"{words(9)}\n\n```\n{words(50)}\n# # # # # # ...\n```\n"
    assert reason(text, min_words=10) == "too_few_words"
    assert reason(text, max_words=9, max_symbols_per_word=0.01, max_mean_word_chars=4) is None


@pytest.mark.parametrize(
    ("rules", "at_the_limit", "beyond", "expected"),
    [
        ({"min_words": 50}, words(50), words(49), "too_few_words"),
        ({"max_words": 50}, words(50), words(51), "too_many_words"),
        ({"min_mean_word_chars": 3.0}, "ab abcd", "ab abc", "words_too_short"),
        (
            {"max_mean_word_chars": 10.0},
            "a" * 9 + " " + "b" * 11,
            "a" * 10 + " " + "b" * 11,
            "words_too_long",
        ),
        ({"max_symbols_per_word": 0.1}, words(9) + " #tag", words(8) + " #tag", "too_many_symbols"),
        ({"max_symbols_per_word": 0.1}, words(9) + " so...", words(8) + " so\u2026", "too_many_symbols"),
        ({"max_bullet_lines": 0.5}, "- a\n* b\nc\nd", "- a\n\u2022 b\n+ c\n\nd", "too_many_bullets"),
        ({"max_ellipsis_lines": 0.5}, "a ...\nb", "a...\nb \u2026\nc", "too_many_ellipses"),
        ({"min_alphabetic_words": 0.8}, "it's a b, (c) 1", "a b c 1 --", "too_few_alphabetic_words"),
        ({"min_stop_words": 2}, "Of the house", "house of cards, of", "too_few_stop_words"),
        ({"min_sentences": 2}, 'One. He said "two!"', "One. e.g two", "too_few_sentences"),
        ({"min_punctuated_lines": 0.5}, "One.\nmenu", "One.\nmenu\nhome", "too_few_punctuated_lines"),
    ],
)
def test_each_rule_holds_at_its_limit_and_fails_beyond(rules, at_the_limit, beyond, expected) -> None:
    assert flaw(at_the_limit, **rules) is None
    assert reason(beyond, **rules) == expected
    assert flaw(beyond) is None


def test_a_flaw_names_what_was_found_and_the_rule() -> None:
    assert flaw("a b 1 2", min_alphabetic_words=0.8).detail == "0.5, min_alphabetic_words is 0.8"
    assert flaw("a of", min_stop_words=2).detail.startswith("1 of and, be, have, of, that, the, to, with,")


def test_marks_of_headings_are_no_symbols_in_markdown() -> None:
    text = "\n".join(f"### Part {number}\n\nfour words of text\n" for number in range(4))
    assert flaw(text, max_symbols_per_word=0.1) is None
    assert reason(text, "text", max_symbols_per_word=0.1) == "too_many_symbols"
    assert reason("a #b #c #d", max_symbols_per_word=0.1) == "too_many_symbols"


def test_emphasis_and_numbered_steps_are_no_bullets() -> None:
    assert flaw("**Note** this\n1. first\n2. second\n-x is a flag", max_bullet_lines=0.0) is None


def test_closing_marks_do_not_hide_the_end_of_a_sentence() -> None:
    assert (
        flaw("**Done.**\n(Really?)\n\u201cYes.\u201d\n\u7ed3\u675f\u3002", min_punctuated_lines=1.0) is None
    )


def test_source_code_is_judged_by_its_length_only() -> None:
    assert flaw("x = 1\n" * 40, "code", **STRICT) is None
    assert reason("x = 1", "code", min_chars=10) == "too_short"


def test_navigation_is_no_text() -> None:
    menu = "Home\nProducts\nPricing\nLog in\nSign up\nCopyright 2020 All rights reserved.\n"
    assert reason(menu, min_punctuated_lines=0.2) == "too_few_punctuated_lines"


@pytest.mark.parametrize(
    "text",
    [
        "Lorem ipsum dolor sit amet, consectetur adipiscing elit.",
        f"# About us\n\n{words(200)}\n\nLOREM IPSUM DOLOR sit amet",
        "JavaScript must be enabled in order to view this page.",
        "You need to enable JavaScript to run this app.",
        "Please verify you are a human to continue.",
        "This page intentionally left blank.",
    ],
)
def test_placeholders_are_no_text(text: str) -> None:
    assert reason(text, placeholder_text=True) == "placeholder_text"
    assert flaw(text) is None


@pytest.mark.parametrize(
    "text",
    [
        f"{words(150)} Comments need a script: please enable JavaScript.",
        "Fill the mock-up with lorem ipsum and ask what a human reads in it.",
        "```html\n<noscript>You need to enable JavaScript to run this app.</noscript>\n```",
        "JavaScript is a language.",
    ],
)
def test_a_text_that_mentions_a_placeholder_is_a_text(text: str) -> None:
    assert flaw(text, placeholder_text=True) is None


def test_repetition_and_language_are_rules_too() -> None:
    found = flaw("again and again\n" * 4, repetition={})
    assert found == ("duplicate_lines", "0.75, duplicate_lines is 0.3")
    german = "Ein Backup, das nie zur\u00fcckgespielt wurde, ist eine Hoffnung und kein Backup."
    found = flaw(german, language={"keep": ["en", "vi"]})
    assert found.reason == "other_language"
    assert found.detail.startswith("de (")


def test_the_first_flaw_is_the_one_of_the_first_rule() -> None:
    text = "again and again\n" * 4
    assert reason(text, min_words=100, repetition={}) == "too_few_words"
    assert reason(text, min_chars=100, min_words=100, repetition={}) == "too_short"
