import json
from typing import Any

import pytest
from held_files import read, rejected, said

from nima.corpus.document import Message


def record_of(value: Any, **settings: Any) -> Any:
    (record,) = read("a.jsonl", json.dumps(value).encode(), **settings)
    return record


def rejection_of(value: Any, **settings: Any) -> Any:
    return rejected("a.jsonl", json.dumps(value).encode(), **settings)


def chat(*turns: tuple[str, str]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


# ----------------------------------------------------------------------------------------- documents


@pytest.mark.parametrize(
    ("record", "text"),
    [
        ({"text": "t"}, "t"),
        ({"content": "c"}, "c"),
        ({"text": "t", "content": "c"}, "t"),
        ({"title": "T", "content": "c"}, "T\n\nc"),
        ({"title": None, "text": "t"}, "t"),
        ({"title": " ", "text": "t"}, "t"),
        ({"text": "t", "messages": 12, "instruction": None}, "t"),
        ({"text": "t", "question": None, "answer": None}, "t"),
    ],
)
def test_a_document_record_may_have_a_title(record, text) -> None:
    found = record_of(record)
    assert (found.text, found.messages) == (text, None)


def test_fields_may_have_other_names_and_lie_in_objects() -> None:
    fields = {"text": "row.body", "title": "row.head"}
    assert record_of({"row": {"body": "b", "head": "h"}}, fields=fields).text == "h\n\nb"
    assert record_of({"row.body": "b"}, fields=fields).text == "b"
    assert rejection_of({"row": "b"}, fields=fields).reason == "missing_field"
    assert rejection_of({"text": "b"}, fields=fields).detail == (
        "line 1: field 'row.body' is missing; found 'text'"
    )


@pytest.mark.parametrize(
    ("record", "settings", "reason", "detail"),
    [
        ({"body": "t"}, {}, "missing_field", "field 'text' is missing; found 'body'"),
        ({}, {}, "missing_field", "field 'text' is missing; found no field"),
        (dict.fromkeys("abcdefg", 1), {}, "missing_field", "found 'a', 'b', 'c', 'd', 'e', ..."),
        ({"text": ""}, {}, "missing_field", "field 'text' is empty"),
        ({"text": " \n"}, {}, "missing_field", "field 'text' is empty"),
        ({"text": None}, {}, "missing_field", "field 'text' is empty"),
        ({"text": 3}, {}, "wrong_type", "field 'text' must be text, found a number"),
        ({"text": True}, {}, "wrong_type", "must be text, found true or false"),
        ({"text": ["t"]}, {}, "wrong_type", "must be text, found an array"),
        ({"text": "t", "title": {}}, {}, "wrong_type", "field 'title' must be text, found an object"),
        ("text", {}, "wrong_type", "expected an object, found text"),
        ([], {}, "wrong_type", "expected an object, found an array"),
        (["q", "a"], {}, "wrong_type", "expected an object, found an array"),
        ({"text": "a\0"}, {}, "nul_byte", "character 1 is NUL"),
        ({"text": "a\ud800"}, {}, "invalid_unicode", "half a surrogate pair at character 1"),
        ({"text": "t"}, {"record": "qa"}, "missing_field", "field 'question' is missing"),
        (
            {"question": "q", "answer": "a"},
            {"record": "document"},
            "missing_field",
            "field 'text' is missing",
        ),
    ],
)
def test_a_record_of_no_use_is_rejected_with_its_reason_and_raw_text(
    record, settings, reason, detail
) -> None:
    rejection = rejection_of(record, **settings)
    assert (rejection.reason, rejection.text, rejection.key) == (reason, json.dumps(record), "a.jsonl#0")
    assert rejection.detail.startswith("line 1: ")
    assert detail in rejection.detail


# ------------------------------------------------------------------------- questions and instructions


def test_a_question_with_its_answer_is_a_conversation() -> None:
    record = record_of({"question": "Q?", "answer": "A\r\n```\r\n  x\r\n```"})
    assert record.messages == (Message("user", "Q?"), Message("assistant", "A\n```\n  x\n```"))
    assert record.text == ""


@pytest.mark.parametrize(
    ("record", "detail"),
    [
        ({"question": "q"}, "field 'answer' is missing"),
        ({"question": "q", "answer": ""}, "field 'answer' is empty"),
        ({"question": " ", "answer": "a"}, "field 'question' is empty"),
        ({"answer": "a"}, "field 'question' is missing"),
        ({"instruction": "i"}, "field 'output' is missing"),
        ({"instruction": "i", "input": "x", "output": None}, "field 'output' is empty"),
    ],
)
def test_a_question_without_its_answer_is_incomplete(record, detail) -> None:
    rejection = rejection_of(record)
    assert rejection.reason == "incomplete"
    assert detail in rejection.detail


def test_neither_question_nor_answer_is_a_missing_field() -> None:
    assert rejection_of({"question": None, "answer": None}).reason == "missing_field"
    assert rejection_of({"text": "t"}, record="instruction").reason == "missing_field"


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"instruction": "I", "output": "O"}, "user: I | assistant: O"),
        ({"instruction": "I", "input": "", "output": "O"}, "user: I | assistant: O"),
        ({"instruction": "I", "input": "X", "output": "O", "text": "all"}, "user: I\n\nX | assistant: O"),
        ({"instruction": "I", "output": "O", "system": "S"}, "system: S | user: I | assistant: O"),
    ],
)
def test_an_instruction_is_a_conversation(record, expected) -> None:
    assert said(record_of(record)) == expected


