import pytest
from chat_tokenizers import FORMATS, ChatEncoder, plain, settings, talk, trained_mask, whole
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from nima.corpus.document import Document
from nima.encoding.conversation import Dropped, TokenizedDocument
from nima.encoding.conversation.documents import tokenized
from nima.encoding.conversation.templates import ChatTemplate
from nima.tokenizer.special_tokens import SPECIAL_TOKENS

CHATML = ChatTemplate.load(None)
ENCODER = ChatEncoder(SPECIAL_TOKENS)
TURNS = [(role, f"{role} says {number}.") for number in range(4) for role in ("user", "assistant")]


def outcome(document: Document, template: ChatTemplate = CHATML, **changes) -> TokenizedDocument | Dropped:
    [found] = tokenized([document], ENCODER, template, settings(**changes))
    return found


def text_of(found: TokenizedDocument | Dropped) -> str:
    assert isinstance(found, TokenizedDocument), found
    return ENCODER.decode(found.tokens)


def size(*turns: tuple[str, str], **changes) -> int:
    return len(whole(talk(*turns), ENCODER, CHATML, **changes).tokens)


# ------------------------------------------------------------------------------------------------ drop


@pytest.mark.parametrize("document", [plain("The answer is short."), talk(*TURNS)])
def test_a_budget_is_kept_to_the_token(document: Document) -> None:
    num_tokens = len(whole(document, ENCODER, CHATML).tokens)
    fits = outcome(document, max_total_tokens=num_tokens)
    assert isinstance(fits, TokenizedDocument)
    assert fits.cut_tokens == 0
    assert outcome(document, max_total_tokens=num_tokens - 1) == Dropped(
        document.id,
        document.source,
        document.key,
        "over_budget",
        f"{num_tokens} tokens, tokenize.max_total_tokens = {num_tokens - 1}",
    )


def test_the_input_budget_counts_what_stands_before_the_last_answer() -> None:
    # A prompt for the next answer ends with the role and a line break.
    before = size(*TURNS[:-1]) - 1 + len(ENCODER.encode_many(["assistant\n"])[0]) + 1
    for loss_on in ("all", "assistant"):
        assert not isinstance(outcome(talk(*TURNS), max_input_tokens=before, loss_on=loss_on), Dropped)
        dropped = outcome(talk(*TURNS), max_input_tokens=before - 1, loss_on=loss_on)
        assert isinstance(dropped, Dropped)
        assert dropped.detail == (
            f"{before} tokens before the last answer, tokenize.max_input_tokens = {before - 1}"
        )


def test_the_input_budget_concerns_conversations_with_an_answer_alone() -> None:
    for document in (plain("The answer is short."), talk(("user", "The answer is short."))):
        assert isinstance(outcome(document, max_input_tokens=1), TokenizedDocument)


def test_dropped_documents_leave_the_others_in_order() -> None:
    documents = [plain("a"), plain("The answer is short. " * 9), plain("b"), talk(*TURNS), plain("c")]
    found = list(tokenized(documents, ENCODER, CHATML, settings(max_total_tokens=10)))
    assert [isinstance(one, Dropped) for one in found] == [False, True, False, True, False]
    assert [text_of(one)[0] for one in found[::2]] == ["a", "b", "c"]


# ---------------------------------------------------------------------------------- a text cut at its end


def test_a_cut_text_does_not_learn_an_end() -> None:
    text = "What listens on port 53? DNS does."
    found = outcome(plain(text), max_total_tokens=6, over_budget="truncate")
    assert isinstance(found, TokenizedDocument)
    full = whole(plain(text), ENCODER, CHATML).tokens.tolist()
    assert found.tokens.tolist() == [*full[:5], ENCODER.special_ids["<|endoftext|>"]]
    assert trained_mask(found) == [1, 1, 1, 1, 1, 0]
    assert found.cut_tokens == len(full) - 6
    assert found.num_bytes == ENCODER.token_bytes()[found.tokens].sum()


@given(text=st.text(alphabet="aé🚀\n The", min_size=1, max_size=30), max_tokens=st.integers(1, 40))
@hypothesis_settings(max_examples=100, deadline=None)
def test_a_text_is_cut_between_characters(text: str, max_tokens: int) -> None:
    found = outcome(plain(text), max_total_tokens=max_tokens, over_budget="truncate")
    full = whole(plain(text), ENCODER, CHATML).tokens
    if isinstance(found, Dropped):
        first = len(ENCODER.encode_many([text[0]])[0])
        assert len(full) > max_tokens
        assert max_tokens <= max(first, 4)
        assert found.detail.endswith("; no part of it fits")
        return
    assert len(found.tokens) <= max_tokens
    kept = ENCODER.decode(found.tokens[:-1])
    assert text.startswith(kept)
    assert len(kept.encode()) == found.num_bytes
    assert (found.cut_tokens == 0) == (kept == text)
    # No whole character more would have fitted.
    longest = max_tokens - 1 if len(full) > max_tokens else len(full) - 1
    assert longest - (len(found.tokens) - 1) <= 3


