"""Chat templates as models have them, small tokenizers with their special tokens, and conversations."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from nima.corpus.document import Document, Message
from nima.encoding.conversation import TokenizedDocument
from nima.encoding.conversation.documents import tokenized
from nima.encoding.conversation.templates import ChatTemplate
from nima.tokenizer.special_tokens import CHAT_TEMPLATE, SPECIAL_TOKENS
from nima.workspace.params import TokenizeParams

SENTENCES = (
    "What listens on port 53? DNS does, the name service. How do I list the pods of a namespace? "
    "You are a brief assistant. Thank you, and good bye! The answer is short. user assistant system model\n"
)


class ChatEncoder:
    """A byte-level BPE tokenizer whose words begin with a space, as GPT-2's do."""

    def __init__(self, special_tokens: Sequence[str]) -> None:
        trained = tokenizers.Tokenizer(models.BPE())
        trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trained.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=420,
            special_tokens=list(special_tokens),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        trained.train_from_iterator([SENTENCES] * 3, trainer)
        self.written = trained.to_str()
        self.reference = tokenizers.Tokenizer.from_str(self.written)
        self.reference.encode_special_tokens = True
        self.special_ids = {name: trained.token_to_id(name) for name in special_tokens}
        names = {token: name for name, token in trained.get_vocab().items()}
        self.names = [names[token] for token in range(len(names))]

    def encode_many(self, texts: Sequence[str], threads: int = 1) -> list[np.ndarray]:
        found = self.reference.encode_batch(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.uint32) for encoding in found]

    def token_bytes(self) -> np.ndarray:
        # A byte is spelled as one character.
        return np.array([0 if name in self.special_ids else len(name) for name in self.names])

    def decode(self, ids: Sequence[int]) -> str:
        return self.reference.decode(list(ids), skip_special_tokens=False)

    def in_transformers(self, template: ChatTemplate) -> Any:
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizers.Tokenizer.from_str(self.written),
            bos_token=template.bos_token,
            eos_token=template.eos_token,
            chat_template=template.text,
        )


@dataclass(frozen=True)
class ChatFormat:
    """A layout of conversations; « and » stand around what an assistant writes."""

    special_tokens: tuple[str, ...]
    bos_token: str
    eos_token: str
    marked: str

    def template(self, *, marks_generated: bool = False) -> ChatTemplate:
        marks = ("{% generation %}", "{% endgeneration %}") if marks_generated else ("", "")
        text = self.marked.replace("«", marks[0]).replace("»", marks[1])
        return ChatTemplate(text, "chat.jinja", self.bos_token, self.eos_token)

    def encoder(self) -> ChatEncoder:
        return ChatEncoder(self.special_tokens)


