from hypothesis import given
from hypothesis import strategies as st

from nima.corpus.document import Message
from nima.corpus.duplicates.duplicates import content_digest, group_of


def test_space_at_line_ends_and_around_the_text_makes_no_difference() -> None:
    assert content_digest("\na \nb\n\n", None) == content_digest("a\nb", None)


@given(st.sampled_from([("a\n  b", "a\n b"), ("a\nb", "a\n\nb"), ("a", "A"), ("a b", "a  b")]))
def test_anything_else_makes_a_difference(pair: tuple[str, str]) -> None:
    assert content_digest(pair[0], None) != content_digest(pair[1], None)


def test_a_conversation_differs_by_role_and_by_where_a_turn_ends() -> None:
    turns = [
        (Message("user", "ab"), Message("assistant", "c")),
        (Message("user", "a"), Message("assistant", "bc")),
        (Message("assistant", "ab"), Message("user", "c")),
    ]
    assert len({content_digest("", messages) for messages in turns}) == 3


def test_a_group_is_sixteen_hex_characters_of_the_content() -> None:
    group = group_of(content_digest("text", None))
    assert len(group) == 16
    assert int(group, 16) >= 0
    assert group == group_of(content_digest("text \n", None))
