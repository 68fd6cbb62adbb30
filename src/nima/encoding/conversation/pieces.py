"""A document as pieces: contents, the template's own text, and its special tokens.

A template writes contents and special tokens into one text, where a `<|im_end|>` that a user typed looks like
the template's own. So it writes the conversation twice, the second time with marks in place of the contents.
What stands between the marks is the template's, what stands in their places is the user's and never a token.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise, takewhile
from typing import TYPE_CHECKING, NamedTuple

from nima.encoding.conversation import ASSISTANT, ROLES, SYSTEM, DropReason, LossOn
from nima.encoding.conversation.templates import ChatTemplate, RefusedError, Rendering
from nima.workspace.errors import UserError

if TYPE_CHECKING:
    from nima.corpus.document import Document

Messages = Sequence[Mapping[str, str]]
"""Each with `role` and `content`."""

# Two private-use characters that no template writes, around the number of a message.
MARK = re.compile("\ue0f0([0-9]+)\ue0f1")
# Conversations have few different sequences of roles, but for very long ones.
CACHED_SKELETONS = 1024
CACHED_TURNS = 32


class Piece(NamedTuple):
    """A stretch of a document. Neighbours of plain text are tokenized as one."""

    text: str
    special: bool
    """One special token, by its name. Else plain text, in which such names are only text."""
    trained: bool
    """Its tokens are targets of the loss."""


class Transcript(NamedTuple):
    """A conversation from its first token to its end token."""

    pieces: list[Piece]
    answer: int | None
    """The piece with which the content of the last answer begins, if that was asked and there is one."""


class UnusableError(Exception):
    """The template does not take this conversation; others it may."""

    def __init__(self, reason: DropReason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class Place(NamedTuple):
    """Where a message's content stands in the text: [start, end)."""

    start: int
    end: int
    message: int


@dataclass(frozen=True, slots=True)
class Skeleton:
    """What a template writes around contents: a literal, the content of message `order[0]`, a literal, …"""

    literals: tuple[str, ...]
    order: tuple[int, ...]
    specials: tuple[tuple[tuple[int, int], ...], ...]
    """Where in each literal its special tokens are."""
    left_out: tuple[int, ...]
    """Messages of which it writes nothing."""


