"""Documents to tokens, in their order: the texts of many documents are encoded together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from nima.encoding.conversation import Dropped, TokenizedDocument
from nima.encoding.conversation.budgets import Budgets, dropped
from nima.encoding.conversation.pieces import Layout, Transcript, UnusableError
from nima.encoding.conversation.spans import Encoder, encoded_conversation, encoded_text, texts_of
from nima.encoding.conversation.templates import ChatTemplate
from nima.workspace.errors import UserError

if TYPE_CHECKING:
    from nima.corpus.document import Document
    from nima.workspace.params import TokenizeParams

# Enough work for every thread, and few enough objects that the garbage collector stays out of the way.
ENCODED_AT_ONCE_CHARS = 4_000_000
ENCODED_AT_ONCE_DOCUMENTS = 2048


class LaidOut(NamedTuple):
    document: Document
    texts: list[str]
    """What of it is to be encoded."""
    conversation: Transcript | Dropped | None
    """None for a plain document."""


def tokenized(
    documents: Iterable[Document],
    encoder: Encoder,
    template: ChatTemplate,
    settings: TokenizeParams,
    threads: int = 1,
) -> Iterator[TokenizedDocument | Dropped]:
    """Each document as tokens, or why it has none; in their order.

    Raises `UserError` naming a conversation that trains nothing, or what is wrong with the template.
    """
    budgeted = settings.max_input_tokens is not None
    layout = Layout(template, encoder.special_ids, settings.loss_on, settings.system_prompt, budgeted)
    token_bytes, end = encoder.token_bytes(), encoder.special_ids[template.eos_token]
    budgets = Budgets(settings, layout, encoder, token_bytes)
    for batch in batches_of_documents(documents, layout):
        ids = iter(encoder.encode_many([text for item in batch for text in item.texts], threads))
        for document, texts, conversation in batch:
            if isinstance(conversation, Dropped):
                yield conversation
            elif conversation is None:
                yield budgets.held(document, encoded_text(texts[0], next(ids), end))
            else:
                with named(document):
                    found = encoded_conversation(conversation, ids, encoder.special_ids, token_bytes)
                    outcome = budgets.held(document, found)
                yield outcome


def batches_of_documents(documents: Iterable[Document], layout: Layout) -> Iterator[list[LaidOut]]:
    batch: list[LaidOut] = []
    num_chars = 0
    for document in documents:
        item = laid_out(document, layout)
        batch.append(item)
        num_chars += sum(map(len, item.texts))
        if num_chars >= ENCODED_AT_ONCE_CHARS or len(batch) >= ENCODED_AT_ONCE_DOCUMENTS:
            yield batch
            batch, num_chars = [], 0
    if batch:
        yield batch


def laid_out(document: Document, layout: Layout) -> LaidOut:
    if document.messages is None:
        return LaidOut(document, [document.text], None)
    try:
        with named(document):
            transcript = layout.transcript(layout.messages_of(document))
    except UnusableError as error:
        return LaidOut(document, [], dropped(document, error.reason, str(error)))
    return LaidOut(document, texts_of(transcript), transcript)


@contextmanager
def named(document: Document) -> Iterator[None]:
    """Says of which document a `UserError` speaks."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{document.source}: {document.key}: {error}") from None
