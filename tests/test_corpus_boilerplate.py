import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nima.corpus.cleaning.boilerplate import edge_line_hashes, line_hash, shared_lines, without_boilerplate
from nima.workspace.params.data import BoilerplateParams

RULES = BoilerplateParams(edge_lines=2, min_documents=3, min_chars=5)
MENU, NOTICE = "Home | Docs | Blog", "Copyright 2020 by Acme Corp"


def page(number: int) -> str:
    return f"{MENU}\n\n# Page {number}\n\nWhat page {number} says.\n\nIt says {number} things.\n\n{NOTICE} \n"


def arrays(*texts: str) -> list[np.ndarray]:
    return [np.array(edge_line_hashes(text, RULES), dtype=np.uint64) for text in texts]


def known(*lines: str) -> frozenset[int]:
    return frozenset(map(line_hash, lines))


def hashed(text: str, rules: BoilerplateParams = RULES) -> list[str]:
    """The lines of a text whose hashes are counted, in order."""
    names = {line_hash(line): line for line in text.split("\n")}
    return [names[value] for value in edge_line_hashes(text, rules)]


def test_lines_that_many_documents_share_go_from_their_edges() -> None:
    pages = [page(number) for number in range(3)]
    shared = shared_lines(arrays(*pages), RULES.min_documents)
    assert shared == known(MENU, NOTICE)
    assert without_boilerplate(pages[1], shared, RULES) == (
        "# Page 1\n\nWhat page 1 says.\n\nIt says 1 things.\n"
    )


def test_fewer_documents_than_the_limit_share_nothing() -> None:
    assert shared_lines(arrays(page(1), page(2)), 3) == frozenset()
    assert shared_lines(arrays(page(1), page(2), page(3)), 3) != frozenset()
    assert shared_lines([], 3) == frozenset()
    assert shared_lines([np.array([], dtype=np.uint64)], 3) == frozenset()


def test_a_document_counts_once_however_often_it_has_a_line() -> None:
    text = f"{MENU}\n{MENU}\nwords of the page\n{MENU}\n"
    assert len(edge_line_hashes(text, RULES)) == 2
    assert shared_lines(arrays(text, text), 3) == frozenset()


def test_arrays_may_hold_several_documents() -> None:
    one, two, three = arrays(page(1), page(2), page(3))
    assert shared_lines([np.concatenate([one, two]), three], 3) == shared_lines([one, two, three], 3)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 5), unique=True, max_size=6), max_size=8))
def test_sharing_is_counted_exactly(documents) -> None:
    hashes = [np.array(document, dtype=np.uint64) for document in documents]
    for least in (2, 3):
        expected = {
            value
            for document in documents
            for value in document
            if sum(value in d for d in documents) >= least
        }
        assert shared_lines(hashes, least) == expected


def test_only_the_first_and_last_filled_lines_are_edges() -> None:
    text = "\nfirst line\n\nsecond line\nthird line\nfourth line\n\nfifth line\n\n"
    assert hashed(text) == ["first line", "second line", "fourth line", "fifth line"]
    everything = known("first line", "third line", "fifth line")
    assert without_boilerplate(text, everything, RULES) == "second line\nthird line\nfourth line\n"


def test_space_around_a_line_does_not_matter_and_length_does() -> None:
    assert line_hash(" a line \t") == line_hash("a line")
    assert hashed("12345   \n1234    ") == ["12345   "]
    assert 0 <= line_hash("x") < 2**64


@pytest.mark.parametrize(
    "text",
    [
        "```\ncode one\ncode two\n```",
        "    code one\n\tcode two",
        "| a | table |\n|---|-------|",
        "+-----+-----+\n| abc | def |",
        "------------\n============",
        ".. note:: text\n.. code-block:: sh",
        "Run this command::\n\n  code",
    ],
)
def test_code_tables_and_what_announces_them_are_never_touched(text: str) -> None:
    assert hashed(text) == []
    lines = frozenset(map(line_hash, text.split("\n")))
    assert without_boilerplate(text, lines, RULES) is text


def test_an_edge_inside_a_fence_stays_while_the_line_beside_it_goes() -> None:
    text = f"{MENU}\n\n```\n{MENU}\n```\n"
    assert without_boilerplate(text, known(MENU), RULES) == f"```\n{MENU}\n```\n"


def test_a_gap_closes_over_the_line_that_goes() -> None:
    text = f"Title of it\n\n{NOTICE}\n\nText of it\n\nEnd of it"
    assert without_boilerplate(text, known(NOTICE), RULES) == "Title of it\n\nText of it\n\nEnd of it"


def test_a_text_without_shared_lines_stays_the_same_object() -> None:
    text = "\n\n" + page(1) + "\n"
    assert without_boilerplate(text, known("something else"), RULES) is text


def test_a_text_of_nothing_but_boilerplate_becomes_empty() -> None:
    assert without_boilerplate(f"{MENU}\n\n{NOTICE}\n", known(MENU, NOTICE), RULES) == ""


def test_the_hash_of_a_line_never_changes() -> None:
    assert line_hash("a line") == 3496565957170852840
