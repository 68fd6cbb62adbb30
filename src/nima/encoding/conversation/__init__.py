"""Documents and conversations as tokens, and the parts of them that are trained.

A document is its text and an end. A conversation is laid out by a chat template; without another it is
ChatML, the layout that most chat models share:

    <|im_start|>user
    What listens on port 53?<|im_end|>
    <|im_start|>assistant
    DNS.<|im_end|>
    <|endoftext|>

Here are the names and the outcomes; `templates` renders, `pieces` tells contents from the template's own
tokens, `spans` finds the tokens that are trained, `budgets` holds them to a length, and `documents` does all
of it for many documents.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

SYSTEM = "system"
USER = "user"
ASSISTANT = "assistant"
TOOL = "tool"
ROLES = (SYSTEM, USER, ASSISTANT, TOOL)

LossOn = Literal["all", "assistant"]
"""What a conversation trains: every token, or the assistant's turns."""


@dataclass(frozen=True, slots=True)
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
    cut_tokens: int = 0
    """Tokens that the budgets cut off, at the end of a document or the beginning of a conversation."""


DropReason = Literal["over_budget", "refused_by_template", "left_out_by_template", "unknown_role"]


@dataclass(frozen=True, slots=True)
class Dropped:
    """A document that became no tokens, and why."""

    id: str
    source: str
    key: str
    reason: DropReason
    detail: str
