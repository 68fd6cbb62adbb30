import pytest
from held_files import read, rejected, summary

CONVERSATIONS = """\
categories:
- science
conversations:
- - What is 6 * 7?
  - 42
- - Is it on?
  - yes
  - since 1.10
- - |
    Show me.
  - "```\\n  code\\n```"
"""


def test_conversations_alternate_and_scalars_stay_as_they_are_written() -> None:
    records = read("a.yml", CONVERSATIONS.encode())
    assert summary(records) == [
        "user: What is 6 * 7? | assistant: 42",
        "user: Is it on? | assistant: yes | user: since 1.10",
        "user: Show me.\n | assistant: ```\n  code\n```",
    ]
    assert (records[0].key, records[0].raw) == ("a.yml#0", "- What is 6 * 7?\n  - 42")


def test_a_list_of_records_and_one_record_are_read() -> None:
    assert summary(read("a.yaml", b"- text: a\n- question: q\n  answer: a\n")) == [
        "a",
        "user: q | assistant: a",
    ]
    (record,) = read("a.yaml", b"title: T\ntext: a\n")
    assert record.text == "T\n\na"


def test_records_of_all_documents_are_read() -> None:
    assert summary(read("a.yaml", b"- text: a\n---\ntext: b\n---\n---\n- text: c\n")) == ["a", "b", "c"]


def test_each_useless_document_has_a_key_of_its_own() -> None:
    outcomes = read("a.yaml", b"one\n---\n- text: a\n---\ntwo\n---\n3\n")
    assert [outcome.key for outcome in outcomes] == ["a.yaml", "a.yaml#0", "a.yaml#1", "a.yaml#2"]
    assert summary(outcomes) == ["wrong_type", "a", "wrong_type", "wrong_type"]


def test_a_mapping_of_ids_gives_its_records() -> None:
    assert summary(read("a.yaml", b"x: {text: a}\ny: {text: b}\n")) == ["a", "b"]


def test_nothing_is_a_missing_field_unless_it_is_quoted() -> None:
    content = b"- text:\n- text: ~\n- text: null\n- text: 'null'\n- text: ''\n"
    assert summary(read("a.yaml", content)) == ["missing_field"] * 3 + ["null"] + ["missing_field"]


@pytest.mark.parametrize(
    ("bad", "reason", "detail"),
    [
        ("{text: b, text: c}", "duplicate_key", "line 2: the key 'text' stands twice in one object"),
        ("{text: b, x: {y: 1, y: 2}}", "duplicate_key", "the key 'y' stands twice"),
        ("{text: &a b, title: *a}", "alias", "line 2: an alias, *a; write out what it stands for"),
        ("{text: !!python/object:os.system b}", "tag", "line 2: a tag, 'tag:yaml.org,2002:python/object"),
        ("{text: b, [x]: y}", "wrong_type", "line 2: a key that is no text"),
        ("{text: [b]}", "wrong_type", "field 'text' must be text, found an array"),
        ("b", "wrong_type", "expected an object, found text"),
        ("[a, ~]", "wrong_type", "expected an object, found an array"),
    ],
)
def test_a_bad_record_is_rejected_with_its_line_and_the_others_survive(bad, reason, detail) -> None:
    outcomes = read("a.yaml", f"- text: a\n- {bad}\n- text: c\n".encode())
    assert summary(outcomes) == ["a", reason, "c"]
    assert outcomes[1].key == "a.yaml#1"
    assert detail in outcomes[1].detail


def test_an_empty_message_and_a_conversation_without_an_answer_are_rejected() -> None:
    content = "conversations:\n- - q\n  - ~\n- - q\n- - q\n  - a\n"
    assert summary(read("a.yaml", content.encode())) == [
        "empty_message",
        "incomplete",
        "user: q | assistant: a",
    ]


@pytest.mark.parametrize(
    ("end", "detail"),
    [
        ("- text: [\n", "record 1 (line 2): did not find expected node content"),
        ("- text: 'b\n", "record 1 (line 2): found unexpected end of stream"),
        ("text: b\n", "(line 2): did not find expected '-' indicator"),
        ("- text: \x01\n", "control characters are not allowed"),
        ("- " + "[" * 100 + "x" + "]" * 100 + "\n", "record 1 (line 2): nested deeper than 50"),
        ("- " * 100_000 + "x", "nested deeper than 50"),
        ("- text: b: c\n", "mapping values are not allowed in this context"),
    ],
)
def test_where_yaml_cannot_be_followed_the_rest_is_one_rejection(end, detail) -> None:
    outcomes = read("a.yaml", f"- text: a\n{end}".encode())
    if "control" not in detail:
        assert summary(outcomes)[:-1] == ["a"]
    assert outcomes[-1].reason in ("malformed_yaml", "too_deep")
    assert detail in outcomes[-1].detail


def test_a_key_that_stands_twice_around_the_records_loses_the_file() -> None:
    content = b"conversations:\n- [q, a]\nconversations:\n- [q2, a2]\n"
    rejection = rejected("a.yaml", content)
    assert (rejection.reason, rejection.key, rejection.text) == ("duplicate_key", "a.yaml", content.decode())


def test_a_bomb_of_aliases_is_refused_at_once() -> None:
    levels = ["a: &a [lol, lol]"]
    levels += [
        f"{name}: &{name} [{', '.join(f'*{before}' for _ in range(9))}]"
        for before, name in zip("abcdefgh", "bcdefghi", strict=True)
    ]
    rejection = rejected("a.yaml", "\n".join([*levels, "text: x"]).encode())
    assert rejection.reason == "alias"


def test_bytes_that_are_no_text_lose_only_their_record() -> None:
    outcomes = read("a.yaml", b"# \xff\n- text: \xc3\xa4\n- text: \xff\n- text: b\n")
    assert summary(outcomes) == ["ä", "invalid_utf8", "b"]
    assert (outcomes[1].raw, outcomes[1].detail) == (
        b"text: \xff",
        "record 1 (line 3): byte 6: invalid start byte",
    )


def test_several_lists_are_never_chosen_from() -> None:
    assert rejected("a.yaml", b"train:\n- text: a\ntest:\n- text: b\n").reason == "ambiguous"


def test_a_bare_text_is_no_record() -> None:
    assert rejected("a.yaml", b"just text\n").reason == "wrong_type"


def test_a_record_beyond_the_limit_is_rejected() -> None:
    content = b"- text: a\n- text: " + b"x" * 1000 + b"\n- text: b\n"
    assert summary(read("a.yaml", content, {"max_record_bytes": 500})) == ["a", "too_large", "b"]
