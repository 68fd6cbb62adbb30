"""Text to token ids and back, without loss, for every kind of vocabulary.

`tokenizers` trains and writes tokenizer.json, which by definition is right. Where it is certain to give the
same ids, something faster encodes: tiktoken from the same merges, or a table.
"""

import itertools
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from nima.tokenizer import folders, learning
from nima.tokenizer.encoders import Encoder, encoder_of, normal_form
from nima.tokenizer.folders import NIMA_ROLES, Roles
from nima.tokenizer.learning import checked, short
from nima.tokenizer.special_tokens import CHAT_TEMPLATE
from nima.tokenizer.vocabulary import described, vocabulary_of
from nima.workspace.errors import UserError
from nima.workspace.params import TokenizeParams

NUM_BYTES = 256


class Tokenizer:
    """A view of one trained tokenizer; it never changes."""

    def __init__(
        self,
        reference: tokenizers.Tokenizer,
        roles: Roles = NIMA_ROLES,
        chat_template: str = CHAT_TEMPLATE,
        changes: dict[str, Any] | None = None,
    ) -> None:
        """Wraps a tokenizer of the `tokenizers` package, which must hold the tokens that `roles` names."""
        description = described(reference)
        # In text, the names of special tokens are text.
        reference.encode_special_tokens = True
        self._reference = reference
        self._description: dict[str, Any] | None = description
        self._vocabulary = vocabulary_of(reference, description)
        self.roles = roles
        self.chat_template = chat_template
        """Jinja, in the form of `transformers`; saved with the tokenizer."""
        self.changes = changes or {}
        """What is other than in the folder of a pretrained tokenizer: tokens added, a space left out."""
        self.special_ids = self._vocabulary.special
        """Every token that stands for no text, by name."""
        self.vocab_size = len(self._vocabulary.tokens)
        self.end_of_text = self._id_of(roles.end_of_text)
        """Ends a document, and stands before the first where there is no begin token."""
        self.pad = self._id_of(roles.pad)
        """Fills rows of a batch. Never the end of text, which has to be learnt."""
        self.begin = None if roles.begin is None else self._id_of(roles.begin)
        """What the model expects before a text; None if nothing. Of Nima's own kinds, the end of text."""
        self.normal_form = normal_form(description)
        """The form of Unicode (NFC, ...) that it brings all text into; None: text is left as it is."""

    @cached_property
    def _encoder(self) -> Encoder | None:
        """Made at the first text: whoever only reads about the tokens need not wait for it."""
        description = self._description or described(self._reference)
        self._description = None  # as large as the vocabulary
        return encoder_of(self._reference, description, self._vocabulary)

    @cached_property
    def _singles(self) -> dict[bytes, int]:
        return self._vocabulary.single_bytes()

    def _id_of(self, name: str) -> int:
        if name not in self.special_ids:
            raise UserError(f"the tokenizer has no token {name}; Nima needs it, special")
        return self.special_ids[name]

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, special_tokens: Iterable[str] = ()) -> "Tokenizer":
        """Learns byte-level BPE of at most `vocab_size` tokens, special ones and the 256 bytes included.

        Fewer come out when the texts hold too few repeated pairs. The same texts in any number of threads
        give the same tokenizer. `special_tokens` are the user's own, beside Nima's.
        """
        special = learning.all_special(special_tokens)
        check_room(vocab_size, special)
        return cls(learning.learnt_bpe(texts, vocab_size, special))

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """Reads what `save` wrote into `folder`. Raises `UserError` when it is missing or broken."""
        path = folder / folders.TOKENIZER_FILE
        try:
            reference = folders.read_reference(path)
            roles, chat_template = folders.read_config(folder)
            return cls(reference, roles, chat_template or CHAT_TEMPLATE)
        except UserError as error:
            place = "" if str(error).startswith(str(folder)) else f"{path}: "
            raise UserError(f"{place}{error}; the stage tokenize writes it") from error

    def save(self, folder: Path, context_tokens: int | None = None) -> None:
        """Writes a tokenizer that Hugging Face's AutoTokenizer loads without custom code.

        `context_tokens`: the longest sequence of the model that it is for, if it is for one. There,
        `tok(text)` puts the begin token in front and reads the names of special tokens as such tokens;
        `tok(text, split_special_tokens=True)` reads them as text, as Nima does.
        """
        folders.write_folder(folder, self._reference, self.roles, self.chat_template, context_tokens)

    def encode(self, text: str) -> list[int]:
        """Token ids; the names of special tokens are text. Raises `UserError` on a lone surrogate."""
        ids: list[int] = self._encode(text).tolist()
        return ids

    def encode_many(self, texts: Sequence[str], threads: int = 1) -> list[np.ndarray]:
        """The ids of each text as uint32."""
        if threads == 1:
            return [self._encode(text) for text in texts]
        # Shares of work that are long beside the switch between threads.
        shares = [texts[start : start + 64] for start in range(0, len(texts), 64)]
        with ThreadPoolExecutor(threads) as pool:
            return list(itertools.chain.from_iterable(pool.map(self.encode_many, shares)))

    def encode_ended(self, texts: Sequence[str], end: str) -> tuple[np.ndarray, np.ndarray]:
        """The ids of all texts as one array, each text followed by the special token `end`; uint32.

        And int64: how many each has, that token included.
        """
        number, encode = self.special_ids[end], self._encoder and self._encoder.encode_ended
        with suppress(UnicodeEncodeError):  # by itself the text is named
            ids = encode(texts, end) if encode and texts else None
            if ids is not None:
                return ids, np.diff(np.flatnonzero(ids == number), prepend=-1)
        found = [np.append(ids, np.uint32(number)) for ids in self.encode_many(texts)]
        return np.concatenate([np.zeros(0, np.uint32), *found]), np.array([*map(len, found)], np.int64)

    def _encode(self, text: str) -> np.ndarray:
        try:
            ids = None if self._encoder is None else self._encoder.encode(text)
        except UnicodeEncodeError:
            checked(text)
            raise
        return np.array(self.reference_ids(text), dtype=np.uint32) if ids is None else ids

    def reference_ids(self, text: str) -> list[int]:
        """What tokenizer.json gives: by definition right, and slower than `encode`.

        Text that SentencePiece's vocabularies cannot tell from their own marks is spelled in bytes.
        """
        checked(text)
        unspellable = self._vocabulary.unspellable
        if unspellable is None or unspellable.search(text) is None:
            return self._reference_ids(text)
        ids, start = [], 0
        for found in unspellable.finditer(text):
            ids += [*self._reference_ids(text[start : found.start()]), *self._spelled(found.group())]
            start = found.end()
        return [*ids, *self._reference_ids(text[start:])]

    def _reference_ids(self, text: str) -> list[int]:
        try:
            # Unlike `encode`, this leaves other threads alone and skips the places of tokens in the text.
            [found] = self._reference.encode_batch_fast([text], add_special_tokens=False)
        except Exception as error:  # `tokenizers` raises nothing more special than this
            raise UserError(f"text {short(text)}: the tokenizer cannot encode it: {error}") from None
        ids: list[int] = found.ids
        return ids

    def _spelled(self, text: str) -> list[int]:
        singles = [bytes([byte]) for byte in text.encode()]
        return [self._singles[byte] for byte in singles if byte in self._singles]

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes that the tokens stand for. Special tokens stand for none."""
        return b"".join(map(self._vocabulary.tokens.__getitem__, ids))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the tokens; bytes that are no UTF-8, as in a half character, become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def token_bytes(self) -> np.ndarray:
        """int64[vocab_size]: the number of bytes that each token stands for, 0 for special ones."""
        return np.array(list(map(len, self._vocabulary.tokens)), dtype=np.int64)

    def normalized(self, text: str) -> str:
        """The text in the tokenizer's form of Unicode, if it has one."""
        return self._reference.normalizer.normalize_str(text) if self.normal_form else text

    def report(self) -> dict[str, Any]:
        """What metrics say about it."""
        encoder = "tokenizers" if self._encoder is None else self._encoder.name
        form = {"normal_form": self.normal_form} if self.normal_form else {}
        return {"vocab_size": self.vocab_size, "encoder": encoder} | form | self.changes


