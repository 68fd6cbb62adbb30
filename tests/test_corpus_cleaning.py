from typing import get_args

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from nima.corpus.blocks import FENCE_END, Markup
from nima.corpus.cleaning import CONTROL, clean
from nima.params import CleaningParams

RULES = CleaningParams()
MARKUPS = get_args(Markup)

# Lines built from what decides about blocks: texts of random characters hardly ever hold a block.
PIECES = ["", " ", "  ", "    ", "\t", "- ", "1. ", "> ", "```", "````", "~~~", "::", ".. code-block:: sh"]
PIECES += [".. note::", "text", "e", "\u0301", "\x00", "\x0b", "|", "---", "+--+", "=== ===", "# ", "* * *"]
PIECES += ["<pre>", "</pre>", "\u00a0", ">>> ", "\x85", "\u2028", "    code", "a | b", "-|-"]
LINES = st.lists(st.sampled_from(PIECES), max_size=5).map("".join)
TEXTS = st.lists(LINES, max_size=16).map("\n".join) | st.text()
ALL_RULES = st.builds(
    CleaningParams,
    unicode=st.sampled_from(["NFC", "none"]),
    control_characters=st.booleans(),
    trailing_space=st.booleans(),
    max_blank_lines=st.sampled_from([None, 1, 2]),
)
CODE_TEXT = st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]))
CODE_LINES = st.lists(CODE_TEXT, min_size=1)
WORDS = st.lists(st.sampled_from(["pod", "cluster", "café", "naïve", "b"]), min_size=1, max_size=5).map(
    " ".join
)


@given(TEXTS, ALL_RULES, st.sampled_from(MARKUPS))
def test_cleaning_twice_changes_no_more_than_cleaning_once(text, rules, markup) -> None:
    once = clean(text, rules, markup)
    assert clean(once, rules, markup) == once


@given(CODE_LINES, WORDS, st.sampled_from(["```", "~~~", "~~~~~"]), st.sampled_from(["", "  ", "   "]))
def test_fenced_code_survives_byte_for_byte(code, words, mark, indent) -> None:
    assume(not any(FENCE_END.match(CONTROL.sub("", line)) for line in code))
    block = "\n".join([f"{indent}{mark}sh  ", *code, f"{indent}{mark}"])
    cleaned = clean(f"{words} \n\n\n\n\n{block}\n\n\n\n{words}\t\n", RULES, "markdown")
    before, found, after = cleaned.partition(block)
    assert found
    assert before.rstrip("\n") == after.strip("\n") == clean(words, RULES, "markdown")


@given(CODE_LINES, WORDS, st.sampled_from([("markdown", "Run:"), ("rst", "Run::"), ("rst", ".. code:: sh")]))
def test_indented_code_survives_byte_for_byte(code, words, markup_and_line) -> None:
    markup, line = markup_and_line
    # A control character in front of the text would be no indentation: it is put there by nobody.
    block = "    x \n" + "".join(f"    y{text}\n" for text in code) + "\t\n        z\u0065\u0301  "
    assert block in clean(f"{line}\n\n{block}\n\n{words} \n", RULES, markup)


@given(st.lists(WORDS, min_size=1), st.lists(st.sampled_from(["", " ", "\t ", "\n\n\n", "\x07"]), min_size=1))
def test_no_line_of_prose_is_lost(lines, endings) -> None:
    text = "\n".join(line + endings[number % len(endings)] for number, line in enumerate(lines))
    cleaned = [line for line in clean(text, RULES, "markdown").split("\n") if line]
    assert cleaned == lines


@pytest.mark.parametrize("markup", MARKUPS)
def test_prose_is_repaired(markup) -> None:
    text = "cafe\u0301 \x07bar\u00a0\t \n\n\n\n\nend"
    assert clean(text, RULES, markup) == "caf\u00e9 bar\n\n\nend"


def test_a_character_that_goes_lets_its_neighbours_compose() -> None:
    assert clean("e\x00\u0301", RULES, "text") == "\u00e9"


def test_a_control_character_before_a_fence_does_not_hide_it() -> None:
    text = "\x00```\ncode \n```\n"
    assert clean(text, RULES, "markdown") == text


def test_trailing_space_is_no_control_character() -> None:
    assert clean("a\x0b", CleaningParams(control_characters=False), "text") == "a\x0b"


def test_indentation_of_prose_stays() -> None:
    text = "- a\n  b \n   * c\n\tcontinued\n"
    assert clean(text, RULES, "markdown") == "- a\n  b\n   * c\n\tcontinued\n"


def test_blank_lines_inside_code_stay() -> None:
    text = "```\na\n\n\n\n\n\nb\n```\n"
    assert clean(text, RULES, "markdown") == text


def test_tables_survive_byte_for_byte() -> None:
    table = "| a  | cafe\u0301 |  \n|----|-----|\n| 1  |  2  |  "
    assert clean(f"x \n\n{table}\n", RULES, "markdown") == f"x\n\n{table}\n"


def test_each_repair_can_be_switched_off() -> None:
    text = "e\u0301\x07 \n\n\n\n\nend"
    rules = CleaningParams(
        unicode="none", control_characters=False, trailing_space=False, max_blank_lines=None
    )
    assert clean(text, rules, "text") == text


@pytest.mark.parametrize("text", ["", "\n", "a", "a\n", "a\n\n\n"])
def test_the_end_of_a_text_stays(text) -> None:
    assert clean(text, RULES, "text") == text
