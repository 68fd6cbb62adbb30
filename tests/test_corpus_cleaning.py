from typing import get_args

import ftfy
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from nima.corpus.cleaning import cleaning
from nima.corpus.cleaning.cleaning import CONTROL, LEGACY, SUSPECT, clean, needs_nothing
from nima.corpus.cleaning.residue import may_hold_residue, without_residue
from nima.corpus.quality.blocks import FENCE_END, Markup, verbatim_lines
from nima.workspace.params import CleaningParams

RULES = CleaningParams()
MARKUPS = get_args(Markup)

# Lines built from what decides about blocks: texts of random characters hardly ever hold a block.
PIECES = ["", " ", "  ", "    ", "\t", "- ", "1. ", "> ", "```", "````", "~~~", "::", ".. code-block:: sh"]
PIECES += [".. note::", "text", "e", "\u0301", "\x00", "\x0b", "|", "---", "+--+", "=== ===", "# ", "* * *"]
PIECES += ["<pre>", "</pre>", "\u00a0", ">>> ", "\x85", "\u2028", "    code", "a | b", "-|-"]
PIECES += [
    "\u00c3",
    "\u00a9",
    "\u00e2\u20ac\u2122",
    "\u00e2\x80\x99",
    "\u00ef\u00bc\u0160",
    "\uff5c",
    "\u2026",
]
PIECES += [
    "<br>",
    "<p>",
    "</div>",
    "<div>",
    "<b>",
    "</b>",
    "<source>",
    "</source>",
    "<name>",
    "<code>",
    "</code>",
]
PIECES += [
    "&nbsp;",
    "&amp;",
    "lt;",
    "&lt;",
    "gt;",
    "&#x301;",
    "&#96;",
    "&copy;",
    "`",
    "``",
    "<!--",
    "-->",
    "<",
    ">",
]
LINES = st.lists(st.sampled_from(PIECES), max_size=5).map("".join)
TEXTS = st.lists(LINES, max_size=16).map("\n".join) | st.text()
ALL_RULES = st.builds(
    CleaningParams,
    encoding_repair=st.booleans(),
    html_residue=st.booleans(),
    unicode=st.sampled_from(["NFC", "NFKC", "none"]),
    control_characters=st.booleans(),
    trailing_space=st.booleans(),
    max_blank_lines=st.sampled_from([None, 1, 2]),
)
CODE_TEXT = st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]))
CODE_LINES = st.lists(CODE_TEXT, min_size=1)
WORDS = st.lists(st.sampled_from(["pod", "cluster", "café", "naïve", "b"]), min_size=1, max_size=5).map(
    " ".join
)


@settings(max_examples=400, deadline=None)
@given(TEXTS, ALL_RULES, st.sampled_from(MARKUPS))
def test_cleaning_twice_changes_no_more_than_cleaning_once(text, rules, markup) -> None:
    once = clean(text, rules, markup)
    assert clean(once, rules, markup) == once


@settings(max_examples=300, deadline=None)
@given(TEXTS, ALL_RULES, st.sampled_from(MARKUPS))
def test_what_is_proven_to_need_nothing_stays_the_same_object(text, rules, markup) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cleaning, "needs_nothing", lambda text, rules: False)
        line_by_line = clean(text, rules, markup)
    assert clean(text, rules, markup) == line_by_line
    if needs_nothing(text, rules):
        assert clean(text, rules, markup) is text


