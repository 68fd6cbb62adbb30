"""The order of the data: which tokens are in batch N is a pure function of (seed, N).

The documents of a split, in one fixed shuffled order, form an endless circular stream of tokens. Each
epoch cuts it into blocks from another starting point and visits the blocks in another order. Nothing is
stored and nothing replayed: any batch is found in the same time.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from nima.decoder import IGNORED
from nima.errors import UserError

FEISTEL_ROUNDS = 4


class TokenizedDocuments(Protocol):
    """What is read of the documents: `nima.tokens.Tokens`, or anything with its shape."""

    @property
    def num_documents(self) -> int: ...

    @property
    def lengths(self) -> NDArray[np.int64]: ...

    @property
    def weights(self) -> NDArray[np.float64]: ...

    @property
    def ids(self) -> Sequence[str]: ...

    def document(self, index: int) -> NDArray[np.integer]: ...

    def spans(self, index: int) -> NDArray[np.integer]: ...


@dataclass(frozen=True)
class Batch:
    """Inputs and targets, int64 (sequences, tokens); targets that are not trained are `IGNORED`."""

    ids: NDArray[np.int64]
    targets: NDArray[np.int64]


class Stream:
    """Documents laid end to end, read by position as if they were one array."""

    def __init__(self, tokens: TokenizedDocuments, documents: NDArray[np.int64]) -> None:
        self.tokens = tokens
        self.documents = documents
        self.ends = np.cumsum(tokens.lengths[documents])
        self.num_tokens = int(self.ends[-1]) if len(documents) else 0

    def read(
        self, start: int, num_tokens: int
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64]]:
        """From `start`, past the end it wraps round: ids, whether each is trained, each one's document."""
        ids = np.empty(num_tokens, dtype=np.int64)
        trained = np.empty(num_tokens, dtype=np.bool_)
        document_of = np.empty(num_tokens, dtype=np.int64)
        filled, position = 0, start % self.num_tokens
        place = int(np.searchsorted(self.ends, position, side="right"))
        while filled < num_tokens:
            document = int(self.documents[place])
            content = self.tokens.document(document)
            offset = len(content) - (int(self.ends[place]) - position)
            count = min(len(content) - offset, num_tokens - filled)
            rows = slice(filled, filled + count)
            ids[rows] = content[offset : offset + count]
            trained[rows] = self.trained(document, offset, count)
            document_of[rows] = document
            filled += count
            position = int(self.ends[place])
            place += 1
            if place == len(self.documents):
                place, position = 0, 0
        return ids, trained, document_of

    def trained(self, document: int, offset: int, count: int) -> NDArray[np.bool_]:
        mask = np.zeros(count, dtype=np.bool_)
        for start, stop in self.tokens.spans(document):
            mask[max(0, int(start) - offset) : max(0, int(stop) - offset)] = True
        return mask