def test_declared_records_take_the_names_of_params() -> None:
    fields = {"instruction": "prompt", "output": "completion"}
    record = {"prompt": "p", "completion": "c", "text": "t"}
    assert said(record_of(record, record="instruction", fields=fields)) == "user: p | assistant: c"
    assert said(record_of(record, fields=fields)) == "user: p | assistant: c"
    assert said(record_of(record)) == "t"


# ---------------------------------------------------------------------------------------------- chats


def test_messages_of_openai_keep_their_order_and_roles() -> None:
    value = chat(("system", "s"), ("user", "u"), ("assistant", "a"), ("tool", "t"), ("assistant", "b"))
    expected = "system: s | user: u | assistant: a | tool: t | assistant: b"
    assert said(record_of(value)) == expected


def test_content_may_be_a_list_of_texts() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}, "three"]
    value = {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "a"}]}
    assert said(record_of(value)) == "user: one\ntwo\nthree | assistant: a"


def test_sharegpt_is_read_with_its_names_of_roles() -> None:
    turns = [("human", "q"), ("gpt", "a"), ("tool", "t"), ("gpt", "b")]
    value = {"conversations": [{"from": role, "value": content} for role, content in turns], "system": "S"}
    assert said(record_of(value)) == "system: S | user: q | assistant: a | tool: t | assistant: b"


def test_a_system_prompt_of_the_messages_wins_over_one_beside_them() -> None:
    value = chat(("system", "inner"), ("user", "u"), ("assistant", "a")) | {"system": "outer"}
    assert said(record_of(value)).startswith("system: inner | user: u")


def test_two_senders_become_user_and_assistant_and_what_one_writes_in_a_row_one_message() -> None:
    groups = [
        [{"text": "hi", "sender": "x7"}, {"text": "there", "sender": "x7"}],
        [{"text": "yo", "sender": "b2"}],
        [{"text": "bye", "sender": "x7"}],
    ]
    assert said(record_of({"messages": groups})) == "user: hi\nthere | assistant: yo | user: bye"
    flat = [message for group in groups for message in group]
    assert record_of({"messages": flat}).messages == record_of({"messages": groups}).messages


def test_senders_that_are_roles_stay_roles() -> None:
    turns = [{"sender": "assistant", "text": "hello"}, {"sender": "user", "text": "hi"}]
    assert said(record_of({"messages": turns})) == "assistant: hello | user: hi"


def test_a_bare_list_of_messages_is_a_chat() -> None:
    turns = chat(("user", "u"), ("assistant", "a"))["messages"]
    assert said(record_of(turns)) == "user: u | assistant: a"


def test_a_bare_list_of_texts_is_a_chat_only_where_that_is_declared() -> None:
    assert said(record_of(["q", "a"], record="chat")) == "user: q | assistant: a"
    assert rejection_of(["q", "a"]).reason == "wrong_type"


def test_messages_may_have_other_names() -> None:
    fields = {"messages": "log.turns", "role": "who", "content": "what"}
    value = {"log": {"turns": [{"who": "user", "what": "u"}, {"who": "assistant", "what": "a"}]}}
    assert said(record_of(value, fields=fields)) == "user: u | assistant: a"


@pytest.mark.parametrize(
    ("value", "reason", "detail"),
    [
        (chat(("user", "u"), ("bot", "b")), "unknown_role", "message 1 is of role 'bot'; known are system, "),
        (chat(("user", "u"), ("Assistant", "b")), "unknown_role", "'Assistant'"),
        (chat(("user", ""), ("assistant", "a")), "empty_message", "message 0 is empty"),
        (chat(("user", "u"), ("assistant", " \n")), "empty_message", "message 1 is empty"),
        (chat(("user", "u")), "incomplete", "1 messages, none of the assistant"),
        (chat(("user", "u"), ("system", "s")), "incomplete", "2 messages, none of the assistant"),
        (chat(), "incomplete", "0 messages"),
        (chat(("user", "\0"), ("assistant", "a")), "nul_byte", "message 0: character 0 is NUL"),
        (chat(("user", "\udfff"), ("assistant", "a")), "invalid_unicode", "message 0: half a surrogate"),
        ({"messages": ["u", 3]}, "wrong_type", "message 1 must be text, found a number"),
        ({"messages": ["u", None]}, "empty_message", "message 1 is empty"),
        ({"messages": [{"role": "user"}]}, "empty_message", "message 0 is empty"),
        ({"messages": [{"content": "c"}]}, "missing_field", "message 0: field 'role' is missing"),
        (
            {"messages": [{"role": 1, "content": "c"}]},
            "wrong_type",
            "field 'role' must be text, found a number",
        ),
        ({"messages": [{"role": "user", "content": 1}]}, "wrong_type", "message 0 must be text"),
        (
            {"messages": [[{"role": "user", "content": "u"}]]},
            "wrong_type",
            "expected an object, found an array",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "wrong_type",
            "a part of type 'image_url', not text",
        ),
        (
            {"messages": [{"role": "assistant", "content": "c", "tool_calls": [{"id": 1}]}]},
            "tool_call",
            "message 0 calls a tool",
        ),
        (
            {"messages": [{"sender": name, "text": "t"} for name in "abc"]},
            "unknown_role",
            "3 senders; a conversation has 2",
        ),
    ],
)
def test_a_chat_that_cannot_train_is_rejected_with_its_message(value, reason, detail) -> None:
    rejection = rejection_of(value)
    assert rejection.reason == reason
    assert detail in rejection.detail


def test_a_declared_chat_without_messages_says_so() -> None:
    assert "field 'messages' is missing" in rejection_of({"text": "t"}, record="chat").detail
    assert rejection_of({"messages": "m"}, record="chat").reason == "wrong_type"
