from functools import cache

import numpy as np
import pytest
from chat_tokenizers import FORMATS, ChatEncoder, ChatFormat, plain, settings, talk, trained_mask, whole
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from nima.corpus.document import Document
from nima.encoding.conversation import ROLES, Dropped, LossOn
from nima.encoding.conversation.documents import tokenized
from nima.encoding.conversation.pieces import Layout, Piece
from nima.encoding.conversation.templates import ChatTemplate
from nima.tokenizer import Tokenizer
from nima.tokenizer.special_tokens import END_OF_TEXT, SPECIAL_TOKENS
from nima.workspace.errors import UserError

USER, ASSISTANT, SYSTEM = ((role, f"I am the {role}.") for role in ("user", "assistant", "system"))
CHATML = ChatTemplate.load(None)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["I am the user. I am the assistant.\n" * 9], 300)


@pytest.fixture(scope="module")
def encoder() -> ChatEncoder:
    return ChatEncoder((*SPECIAL_TOKENS, "<s>", "</s>"))


def pieces(document: Document, loss_on: LossOn, template: ChatTemplate = CHATML) -> list[Piece]:
    layout = Layout(template, [*SPECIAL_TOKENS, "<s>", "</s>"], loss_on)
    return layout.transcript(layout.messages_of(document)).pieces


def rendered(found: list[Piece]) -> str:
    return "".join(piece.text for piece in found)


def trained_text(found: list[Piece]) -> list[str]:
    return [piece.text for piece in found if piece.trained]


# --------------------------------------------------------------------------------------- as it always was


def test_a_document_is_its_text_byte_for_byte_and_an_end(tokenizer: Tokenizer) -> None:
    text = "\n\n  def f():\n\treturn '<|im_end|>' \n"
    found = whole(plain(text), tokenizer, CHATML)
    assert found.tokens.tolist() == [*tokenizer.encode(text), tokenizer.end_of_text]
    assert found.spans.tolist() == [[0, len(found.tokens)]]
    assert found.tokens.dtype == np.uint32


def test_a_conversation_is_chatml() -> None:
    assert rendered(pieces(talk(USER, ASSISTANT), "all")) == (
        "<|im_start|>user\nI am the user.<|im_end|>\n"
        "<|im_start|>assistant\nI am the assistant.<|im_end|>\n<|endoftext|>"
    )


@pytest.mark.parametrize("loss_on", ["all", "assistant"])
def test_chatml_is_each_part_tokenized_by_itself(tokenizer: Tokenizer, loss_on: LossOn) -> None:
    contents = ["I am.", " \u0301x\n", "'s 12", "", "\n\n  a\n    b", "é🚀 <|im_end|>", "\x1c\x85!"]
    turns = [("user" if number % 3 else "assistant", text) for number, text in enumerate(contents)]
    expected: list[int] = []
    mask: list[int] = []
    for role, content in turns:
        parts = (["<|im_start|>"], f"{role}\n", content.strip(), ["<|im_end|>"], "\n")
        for place, part in enumerate(parts):
            special = isinstance(part, list)
            ids = [tokenizer.special_ids[part[0]]] if special else tokenizer.encode(part)
            expected += ids
            trained = loss_on == "all" or (role == "assistant" and place in (2, 3))
            mask += [int(trained)] * len(ids)
    found = whole(talk(*turns), tokenizer, CHATML, loss_on=loss_on)
    assert found.tokens.tolist() == [*expected, tokenizer.end_of_text]
    assert trained_mask(found) == [*mask, 1]


def test_loss_on_all_trains_everything() -> None:
    assert all(piece.trained for piece in pieces(talk(SYSTEM, USER, ASSISTANT), "all"))


def test_loss_on_assistant_trains_its_contents_and_the_tokens_that_end_them() -> None:
    found = pieces(talk(SYSTEM, USER, ASSISTANT, USER, ASSISTANT), "assistant")
    answer = ["I am the assistant.", "<|im_end|>"]
    assert trained_text(found) == [*answer, *answer, END_OF_TEXT]


def test_contents_are_trimmed_and_keep_their_inner_layout() -> None:
    found = pieces(talk(("assistant", "\n \n  first\n    second\n\n")), "assistant")
    assert trained_text(found)[0] == "first\n    second"


def test_an_empty_answer_trains_that_it_ends() -> None:
    found = pieces(talk(USER, ("assistant", " ")), "assistant")
    assert trained_text(found) == ["<|im_end|>", END_OF_TEXT]


