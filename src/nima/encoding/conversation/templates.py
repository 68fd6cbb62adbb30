"""Chat templates: how messages become one text, in the language that `transformers` reads.

A template is Jinja in a sandbox. It sees what it sees there, so the text is the same. What it can't have is
the clock: `strftime_now` is undefined, and templates that ask whether it is fall back to a fixed date.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn, Protocol

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from nima.tokenizer.special_tokens import CHAT_TEMPLATE, END_OF_TEXT
from nima.workspace.errors import UserError


class RefusedError(jinja2.TemplateError):
    """The template called `raise_exception`: it has no place for such a conversation."""


@dataclass(frozen=True, slots=True)
class Rendering:
    text: str
    generated: tuple[tuple[int, int], ...]
    """[start, end) of the text inside {% generation %}, ascending; empty without such blocks."""


class TokenRoles(Protocol):
    @property
    def begin(self) -> str | None: ...

    @property
    def end_of_text(self) -> str: ...


class ChatTokenizer(Protocol):
    """What is read of a tokenizer: its template and the names of its begin and end token."""

    @property
    def chat_template(self) -> str: ...

    @property
    def roles(self) -> TokenRoles: ...


@dataclass(frozen=True)
class ChatTemplate:
    """A template, and the names of the tokenizer's begin and end token; "" for none."""

    text: str
    place: str = "tokenize.chat_template"
    """Names it in messages."""
    bos_token: str = END_OF_TEXT
    eos_token: str = END_OF_TEXT

    @classmethod
    def load(cls, path: str | Path | None) -> ChatTemplate:
        """The template in a file, or ChatML. Raises `UserError` for a file that is no template."""
        if path is None:
            return cls(CHAT_TEMPLATE)
        return cls(read(Path(path)), str(path)).checked()

    @classmethod
    def of(cls, tokenizer: ChatTokenizer) -> ChatTemplate:
        """The template that was saved with a tokenizer, and that tokenizer's tokens. Raises `UserError`."""
        roles = tokenizer.roles
        return cls(tokenizer.chat_template, cls.place, roles.begin or "", roles.end_of_text).checked()

    def checked(self) -> ChatTemplate:
        """This template. Raises `UserError` naming the line that is not Jinja."""
        _ = self._compiled
        return self

    @property
    def marks_generated(self) -> bool:
        """Whether it says itself, by {% generation %}, what an assistant writes."""
        return self._compiled[0].blocks.num_blocks > 0

    def render(self, messages: Sequence[Mapping[str, str]]) -> Rendering:
        """The whole conversation, without a prompt for the next answer.

        Raises `RefusedError` with the template's own words, and `UserError` when it fails in another way.
        """
        environment, template = self._compiled
        variables = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": False}
        tokens = {"bos_token": self.bos_token, "eos_token": self.eos_token}
        try:
            return environment.blocks.watched(template.generate(**variables, **tokens))
        except RefusedError:
            raise
        except (
            Exception
        ) as error:  # a template is the user's program: whatever it raises is the user's to mend
            raise UserError(f"{self.place}{line_of(error)}: {described(error)}") from None

    @cached_property
    def _compiled(self) -> tuple[TemplateEnvironment, jinja2.Template]:
        environment = TemplateEnvironment()
        try:
            return environment, environment.from_string(self.text)
        except jinja2.TemplateSyntaxError as error:
            raise UserError(f"{self.place}:{error.lineno}: is no Jinja template: {error.message}") from None

    def __reduce__(self) -> tuple[type, tuple[str, ...]]:
        # What is compiled doesn't travel between processes.
        return ChatTemplate, (self.text, self.place, self.bos_token, self.eos_token)


def read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}") from None


# --------------------------------------------------------------------------------------------- the sandbox


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """Jinja as `transformers` sets it up, without the clock."""

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlocks, "jinja2.ext.loopcontrols"]
        )
        self.filters["tojson"] = to_json
        self.globals["raise_exception"] = refuse
        self.blocks: GenerationBlocks = self.extensions[GenerationBlocks.identifier]  # type: ignore[assignment]


class GenerationBlocks(Extension):
    """{% generation %}…{% endgeneration %}: notes where in the text the block's own text comes to lie."""

    tags = {"generation"}  # noqa: RUF012 - declared so by Jinja

    def __init__(self, environment: jinja2.Environment) -> None:
        super().__init__(environment)
        self.num_blocks = 0
        self.num_chars = 0
        self.found: list[tuple[int, str]] = []

    def parse(self, parser: Parser) -> nodes.Node:
        self.num_blocks += 1
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_noted"), [], [], body).set_lineno(line)

    def _noted(self, caller: Callable[[], str]) -> str:
        text = caller()
        self.found.append((self.num_chars, text))
        return text

    def watched(self, parts: Iterable[str]) -> Rendering:
        """What a template writes, part by part, and where its blocks are in it."""
        self.num_chars, self.found = 0, []
        written = []
        for part in parts:
            written.append(part)
            self.num_chars += len(part)
        text = "".join(written)
        # A block inside a macro, or one that a filter changes, isn't where the text stood when it was noted.
        if not all(text.startswith(found, start) for start, found in self.found):
            raise jinja2.TemplateError("{% generation %} must stand outside of macros, filters and {% set %}")
        return Rendering(text, tuple((start, start + len(found)) for start, found in self.found if found))


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes what is special in HTML, which is wrong in a prompt."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def refuse(message: str) -> NoReturn:
    raise RefusedError(message)


def line_of(error: Exception) -> str:
    lines = [
        frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == "<template>"
    ]
    return f":{lines[-1]}" if lines else ""


def described(error: Exception) -> str:
    if "strftime_now" in str(error):
        return "strftime_now is not offered, since today's date would change the tokens; write a fixed date"
    return f"the template fails: {type(error).__name__}: {' '.join(str(error).split())}"
