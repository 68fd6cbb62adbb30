import pytest

from nima.corpus.quality import flaw_in


@pytest.mark.parametrize(
    ("text", "reason"),
    [("", "empty"), (" \n\t", "empty"), ("abc \n", "too_short"), ("a" * 11, "too_long")],
)
def test_a_flawed_text_is_told_why(text: str, reason: str) -> None:
    flaw = flaw_in(text, min_chars=4, max_chars=10)
    assert flaw is not None
    assert flaw.reason == reason


def test_lengths_at_the_limits_are_good() -> None:
    assert flaw_in("abcd", 4, 10) is None
    assert flaw_in("\n" + "a" * 10 + "\n", 4, 10) is None


def test_a_flaw_names_the_length_found_and_the_limit() -> None:
    assert flaw_in("abc", 4, 10) == ("too_short", "3 characters, min_chars is 4")