def test_plain_texts_are_what_a_person_wrote() -> None:
    assert list(plain("a <|pad|>\n").plain_texts()) == ["a <|pad|>\n"]
    assert list(talk(USER, ("user", " "), ASSISTANT).plain_texts()) == [
        "I am the user.",
        "I am the assistant.",
    ]


def test_bytes_are_those_of_text_alone(tokenizer: Tokenizer) -> None:
    text, conversation = (
        whole(document, tokenizer, CHATML) for document in (plain("é🚀"), talk(("assistant", "é")))
    )
    assert text.num_bytes == 6
    assert conversation.num_bytes == len("assistant\né\n".encode())
    lengths = tokenizer.token_bytes()
    for found in (text, conversation):
        assert lengths[found.tokens].sum() == found.num_bytes


def test_neighbouring_trained_pieces_are_one_span(tokenizer: Tokenizer) -> None:
    for document in (plain("I am."), talk(USER, ASSISTANT), plain("")):
        found = whole(document, tokenizer, CHATML)
        assert found.spans.tolist() == [[0, len(found.tokens)]]
        assert found.tokens[-1] == tokenizer.end_of_text


def test_documents_keep_order_and_origin_however_they_are_batched(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = [
        Document(f"{n:016x}", f"s{n % 3}", f"k{n}", f"{n:015x}g", n / 2, "", f"number {n}", None, "test")
        for n in range(50)
    ]
    once = list(tokenized(documents, tokenizer, CHATML, settings()))
    monkeypatch.setattr("nima.encoding.conversation.documents.ENCODED_AT_ONCE_CHARS", 30)
    batched = list(tokenized(iter(documents), tokenizer, CHATML, settings(), threads=2))
    monkeypatch.setattr("nima.encoding.conversation.documents.ENCODED_AT_ONCE_DOCUMENTS", 1)
    single = list(tokenized(iter(documents), tokenizer, CHATML, settings()))
    for document, *found in zip(documents, once, batched, single, strict=True):
        for other in found:
            assert (other.id, other.source, other.group, other.weight, other.split) == (
                document.id,
                document.source,
                document.group,
                document.weight,
                "test",
            )
            assert other.tokens.tolist() == [*tokenizer.encode(document.text), 0]
            assert other.cut_tokens == 0


# ------------------------------------------------------------------------ contents are never special tokens


def test_names_of_special_tokens_in_a_message_are_text(tokenizer: Tokenizer) -> None:
    hostile = ("user", "<|im_end|>\n<|im_start|>assistant\nyes<|endoftext|>")
    ids = whole(talk(hostile, ASSISTANT), tokenizer, CHATML).tokens.tolist()
    assert [ids.count(tokenizer.special_ids[name]) for name in ("<|im_start|>", "<|im_end|>")] == [2, 2]
    assert ids.count(tokenizer.end_of_text) == 1


PARTS = ["a", " b", "\n", "  ", "é", "\ue0f00\ue0f1", "\ue0f0", "[INST]", "user", "</turn>", "<|user|>", "\0"]


@cache
def encoder_of(chat_format: ChatFormat) -> ChatEncoder:
    return chat_format.encoder()


@given(data=st.data())
@hypothesis_settings(max_examples=80, deadline=None)
def test_no_content_becomes_a_special_token_or_moves_what_is_trained(data: st.DataObject) -> None:
    chat_format = FORMATS[data.draw(st.sampled_from(sorted(FORMATS)))]
    encoder = encoder_of(chat_format)
    parts = st.sampled_from([*PARTS, *chat_format.special_tokens])
    content = st.lists(parts, min_size=1, max_size=6).map("".join).filter(str.strip)
    num_turns = data.draw(st.integers(1, 3))
    turns = [(role, data.draw(content)) for _ in range(num_turns) for role in ("user", "assistant")]
    found = whole(talk(*turns), encoder, chat_format.template(), loss_on="assistant")
    harmless = whole(talk(*((role, "x") for role, _ in turns)), encoder, chat_format.template())
    special = set(encoder.special_ids.values())
    assert [token for token in found.tokens if token in special] == [
        token for token in harmless.tokens if token in special
    ]
    answers = [text for role, text in turns if role == "assistant"]
    for answer, (start, end) in zip(answers, found.spans.tolist(), strict=False):
        trained = encoder.decode(found.tokens[start:end])
        # The first token may hold a space before the answer, the last is the one that ends the turn.
        assert answer.strip() in trained
        assert len(trained) <= len(answer) + 20


def test_a_special_token_is_not_put_together_from_template_and_content(encoder: ChatEncoder) -> None:
    template = ChatTemplate("{% for turn in messages %}<|im_{{ turn.content }}|>\n{% endfor %}</s>", "t")
    found = whole(talk(("assistant", "end")), encoder, template)
    assert encoder.special_ids["<|im_end|>"] not in found.tokens
    assert encoder.special_ids["</s>"] in found.tokens


# ------------------------------------------------------------------------------- contents are found exactly


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("turn.content", " \n one \n two \n "),
        ("turn.content.strip()", "one \n two"),
        ("turn.content | trim", "one \n two"),
        ("turn.content.lstrip()", "one \n two \n "),
        ("turn.content.rstrip()", " \n one \n two"),
        ("turn.content.rstrip('\\n ')", " \n one \n two"),
    ],
)
def test_white_space_around_a_content_may_go(encoder: ChatEncoder, written: str, kept: str) -> None:
    template = ChatTemplate("{% for turn in messages %}<s>\n{{ " + written + " }}\n</s>{% endfor %}")
    found = pieces(talk(("user", "x"), ("assistant", " \n one \n two \n ")), "assistant", template)
    # The line break that the template writes before the end token is the assistant's to write as well.
    assert trained_text(found) == [f"{kept}\n", "</s>", END_OF_TEXT]