# ------------------------------------------------------------------------ a conversation cut at its beginning


@pytest.mark.parametrize("loss_on", ["all", "assistant"])
@pytest.mark.parametrize("kept", [1, 2, 3])
def test_the_earliest_turns_go_until_the_rest_fits(loss_on: str, kept: int) -> None:
    system = ("system", "Be brief.")
    latest = talk(system, *TURNS[-2 * kept :])
    expected = whole(latest, ENCODER, CHATML, loss_on=loss_on)
    full = whole(talk(system, *TURNS), ENCODER, CHATML, loss_on=loss_on)
    for room in (0, 3):
        found = outcome(
            talk(system, *TURNS),
            max_total_tokens=len(expected.tokens) + room,
            over_budget="truncate",
            loss_on=loss_on,
        )
        assert text_of(found) == ENCODER.decode(expected.tokens)
        assert found.spans.tolist() == expected.spans.tolist()
        assert found.cut_tokens == len(full.tokens) - len(expected.tokens)


def test_the_system_prompt_stays_with_the_latest_turns() -> None:
    expected = whole(talk(("system", "Be brief."), *TURNS[-2:]), ENCODER, CHATML)
    found = outcome(
        talk(*TURNS),
        max_total_tokens=len(expected.tokens),
        over_budget="truncate",
        system_prompt="Be brief.",
    )
    assert text_of(found) == ENCODER.decode(expected.tokens)


def test_what_follows_the_last_answer_stays_with_it() -> None:
    turns = [*TURNS[:2], ("user", "one"), ("tool", "two"), ("assistant", "three"), ("user", "four")]
    expected = talk(*turns[2:])
    limit = size(*turns[2:])
    assert text_of(outcome(talk(*turns), max_total_tokens=limit, over_budget="truncate")) == (
        ENCODER.decode(whole(expected, ENCODER, CHATML).tokens)
    )
    dropped = outcome(talk(*turns), max_total_tokens=limit - 1, over_budget="truncate")
    assert isinstance(dropped, Dropped)
    assert dropped.detail.endswith("no part of it fits")


def test_a_greeting_before_the_first_user_goes_too() -> None:
    turns = [("assistant", "What can I do?"), *TURNS[:2]]
    found = outcome(talk(*turns), max_total_tokens=size(*TURNS[:2]), over_budget="truncate")
    assert text_of(found) == ENCODER.decode(whole(talk(*TURNS[:2]), ENCODER, CHATML).tokens)


def test_the_input_budget_cuts_earliest_turns_too() -> None:
    expected = whole(talk(*TURNS[-4:]), ENCODER, CHATML)
    before = size(*TURNS[-4:-1]) + len(ENCODER.encode_many(["assistant\n"])[0])
    found = outcome(talk(*TURNS), max_input_tokens=before, over_budget="truncate")
    assert text_of(found) == ENCODER.decode(expected.tokens)


def test_a_conversation_whose_rest_the_template_refuses_is_listed() -> None:
    chat_format = FORMATS["chatml-if"]
    text = (
        "{% if messages | length < 3 %}{{ raise_exception('too short') }}{% endif %}"
        + chat_format.template().text
    )
    found = outcome(
        talk(*TURNS),
        ChatTemplate(text, "my.jinja"),
        max_total_tokens=size(*TURNS[-2:]),
        over_budget="truncate",
    )
    assert isinstance(found, Dropped)
    assert (found.reason, found.detail) == (
        "refused_by_template",
        "its latest turns: my.jinja: too short",
    )


def test_a_long_conversation_is_cut_in_few_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = [(role, f"{role} {number}") for number in range(500) for role in ("user", "assistant")]
    calls = []
    encode = ENCODER.encode_many
    monkeypatch.setattr(ENCODER, "encode_many", lambda *given: calls.append(1) or encode(*given))
    found = outcome(talk(*turns), max_total_tokens=100, over_budget="truncate")
    assert len(calls) < 15
    assert isinstance(found, TokenizedDocument)
    assert 70 < len(found.tokens) <= 100