def tokenizer_of(
    settings: TokenizeParams, texts: Iterable[str], *, downloads: Path, chat_template: str | None = None
) -> Tokenizer:
    """The tokenizer that the params ask for, learnt from `texts` if it is of a kind that learns.

    `downloads` keeps what comes from the hub. `chat_template`: None takes a pretrained tokenizer's own one,
    else ChatML. Raises `UserError`.
    """
    special = learning.all_special(settings.special_tokens)
    if settings.kind == "pretrained":
        folder = folders.pretrained_folder(settings.pretrained or "", downloads)
        found = folders.read_pretrained(folder, settings.special_tokens, chat_template)
        fetched = {} if folder == Path(settings.pretrained or "") else {"revision": folder.name}
        return Tokenizer(found.reference, found.roles, found.chat_template, found.changes | fetched)
    return Tokenizer(learnt(settings, texts, special), chat_template=chat_template or CHAT_TEMPLATE)


def learnt(settings: TokenizeParams, texts: Iterable[str], special: Sequence[str]) -> tokenizers.Tokenizer:
    if settings.kind == "byte":
        return learning.all_bytes(special)
    if settings.kind == "char":
        return learning.learnt_characters(texts, special)
    vocab_size = settings.vocab_size or 0
    check_room(vocab_size, special)
    learn = learning.learnt_unigram if settings.kind == "unigram" else learning.learnt_bpe
    return learn(texts, vocab_size, special)


def check_room(vocab_size: int, special: Sequence[str]) -> None:
    least = NUM_BYTES + len(special)
    if vocab_size < least:
        raise UserError(
            f"tokenize.vocab_size: {vocab_size} tokens do not hold the {NUM_BYTES} bytes and {len(special)} "
            f"special tokens; expected at least {least}"
        )
