import pytest

from nima.corpus.quality.blocks import verbatim_lines


def kept(text: str, markup: str) -> list[str]:
    """The lines that must stay as they are."""
    lines = text.split("\n")
    flags = verbatim_lines(lines, markup)
    return [line for line, flag in zip(lines, flags, strict=True) if flag]


@pytest.mark.parametrize("fence", ["```", "~~~", "````"])
def test_a_fenced_block_reaches_from_fence_to_fence(fence: str) -> None:
    text = f"before\n{fence}sh\ncode\n\n{fence}\nafter"
    assert kept(text, "markdown") == [f"{fence}sh", "code", "", fence]


def test_an_unclosed_fence_is_code_to_the_end() -> None:
    assert kept("before\n```\na\n\nb", "markdown") == ["```", "a", "", "b"]


def test_a_shorter_or_other_fence_does_not_close_a_fence() -> None:
    text = "````\n```\n~~~~\ninside\n````\nafter"
    assert kept(text, "markdown") == text.split("\n")[:-1]


def test_a_fence_with_an_info_string_does_not_close() -> None:
    assert kept("```\n```sh\ninside\n```\nafter", "markdown") == ["```", "```sh", "inside", "```"]


def test_an_indented_row_of_backticks_inside_a_fence_does_not_close_it() -> None:
    assert kept("```\n    ```\ninside\n```\nafter", "markdown") == ["```", "    ```", "inside", "```"]


def test_inline_code_between_three_backticks_is_no_fence() -> None:
    assert kept("``` a ``` b\nprose", "markdown") == []


def test_a_fence_in_a_list_item_is_code() -> None:
    text = "1. step\n\n   ```sh\n   code\n   ```\n\n   more of the step\n- ```\n  b\n  ```\nend"
    assert kept(text, "markdown") == ["   ```sh", "   code", "   ```", "- ```", "  b", "  ```"]


def test_a_fence_in_a_quotation_ends_with_the_quotation() -> None:
    assert kept("> ```\n> code\nprose", "markdown") == ["> ```", "> code"]


def test_indented_lines_after_a_blank_line_are_code() -> None:
    text = "prose\n\n    a\n\n\tb\n\nprose"
    assert kept(text, "markdown") == ["    a", "", "\tb"]


def test_indented_lines_that_continue_a_paragraph_are_prose() -> None:
    assert kept("prose\n    continued", "markdown") == []


def test_code_in_a_list_item_is_indented_from_the_items_text() -> None:
    text = "1. item\n\n   continued\n\n       code\n\n- item\n\n  continued\n\n      code"
    assert kept(text, "markdown") == ["       code", "      code"]


def test_code_after_a_list_has_ended_is_code_again() -> None:
    assert kept("- item\n# Heading\n\n    code", "markdown") == ["    code"]
    assert kept("* * *\n\n    code", "markdown") == ["    code"]


def test_code_right_below_a_heading_is_code() -> None:
    assert kept("# Heading\n    code\nprose", "markdown") == ["    code"]


def test_tables_are_kept_with_and_without_outer_bars() -> None:
    text = "prose\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\na | b\n--|--\n1 | 2\n\nprose"
    assert kept(text, "markdown") == [line for line in text.split("\n") if "|" in line]


def test_preformatted_html_is_code() -> None:
    assert kept("prose\n<pre>\na\n\nb</pre>\nprose", "markdown") == ["<pre>", "a", "", "b</pre>"]


def test_a_literal_block_follows_a_double_colon() -> None:
    text = "Output::\n\n  a\n\n    b\n\nprose"
    assert kept(text, "rst") == ["  a", "", "    b"]


def test_a_literal_block_ends_at_the_indentation_of_its_list_item() -> None:
    text = "1. first::\n\n     code\n\n   prose\n"
    assert kept(text, "rst") == ["     code"]


@pytest.mark.parametrize("directive", ["code-block", "code", "sourcecode", "unknown-thing"])
def test_the_body_of_a_directive_is_code(directive: str) -> None:
    text = f".. {directive}:: sh\n   :linenos:\n\n   code\n\nprose"
    assert kept(text, "rst") == ["   :linenos:", "", "   code"]


def test_the_body_of_a_note_is_prose_and_code_in_it_is_code() -> None:
    text = ".. note::\n\n   prose\n\n   Run::\n\n      code\n\n   prose"
    assert kept(text, "rst") == ["      code"]


def test_prose_in_a_note_is_no_code_however_deep_the_note_is_indented() -> None:
    assert kept(".. note::\n\n     prose\n\n     more\n\nend", "rst") == []


def test_grid_and_simple_tables_are_kept() -> None:
    grid = "+---+---+\n| a | b |\n+===+===+\n| 1 | 2 |\n+---+---+"
    simple = "===  ===\na    b\n===  ===\n1    2\n===  ==="
    assert kept(f"prose\n\n{grid}\n\nprose\n\n{simple}\n\nprose", "rst") == f"{grid}\n{simple}".split("\n")


def test_a_python_session_is_code() -> None:
    assert kept("prose\n\n>>> 1 + 1\n2\n\nprose", "rst") == [">>> 1 + 1", "2"]


def test_a_title_underlined_with_backticks_opens_no_fence() -> None:
    assert kept("Title\n`````\n\nprose", "rst") == []