class Layout:
    """Lays conversations out by a chat template.

    `loss_on`: "all" trains every token, "assistant" what the template puts into {% generation %}; without
    such blocks, the contents of the assistant's turns and the tokens that end them.
    Raises `UserError` when the tokenizer lacks the template's begin or end token.
    """

    def __init__(
        self,
        template: ChatTemplate,
        special_names: Iterable[str],
        loss_on: LossOn,
        system_prompt: str | None = None,
        find_answer: bool = False,
    ) -> None:
        names = sorted(special_names, key=lambda name: (-len(name), name))
        for name in (template.bos_token or template.eos_token, template.eos_token):
            if name not in names:
                raise UserError(f"the tokenizer has no special token {name!r}; it has {', '.join(names)}")
        self.template, self.loss_on, self.find_answer = template, loss_on, find_answer
        self.system_prompt = (system_prompt or "").strip()
        self.special = re.compile("(" + "|".join(map(re.escape, names)) + ")")
        self.skeletons: dict[tuple[str, ...], Skeleton] = {}

    def messages_of(self, document: Document) -> list[dict[str, str]]:
        """A conversation's messages, behind the system prompt if they have none of their own."""
        messages = [{"role": turn.role, "content": turn.content} for turn in document.messages or ()]
        if self.system_prompt and messages and all(turn["role"] != SYSTEM for turn in messages):
            messages.insert(0, {"role": SYSTEM, "content": self.system_prompt})
        return messages

    def transcript(self, messages: Messages) -> Transcript:
        """A conversation as pieces.

        Raises `UnusableError` when the template does not take these messages, `UserError` when nothing would
        be trained, an end would not be learnt, or a content can't be found in the text.
        """
        roles = tuple(turn["role"] for turn in messages)
        self.check_roles(roles)
        skeleton = self.skeleton(roles)
        rendering = self.rendering(messages)
        places = list(self.places(skeleton, messages, rendering.text))
        trained = self.trained_ranges(roles, skeleton, rendering, places)
        answers = [place.start for place in places if self.find_answer and roles[place.message] == ASSISTANT]
        cuts = sorted({*chain.from_iterable(trained), *answers[-1:]})
        starts, pieces = cut(rendering.text, special_places(skeleton, places), cuts, trained)
        if not any(piece.trained for piece in pieces):
            raise self.nothing_trained(roles)
        self.check_answers_end(roles, pieces)
        return self.bordered(pieces, bisect_left(starts, answers[-1]) if answers else None)

    def check_roles(self, roles: Sequence[str]) -> None:
        if not roles or (self.loss_on == "assistant" and ASSISTANT not in roles):
            raise self.nothing_trained(roles)
        if unknown := [role for role in roles if role not in ROLES]:
            expected = f"expected one of {', '.join(ROLES)}"
            raise UnusableError("unknown_role", f"a message has the role {unknown[0]!r}; {expected}")

    def nothing_trained(self, roles: Sequence[str]) -> UserError:
        found = f"only messages of {', '.join(dict.fromkeys(roles))}" if roles else "no messages"
        needed = f"an {ASSISTANT} message"
        if self.template.marks_generated:
            needed += " inside the chat template's {% generation %}"
        return UserError(
            f"the conversation trains no token: it has {found}; with tokenize.loss_on = {self.loss_on} it "
            f"needs {needed}"
        )

    # ------------------------------------------------------------------------------- where contents stand

    def rendering(self, messages: Messages) -> Rendering:
        try:
            return self.template.render(messages)
        except RefusedError as error:
            raise UnusableError("refused_by_template", f"{self.template.place}: {error}") from None

    def skeleton(self, roles: tuple[str, ...]) -> Skeleton:
        if (known := self.skeletons.get(roles)) is not None:
            return known
        marked = [{"role": role, "content": f"\ue0f0{number}\ue0f1"} for number, role in enumerate(roles)]
        parts = MARK.split(self.rendering(marked).text)
        order = tuple(map(int, parts[1::2]))
        left_out = tuple(sorted(set(range(len(roles))) - set(order)))
        literals = tuple(parts[::2])
        specials = tuple(tuple(found.span() for found in self.special.finditer(part)) for part in literals)
        found = Skeleton(literals, order, specials, left_out)
        if len(roles) <= CACHED_TURNS:
            if len(self.skeletons) >= CACHED_SKELETONS:
                self.skeletons.clear()
            self.skeletons[roles] = found
        return found

    def places(self, skeleton: Skeleton, messages: Messages, text: str) -> Iterator[Place]:
        """Where each content stands, whole or without white space at its ends."""
        for number in skeleton.left_out:
            if messages[number]["content"].strip():
                role = messages[number]["role"]
                detail = f"{self.template.place} writes nothing of message {number} ({role})"
                raise UnusableError("left_out_by_template", detail)
        position = len(skeleton.literals[0])
        if not text.startswith(skeleton.literals[0]):
            raise self.changed(messages, 0)
        for number, literal in zip(skeleton.order, skeleton.literals[1:], strict=True):
            place = located(messages[number]["content"], text, position, literal)
            if place is None:
                raise self.changed(messages, number)
            yield Place(*place, number)
            position = place[1] + len(literal)
        if position != len(text):
            raise self.changed(messages, len(messages) - 1)

    def changed(self, messages: Messages, number: int) -> UserError:
        return UserError(
            f"{self.template.place}: changes message {number} ({messages[number]['role']}) by more than the "
            "white space at its ends, or writes other text because of it, so what is trained can't be told"
        )

    # ---------------------------------------------------------------------------------- what is trained

    def trained_ranges(
        self, roles: tuple[str, ...], skeleton: Skeleton, rendering: Rendering, places: Sequence[Place]
    ) -> Sequence[tuple[int, int]]:
        """[start, end) in the text, ascending and disjoint."""
        if self.loss_on == "all":
            return [(0, len(rendering.text))]
        if self.template.marks_generated:
            return rendering.generated
        endings = self.endings_of_answers(roles)
        return [
            (place.start, place.end + next((len(end) for end in endings if literal.startswith(end)), 0))
            for place, literal in zip(places, skeleton.literals[1:], strict=True)
            if roles[place.message] == ASSISTANT
        ]

    def endings_of_answers(self, roles: tuple[str, ...]) -> list[str]:
        """What an assistant ends its turns with: text up to each token of the first row of special ones.

        It is what the template writes after an answer that nothing follows. Elsewhere the beginning of the
        next turn stands there too. Longest first.
        """
        last = len(roles) - 1 - roles[::-1].index(ASSISTANT)
        skeleton = self.skeleton(roles[: last + 1])
        number = max((place for place, message in enumerate(skeleton.order) if message == last), default=None)
        tail = "" if number is None else skeleton.literals[number + 1]
        ends: list[int] = []
        for found in self.special.finditer(tail):
            if ends and found.start() != ends[-1]:
                break
            ends.append(found.end())
        if tail.strip() and not ends:
            raise UserError(
                f"{self.template.place}: ends an answer with {tail.strip()!r}, which is no special token of "
                "the tokenizer, so its end would not be learnt; add it to tokenize.special_tokens"
            )
        return [tail[:end] for end in reversed(ends)]

    def check_answers_end(self, roles: Sequence[str], pieces: Sequence[Piece]) -> None:
        """Refuses a template whose {% generation %} ends before the token that ends the turn."""
        if self.loss_on == "all" or roles[-1] != ASSISTANT:
            return
        last = max(number for number, piece in enumerate(pieces) if piece.trained)
        after = next((piece.text for piece in pieces[last + 1 :] if piece.special), None)
        if after is not None and not pieces[last].special:
            raise UserError(
                f"{self.template.place}: its {{% generation %}} ends before {after}, so the end of an answer "
                "would not be learnt; write that token inside"
            )

    def bordered(self, pieces: list[Piece], answer: int | None) -> Transcript:
        """With one end token, which is trained, and at most one begin token.

        Where one token is both, the one that ends the document before begins this one.
        """
        bos, eos = self.template.bos_token, self.template.eos_token
        num_begins = sum(1 for _ in takewhile(lambda piece: piece.special and piece.text == bos, pieces))
        if num_begins > 1:
            raise UserError(
                f"{self.template.place}: writes {bos} {num_begins} times at the beginning; expected once"
            )
        if num_begins and bos == eos:
            pieces, answer = pieces[1:], answer and answer - 1
        if pieces and pieces[-1].special and pieces[-1].text == eos:
            pieces = pieces[:-1]
        return Transcript([*pieces, Piece(eos, True, True)], answer)


