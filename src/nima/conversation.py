"""Documents and conversations as text, special tokens and the parts that are trained.

A document is its text and an end. A conversation is ChatML, the layout that most chat models share:

    <|im_start|>user
    What listens on port 53?<|im_end|>
    <|im_start|>assistant
    DNS.<|im_end|>
    <|endoftext|>
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from nima.errors import UserError

if TYPE_CHECKING:  # stages that only use the tokenizer do not depend on how documents are stored
    from nima.corpus.document import Document, Message

END_OF_TEXT = "<|endoftext|>"
PAD = "<|pad|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"

SPECIAL_TOKENS = (END_OF_TEXT, PAD, TURN_START, TURN_END)
"""Their ids are their places here."""

ASSISTANT = "assistant"

LossOn = Literal["all", "assistant"]
"""What a conversation trains: every token, or the assistant's turns."""

# Contents are trimmed, here and in `pieces`: an empty first line would merge with the line break after the
# role, and the same answer would have other tokens as a whole conversation than behind a prompt.
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'].strip() + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Piece:
    """A stretch of a document that is tokenized by itself."""

    text: str
    special: bool
    """One special token, by its name. Else plain text, in which such names are only text."""
    trained: bool
    """Its tokens are targets of the loss."""


def pieces(document: Document, loss_on: LossOn) -> list[Piece]:
    """The document from its first token to its end token.

    `loss_on` concerns conversations only: "all" trains every token, "assistant" the contents of the
    assistant's turns and the tokens that end them. Raises `UserError` when that leaves nothing to train.
    """
    if document.messages is None:
        return [Piece(document.text, False, True), Piece(END_OF_TEXT, True, True)]
    turns = [piece for message in document.messages for piece in turn(message, loss_on)]
    if not any(piece.trained for piece in turns):
        raise UserError(
            f"{document.source}: {document.key}: the conversation trains no token: it has "
            f"{roles(document.messages)}; with tokenize.loss_on = {loss_on} it needs an {ASSISTANT} message"
        )
    return [*turns, Piece(END_OF_TEXT, True, True)]


def turn(message: Message, loss_on: LossOn) -> list[Piece]:
    everything = loss_on == "all"
    trained = everything or message.role == ASSISTANT
    content = message.content.strip()
    return [
        Piece(TURN_START, True, everything),
        Piece(f"{message.role}\n", False, everything),
        *([Piece(content, False, trained)] if content else []),
        Piece(TURN_END, True, trained),
        Piece("\n", False, everything),
    ]


def roles(messages: tuple[Message, ...]) -> str:
    names = list(dict.fromkeys(message.role for message in messages))
    return f"only messages of {', '.join(names)}" if names else "no messages"


def plain_texts(document: Document) -> Iterator[str]:
    """What a person wrote: the text of a document, or the contents of a conversation's messages."""
    if document.messages is None:
        yield document.text
    else:
        yield from (content for message in document.messages if (content := message.content.strip()))


# ---------------------------------------------------------------------------------- documents to tokens

ENCODED_AT_ONCE_CHARS = 4_000_000


class Encoder(Protocol):
    """What this module needs of a tokenizer."""

    special_ids: dict[str, int]

    def encode_many(self, texts: Sequence[str], threads: int = 1) -> list[np.ndarray]: ...


@dataclass(frozen=True)
class TokenizedDocument:
    """A document as tokens, its end token included."""

    id: str
    source: str
    group: str
    weight: float
    tokens: np.ndarray
    """uint32[num_tokens]"""
    spans: np.ndarray
    """int64[num_spans, 2]: [start, end) of the tokens that are trained as targets; ascending, disjoint."""
    num_bytes: int
    """UTF-8 bytes that the tokens stand for; special tokens stand for none."""
    split: str = ""
    """The split that its source declares; "" leaves it to the shares."""


def tokenized(
    documents: Iterable[Document], encoder: Encoder, loss_on: LossOn, threads: int = 1
) -> Iterator[TokenizedDocument]:
    """Documents as tokens, in their order. Raises `UserError` for a conversation that trains nothing."""
    for batch in batches_of_documents(documents, loss_on):
        texts = [piece.text for _, parts in batch for piece in parts if not piece.special]
        encoded = iter(encoder.encode_many(texts, threads))
        for document, parts in batch:
            yield joined(document, parts, [tokens_of(piece, encoder, encoded) for piece in parts])


def batches_of_documents(
    documents: Iterable[Document], loss_on: LossOn
) -> Iterator[list[tuple[Document, list[Piece]]]]:
    batch: list[tuple[Document, list[Piece]]] = []
    num_chars = 0
    for document in documents:
        parts = pieces(document, loss_on)
        batch.append((document, parts))
        num_chars += sum(len(piece.text) for piece in parts)
        if num_chars >= ENCODED_AT_ONCE_CHARS:
            yield batch
            batch, num_chars = [], 0
    if batch:
        yield batch


def tokens_of(piece: Piece, encoder: Encoder, encoded: Iterator[np.ndarray]) -> np.ndarray:
    if piece.special:
        return np.array([encoder.special_ids[piece.text]], dtype=np.uint32)
    return next(encoded)


def joined(document: Document, parts: Sequence[Piece], tokens: Sequence[np.ndarray]) -> TokenizedDocument:
    spans: list[list[int]] = []
    start = 0
    for piece, ids in zip(parts, tokens, strict=True):
        end = start + len(ids)
        if piece.trained and end > start:
            if spans and spans[-1][1] == start:
                spans[-1][1] = end
            else:
                spans.append([start, end])
        start = end
    return TokenizedDocument(
        id=document.id,
        source=document.source,
        group=document.group,
        weight=document.weight,
        tokens=np.concatenate(tokens),
        spans=np.array(spans, dtype=np.int64).reshape(-1, 2),
        num_bytes=sum(len(piece.text.encode()) for piece in parts if not piece.special),
        split=document.split,
    )
