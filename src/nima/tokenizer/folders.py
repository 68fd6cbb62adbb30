"""Tokenizers as Hugging Face folders: read, made lossless where that is possible, and written."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from nima.tokenizer.special_tokens import CHAT_TEMPLATE, END_OF_TEXT, PAD, SPECIAL_TOKENS
from nima.tokenizer.vocabulary import described
from nima.workspace.errors import UserError

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"
# GPT-2's own files and what `transformers` calls them.
VOCABULARY_AND_MERGES = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
FILES = (
    *(TOKENIZER_FILE, CONFIG_FILE, TEMPLATE_FILE, "special_tokens_map.json", "config.json"),
    *(name for pair in VOCABULARY_AND_MERGES for name in pair),
    *("added_tokens.json", "tokenizer.model"),
)
"""What a folder may hold of a tokenizer."""


@dataclass(frozen=True)
class Roles:
    """The names of tokens that have a task."""

    end_of_text: str = END_OF_TEXT
    pad: str = PAD
    begin: str | None = END_OF_TEXT
    """Stands before the first text; None: nothing does."""
    unknown: str | None = None

    def config(self) -> dict[str, str]:
        """As tokenizer_config.json names them."""
        named = {"bos_token": self.begin, "eos_token": self.end_of_text, "pad_token": self.pad}
        named |= {"unk_token": self.unknown}
        return {key: name for key, name in named.items() if name is not None}


NIMA_ROLES = Roles()


@dataclass(frozen=True)
class Pretrained:
    """Somebody else's tokenizer, ready for use."""

    reference: tokenizers.Tokenizer
    roles: Roles
    chat_template: str
    changes: dict[str, Any] = field(default_factory=dict)
    """What is other than in the folder that it was read from."""


# --------------------------------------------------------------------------------------------- reading


def read_reference(path: Path) -> tokenizers.Tokenizer:
    """Reads a tokenizer.json. Raises `UserError` naming it."""
    try:
        return tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({one_line(error)})") from error
    except Exception as error:  # `tokenizers` raises nothing more special than this
        raise UserError(f"{path}: is no tokenizer ({one_line(error)})") from error


def read_config(folder: Path) -> tuple[Roles, str | None]:
    """The roles and the chat template that a folder states; a role that it leaves open is Nima's own."""
    config = read_json(folder / CONFIG_FILE)
    named = read_json(folder / "special_tokens_map.json") | config
    roles = Roles(
        end_of_text=token_name(named.get("eos_token")) or END_OF_TEXT,
        pad=token_name(named.get("pad_token")) or PAD,
        begin=token_name(named.get("bos_token")) if named else END_OF_TEXT,
        unknown=token_name(named.get("unk_token")),
    )
    return roles, chat_template_of(folder, config)


def read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({one_line(error)})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, expected an object of settings")
    return content


def token_name(value: Any) -> str | None:
    """A token in a config: its name, or an object that describes it."""
    name = value.get("content") if isinstance(value, dict) else value
    return name if isinstance(name, str) and name else None


def chat_template_of(folder: Path, config: dict[str, Any]) -> str | None:
    """The template in its own file or in the config; of several, the one called default."""
    path = folder / TEMPLATE_FILE
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: cannot be read ({one_line(error)})") from None
    found = config.get("chat_template")
    if isinstance(found, list):
        named = {each.get("name"): each.get("template") for each in found if isinstance(each, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None


def one_line(error: Exception) -> str:
    return " ".join(str(getattr(error, "strerror", None) or error).split())[:300]


# ------------------------------------------------------------------------------------------ pretrained

HUB_ID = re.compile(r"(?P<name>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[\w./-]+))?")


def pretrained_folder(place: str, downloads: Path) -> Path:
    """The folder `place`, or what the hub has under this id (`owner/name`, `owner/name@revision`).

    What was fetched is kept in `downloads`, and later runs need no network. Raises `UserError`.
    """
    if Path(place).is_dir():
        return Path(place)
    found = HUB_ID.fullmatch(place)
    if found is None or place.startswith("."):
        raise UserError(f"tokenize.pretrained: {place}: no such folder, and no hub id (owner/name)")
    fetch = partial(
        hub_snapshot,
        found["name"],
        revision=found["revision"],
        cache_dir=downloads,
        allow_patterns=list(FILES),
    )
    try:
        return fetch(local_files_only=True)
    except FileNotFoundError:
        pass
    try:
        return fetch(local_files_only=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"tokenize.pretrained: {place}: no such folder, and the hub does not give it: {one_line(error)}"
        ) from None


def hub_snapshot(name: str, **settings: Any) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, **settings))