REFUSAL = "{{ raise_exception('no turn of a ' + turn.role) }}"
FORMATS = {
    "chatml": ChatFormat(SPECIAL_TOKENS, SPECIAL_TOKENS[0], SPECIAL_TOKENS[0], CHAT_TEMPLATE),
    "chatml-if": ChatFormat(
        SPECIAL_TOKENS,
        SPECIAL_TOKENS[0],
        SPECIAL_TOKENS[0],
        "{% for turn in messages %}\n<|im_start|>{{ turn.role + '\\n' }}"
        "{% if turn.role == 'assistant' %}«{{ turn.content }}<|im_end|>»{{ '\\n' }}\n"
        "{% else %}{{ turn.content }}<|im_end|>{{ '\\n' }}{% endif %}{% endfor %}",
    ),
    "headers": ChatFormat(  # as Llama 3's: another token ends turns than ends documents
        ("<|begin|>", "<|end|>", "<|head|>", "<|/head|>", "<|turn_end|>"),
        "<|begin|>",
        "<|end|>",
        "{{ bos_token }}{% for turn in messages %}<|head|>{{ turn.role }}<|/head|>\n\n"
        "{% if turn.role == 'assistant' %}«{{ turn.content | trim }}<|turn_end|>»"
        "{% else %}{{ turn.content | trim }}<|turn_end|>{% endif %}{% endfor %}",
    ),
    "brackets": ChatFormat(  # as Mistral's first: the tags are text, and a space begins the answer
        ("<unk>", "<s>", "</s>"),
        "<s>",
        "</s>",
        "{{ bos_token }}{% for turn in messages %}"
        "{% if turn.role == 'user' %}[INST] {{ turn.content }} [/INST]"
        "{% elif turn.role == 'assistant' %} «{{ turn.content }}{{ eos_token }}»"
        f"{{% else %}}{REFUSAL}{{% endif %}}{{% endfor %}}",
    ),
    "special-brackets": ChatFormat(  # as Mistral's third: the tags are tokens
        ("<unk>", "<s>", "</s>", "[INST]", "[/INST]"),
        "<s>",
        "</s>",
        "{{ bos_token }}{% for turn in messages %}"
        "{% if turn.role == 'user' %}[INST] {{ turn.content }}[/INST]"
        "{% elif turn.role == 'assistant' %} «{{ turn.content }}{{ eos_token }}»"
        f"{{% else %}}{REFUSAL}{{% endif %}}{{% endfor %}}",
    ),
    "spaced": ChatFormat(  # as Llama 2's: each exchange is a document, a space stands before the end
        ("<unk>", "<s>", "</s>"),
        "<s>",
        "</s>",
        "{% for turn in messages %}{% if turn.role == 'user' %}"
        "{{ bos_token }}[INST] {{ turn.content.strip() }} [/INST]"
        "{% elif turn.role == 'assistant' %} «{{ turn.content.strip() }} {{ eos_token }}»"
        f"{{% else %}}{REFUSAL}{{% endif %}}{{% endfor %}}",
    ),
    "bars": ChatFormat(  # as Zephyr's: roles are text, the document's end token ends every turn
        ("<unk>", "<s>", "</s>"),
        "<s>",
        "</s>",
        "{% for turn in messages %}<|{{ turn.role }}|>\n"
        "{% if turn.role == 'assistant' %}«{{ turn.content + eos_token }}»"
        "{% else %}{{ turn.content + eos_token }}{% endif %}{{ '\\n' }}{% endfor %}",
    ),
    "model-turns": ChatFormat(  # as Gemma's: other names, the system's words are the user's
        ("<pad>", "<bos>", "<eos>", "<turn>", "</turn>"),
        "<bos>",
        "<eos>",
        "{{ bos_token }}{% set system = '' %}{% if messages[0].role == 'system' %}"
        "{% set system = messages[0].content | trim + '\\n\\n' %}{% set messages = messages[1:] %}{% endif %}"
        "{% for turn in messages %}{% if (turn.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('user and assistant must take turns') }}{% endif %}"
        "<turn>{{ 'model' if turn.role == 'assistant' else turn.role }}\n"
        "{{ system if loop.first else '' }}"
        "{% if turn.role == 'assistant' %}«{{ turn.content | trim }}</turn>»"
        "{% else %}{{ turn.content | trim }}</turn>{% endif %}{{ '\\n' }}{% endfor %}",
    ),
}


def talk(*turns: tuple[str, str], key: str = "talk.json#3") -> Document:
    """A conversation of (role, content)."""
    messages = tuple(Message(role, content) for role, content in turns)
    return Document("0" * 16, "chats", key, "1" * 16, 2.0, "MIT", "", messages)


def plain(text: str) -> Document:
    return Document("0" * 16, "notes", "note.md", "1" * 16, 2.0, "MIT", text, None)


def settings(**changes: Any) -> TokenizeParams:
    return TokenizeParams(vocab_size=400, **changes)


def whole(document: Document, encoder: Any, template: ChatTemplate, **changes: Any) -> TokenizedDocument:
    """The document's tokens; it must not be dropped."""
    [found] = tokenized([document], encoder, template, settings(**changes))
    assert isinstance(found, TokenizedDocument), found
    return found


def trained_mask(document: TokenizedDocument) -> list[int]:
    mask = np.zeros(len(document.tokens), dtype=int)
    for start, end in document.spans:
        mask[start:end] = 1
    return mask.tolist()
