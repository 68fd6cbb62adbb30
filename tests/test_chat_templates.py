"""Chat templates beside `transformers`: the same text, the same tokens, the same that is trained."""

import pickle
from pathlib import Path

import pytest
from chat_tokenizers import FORMATS, ChatFormat, settings, talk, trained_mask, whole

from nima.encoding.conversation import Dropped
from nima.encoding.conversation.documents import tokenized
from nima.encoding.conversation.templates import ChatTemplate, RefusedError
from nima.tokenizer import Tokenizer
from nima.tokenizer.special_tokens import CHAT_TEMPLATE, END_OF_TEXT
from nima.workspace.errors import UserError

QUESTION = ("user", "What listens on port 53?")
ANSWER = ("assistant", "DNS does, é🚀")
SYSTEM = ("system", "You are a brief assistant.")
TALKS = [
    talk(QUESTION, ANSWER),
    talk(QUESTION, ANSWER, ("user", "  Thank you,\n\n  and good bye! "), ("assistant", " \n The answer \n")),
    talk(SYSTEM, QUESTION, ANSWER, ("user", "How do I list the pods?")),
]
TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


@pytest.fixture(params=FORMATS)
def chat_format(request: pytest.FixtureRequest) -> ChatFormat:
    return FORMATS[request.param]


def messages(document: object) -> list[dict[str, str]]:
    return [{"role": turn.role, "content": turn.content} for turn in document.messages]


def taken(chat_format: ChatFormat) -> list:
    """The talks that a format has a place for."""
    encoder = chat_format.encoder()
    outcomes = tokenized(TALKS, encoder, chat_format.template(), settings())
    return [found for found, outcome in zip(TALKS, outcomes, strict=True) if not isinstance(outcome, Dropped)]


# ------------------------------------------------------------------------------- beside transformers


def test_tokens_are_those_of_transformers(chat_format: ChatFormat) -> None:
    encoder, template = chat_format.encoder(), chat_format.template()
    reference = encoder.in_transformers(template)
    talks = taken(chat_format)
    assert len(talks) >= 2
    for document in talks:
        expected = reference.apply_chat_template(messages(document), tokenize=True, return_dict=False)
        end = encoder.special_ids[template.eos_token]
        # A begin token that is the end token too is the end of the document before.
        if template.bos_token == template.eos_token and expected[0] == end:
            expected = expected[1:]
        if expected[-1] != end:
            expected = [*expected, end]
        found = whole(document, encoder, template)
        assert found.tokens.tolist() == expected, encoder.decode(found.tokens)
        assert found.spans.tolist() == [[0, len(expected)]]


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "chatml"])
def test_what_is_trained_is_what_transformers_marks_as_generated(name: str) -> None:
    encoder, template = FORMATS[name].encoder(), FORMATS[name].template(marks_generated=True)
    reference = encoder.in_transformers(template)
    for document in taken(FORMATS[name]):
        expected = reference.apply_chat_template(
            messages(document), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        found = trained_mask(whole(document, encoder, template, loss_on="assistant"))
        # The document's end token is trained.
        assert found[: len(expected["input_ids"])][:-1] == expected["assistant_masks"][:-1]
        assert found[-1] == 1


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "chatml"])
def test_without_generation_blocks_the_same_is_trained(name: str) -> None:
    encoder = FORMATS[name].encoder()
    for document in taken(FORMATS[name]):
        marked, found = (
            whole(document, encoder, FORMATS[name].template(marks_generated=marks), loss_on="assistant")
            for marks in (True, False)
        )
        assert found.tokens.tolist() == marked.tokens.tolist()
        assert found.spans.tolist() == marked.spans.tolist()


def test_the_text_is_that_of_transformers_with_tools_of_the_language() -> None:
    text = (
        "{%- set found = namespace(turns=0) -%}\n"
        "{% for turn in messages %}\n    {%- set found.turns = found.turns + 1 %}\n"
        "  {% if turn.role == 'tool' %}{% continue %}{% endif %}\n"
        "{{ turn | tojson(indent=1) }}{{ turn.content | upper }}\n{% endfor %}\n"
        "{% if strftime_now is defined %}{% set unused = 1 %}{% endif %}\n"
        "{% if tools is not none or documents %}never{% endif %}{{ found.turns }} {{ add_generation_prompt }}"
        "{{ dict(a=1)['a'] }}{{ missing }}"
    )
    turns = [*TURNS, {"role": "tool", "content": "<é&'\">"}]
    reference = (
        FORMATS["bars"].encoder().in_transformers(ChatTemplate(text, bos_token="<s>", eos_token="</s>"))
    )
    expected = reference.apply_chat_template(turns, tokenize=False)
    assert ChatTemplate(text, bos_token="<s>", eos_token="</s>").render(turns).text == expected
    assert "3 False1" in expected