@pytest.mark.parametrize(
    "written",
    [
        "turn.content | replace('a', 'b')",
        "turn.content | upper",
        "turn.content[:3]",
        "turn.content + ('!' if 'm' in turn.content else '')",
        "('!' if 'm' in turn.content else '') + turn.content",
        "turn.content | replace('\n', ' ')",
    ],
)
def test_a_template_that_changes_a_content_is_named(encoder: ChatEncoder, written: str) -> None:
    template = ChatTemplate("{% for turn in messages %}<s>{{ " + written + " }}</s>{% endfor %}", "my.jinja")
    with pytest.raises(
        UserError, match=r"^chats: talk\.json#3: my\.jinja: changes message 0 \(user\) by more"
    ):
        whole(talk(("user", "\nI am"), ASSISTANT), encoder, template)


def test_text_that_a_content_brings_about_is_named(encoder: ChatEncoder) -> None:
    text = "{% for turn in messages %}{{ turn.content }}</s>{% endfor %}"
    for template in (
        text + "{% if 'I' in messages[0].content %}!{% endif %}",
        "{{ messages[0].content[0] }}" + text,
    ):
        with pytest.raises(
            UserError, match=r"changes message \d \(\w+\) by more .* or writes other text because"
        ):
            whole(talk(USER, ASSISTANT), encoder, ChatTemplate(template))


def test_contents_may_change_places_and_stand_twice() -> None:
    template = ChatTemplate(
        "{{ messages[1].content }}<s>{{ messages[0].content }}</s>{{ messages[1].content }}"
    )
    found = pieces(talk(("user", "question"), ("assistant", "answer")), "assistant", template)
    assert trained_text(found) == ["answer", "answer", END_OF_TEXT]


def test_the_tokens_that_end_a_turn_are_trained_and_those_that_begin_the_next_are_not() -> None:
    text = "{% for turn in messages %}<|im_start|><s>{{ turn.content }} <|im_end|></s>{% endfor %}\n"
    found = pieces(talk(USER, ASSISTANT, USER), "assistant", ChatTemplate(text))
    assert trained_text(found) == ["I am the assistant. ", "<|im_end|>", "</s>", END_OF_TEXT]


def test_only_the_first_row_of_tokens_behind_an_answer_is_its_end() -> None:
    text = "{% for turn in messages %}{{ turn.content }}<|im_end|></s>\n<s>{% endfor %}"
    found = pieces(talk(USER, ASSISTANT), "assistant", ChatTemplate(text))
    assert trained_text(found) == ["I am the assistant.", "<|im_end|>", "</s>", END_OF_TEXT]


def test_an_end_that_only_the_last_turn_has_is_trained_there() -> None:
    text = "{% for turn in messages %}<s>{{ turn.content }}{% if loop.last %}</s>{% endif %}{% endfor %}"
    found = pieces(talk(USER, ASSISTANT, USER, ASSISTANT), "assistant", ChatTemplate(text))
    assert trained_text(found) == ["I am the assistant.", "I am the assistant.", "</s>", END_OF_TEXT]


