"""Documents and rejected records on a terminal: in colour, or with signs where there is none."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.text import Text

from nima.inspection.characters import visible
from nima.inspection.documents import DocumentView, TokenView
from nima.inspection.rejections import Rejections, excerpt

# Ink and paper both, so that a light and a dark terminal show the same; neighbouring tokens differ in shade.
TRAINED = ("#10151c on #a8dab5", "#10151c on #7cc48f")
UNTRAINED = ("#10151c on #d9dce1", "#10151c on #bcc1c9")
SPECIAL = "bold italic"
CODED = "underline"
DIM = "dim"


def console(*, colour: bool = True) -> Console:
    """Writes to the standard output; colour only where that is a terminal that has it and wants it."""
    return Console(highlight=False, soft_wrap=True, no_color=None if colour else True)


def has_colour(out: Console) -> bool:
    return out.color_system is not None and not out.no_color


def show_documents(out: Console, documents: Iterable[DocumentView], *, ids: bool) -> None:
    colour = has_colour(out)
    out.print(legend(colour))
    for document in documents:
        out.print()
        out.print(Text(heading(document), style="bold"))
        out.print(coloured(document, ids=ids) if colour else Text(signed(document, ids=ids)))
        if document.num_hidden_tokens:
            out.print(Text(f"… and {document.num_hidden_tokens:,} more tokens", style=DIM))


def heading(document: DocumentView) -> str:
    return (
        f"{document.id}  source {document.source}  split {document.split}  weight {document.weight:g}  "
        f"{document.num_tokens:,} tokens  {document.num_bytes:,} bytes  "
        f"{document.num_trained_tokens:,} trained"
    )


def legend(colour: bool) -> Text:
    if not colour:
        return Text(
            "│ parts tokens, ⟪ ⟫ enclose what is not trained, ‹ › special tokens, ⟨ ⟩ bytes and codes"
        )
    trained, untrained = (" trained ", TRAINED[0]), (" not trained ", UNTRAINED[0])
    return Text.assemble(
        trained, " ", untrained, " ", ("special token", SPECIAL), " ", ("bytes, codes", CODED)
    )


def coloured(document: DocumentView, *, ids: bool) -> Text:
    text = Text()
    for number, token in enumerate(document.tokens):
        shade = (TRAINED if token.trained else UNTRAINED)[number % 2]
        for part in token.parts:
            kind = SPECIAL if token.special else CODED if part.coded else ""
            text.append(part.text, f"{shade} {kind}")
        if ids:
            text.append(f" {token.id}", f"{shade} {DIM}")
        text.append(token.line_ends)
    return text


def signed(document: DocumentView, *, ids: bool) -> str:
    return "".join(signs(document.tokens, ids=ids))


def signs(tokens: Iterable[TokenView], *, ids: bool) -> Iterator[str]:
    trained = True
    for number, token in enumerate(tokens):
        if token.trained != trained:
            yield "⟫" if token.trained else "⟪"
        elif number:
            yield "│"
        trained = token.trained
        for part in token.parts:
            yield f"‹{part.text}›" if token.special else f"⟨{part.text}⟩" if part.coded else part.text
        if ids:
            yield f" {token.id}"
        yield token.line_ends
    if not trained:
        yield "⟫"


def show_rejections(out: Console, found: Rejections) -> None:
    total = sum(found.counts.values())
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in found.counts.items())
    out.print(Text(f"{total:,} rejected: {reasons}" if total else "Nothing was rejected."))
    for record in found.records:
        out.print()
        out.print(Text(f"{record.reason}  {record.source}: {plain(record.key)}", style="bold"))
        if record.detail:
            out.print(Text(plain(record.detail)))
        out.print(Text(plain(excerpt(record)), style=DIM))


def plain(text: str) -> str:
    return "".join(f"⟨{part.text}⟩" if part.coded else part.text for part in visible(text))
