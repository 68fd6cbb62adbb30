"""Personal data and secrets: masked, or a reason to drop the document. In code too."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from nima.corpus.cleaning.credentials import secrets_in
from nima.corpus.cleaning.personal_data import (
    Span,
    emails_in,
    ip_addresses_in,
    payment_cards_in,
    phone_numbers_in,
)
from nima.corpus.quality.quality import Flaw
from nima.workspace.params.data import PrivacyParams


class Kind(NamedTuple):
    find: Callable[[str], Iterator[Span]]
    mask: str
    reason: str
    """Of rejected documents."""


# In this order they claim a place in the text.
KINDS = {
    "secrets": Kind(secrets_in, "<secret>", "secret"),
    "emails": Kind(emails_in, "<email>", "email"),
    "payment_cards": Kind(payment_cards_in, "<payment-card>", "payment_card"),
    "ip_addresses": Kind(ip_addresses_in, "<ip-address>", "ip_address"),
    "phone_numbers": Kind(phone_numbers_in, "<phone-number>", "phone_number"),
}


class Masked(NamedTuple):
    text: str
    counts: dict[str, int]
    """How often each kind was masked, by its key in `PrivacyParams`; no key for what was not found."""


def masked(text: str, rules: PrivacyParams) -> Masked:
    """`text` with a fixed word such as `<email>` in the place of each find of the kinds to mask."""
    counts: dict[str, int] = {}
    if rules.keeps_all:
        return Masked(text, counts)
    for name, kind in KINDS.items():
        if getattr(rules, name) == "mask" and (spans := sorted(kind.find(text))):
            text, counts[name] = replaced(text, spans, kind.mask)
    return Masked(text, counts)


def private_flaw(text: str, rules: PrivacyParams) -> Flaw | None:
    """The first kind to drop that `text` holds. The detail says where it is, not what it is."""
    if rules.keeps_all:
        return None
    for name, kind in KINDS.items():
        if getattr(rules, name) == "drop" and (spans := sorted(kind.find(text))):
            line = text.count("\n", 0, spans[0][0]) + 1
            return Flaw(kind.reason, f"the first in line {line}, privacy.{name} is drop")
    return None


def replaced(text: str, spans: list[Span], mask: str) -> tuple[str, int]:
    """The text with `mask` for each span, overlapping ones as one; and how many masks that made."""
    parts: list[str] = []
    at = num_masks = 0
    for start, end in spans:
        if start >= at:
            parts += [text[at:start], mask]
            num_masks += 1
        at = max(at, end)
    return "".join([*parts, text[at:]]), num_masks