# -------------------------------------------------------------------------------------- the sandbox


@pytest.mark.parametrize(
    "expression",
    [
        "messages.append(1)",
        "messages[0].update(role='x')",
        "''.__class__.__mro__",
        "messages.__class__()",
        "cycler.__init__.__globals__",
        "range(1000000000)",
        "1 // 0",
        "messages[0].content + 1",
        "missing.attribute",
    ],
)
def test_a_template_that_reaches_out_or_fails_is_named_with_its_line(expression: str) -> None:
    template = ChatTemplate("{{ bos_token }}\n{{ " + expression + " }}", "chat.jinja")
    with pytest.raises(UserError, match=r"^chat\.jinja:2: the template fails: \w+: "):
        template.render(TURNS)


def test_the_clock_is_not_offered_and_a_guarded_template_falls_back() -> None:
    with pytest.raises(UserError, match=r"chat\.jinja:1: strftime_now is not offered"):
        ChatTemplate("{{ strftime_now('%Y') }}", "chat.jinja").render(TURNS)
    guarded = "{% if strftime_now is defined %}{{ strftime_now('%Y') }}{% else %}2024{% endif %}"
    assert ChatTemplate(guarded).render(TURNS).text == "2024"


def test_a_refusal_has_the_templates_words() -> None:
    with pytest.raises(RefusedError, match=r"^no turn of a user$"):
        ChatTemplate("{% set turn = messages[0] %}{{ raise_exception('no turn of a ' + turn.role) }}").render(
            TURNS
        )


def test_generated_ranges_are_those_of_the_blocks() -> None:
    content = "{% generation %}{{ turn.content }}{% endgeneration %}"
    text = "{% for turn in messages %}{{ turn.role }}:" + content + "|{% endfor %}"
    found = ChatTemplate(text).render([*TURNS, {"role": "user", "content": ""}])
    assert found.text == "user:a|assistant:b|user:|"
    assert [found.text[start:end] for start, end in found.generated] == ["a", "b"]


@pytest.mark.parametrize(
    "text",
    [
        "x{% macro say(t) %}y{% generation %}{{ t }}{% endgeneration %}{% endmacro %}{{ say('hello') }}",
        "{% generation %}a{% generation %}b{% endgeneration %}{% endgeneration %}",
        "x{% set kept %}{% generation %}a{% endgeneration %}{% endset %}y{{ kept }}",
    ],
)
def test_a_generation_block_that_cannot_be_placed_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"\{% generation %\} must stand outside"):
        ChatTemplate(text).render(TURNS)


# ---------------------------------------------------------------------------------- files and processes


def test_no_file_is_chatml() -> None:
    assert ChatTemplate.load(None).text == CHAT_TEMPLATE


def test_a_template_is_read_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "chat.jinja"
    path.write_text("{{ messages[0].content }} é\n", encoding="utf-8")
    assert ChatTemplate.load(str(path)).render(TURNS).text == "a é"


def test_a_file_that_is_no_template_is_named(tmp_path: Path) -> None:
    path = tmp_path / "chat.jinja"
    with pytest.raises(UserError, match=rf"{path}: cannot be read: No such file"):
        ChatTemplate.load(path)
    path.write_bytes(b"abc\xff")
    with pytest.raises(UserError, match=rf"{path}: not UTF-8 at byte 3"):
        ChatTemplate.load(path)
    path.write_text("one\n{% for turn in messages %}\n{% endfro %}")
    with pytest.raises(UserError, match=rf"{path}:3: is no Jinja template: .*endfro"):
        ChatTemplate.load(path)


def test_a_template_comes_back_from_the_tokenizer_it_is_saved_with(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(["The answer is short."], 300)
    tokenizer.save(tmp_path)
    found = ChatTemplate.of(Tokenizer.load(tmp_path))
    assert found == ChatTemplate(CHAT_TEMPLATE, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT)
    tokenizer.chat_template = "{{ broken"
    with pytest.raises(UserError, match=r"^tokenize\.chat_template:1: is no Jinja template"):
        ChatTemplate.of(tokenizer)


def test_a_template_travels_between_processes() -> None:
    template = ChatTemplate("{{ messages[0].content }}", "chat.jinja", "<s>", "</s>").checked()
    assert pickle.loads(pickle.dumps(template)) == template