@settings(max_examples=400, deadline=None)
@given(TEXTS, ALL_RULES, st.sampled_from(MARKUPS))
@example("\n  \n", CleaningParams(max_blank_lines=1), "text")
@example("x \n\n\n\n", CleaningParams(), "text")
@example("    x \n\n\n\n    y \nz ", CleaningParams(), "markdown")
def test_searches_that_are_left_out_would_change_nothing(text, rules, markup) -> None:
    """Neither for long gaps nor for blocks behind the last line that changes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cleaning, "may_have_gap", lambda repaired, rules: True)
        patch.setattr(cleaning, "last_change", lambda raw, repaired: len(raw) - 1)
        everywhere = clean(text, rules, markup)
    assert clean(text, rules, markup) == everywhere


@settings(max_examples=300, deadline=None)
@given(TEXTS, ALL_RULES, st.sampled_from(MARKUPS))
def test_code_and_tables_survive_every_rule(text, rules, markup) -> None:
    rules = rules.model_copy(update={"html_residue": False})
    repaired = [cleaning.settled(line, rules) for line in text.removesuffix("\n").split("\n")]
    kept = [
        line for line, flag in zip(text.split("\n"), verbatim_lines(repaired, markup), strict=False) if flag
    ]
    for more in (rules, rules.model_copy(update={"html_residue": True})):
        cleaned = iter(clean(text, more, markup).split("\n"))
        assert all(line in cleaned for line in kept)


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
def test_prose_is_repaired_and_source_code_is_not(markup) -> None:
    text = "cafe\u0301 \x07bar\u00a0\t \n\n\n\n\nend"
    assert clean(text, RULES, markup) == (text if markup == "code" else "caf\u00e9 bar\n\n\nend")


@pytest.mark.parametrize(
    ("text", "repaired"),
    [
        ("a \nb", "a\nb"),
        ("a\t\nb", "a\nb"),
        ("a\nb ", "a\nb"),
        ("caf\u00e9\u00a0\nb", "caf\u00e9\nb"),
        ("caf\u00e9\u3000", "caf\u00e9"),
        ("a\n\n\n\nb", "a\n\n\nb"),
        ("\n\n\nb", "\n\nb"),
        ("caf\u00e9\n\n\n\nb", "caf\u00e9\n\n\nb"),
        ("a\n\u2028\n\n\u2028\nb", "a\n\u2028\n\nb"),
        ("a\x07b", "ab"),
        ("caf\u00e9\x7f", "caf\u00e9"),
        ("cafe\u0301", "caf\u00e9"),
    ],
)
def test_one_repair_is_enough_to_need_cleaning(text: str, repaired: str) -> None:
    assert clean(text, RULES, "text") == repaired


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


# ------------------------------------------------------------------------------------ encoding repair

REPAIR = CleaningParams(encoding_repair=True)


@pytest.mark.parametrize(
    ("broken", "right"),
    [
        ("It\u00e2\u20ac\u2122s na\u00c3\u00afve", "It\u2019s na\u00efve"),
        ("It\u00e2\x80\x99s fine", "It\u2019s fine"),
        ("Vi\u00e1\u00bb\u2021t Nam", "Vi\u1ec7t Nam"),
        (
            "\u00d0\u0178\u00d1\u20ac\u00d0\u00b8\u00d0\u00b2\u00d0\u00b5\u00d1\u201a",
            "\u041f\u0440\u0438\u0432\u0435\u0442",
        ),
        ("\u00c3\x00\u00a9t\u00c3\x00\u00a9", "\u00e9t\u00e9"),
        ("voil\u00c3\u00a0 ", "voil\u00e0"),
    ],
)
def test_mojibake_is_repaired(broken: str, right: str) -> None:
    assert clean(broken, REPAIR, "markdown") == right
    assert clean(broken, RULES, "markdown") != right


@pytest.mark.parametrize(
    "text",
    [
        "\u201ccurly\u201d and \u2018single\u2019 quotes \u2014 and an ellipsis\u2026",
        "o\ufb03ce, \uff57\uff49\uff44\uff45, &lt;tag&gt; &amp; caf\u00e9",
        "T\u00f4i \u0111\u00e3 kh\u00f4ng bi\u1ebft m\u00e1y ch\u1ee7 \u0110\u00e0 N\u1eb5ng \u0111\u00e2u.",
        "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440! \u039a\u03b1\u03bb\u03b7.",
        "10 \u00b5m \u00b1 2 \u00b0C, \u20ac5",
    ],
)
def test_repairing_the_encoding_changes_nothing_else(text: str) -> None:
    assert clean(text, REPAIR, "markdown") == text


def test_mojibake_in_code_stays() -> None:
    text = "It\u2019s\n\n```\nIt\u00e2\u20ac\u2122s\n```\n"
    assert clean(text, REPAIR, "markdown") == text


@example("\u0413\u045e\u0412\u0402\u0412\u2122 a")
@example("\u00ce\u0161")
@settings(max_examples=1000, deadline=None)
@given(
    st.text(
        st.sampled_from([*LEGACY, *"aZ. \u01b0\u01a1\u0413\u045e\u0412\u0402\u00c2\u00e2\u20ac"]), max_size=6
    )
)
def test_no_text_that_the_repair_would_change_escapes_the_fast_search(text: str) -> None:
    assert SUSPECT.search(text) or ftfy.fix_encoding(text) == text


def test_nfkc_is_applied_when_chosen() -> None:
    rules = CleaningParams(unicode="NFKC")
    assert clean("o\ufb03ce \u2460\u00a0\n", rules, "text") == "office 1\n"
    assert clean("```\no\ufb03ce\n```", rules, "markdown") == "```\no\ufb03ce\n```"


# --------------------------------------------------------------------------------------- HTML residue

HTML = CleaningParams(html_residue=True)
FRAGMENTS = [
    "<",
    "</",
    "<br",
    "<b",
    "<a href=x",
    ">",
    "</b>",
    "<name>",
    "<!--",
    "-->",
    "&",
    "&amp",
    "&#38",
    ";",
]
FRAGMENTS += [
    ";",
    "&lt;br&gt;",
    "&lt",
    "<code>",
    "</code>",
    "`",
    " ",
    "text",
    "\n",
    "|",
    "\x01",
    "<B",
    "\u017f",
]


@given(st.lists(st.sampled_from(FRAGMENTS), max_size=12).map("".join))
@settings(max_examples=400, deadline=None)
def test_a_text_that_shows_no_residue_has_none(text: str) -> None:
    lines = text.split("\n")
    if without_residue(lines, [False] * len(lines), lambda line: line) != lines:
        assert may_hold_residue(text)


@pytest.mark.parametrize("text", ["a<b>c</b>", "a<br>", "a &amp; b", "<!-- c -->d", "&#38;"])
def test_residue_is_seen(text: str) -> None:
    assert may_hold_residue(text)
    assert not may_hold_residue(text.replace("<", "").replace("&", "& "))


def test_a_tag_that_a_control_character_parts_goes_at_once() -> None:
    assert clean("a <\x01br> b", HTML, "text") == clean("a <br> b", HTML, "text") == "a b"


@pytest.mark.parametrize(
    ("text", "bare"),
    [
        ("<p>One<br>two &amp; three&nbsp;four</p>", "One two & three four"),
        ("first <br/>\nsecond<br />third", "first\nsecond third"),
        ("<DIV CLASS='a b'>x</DIV> y<hr>", "x y"),
        ('a <b>bold</b> <span style="color:red">word</span>', "a bold word"),
        ("<table><tr><td>A</td><td>B</td></tr></table>", "A B"),
        ('<a href="https://example.com/?a=1&amp;b=2">link</a> here', "link here"),
        ('<img src="x.png" alt="a picture"> caption', "caption"),
        ("T&eacute;l&#233;phone &#x27;x&#39; &copy;&shy; 2020", "T\u00e9l\u00e9phone 'x' \u00a9 2020"),
        ("e&#769;t&#xe9;", "\u00e9t\u00e9"),
        ("<!-- a comment -->text", "text"),
        ('<input type="text" disabled> field', "field"),
        ("&amp;nbsp;&amp;amp;", "&"),
        ("<address>12 Long Road</address>", "12 Long Road"),
    ],
)
def test_what_html_left_behind_goes(text: str, bare: str) -> None:
    assert clean(text, HTML, "markdown").strip() == bare
    assert clean(text, RULES, "markdown") == text


@pytest.mark.parametrize(
    "text",
    [
        "kubectl get pods --context <cluster-name> -n <namespace> <pod>",
        "ssh <user>@<address>, then open <title> or <source> <output>",
        "if a<b and c>d then x < y & y > z",
        "a List<String> or Map<K, V>, and AT&T or R&D; or &unknown; or &notit;",
        "The tag `<br>` and ``a <p> b`` break lines, as &lt;br&gt; and &lt;div class=x&gt; do.",
        "inline `code over\nlines <br> ends` here",
        "press <kbd>Ctrl</kbd>, run <code>a &lt; b <br></code>",
        "see <https://example.com/?a=1&copy=2> and <me@example.com>",
        "a character &#7; or &#96; stays",
        "```html\n<p>One<br>two &amp; three</p>\n```",
        "text\n\n    <p>One<br></p>\n",
        "| a &amp; b | <br> |\n|---|---|\n| 1 | 2 |",
        "<pre>\na &lt; b <br>\n</pre>",
    ],
)
def test_what_only_looks_like_html_stays(text: str) -> None:
    assert clean(text, HTML, "markdown") == text


def test_placeholders_between_real_tags_stay() -> None:
    assert clean("<p>Use <cluster-name> or <name></p>", HTML, "rst") == "Use <cluster-name> or <name>"


def test_indented_html_does_not_become_code() -> None:
    text = '<div align="center">\n    <p>Hello</p>\n</div>\n\nend'
    assert clean(text, HTML, "markdown").split() == ["Hello", "end"]
    assert "    " not in clean(text, HTML, "markdown")


def test_residue_stays_where_its_removal_would_open_a_block_of_code() -> None:
    text = "<p>```\n<br>\n```\n\na<br>b"
    assert clean(text, HTML, "markdown") == text


@pytest.mark.parametrize(
    "text", ["<p" * 20000, "`" * 9 + " ``".join("`" * n for n in range(200)), "<a b=1" * 9000]
)
def test_hostile_html_takes_no_time(text: str) -> None:
    assert len(clean(text + "\n<br>x", HTML, "markdown")) <= len(text) + 6