def special_places(skeleton: Skeleton, places: Sequence[Place]) -> Iterator[tuple[int, int]]:
    """[start, end) of the template's special tokens in the text."""
    position = 0
    for number, specials in enumerate(skeleton.specials):
        for start, end in specials:
            yield position + start, position + end
        if number < len(places):
            position = places[number].end


def cut(
    text: str, specials: Iterable[tuple[int, int]], cuts: Sequence[int], trained: Sequence[tuple[int, int]]
) -> tuple[list[int], list[Piece]]:
    """Where each piece of the text begins, and the pieces; plain text is cut at `cuts`."""
    borders = list(chain.from_iterable(trained))
    starts: list[int] = []
    pieces: list[Piece] = []

    def add(start: int, end: int, special: bool) -> None:
        starts.append(start)
        # Trained ranges do not overlap: behind an odd number of borders is the inside of one.
        pieces.append(Piece(text[start:end], special, bisect_right(borders, start) % 2 == 1))

    position = 0
    for start, end in chain(specials, [(len(text), len(text))]):
        if position < start:
            inner = cuts[bisect_right(cuts, position) : bisect_left(cuts, start)]
            for first, last in pairwise((position, *inner, start)):
                add(first, last, False)
        if start < end:
            add(start, end, True)
        position = end
    return starts, pieces


def located(content: str, text: str, start: int, following: str) -> tuple[int, int] | None:
    """[start, end) of a content that begins at `start` and stands before `following`.

    The white space at its ends may be there or not. None when the content isn't there.
    """
    core = content.strip()
    lead, _, trail = content.partition(core) if core else ("", "", content)
    first = text.find(core, start, start + len(lead) + len(core))
    if first < 0 or not lead.endswith(text[start:first]):
        return None
    last = first + len(core)
    for kept in dict.fromkeys((trail, "", trail.rstrip("\n"))):
        if text.startswith(kept + following, last):
            return start, last + len(kept)
    return None