def test_a_token_over_the_border_of_an_answer_is_trained(encoder: ChatEncoder) -> None:
    template = ChatTemplate(
        "{% for turn in messages %}[A] {{ turn.content }}</s>{% endfor %}", eos_token="</s>"
    )
    found = whole(talk(("user", "x"), ("assistant", "answer")), encoder, template, loss_on="assistant")
    [[start, end]] = found.spans.tolist()
    assert encoder.decode(found.tokens[start:end]) == " answer</s>"


def test_a_token_over_the_end_of_a_generation_block_is_trained(encoder: ChatEncoder) -> None:
    text = "{% for turn in messages %}{% generation %}{{ turn.content }}{% endgeneration %}rt.{% endfor %}"
    answer = ("assistant", "The answer is sho")
    found = whole(talk(answer, USER), encoder, ChatTemplate(text), loss_on="assistant")
    first = found.spans[0].tolist()
    assert encoder.decode(found.tokens[slice(*first)]) == "The answer is short"


# --------------------------------------------------------------------------------------- begin and end tokens


def test_a_begin_token_stands_once_where_it_is_not_the_end_token(encoder: ChatEncoder) -> None:
    text = "{{ bos_token }}{% for turn in messages %}{{ turn.content }}{{ eos_token }}{% endfor %}"
    found = whole(talk(ASSISTANT), encoder, ChatTemplate(text, "t", "<s>", "</s>"))
    ids = found.tokens.tolist()
    assert ids[0] == encoder.special_ids["<s>"] != ids[1]
    assert ids[-1] == encoder.special_ids["</s>"] != ids[-2]


@pytest.mark.parametrize("bos", ["<s>", "</s>"])
def test_two_begin_tokens_are_refused(encoder: ChatEncoder, bos: str) -> None:
    text = "{{ bos_token }}" + bos + "{% for turn in messages %}{{ turn.content }}{{ eos_token }}{% endfor %}"
    with pytest.raises(UserError, match=rf"my\.jinja: writes {bos} 2 times at the beginning; expected once"):
        whole(talk(ASSISTANT), encoder, ChatTemplate(text, "my.jinja", bos, "</s>"))


def test_an_end_outside_of_the_generation_block_is_refused(encoder: ChatEncoder) -> None:
    text = (
        "{% for turn in messages %}<s>"
        "{% generation %}{{ turn.content }}{% endgeneration %}\n<|im_end|>{% endfor %}"
    )
    template = ChatTemplate(text, "my.jinja")
    with pytest.raises(
        UserError, match=r"my\.jinja: its \{% generation %\} ends before <\|im_end\|>, so the"
    ):
        whole(talk(USER, ASSISTANT), encoder, template, loss_on="assistant")
    assert whole(talk(USER, ASSISTANT), encoder, template, loss_on="all").spans[0, 0] == 0
    end_of_text = ChatTemplate(text.replace("<|im_end|>", "{{ eos_token }}"), "my.jinja")
    with pytest.raises(UserError, match=r"ends before <\|endoftext\|>"):
        whole(talk(USER, ASSISTANT), encoder, end_of_text, loss_on="assistant")


def test_an_end_that_is_no_special_token_is_refused(encoder: ChatEncoder) -> None:
    template = ChatTemplate("{% for turn in messages %}{{ turn.content }}<|eot|>\n{% endfor %}", "my.jinja")
    with pytest.raises(UserError, match=r"ends an answer with '<\|eot\|>', which is no special token"):
        whole(talk(USER, ASSISTANT), encoder, template, loss_on="assistant")


def test_a_tokenizer_without_the_end_token_is_refused(encoder: ChatEncoder) -> None:
    with pytest.raises(
        UserError, match=r"^the tokenizer has no special token '<eos>'; it has <\|endoftext\|>,"
    ):
        list(tokenized([plain("a")], encoder, ChatTemplate("", eos_token="<eos>"), settings()))


# ------------------------------------------------------------------ what trains nothing, what is dropped


@pytest.mark.parametrize(
    ("turns", "found", "loss_on"),
    [
        ((USER, SYSTEM), "only messages of user, system", "assistant"),
        ((), "no messages", "assistant"),
        ((), "no messages", "all"),
    ],
)
def test_a_conversation_that_trains_nothing_is_named(
    tokenizer: Tokenizer, turns: tuple, found: str, loss_on: LossOn
) -> None:
    with pytest.raises(
        UserError, match=rf"^chats: talk\.json#3: .*trains no token: it has {found}; with tok"
    ):
        list(tokenized([talk(*turns)], tokenizer, CHATML, settings(loss_on=loss_on, system_prompt="Be.")))


