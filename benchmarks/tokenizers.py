"""How fast tokenizers encode and are learnt, beside `tokenizers`' own `encode_batch` with the same merges.

Run as `python -m benchmarks.tokenizers`, after `make setup`; takes about 40 seconds. Both encode the same
text in one process and take turns; medians of the pairs' ratios are printed, and only these should be quoted.
Each number of threads has a process of its own: `tokenizers` reads it once.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from nima.tokenizer import Tokenizer, tokenizer_of
from nima.tokenizer.encoders import GPT4_PATTERNS
from nima.workspace.params import TokenizeParams

PACKAGES = Path(__file__).parent.parent / ".nima" / "packages"
TEXT_BYTES = 1_000_000
VOCAB_SIZE = 4096
PAIRS = 5
THREADS = (1, 2)


def corpus() -> list[str]:
    """Documents of the AWS CLI, evenly drawn, `TEXT_BYTES` of them."""
    [wheel] = PACKAGES.glob("awscli-*/*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = sorted(name for name in archive.namelist() if "/examples/" in name and name.endswith(".rst"))
        total = sum(archive.getinfo(name).file_size for name in names)
        return [archive.read(name).decode() for name in names[:: total // TEXT_BYTES]]


def num_bytes(texts: list[str]) -> int:
    return sum(len(text.encode()) for text in texts)


# ------------------------------------------------------------------------------------------- tokenizers


def all_tokenizers(texts: list[str]) -> Iterator[tuple[str, Tokenizer, float | None]]:
    """Each tokenizer with its name and the seconds that learning it took."""
    for kind in ("bpe", "unigram", "char", "byte"):
        size = VOCAB_SIZE if kind in ("bpe", "unigram") else None
        settings = TokenizeParams.model_validate({"kind": kind, "vocab_size": size})
        started = time.perf_counter()
        made = tokenizer_of(settings, texts, downloads=Path())
        yield kind, made, time.perf_counter() - started
    for name, split in pretrained_splits().items():
        with tempfile.TemporaryDirectory() as folder:
            pretrained(split, texts).save(f"{folder}/tokenizer.json")
            settings = TokenizeParams(kind="pretrained", pretrained=folder)
            yield name, tokenizer_of(settings, texts, downloads=Path()), None


def pretrained_splits() -> dict[str, Any]:
    """How models split text."""
    spelled = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    by = [pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated") for pattern in GPT4_PATTERNS]
    return {
        "pretrained, as GPT-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
        "pretrained, as Llama 3": pre_tokenizers.Sequence([by[0], spelled]),
        "pretrained, as Qwen 2": pre_tokenizers.Sequence([by[1], spelled]),
    }


def pretrained(split: Any, texts: list[str]) -> tokenizers.Tokenizer:
    reference = tokenizers.Tokenizer(models.BPE())
    reference.pre_tokenizer, reference.decoder = split, decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCAB_SIZE, initial_alphabet=alphabet, show_progress=False)
    reference.train_from_iterator(texts, trainer)
    return reference


# ---------------------------------------------------------------------------------------------- timing


def seconds_of(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def paired(ours: Callable[[], Any], theirs: Callable[[], Any]) -> tuple[float, float, float]:
    """Medians: seconds of each, and the ratio inside a pair. Who begins alternates."""
    pairs = []
    for number in range(PAIRS):
        if number % 2:
            mine, other = seconds_of(ours), seconds_of(theirs)
        else:
            other, mine = seconds_of(theirs), seconds_of(ours)
        pairs.append((mine, other, other / mine))
    first, second, ratio = (statistics.median(column) for column in zip(*pairs, strict=True))
    return first, second, ratio


def measure(threads: int) -> None:
    """One line of JSON for each tokenizer."""
    texts = corpus()
    size = num_bytes(texts) / 1e6
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, made, learnt) in enumerate(all_tokenizers(texts)):
            made.save(Path(folder) / str(number))
            reference = tokenizers.Tokenizer.from_file(f"{folder}/{number}/tokenizer.json")
            reference.encode_special_tokens = True
            ours, theirs = encoders_of(made, reference, texts, threads)
            mine, other, ratio = paired(ours, theirs)
            rates = {"ours": size / mine, "theirs": size / other, "ratio": ratio}
            print(json.dumps({"name": name, "encoder": made.report()["encoder"], "learnt": learnt, **rates}))


def encoders_of(
    made: Tokenizer, reference: tokenizers.Tokenizer, texts: list[str], threads: int
) -> tuple[Callable[[], Any], Callable[[], Any]]:
    def ours() -> Any:
        return made.encode_many(texts, threads)

    def theirs() -> Any:
        return reference.encode_batch(texts, add_special_tokens=False)

    # Also the uncounted first run of both.
    assert [ids.tolist() for ids in ours()] == [found.ids for found in theirs()]
    return ours, theirs


def main() -> None:
    print(
        f"{num_bytes(corpus()) / 1e6:.1f} MB of text, {VOCAB_SIZE} tokens learnt, medians of {PAIRS} pairs\n"
    )
    print("| tokenizer | encoder | threads | Nima, MB/s | `encode_batch`, MB/s | ratio | learnt in, s |")
    print("|---|---|---|---|---|---|---|")
    for threads in THREADS:
        environment = dict(os.environ, RAYON_NUM_THREADS=str(threads))
        command = [sys.executable, "-m", "benchmarks.tokenizers", str(threads)]
        done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
        for found in map(json.loads, done.stdout.splitlines()):
            learnt = "" if found["learnt"] is None else f"{found['learnt']:.1f}"
            speeds = f"{found['ours']:.1f} | {found['theirs']:.1f} | {found['ratio']:.1f}×"
            print(f"| {found['name']} | {found['encoder']} | {threads} | {speeds} | {learnt} |")


if __name__ == "__main__":
    measure(int(sys.argv[1])) if len(sys.argv) > 1 else main()
