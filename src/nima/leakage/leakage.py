"""What training text shares with the other splits, with prompts and with benchmarks.

Texts are compared by word n-grams, whatever their case and punctuation, as GPT-3's training text was with its
benchmarks (Brown et al. 2020, https://arxiv.org/abs/2005.14165, appendix C): by 13 words, and shorter texts
by all their words if there are 8 or more. A text is leaked when one training document holds too large a share
of its n-grams.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from nima.corpus.ngrams import Words, ngram_hashes, words_of
from nima.workspace.errors import UserError
from nima.workspace.params.data import LeakageParams

MIN_WORDS = 8
"""Shorter texts say too little to be judged."""
MAX_HOLDERS = 100
"""An n-gram of more texts than that is boilerplate: it tells nothing of any one of them and is left out."""
MAX_NGRAMS = 8_000_000
"""If all texts have more n-grams, those of long texts are thinned. Each takes up to 60 bytes of memory."""
FIRST_SAMPLE, LAST_SAMPLE = 16_384, 16
"""Smallest hashes that stand for all n-grams of a text, at first and at least."""
FILTER_BITS = (16, 26)

BATCH_CHARS = 1 << 17
MAX_EXCERPT_CHARS = 200


@dataclass(frozen=True, slots=True)
class Probe:
    """A text that training text should not hold."""

    part: str
    """Where it belongs: validation, test, prompts or the name of a benchmark."""
    id: str
    text: str


@dataclass(frozen=True, slots=True)
class Leak:
    """A training document that holds too much of a probe."""

    document: int
    """Its place among the training documents."""
    probe: int
    share: float
    """Shared n-grams / n-grams of the probe."""
    excerpt: str
    """The first shared n-gram as it stands in the document, but case-folded and in one line."""


@dataclass(frozen=True)
class Overlap:
    """What a batch of training documents shares with the probes."""

    probes: np.ndarray
    """int64[num_pairs]: one entry for each document and probe that share an n-gram."""
    shares: np.ndarray
    """float64[num_pairs]"""
    leaks: tuple[Leak, ...]
    """Those pairs that share too much, in order of documents."""


# --------------------------------------------------------------------------------------- what is probed


class Probes:
    """The n-grams of all probes, as one sorted table of hashes."""

    def __init__(self, probes: Iterable[Probe], rules: LeakageParams) -> None:
        self.min_shared = rules.min_shared
        self.parts: list[str] = []
        self.ids: list[str] = []
        lengths: list[int] = []
        self.sample = FIRST_SAMPLE
        """n-grams held of a text at most; what is left of a longer one stands for it."""
        hashes: list[np.ndarray] = []
        num_hashes = 0
        for probe in probes:
            self.parts.append(probe.part)
            self.ids.append(probe.id)
            words = words_of(probe.text).hashes
            lengths.append(min(rules.ngram_words, len(words)))
            ngrams = np.unique(ngram_hashes(words, lengths[-1])) if len(words) >= MIN_WORDS else words[:0]
            hashes.append(ngrams[: self.sample].copy())
            num_hashes += len(hashes[-1])
            while num_hashes > MAX_NGRAMS and self.sample > LAST_SAMPLE:
                self.sample //= 2
                hashes = [own[: self.sample].copy() for own in hashes]
                num_hashes = sum(map(len, hashes))
        self.lengths = np.array(lengths, np.int64)
        """int64[num_probes]: words in an n-gram of each probe."""
        self.tabulate(hashes)

    def tabulate(self, hashes: list[np.ndarray]) -> None:
        """The table from the n-grams of each probe, whose list is emptied: only one copy fits in memory."""
        sizes = [len(own) for own in hashes]
        every = np.concatenate([np.zeros(0, np.uint64), *hashes])
        hashes.clear()
        order = np.argsort(every, kind="stable")
        every = every[order]
        holders = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)[order]
        del order
        begins = np.flatnonzero(np.append(True, every[1:] != every[:-1])[: len(every)]).astype(np.int32)
        every = every[begins]
        counts = np.diff(begins, append=np.int32(len(holders)))
        telling = counts <= MAX_HOLDERS
        self.keys = every[telling]
        """uint64[num_keys]: the n-grams, ascending."""
        self.holders = holders[np.repeat(telling, counts)]
        """int32: the probes that hold each n-gram, one n-gram behind the other."""
        self.starts = np.append(np.int32(0), np.cumsum(counts[telling], dtype=np.int32))
        """int32[num_keys + 1], into `holders`."""
        self.num_ngrams = np.bincount(self.holders, minlength=len(sizes))
        """int64[num_probes]: n-grams by which each probe is judged; 0 = it cannot be."""
        low, high = FILTER_BITS
        self.shift = np.uint64(64 - min(max(len(self.keys).bit_length() + 3, low), high))
        self.marks = np.zeros(1 << (64 - int(self.shift)), np.bool_)
        """By the first bits of a hash: whether any n-gram begins so."""
        self.marks[self.keys >> self.shift] = True

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def compared_lengths(self) -> list[int]:
        return np.unique(self.lengths[self.num_ngrams > 0]).tolist()

    def find(self, ngrams: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Those n-grams that are in the table: their places in `ngrams` and in `keys`."""
        maybe = self.marks[ngrams >> self.shift].nonzero()[0]
        places = np.searchsorted(self.keys, ngrams[maybe])
        places[places == len(self.keys)] = 0
        found = self.keys[places] == ngrams[maybe] if len(self.keys) else maybe[:0]
        return maybe[found], places[found]

    # -------------------------------------------------------------------------- what training text holds

    def overlap(self, texts: list[str], first_document: int = 0) -> Overlap:
        """What training documents, numbered from `first_document`, share with the probes."""
        folded = [text.casefold() for text in texts]
        words = words_of("\n".join(folded))
        stops = np.cumsum([len(text) + 1 for text in folded])
        text_of = np.searchsorted(stops, words.starts, side="right")
        places, keys = self.found_in(words, text_of)
        texts_held, probes, counts, first_places = self.shared(text_of[places], keys, places)
        shares = counts / self.num_ngrams[probes]
        leaks = tuple(
            Leak(
                first_document + int(texts_held[pair]),
                int(probes[pair]),
                float(shares[pair]),
                self.excerpt(words, int(first_places[pair]), int(probes[pair])),
            )
            for pair in np.flatnonzero(shares >= self.min_shared)
        )
        return Overlap(probes, shares, leaks)

    def found_in(self, words: Words, text_of: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """n-grams inside one text that are in the table: first words and keys, each key once a text."""
        pairs = [(np.zeros(0, np.int64), np.zeros(0, np.int64))]
        for num_words in self.compared_lengths:
            places, keys = self.find(ngram_hashes(words.hashes, num_words))
            inside = text_of[places] == text_of[places + num_words - 1]
            pairs.append((places[inside], keys[inside]))
        places, keys = map(np.concatenate, zip(*pairs, strict=True))
        _, once = np.unique(text_of[places] * len(self.keys) + keys, return_index=True)
        return places[once], keys[once]

    def shared(
        self, texts: np.ndarray, keys: np.ndarray, places: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Pairs of a text and a probe: texts, probes, n-grams in common and the place of the first."""
        counts = self.starts[keys + 1] - self.starts[keys]
        into_holders = np.repeat(self.starts[keys] - np.cumsum(counts) + counts, counts)
        probes = self.holders[into_holders + np.arange(len(into_holders))]
        pairs = np.repeat(texts, counts) * len(self) + probes
        order = np.lexsort((np.repeat(places, counts), pairs))
        pairs, first, num_shared = np.unique(pairs[order], return_index=True, return_counts=True)
        return pairs // len(self), pairs % len(self), num_shared, np.repeat(places, counts)[order[first]]

    def excerpt(self, words: Words, place: int, probe: int) -> str:
        shared = words.text[words.starts[place] : words.ends[place + self.lengths[probe] - 1]]
        return " ".join(shared.split())[:MAX_EXCERPT_CHARS]


# ---------------------------------------------------------------------------------------------- the gate


@dataclass(frozen=True, slots=True)
class Offender:
    """A leaked text, and the training document that holds most of it."""

    part: str
    id: str
    document: str
    """Id of the training document."""
    share: float
    num_documents: int
    """Training documents that hold too much of this text."""
    excerpt: str


@dataclass(frozen=True)
class Leakage:
    """What the gate found."""

    parts: dict[str, dict[str, int | float]]
    """By part: number of texts, of those that could be judged and of those leaked, and the largest share."""
    offenders: list[Offender]
    """One for each leaked text, in order of the probes."""
    documents: np.ndarray
    """int64: places of the training documents that leak, ascending."""

    def figures(self) -> dict[str, Any]:
        return {"num_leaking_documents": len(self.documents), "parts": self.parts}


def leakage(probes: Probes, training: Iterable[tuple[str, str]]) -> Leakage:
    """Streams training documents, pairs of id and text, once past the probes."""
    largest = np.zeros(len(probes))
    best: dict[int, tuple[Leak, str]] = {}
    num_documents: Counter[int] = Counter()
    leaking: set[int] = set()
    for first, batch in batches(training):
        overlap = probes.overlap([text for _, text in batch], first)
        np.maximum.at(largest, overlap.probes, overlap.shares)
        for leak in overlap.leaks:
            leaking.add(leak.document)
            num_documents[leak.probe] += 1
            if leak.probe not in best or leak.share > best[leak.probe][0].share:
                best[leak.probe] = leak, batch[leak.document - first][0]
    offenders = [
        Offender(probes.parts[n], probes.ids[n], document, leak.share, num_documents[n], leak.excerpt)
        for n, (leak, document) in sorted(best.items())
    ]
    documents = np.array(sorted(leaking), np.int64)
    return Leakage(counts_by_part(probes, largest, list(best)), offenders, documents)


def batches(training: Iterable[tuple[str, str]]) -> Iterator[tuple[int, list[tuple[str, str]]]]:
    """Documents in batches of about `BATCH_CHARS`, each with the place of its first."""
    first, batch, num_chars = 0, [], 0
    for document in training:
        batch.append(document)
        num_chars += len(document[1])
        if num_chars >= BATCH_CHARS:
            yield first, batch
            first, batch, num_chars = first + len(batch), [], 0
    if batch:
        yield first, batch


def counts_by_part(
    probes: Probes, largest: np.ndarray, leaked: list[int]
) -> dict[str, dict[str, int | float]]:
    parts = np.array(probes.parts, object)
    is_leaked = np.zeros(len(probes), np.bool_)
    is_leaked[leaked] = True
    return {
        name: {
            "num_texts": int((parts == name).sum()),
            "num_judged": int((probes.num_ngrams[parts == name] > 0).sum()),
            "num_leaked": int(is_leaked[parts == name].sum()),
            "largest_share": float(largest[parts == name].max()),
        }
        for name in dict.fromkeys(probes.parts)
    }


def check_no_leakage(found: Leakage) -> None:
    """Raises `UserError` with the number of leaked texts and the first of them."""
    if found.offenders:
        first = found.offenders[0]
        raise UserError(
            f"{len(found.offenders)} texts are leaked: first {first.part} {first.id}: training document "
            f"{first.document} holds {first.share:.0%} of it ({first.excerpt!r}); take such documents out of "
            "the sources, or set split.leakage.action to drop"
        )
