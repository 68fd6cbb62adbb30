"""How long a document may be in tokens, and what happens to one that is longer."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

import numpy as np

from nima.encoding.conversation import ASSISTANT, SYSTEM, USER, Dropped, DropReason, TokenizedDocument
from nima.encoding.conversation.pieces import Layout, Messages, UnusableError
from nima.encoding.conversation.spans import Encoded, Encoder, encoded_conversation, texts_of

if TYPE_CHECKING:
    from nima.corpus.document import Document
    from nima.workspace.params import TokenizeParams


class Budgets:
    """Holds documents to `max_total_tokens`, and what comes before a last answer to `max_input_tokens`."""

    def __init__(
        self, settings: TokenizeParams, layout: Layout, encoder: Encoder, token_bytes: np.ndarray
    ) -> None:
        self.settings, self.layout, self.encoder, self.token_bytes = settings, layout, encoder, token_bytes

    def held(self, document: Document, encoded: Encoded) -> TokenizedDocument | Dropped:
        """The document if it fits; else what the budgets leave of it, or why nothing."""
        excess = self.excess(encoded)
        if excess is None:
            return tokenized_document(document, encoded)
        if self.settings.over_budget == "drop":
            return dropped(document, "over_budget", excess)
        try:
            left = self.truncated(document, encoded)
        except UnusableError as error:
            return dropped(document, error.reason, f"its latest turns: {error}")
        if left is None:
            return dropped(document, "over_budget", f"{excess}; no part of it fits")
        return tokenized_document(document, left, len(encoded.tokens) - len(left.tokens))

    def excess(self, encoded: Encoded) -> str | None:
        """Which budget is exceeded and by what; None if the document fits."""
        most_total, most_input = self.settings.max_total_tokens, self.settings.max_input_tokens
        if most_total is not None and len(encoded.tokens) > most_total:
            return f"{len(encoded.tokens)} tokens, tokenize.max_total_tokens = {most_total}"
        if most_input is not None and encoded.num_input_tokens > most_input:
            before = f"{encoded.num_input_tokens} tokens before the last answer"
            return f"{before}, tokenize.max_input_tokens = {most_input}"
        return None

    def truncated(self, document: Document, encoded: Encoded) -> Encoded | None:
        if document.messages is not None:
            return self.latest_turns(document)
        assert self.settings.max_total_tokens is not None  # noqa: S101 - plain text has no other budget
        return cut(document.text, encoded, self.settings.max_total_tokens, self.token_bytes)

    def latest_turns(self, document: Document) -> Encoded | None:
        """The conversation from the earliest user's turn on with which it fits; system messages stay.

        None if not even the last answer fits with the user's turn before it.
        """
        messages = self.layout.messages_of(document)
        roles = [turn["role"] for turn in messages]
        needed = max((number for number, role in enumerate(roles) if role == ASSISTANT), default=len(roles))
        beginnings = [number for number, role in enumerate(roles[:needed]) if role == USER]
        # The later the beginning, the fewer the tokens.
        found = bisect_left(
            beginnings, True, key=lambda start: self.excess(self.part(messages, start)) is None
        )
        return self.part(messages, beginnings[found]) if found < len(beginnings) else None

    def part(self, messages: Messages, start: int) -> Encoded:
        """The conversation from message `start` on, behind its system messages."""
        system = [turn for turn in messages[:start] if turn["role"] == SYSTEM]
        transcript = self.layout.transcript([*system, *messages[start:]])
        ids = iter(self.encoder.encode_many(texts_of(transcript)))
        return encoded_conversation(transcript, ids, self.encoder.special_ids, self.token_bytes)


def cut(text: str, encoded: Encoded, max_tokens: int, token_bytes: np.ndarray) -> Encoded | None:
    """The beginning of a plain document, up to the border of a character.

    The end token stays, so that whatever follows begins behind one, but it is not trained: the text does not
    end there. None if no character fits.
    """
    content = text.encode()
    ends = np.cumsum(token_bytes[encoded.tokens[: max_tokens - 1]])
    num_tokens = max_tokens - 1
    while num_tokens and not is_border(content, int(ends[num_tokens - 1])):
        num_tokens -= 1
    if not num_tokens:
        return None
    tokens = np.append(encoded.tokens[:num_tokens], encoded.tokens[-1])
    return Encoded(tokens, [(0, num_tokens)], int(ends[num_tokens - 1]), 0)


def is_border(content: bytes, place: int) -> bool:
    """Whether a character of UTF-8 text begins at `place`."""
    return place >= len(content) or content[place] & 0xC0 != 0x80


def tokenized_document(document: Document, encoded: Encoded, cut_tokens: int = 0) -> TokenizedDocument:
    return TokenizedDocument(
        id=document.id,
        source=document.source,
        group=document.group,
        weight=document.weight,
        tokens=encoded.tokens,
        spans=np.array(encoded.spans, dtype=np.int64).reshape(-1, 2),
        num_bytes=encoded.num_bytes,
        split=document.split,
        cut_tokens=cut_tokens,
    )


def dropped(document: Document, reason: DropReason, detail: str) -> Dropped:
    return Dropped(document.id, document.source, document.key, reason, detail)
