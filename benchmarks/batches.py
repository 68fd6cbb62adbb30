"""How fast a batch is found and read, how full rows are, and what cutting attention at borders costs.

Run with `OMP_NUM_THREADS=1 python -m benchmarks.batches`; it needs nothing and takes less than a minute.
Rows are filled with the documents of data/tokens when the pipeline has run; everything else is synthetic.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from nima.batches import Batching, training_batches
from nima.batches.packed import best_fit
from nima.dataset.tokens import Tokens
from nima.network.decoder import Decoder, DecoderConfig, autocast, init_parameters
from nima.workspace.errors import UserError
from nima.workspace.params.presets import resolve

NUM_DOCUMENTS = 1_000_000
BLOCK_TOKENS, BATCH_TOKENS = 256, 4096
KINDS: tuple[Batching, ...] = ("blocks", "packed", "padded")
SHARES = {"books": 0.4, "code": 0.3, "web": 0.2, "notes": 0.1}
RUNS, PAIRS = 20, 7


class Synthetic:
    """Documents of lognormal lengths from four sources; every token is 0."""

    def __init__(self, num_documents: int, median_tokens: float = 250.0) -> None:
        draw = np.random.default_rng(0)
        self.num_documents = num_documents
        self.lengths = np.maximum(1, draw.lognormal(np.log(median_tokens), 1.0, num_documents)).astype(
            np.int64
        )
        self.ends = np.cumsum(self.lengths)
        self.flat = np.zeros(int(self.ends[-1]), dtype=np.uint16)
        self.weights = np.ones(num_documents)
        self.sources = np.array(list(SHARES))[draw.integers(0, len(SHARES), num_documents)]
        self.ids: list[str] = []

    def document(self, index: int) -> NDArray[np.uint16]:
        return self.flat[self.ends[index] - self.lengths[index] : self.ends[index]]

    def spans(self, index: int) -> NDArray[np.int64]:
        return np.array([[0, self.lengths[index]]])


def seconds_of(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def median_ms(action: Callable[[int], object], step: int) -> float:
    """Of the steps from `step` on."""
    return 1e3 * statistics.median(seconds_of(partial(action, at)) for at in range(step, step + RUNS))


def seeking(tokens: Synthetic) -> None:
    print(f"{tokens.num_documents:,} documents, {tokens.lengths.sum():,} tokens, batches of {BATCH_TOKENS}\n")
    print(
        "| batching | plan, s | step 1: find, ms | and read, ms | step 1,000,000: find, ms | and read, ms |"
    )
    print("|---|---|---|---|---|---|")
    for kind in KINDS:
        for mixture in ({}, SHARES):
            started = time.perf_counter()
            batches = training_batches(
                tokens,
                np.arange(tokens.num_documents),
                seed=1,
                batching=kind,
                mixture=mixture,
                block_tokens=BLOCK_TOKENS,
                batch_tokens=BATCH_TOKENS,
                end_of_text=0,
            )
            seconds = time.perf_counter() - started
            figures = [
                median_ms(action, step) for step in (1, 1_000_000) for action in (batches.rows, batches.batch)
            ]
            name = f"{kind}, mixture of {len(mixture)}" if mixture else kind
            print(f"| {name} | {seconds:.2f} | {' | '.join(f'{figure:.2f}' for figure in figures)} |")


def real_lengths() -> tuple[str, NDArray[np.int64]]:
    try:
        return "data/tokens", Tokens.open(Path("data/tokens")).lengths
    except UserError:
        return "lognormal", Synthetic(20_000).lengths


def packing() -> None:
    name, lengths = real_lengths()
    print(f"\nPacking of {len(lengths):,} documents ({name}), {lengths.sum():,} tokens\n")
    print(
        "| row, tokens | documents that are cut: blocks | packed | slots filled: packed |\n|---|---|---|---|"
    )
    for row in (256, 512, 1024, 2048):
        full, rest = np.divmod(lengths, row)
        pieces = np.concatenate((np.full(full.sum(), row), rest[rest > 0]))
        filled = pieces.sum() / (row * (best_fit(pieces, row).max() + 1))
        edges = np.concatenate(([0], np.cumsum(lengths)))
        cut_in_blocks = (edges[:-1] // row != (edges[1:] - 1) // row).mean()
        print(f"| {row} | {cut_in_blocks:.1%} | {(lengths > row).mean():.1%} | {filled:.2%} |")


def update(model: Decoder, ids: torch.Tensor, documents: torch.Tensor | None) -> None:
    with autocast(torch.device("cpu"), "bf16"):
        loss = model.loss_sum(ids, ids, documents)
    loss.backward()


def masking() -> None:
    print(
        "\n| forward and backward pass, bf16 | no mask, ms | cut at borders, ms | figure |\n|---|---|---|---|"
    )
    for preset, rows, slots in (("custom-tiny", 8, 256), ("custom-tiny", 4, 512)):
        model = Decoder(DecoderConfig(vocab_size=8192, **resolve(preset, {})))
        init_parameters(model, seed=0)
        ids = torch.zeros((rows, slots), dtype=torch.int64)
        documents = (torch.arange(slots) // 100).expand(rows, slots)
        sides = [partial(update, model, ids, cut) for cut in (None, documents)]
        for side in sides:
            side()
        pairs = [[seconds_of(side) for side in sides] for _ in range(PAIRS)]
        plain, cut = (1e3 * statistics.median(seconds) for seconds in zip(*pairs, strict=True))
        print(f"| {preset}, {rows} rows of {slots} | {plain:.0f} | {cut:.0f} | {cut / plain:.2f}× |")


def main() -> None:
    torch.set_num_threads(1)
    seeking(Synthetic(NUM_DOCUMENTS))
    packing()
    masking()


if __name__ == "__main__":
    main()