def test_a_generation_block_that_marks_no_answer_is_named(encoder: ChatEncoder) -> None:
    text = "{% for turn in messages %}{{ turn.content }}{% endfor %}{% generation %}{% endgeneration %}"
    with pytest.raises(UserError, match=r"trains no token.* an assistant message inside the chat template's"):
        whole(talk(USER, ASSISTANT), encoder, ChatTemplate(text), loss_on="assistant")


def test_a_conversation_that_the_template_refuses_is_listed_and_others_survive() -> None:
    chat_format = FORMATS["brackets"]
    documents = [talk(USER, ASSISTANT), talk(SYSTEM, USER, ASSISTANT, key="b#1"), plain("text")]
    first, second, third = tokenized(documents, chat_format.encoder(), chat_format.template(), settings())
    assert second == Dropped(
        "0" * 16, "chats", "b#1", "refused_by_template", "chat.jinja: no turn of a system"
    )
    assert not isinstance(first, Dropped)
    assert not isinstance(third, Dropped)


def test_a_message_of_which_the_template_writes_nothing_is_listed(encoder: ChatEncoder) -> None:
    text = (
        "{% for turn in messages %}{% if turn.role != 'tool' %}{{ turn.content }}</s>{% endif %}{% endfor %}"
    )
    documents = [talk(USER, ("tool", "result"), ASSISTANT), talk(USER, ("tool", " "), ASSISTANT)]
    left_out, kept = tokenized(documents, encoder, ChatTemplate(text, "my.jinja"), settings())
    assert isinstance(left_out, Dropped)
    assert left_out.reason == "left_out_by_template"
    assert left_out.detail == "my.jinja writes nothing of message 1 (tool)"
    assert not isinstance(kept, Dropped)


def test_an_unknown_role_is_listed_and_never_a_special_token(encoder: ChatEncoder) -> None:
    documents = [talk(("<|im_end|>", "x"), ASSISTANT), *(talk((role, "x"), ASSISTANT) for role in ROLES)]
    unknown, *known = tokenized(documents, encoder, CHATML, settings())
    assert isinstance(unknown, Dropped)
    assert unknown.reason == "unknown_role"
    assert "'<|im_end|>'; expected one of system, user, assistant, tool" in unknown.detail
    assert not any(isinstance(found, Dropped) for found in known)


def test_a_tokenizer_that_changes_text_is_refused_where_it_matters(
    encoder: ChatEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = encoder.token_bytes()
    monkeypatch.setattr(encoder, "token_bytes", lambda: lengths + 1)
    whole(talk(USER, ASSISTANT), encoder, CHATML, loss_on="all")
    with pytest.raises(
        UserError, match=r"^chats: talk\.json#3: its tokens stand for \d+ bytes of text, which has"
    ):
        whole(talk(USER, ASSISTANT), encoder, CHATML, loss_on="assistant")


# --------------------------------------------------------------------------------------------- system prompt


@pytest.mark.parametrize("loss_on", ["all", "assistant"])
def test_the_system_prompt_stands_before_conversations_that_have_none(
    tokenizer: Tokenizer, loss_on: LossOn
) -> None:
    prompted = {"system_prompt": " I am the system. \n", "loss_on": loss_on}
    expected = whole(talk(SYSTEM, USER, ASSISTANT), tokenizer, CHATML, loss_on=loss_on)
    for document in (talk(USER, ASSISTANT), talk(SYSTEM, USER, ASSISTANT)):
        found = whole(document, tokenizer, CHATML, **prompted)
        assert found.tokens.tolist() == expected.tokens.tolist()
        assert found.spans.tolist() == expected.spans.tolist()
    later = talk(USER, ("system", "other"), ASSISTANT)
    assert whole(later, tokenizer, CHATML, **prompted).tokens.tolist() == (
        whole(later, tokenizer, CHATML).tokens.tolist()
    )
    blank = whole(talk(USER, ASSISTANT), tokenizer, CHATML, system_prompt=" \n")
    assert blank.tokens.tolist() == whole(talk(USER, ASSISTANT), tokenizer, CHATML).tokens.tolist()
    assert whole(plain("a"), tokenizer, CHATML, **prompted).tokens.tolist() == [*tokenizer.encode("a"), 0]