def training_order(tokens: TokenizedDocuments, documents: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """A split's documents shuffled, each as often as its weight says.

    A weight of 2.5 is two copies, and a third for every other document, decided by the document's place
    alone so that one document's weight never moves another.
    """
    weights = tokens.weights[documents]
    whole = np.floor(weights)
    draw = np.random.Generator(np.random.Philox(key=[seed, 1])).random(tokens.num_documents)[documents]
    copies = (whole + (draw < weights - whole)).astype(np.int64)
    order = np.repeat(documents, copies)
    return order[np.random.Generator(np.random.Philox(key=[seed, 2])).permutation(len(order))]


class TrainingBatches:
    """`batch(step)` for a stream: `blocks_per_batch` sequences of `block_tokens` tokens."""

    def __init__(self, stream: Stream, *, seed: int, block_tokens: int, blocks_per_batch: int) -> None:
        self.stream = stream
        self.seed = seed
        self.block_tokens = block_tokens
        self.blocks_per_batch = blocks_per_batch
        self.blocks_per_epoch = stream.num_tokens // block_tokens

    def batch(self, step: int, first: int = 0, count: int | None = None) -> Batch:
        """Batch number `step` (from 0), or `count` of its blocks beginning with block `first`."""
        stop = self.blocks_per_batch if count is None else first + count
        numbers = range(step * self.blocks_per_batch + first, step * self.blocks_per_batch + stop)
        rows = [self.block(number) for number in numbers]
        ids, targets = (np.stack(part) for part in zip(*rows, strict=True))
        return Batch(ids, targets)

    def block(self, number: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        epoch, place = divmod(number, self.blocks_per_epoch)
        ids, trained, _ = self.stream.read(self.start_of(epoch, place), self.block_tokens + 1)
        return ids[:-1], np.where(trained[1:], ids[1:], IGNORED)

    def start_of(self, epoch: int, place: int) -> int:
        """Where in the stream the block begins that epoch `epoch` visits as its number `place`."""
        rotation = keyed_hash(self.seed, epoch, 0, 0) % self.stream.num_tokens
        return rotation + permuted(place, self.blocks_per_epoch, (self.seed, epoch)) * self.block_tokens

    def documents_of(self, step: int) -> list[int]:
        """The documents that batch `step` reads, ascending: what to name when the batch is at fault."""
        found: set[int] = set()
        for number in range(step * self.blocks_per_batch, (step + 1) * self.blocks_per_batch):
            epoch, place = divmod(number, self.blocks_per_epoch)
            found.update(self.stream.read(self.start_of(epoch, place), self.block_tokens + 1)[2].tolist())
        return sorted(found)


def training_batches(
    tokens: TokenizedDocuments,
    documents: NDArray[np.int64],
    *,
    seed: int,
    block_tokens: int,
    batch_tokens: int,
) -> TrainingBatches:
    """The batches of a split. Raises `UserError` when the split does not fill one block."""
    stream = Stream(tokens, training_order(tokens, documents, seed))
    if stream.num_tokens < block_tokens:
        raise UserError(
            f"training.block_tokens: {block_tokens} tokens make a block, but the training part has only "
            f"{stream.num_tokens}; shorten the block or add text"
        )
    return TrainingBatches(
        stream, seed=seed, block_tokens=block_tokens, blocks_per_batch=batch_tokens // block_tokens
    )


def steps_of(max_steps: int | None, max_epochs: float | None, batches: TrainingBatches) -> int:
    """The length of a run in updates; epochs are rounded up to whole updates."""
    if max_steps is not None:
        return max_steps
    return max(1, math.ceil((max_epochs or 0) * batches.blocks_per_epoch / batches.blocks_per_batch))


def permuted(place: int, size: int, key: tuple[int, int]) -> int:
    """Element `place` of a pseudo-random permutation of range(size), without making the permutation.

    A Feistel network permutes the next power of four; walking along its cycle until the value is below
    `size` keeps it a permutation of exactly that range (Black & Rogaway 2002, "Ciphers with arbitrary
    finite domains").
    """
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half_bits) - 1
    value = place
    while True:
        left, right = value >> half_bits, value & mask
        for turn in range(FEISTEL_ROUNDS):
            left, right = right, left ^ (keyed_hash(*key, turn + 1, right) & mask)
        value = left << half_bits | right
        if value < size:
            return value


def keyed_hash(seed: int, epoch: int, turn: int, value: int) -> int:
    digest = hashlib.blake2b(f"{seed}/{epoch}/{turn}/{value}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


@dataclass(frozen=True)
class Window:
    """Where to read, and how many of its last targets to score; those before are context."""

    start: int
    num_tokens: int
    num_scored: int


def scoring_windows(stream_tokens: int, window_tokens: int, stride_tokens: int) -> list[Window]:
    """Windows over a stream so that each token is a scored target exactly once.

    The first window scores all it holds, each later one its last `stride_tokens`. The stream's first
    token is predicted from the end-of-text token that stands before it.
    """
    windows = []
    scored = 0
    while scored < stream_tokens:
        fresh = min(window_tokens if scored == 0 else stride_tokens, stream_tokens - scored)
        start = max(0, scored + fresh - window_tokens)
        windows.append(Window(start=start, num_tokens=scored + fresh - start, num_scored=fresh))
        scored += fresh
    return windows


def evenly_spread(windows: list[Window], max_tokens: int | None) -> list[Window]:
    """At most `max_tokens` scored tokens' worth of windows, at equal distances over the list."""
    if max_tokens is None or not windows:
        return windows
    keep = max(1, max_tokens // max(window.num_scored for window in windows))
    if keep >= len(windows):
        return windows
    return [windows[index * len(windows) // keep] for index in range(keep)]
