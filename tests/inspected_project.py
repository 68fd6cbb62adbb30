"""A project whose data can be looked at: few documents, with everything in them that is hard to show."""

from pathlib import Path

import numpy as np
from chat_tokenizers import settings

from nima.corpus.document import Document, Message, Rejection, document_id, write_rejections
from nima.dataset import splits
from nima.encoding.conversation import TokenizedDocument
from nima.encoding.conversation.documents import tokenized
from nima.encoding.conversation.templates import ChatTemplate
from nima.encoding.token_writer import TokenWriter
from nima.tokenizer import Tokenizer

HOSTILE = "<script>alert('x')</script> <b>&amp; \x1b[31mred\x1b[0m \u202eevil\x07 [bold]x[/bold] {{ 7 * 7 }}"
TEXTS = {
    "note.md": "How to restart the server:\n\n\tsystemctl restart server\n",
    "signs.md": "Grüße an alle: 🚀🇩🇪 a\u00a0b – 你好\n",
    "hostile.md": HOSTILE,
}
TURNS = (("system", "Be brief."), ("user", "What listens on port 53?"), ("assistant", "DNS.\nNothing else."))
REJECTIONS = [
    ("guides", "short.md", "too_short", "12 characters, quality.min_chars = 40", "Too short."),
    ("guides", "long.md", "too_long", "", "x" * 5000),
    ("chats", "bad.json#3", "too_short", "0 characters", f"{HOSTILE}\n"),
]


def documents() -> list[Document]:
    found = [
        Document(document_id("guides", key), "guides", key, "0" * 16, 2.0, "MIT", text, None)
        for key, text in TEXTS.items()
    ]
    key = "talk.json#0"
    messages = tuple(Message(role, content) for role, content in TURNS)
    return [*found, Document(document_id("chats", key), "chats", key, "1" * 16, 0.5, "", "", messages)]


def write_project(root: Path) -> None:
    """data/tokens, data/splits, data/rejected and models/tokenizer; the third document is in no split."""
    tokenizer = Tokenizer.train([text * 3 for text in TEXTS.values()], 320)
    tokenizer.save(root / "models" / "tokenizer")
    template = ChatTemplate.of(tokenizer)
    with TokenWriter(root / "data" / "tokens", tokenizer.vocab_size, 10_000) as writer:
        for document in tokenized(documents(), tokenizer, template, settings(loss_on="assistant")):
            assert isinstance(document, TokenizedDocument)
            writer.write(document)
    assignment = {"train": [0, 3], "validation": [1], "test": []}
    splits.save(root / "data" / "splits", {name: np.array(numbers) for name, numbers in assignment.items()})
    rejected = [Rejection(document_id(*row[:2]), *row) for row in REJECTIONS]
    write_rejections(root / "data" / "rejected", rejected)
