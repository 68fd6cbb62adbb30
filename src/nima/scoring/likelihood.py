"""How well a model predicts given text: loss, perplexity, token accuracy and bits per byte.

Every token of a split is scored exactly once and weighs the same, whatever the batches. Bits per byte
divides by the text's bytes instead of its tokens, so models with different tokenizers can be compared.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nima.batches import Stream, Window, evenly_spread, scoring_windows
from nima.dataset.tokens import Tokens
from nima.network.decoder import Decoder, autocast
from nima.network.targets import IGNORED
from nima.processes import ALONE, Processes
from nima.tokenizer import Tokenizer
from nima.workspace.errors import UserError

LOGITS_AT_ONCE = 8 * 1024 * 1024


@dataclass
class Likelihood:
    """Sums over scored tokens. Special tokens are scored like others but stand for no bytes."""

    nats: float = 0.0
    num_tokens: int = 0
    num_correct: int = 0
    num_bytes: int = 0

    def add(self, other: "Likelihood") -> None:
        self.nats += other.nats
        self.num_tokens += other.num_tokens
        self.num_correct += other.num_correct
        self.num_bytes += other.num_bytes

    def metrics(self) -> dict[str, float]:
        """loss (nats per token), perplexity, accuracy (share of tokens), bits_per_byte."""
        loss = self.nats / self.num_tokens
        return {
            "loss": loss,
            "perplexity": math.exp(loss) if loss < 700 else math.inf,
            "accuracy": self.num_correct / self.num_tokens,
            "bits_per_byte": self.nats / math.log(2) / self.num_bytes if self.num_bytes else math.nan,
        }

    def sums(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True)
class ScoringBatch:
    """Rows of windows, right-padded; arrays are (windows, tokens). `documents` is -1 where none is scored."""

    ids: NDArray[np.int64]
    targets: NDArray[np.int64]
    documents: NDArray[np.int64]


def scoring_batches(
    stream: Stream,
    windows: list[Window],
    end_of_text: int,
    micro_batch_tokens: int,
    rank: int = 0,
    num_ranks: int = 1,
) -> Iterator[ScoringBatch]:
    """The windows in order, in batches of at most `micro_batch_tokens` tokens (at least one window).

    Ranks take turns, and have equally many: the last may be one in which nothing is scored.
    """
    longest = max((window.num_tokens for window in windows), default=1)
    per_batch = max(1, micro_batch_tokens // longest)
    for first in range(0, len(windows), per_batch * num_ranks):
        start = first + per_batch * rank
        if start < len(windows):
            yield scoring_batch(stream, windows[start : start + per_batch], end_of_text)
        else:
            yield nothing_to_score(end_of_text)


def nothing_to_score(end_of_text: int) -> ScoringBatch:
    ids, targets, documents = (np.full((1, 1), value, dtype=np.int64) for value in (end_of_text, IGNORED, -1))
    return ScoringBatch(ids, targets, documents)


def scoring_batch(stream: Stream, windows: list[Window], end_of_text: int) -> ScoringBatch:
    shape = (len(windows), max(window.num_tokens for window in windows))
    ids = np.full(shape, end_of_text, dtype=np.int64)
    targets = np.full(shape, IGNORED, dtype=np.int64)
    documents = np.full(shape, -1, dtype=np.int64)
    for row, window in enumerate(windows):
        # Each target is predicted from the token before it; before the stream's first stands end-of-text.
        before = min(window.start, 1)
        text, trained, owners = stream.read(window.start - before, window.num_tokens + before)
        ids[row, 1 - before : window.num_tokens] = text[:-1]
        scored = slice(window.num_tokens - window.num_scored, window.num_tokens)
        counted = trained[-window.num_scored :]
        targets[row, scored] = np.where(counted, text[-window.num_scored :], IGNORED)
        documents[row, scored] = np.where(counted, owners[-window.num_scored :], -1)
    return ScoringBatch(ids, targets, documents)


@dataclass(frozen=True)
class Scorer:
    """Scores models on the given windows of a stream. Holds nothing that a call would change."""

    stream: Stream
    windows: list[Window]
    end_of_text: int
    token_bytes: NDArray[np.int64]
    sources: Sequence[str]
    """The source of each document."""
    micro_batch_tokens: int
    precision: str
    processes: Processes = ALONE
    """Those that share the windows; each learns of all."""

    @torch.no_grad()
    def __call__(
        self, model: Decoder, poll: Callable[[], None] = lambda: None, max_tokens: int | None = None
    ) -> dict[str, Likelihood]:
        """Likelihood of each source's tokens. `poll` is called before each batch, and may raise to stop.

        `max_tokens` at once, where that is less than `micro_batch_tokens`.
        The model is put back into the mode it was in; no random numbers are drawn.
        """
        training, device = model.training, next(model.parameters()).device
        totals: dict[str, Likelihood] = defaultdict(Likelihood)
        model.eval()
        try:
            at_once = min(self.micro_batch_tokens, max_tokens or self.micro_batch_tokens)
            with self.processes.scoring():
                for batch in self.batches(at_once):
                    poll()
                    targets_N = torch.from_numpy(batch.targets).to(device).flatten()
                    with autocast(device, self.precision):
                        x_BTD = model.hidden(torch.from_numpy(batch.ids).to(device))
                    losses, correct = token_losses(x_BTD.flatten(0, 1), model.head.weight, targets_N)
                    self.add(totals, batch, losses.cpu().numpy(), correct.cpu().numpy())
        finally:
            model.train(training)
        return merged(self.processes.gather(dict(totals)))

    def batches(self, max_tokens: int) -> Iterator[ScoringBatch]:
        """Those that this process scores."""
        return scoring_batches(
            self.stream,
            self.windows,
            self.end_of_text,
            max_tokens,
            self.processes.rank,
            self.processes.count,
        )

    def add(
        self,
        totals: dict[str, Likelihood],
        batch: ScoringBatch,
        losses: NDArray[np.float32],
        correct: NDArray[np.bool_],
    ) -> None:
        documents, targets = batch.documents.ravel(), batch.targets.ravel()
        scored = np.flatnonzero(documents >= 0)
        found, owner = np.unique(documents[scored], return_inverse=True)
        nats = np.bincount(owner, weights=losses[scored].astype(np.float64))
        hits = np.bincount(owner, weights=correct[scored])
        size = np.bincount(owner, weights=self.token_bytes[targets[scored]])
        count = np.bincount(owner)
        for place, document in enumerate(found.tolist()):
            part = Likelihood(float(nats[place]), int(count[place]), int(hits[place]), int(size[place]))
            totals[self.sources[document]].add(part)


def scorer_of(
    tokens: Tokens,
    documents: NDArray[np.int64],
    tokenizer: Tokenizer,
    *,
    window_tokens: int,
    stride_tokens: int,
    max_tokens: int | None,
    micro_batch_tokens: int,
    precision: str,
    processes: Processes = ALONE,
) -> Scorer:
    """Scores a split's documents, all of them or at most `max_tokens` spread evenly."""
    stream = Stream(tokens, documents)
    if not tokens.trained_tokens[documents].sum():
        raise UserError("nothing to score: none of the split's tokens is trained; see tokenize.loss_on")
    windows = evenly_spread(scoring_windows(stream.num_tokens, window_tokens, stride_tokens), max_tokens)
    return Scorer(
        stream=stream,
        windows=windows,
        end_of_text=tokenizer.end_of_text,
        token_bytes=tokenizer.token_bytes(),
        sources=tokens.sources.tolist(),
        micro_batch_tokens=micro_batch_tokens,
        precision=precision,
        processes=processes,
    )


def token_losses(x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """Each target's loss in nats (float32) and whether it was the likeliest token; 0 and False if ignored."""
    losses, correct = [], []
    step = max(1, LOGITS_AT_ONCE // weight_VD.shape[0])
    weight = weight_VD.to(x_ND.dtype)
    for start in range(0, x_ND.shape[0], step):
        targets = targets_N[start : start + step]
        logits = (x_ND[start : start + step] @ weight.T).float()
        losses.append(
            torch.nn.functional.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none")
        )
        correct.append(logits.argmax(dim=-1) == targets)
    return torch.cat(losses), torch.cat(correct)


def merged(shares: list[dict[str, Likelihood]]) -> dict[str, Likelihood]:
    """The sums by source, in the order of their names, of what each process scored."""
    totals: dict[str, Likelihood] = {}
    for name in sorted({name for share in shares for name in share}):
        totals[name] = total({str(rank): share[name] for rank, share in enumerate(shares) if name in share})
    return totals


def total(parts: dict[str, Likelihood]) -> Likelihood:
    everything = Likelihood()
    for part in parts.values():
        everything.add(part)
    return everything