def read_pretrained(folder: Path, special: Iterable[str], chat_template: str | None) -> Pretrained:
    """A tokenizer that was trained elsewhere, with what Nima needs beside.

    `special`: own special tokens. `chat_template`: None takes the tokenizer's own one, else Nima's. Tokens
    are added at the end of the vocabulary, and only where they are missing: an end of text, a pad that is not
    the end of text too (which software that leaves pads out of the loss would never let a model learn), the
    tokens of Nima's chat template if that is used. Raises `UserError`.
    """
    roles, own_template = read_config(folder)
    template = chat_template or own_template or CHAT_TEMPLATE
    reference, has_space = without_space_in_front(reference_in(folder))
    reference.no_truncation()
    reference.no_padding()
    if roles.pad == roles.end_of_text:
        roles = replace(roles, pad=PAD)
    if roles.unknown and reference.token_to_id(roles.unknown) is None:
        roles = replace(roles, unknown=None)
    turns = [name for name in SPECIAL_TOKENS[2:] if name in template]
    needed = list(dict.fromkeys([*roles.config().values(), *turns, *special]))
    added = [name for name in needed if reference.token_to_id(name) is None]
    known = {token.content for token in reference.get_added_tokens_decoder().values() if token.special}
    reference.add_special_tokens([AddedToken(name, normalized=False) for name in needed if name not in known])
    changes = {"added_tokens": added, "space_in_front_removed": has_space}
    return Pretrained(reference, roles, template, changes)


def reference_in(folder: Path) -> tokenizers.Tokenizer:
    if (folder / TOKENIZER_FILE).is_file():
        return read_reference(folder / TOKENIZER_FILE)
    for vocabulary, merges in VOCABULARY_AND_MERGES:
        if (folder / vocabulary).is_file() and (folder / merges).is_file():
            return gpt2_reference(folder / vocabulary, folder / merges)
    if (folder / "tokenizer.model").is_file():
        return converted_reference(folder)
    raise UserError(f"{folder}: holds no tokenizer; expected {TOKENIZER_FILE} in it")


def gpt2_reference(vocabulary: Path, merges: Path) -> tokenizers.Tokenizer:
    try:
        reference = tokenizers.Tokenizer(models.BPE.from_file(str(vocabulary), str(merges)))
    except Exception as error:  # `tokenizers` raises nothing more special than this
        raise UserError(f"{vocabulary}: is no vocabulary with {merges.name} ({one_line(error)})") from error
    reference.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    reference.decoder = decoders.ByteLevel()
    return reference


def converted_reference(folder: Path) -> tokenizers.Tokenizer:
    """A SentencePiece model as `transformers` converts it, but for those that bring code of their own."""
    for name in (CONFIG_FILE, "config.json"):
        if "auto_map" in read_json(folder / name):
            raise UserError(
                f"{folder / name}: asks to run code of its own; expected a folder without auto_map"
            )
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise UserError(
            f"{folder}: has no {TOKENIZER_FILE}; to convert its tokenizer.model needs the extra hf: "
            "pip install 'nima-lm[hf]'"
        ) from None
    try:
        reference: tokenizers.Tokenizer = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True
        ).backend_tokenizer
    except Exception as error:  # whatever a broken file makes of the conversion
        raise UserError(f"{folder}: tokenizer.model cannot be converted ({one_line(error)})") from error
    return reference


def without_space_in_front(reference: tokenizers.Tokenizer) -> tuple[tokenizers.Tokenizer, bool]:
    """The tokenizer without the space that some put before every text, and whether it had one.

    With it, a text and its parts would have other bytes than their tokens, and `x` could come back as ` x`.
    Only the first word of a text has other tokens without it.
    """
    before = described(reference)
    after = dict(before)
    for role in ("normalizer", "pre_tokenizer", "decoder"):
        after[role] = unprefixed(before[role], role)
    if after == before:
        return reference, False
    return tokenizers.Tokenizer.from_str(json.dumps(after)), True


def unprefixed(part: dict[str, Any] | None, role: str) -> dict[str, Any] | None:
    """A normalizer, pre-tokenizer or decoder that neither puts a space in front nor takes one away."""
    if part is None or part["type"] == "Prepend" or (part["type"] == "Strip" and role == "decoder"):
        return None
    changed = dict(part)
    for key in ("normalizers", "pretokenizers", "decoders"):
        if key in part:
            changed[key] = [inner for each in part[key] if (inner := unprefixed(each, role))]
    if part["type"] == "Metaspace":
        changed["prepend_scheme"] = "never"
    if part["type"] == "ByteLevel" and role == "pre_tokenizer":
        changed["add_prefix_space"] = False
    return changed


# --------------------------------------------------------------------------------------------- writing


def write_folder(
    folder: Path,
    reference: tokenizers.Tokenizer,
    roles: Roles,
    chat_template: str,
    context_tokens: int | None,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    written = reference.to_str(pretty=True)
    (folder / TOKENIZER_FILE).write_text(written + "\n", encoding="utf-8")
    config: dict[str, Any] = {
        # Reads tokenizer.json as it stands; the classes of single models build their own from parts of it.
        "tokenizer_class": "PreTrainedTokenizerFast",
        **roles.config(),
        "clean_up_tokenization_spaces": False,
        "chat_template": chat_template,
    }
    if context_tokens is not None:
        config["model_max_length"] = context_tokens
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
