"""How fast and how completely near duplicates are found: real text, with near duplicates planted in it.

The text is the AWS CLI's documentation, as `make repro` fetches it. Copies of some documents with a share of
their words replaced are planted among them, and sketched and searched with the rest, in one process. What is
similar is said by exact sets of word n-grams, built by other means than the library's: for all planted pairs,
for all pairs of a sample, and for all pairs that were joined.
"""

import random
import re
import time
import zipfile
from collections import defaultdict
from collections.abc import Iterable
from itertools import combinations
from pathlib import Path

import numpy as np

from nima.corpus.duplicates.similarity import NUM_HASHES, banding, near_duplicates, sketch
from nima.workspace.params.data import NearDuplicatesParams

ROOT = Path(__file__).parent.parent
RULES = NearDuplicatesParams()
EDIT_RATES = (0.0, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
PLANTED_PER_RATE = 300
SAMPLED = 2000
WORD = re.compile(r"[^\W_]+")

Ngrams = frozenset[tuple[str, ...]]


def real_texts() -> list[str]:
    wheels = sorted((ROOT / ".nima" / "packages").glob("awscli-*/*.whl"))
    if not wheels:
        raise SystemExit("no AWS CLI package in .nima/packages: run `make repro` first")
    with zipfile.ZipFile(wheels[-1]) as wheel:
        names = [name for name in sorted(wheel.namelist()) if re.match(r"awscli/examples/.*\.rst$", name)]
        return [wheel.read(name).decode() for name in names]


def edited(text: str, rate: float, words: list[str], draw: random.Random) -> str:
    """The text with a share of its words replaced by others of the corpus."""
    return WORD.sub(lambda match: draw.choice(words) if draw.random() < rate else match.group(), text)


def ngrams_of(text: str) -> Ngrams:
    words = WORD.findall(text.casefold())
    size = min(RULES.ngram_words, len(words))
    return frozenset(tuple(words[place : place + size]) for place in range(len(words) - size + 1))


def similarity(one: Ngrams, other: Ngrams) -> float:
    """Exact Jaccard similarity."""
    if min(len(one), len(other)) < RULES.min_similarity * max(len(one), len(other)):
        return 0.0  # whatever they share, it is too little to count
    shared = len(one & other)
    return shared / (len(one) + len(other) - shared)


def joined_pairs(first_of: np.ndarray) -> list[tuple[int, int]]:
    clusters: dict[int, list[int]] = defaultdict(list)
    for number, first in enumerate(first_of.tolist()):
        clusters[first].append(number)
    return [pair for cluster in clusters.values() for pair in combinations(cluster, 2)]


def plant(texts: list[str], draw: random.Random) -> dict[float, list[tuple[int, int]]]:
    """Adds edited copies to the texts; returns pairs of original and copy by the share of words replaced."""
    words, originals = WORD.findall(" ".join(draw.sample(texts, 200))), len(texts)
    planted: dict[float, list[tuple[int, int]]] = {rate: [] for rate in EDIT_RATES}
    for rate, pairs in planted.items():
        for number in draw.sample(range(originals), PLANTED_PER_RATE):
            pairs.append((number, len(texts)))
            texts.append(edited(texts[number], rate, words, draw))
    return planted


def search(texts: list[str]) -> tuple[np.ndarray, float, float]:
    """The first of each text's cluster, and the seconds that sketches and search took."""
    sketch("this one builds the tables", RULES)
    started = time.perf_counter()
    sketches = np.frombuffer(b"".join(sketch(text, RULES) for text in texts), np.uint32)
    sketched = time.perf_counter()
    found = near_duplicates(sketches.reshape(-1, NUM_HASHES), RULES.min_similarity)
    return found.first_of, sketched - started, time.perf_counter() - sketched


def main() -> None:
    draw = random.Random(0)
    texts = real_texts()
    planted = plant(texts, draw)
    first_of, sketch_seconds, search_seconds = search(texts)
    ngrams = [ngrams_of(text) for text in texts]

    def similar(pairs: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        return [(a, b) for a, b in pairs if similarity(ngrams[a], ngrams[b]) >= RULES.min_similarity]

    def shown(pairs: list[tuple[int, int]]) -> str:
        found = sum(first_of[one] == first_of[other] for one, other in pairs)
        return f"{found} of {len(pairs)}" + (f", {found / len(pairs):.1%}" if pairs else "")

    print(f"| words replaced | planted | found of those of similarity ≥ {RULES.min_similarity} |")
    print("|---|---|---|")
    for rate, pairs in planted.items():
        print(f"| {rate:.1%} | {len(pairs)} | {shown(similar(pairs))} |")
    every = similar(pair for pairs in planted.values() for pair in pairs)
    sampled = similar(combinations(sorted(draw.sample(range(len(texts)), SAMPLED)), 2))
    joined = joined_pairs(first_of)
    num_megabytes = sum(len(text.encode()) for text in texts) / 1e6
    bands, rows = banding(RULES.min_similarity)
    precision = f"{len(similar(joined))} of {len(joined)}, {len(similar(joined)) / len(joined):.1%}"
    print(f"\n{len(texts)} documents, {num_megabytes:.1f} MB; {bands} bands of {rows} rows\n")
    print("| what | figure |\n|---|---|")
    print(f"| recall, all planted pairs that are similar | {shown(every)} |")
    print(f"| recall, all similar pairs of {SAMPLED} documents | {shown(sampled)} |")
    print(f"| precision, pairs in one cluster that are similar | {precision} |")
    print(f"| sketches | {num_megabytes / sketch_seconds:.1f} MB/s |")
    print(f"| search and verification | {num_megabytes / search_seconds:.0f} MB/s |")
    print(f"| both | {num_megabytes / (sketch_seconds + search_seconds):.1f} MB/s |")


if __name__ == "__main__":
    main()
