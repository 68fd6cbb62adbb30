"""The data front end against the Hugging Face path, and its memory on a corpus ten times as large.

    python -m benchmarks.data            # JSONL to training batches: Nima and `datasets`, taking turns
    python -m benchmarks.data memory     # 0.5 GB and 5 GB: peak memory of each part, all processes together

The text is the AWS CLI's documentation, copied until it is long enough; each copy numbers its documents, so
that none is a duplicate. Both sides read JSONL, tokenize with the same vocabulary on two processes and make
rows of 256 tokens; Nima also cleans, judges, hashes, and writes checked shards.
"""

import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import psutil

ROOT = Path(__file__).parent.parent
WHEELS = ".nima/packages/awscli-*/*.whl"
RUNS = 3
CORPUS_BYTES = 64_000_000
BLOCK_TOKENS = 256
VOCAB_SIZE = 16_384
MEMORY_BYTES = (500_000_000, 5_000_000_000)
PARTS = ("prepare", "tokenize", "split", "plan")


def texts() -> list[str]:
    (wheel,) = ROOT.glob(WHEELS)
    with zipfile.ZipFile(wheel) as archive:
        names = sorted(name for name in archive.namelist() if "/examples/" in name and name.endswith(".rst"))
        return [archive.read(name).decode() for name in names]


def corpus(path: Path, num_bytes: int) -> Path:
    originals, copy = texts(), 0
    with path.open("w", encoding="utf-8") as file:
        while file.tell() < num_bytes:
            for number, text in enumerate(originals):
                file.write(json.dumps({"text": f"Copy {copy} of example {number}.\n\n{text}"}) + "\n")
            copy += 1
    return path


# ------------------------------------------------------------------------------------------- the two paths

# Each runs in a process of its own: FOLDER holds corpus.jsonl and tokenizer/.
NIMA = """
import sys
from pathlib import Path
from nima import batches
from nima.encoding import encoding
from nima.dataset import splits
from nima.workspace import runtime
from nima.corpus.collection import Collection
from nima.corpus.document import document_writer, rejection_writer
from nima.parallel import workers
from nima.workspace.params import PrepareParams, TokenizeParams
from nima.encoding.token_writer import TokenWriter
from nima.tokenizer import Tokenizer
from nima.dataset.tokens import Tokens

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    begin = (folder / "part").write_text
    begin("prepare")
    source = {"name": "corpus", "path": str(folder / "corpus.jsonl")}
    settings = PrepareParams.model_validate({"sources": [source], "quality": {"min_chars": 40}})
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    with workers(runtime.load(folder)) as hands:
        with rejection_writer(folder / "rejected") as refused, document_writer(folder / "documents") as kept:
            collection = Collection(
                settings, folder=scratch / "prepare", packages=folder, downloads=folder, code=""
            )
            collection.write(hands, kept, refused)
        begin("tokenize")
        tokenizer = Tokenizer.load(folder / "tokenizer")
        (scratch / "tokenize").mkdir(exist_ok=True)
        with TokenWriter(folder / "tokens", tokenizer.vocab_size, 500_000_000) as writer:
            encoding.write_tokens(
                folder / "documents",
                folder / "tokenizer",
                TokenizeParams(kind="bpe", vocab_size=16384),
                scratch / "tokenize",
                hands,
                writer,
            )
    begin("split")
    tokens = Tokens.open(folder / "tokens")
    parts = splits.assign(tokens.groups, 0, (0.9, 0.05, 0.05))
    begin("plan")
    plan = batches.training_batches(
        tokens,
        parts["train"],
        seed=0,
        batching="packed",
        mixture={},
        block_tokens=256,
        batch_tokens=4096,
        end_of_text=tokenizer.end_of_text,
    )
    print(tokens.num_tokens, plan.batch(0).ids.shape)
"""
HUGGING_FACE = """
import sys
from itertools import chain
from pathlib import Path
from datasets import load_dataset
from transformers import PreTrainedTokenizerFast

def tokenized(examples, tokenizer):
    return {"input_ids": [ids + [tokenizer.eos_token_id] for ids in tokenizer(examples["text"])["input_ids"]]}

def grouped(examples):
    ids = list(chain.from_iterable(examples["input_ids"]))
    total = len(ids) // 256 * 256
    return {"input_ids": [ids[start : start + 256] for start in range(0, total, 256)]}

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")
    corpus = str(folder / "corpus.jsonl")
    data = load_dataset("json", data_files=corpus, split="train", cache_dir=folder / "hf")
    data = data.map(
        tokenized, batched=True, num_proc=2, remove_columns=["text"], fn_kwargs={"tokenizer": tokenizer}
    )
    data = data.map(grouped, batched=True, num_proc=2)
    print(len(data) * 256, len(data[0]["input_ids"]))
"""


def started_path(code: str, folder: Path) -> subprocess.Popen[bytes]:
    """One path as a new process. What an earlier one left is removed before."""
    for name in ("hf", "scratch", "documents", "rejected", "tokens"):
        shutil.rmtree(folder / name, ignore_errors=True)
    script = folder / "path.py"
    script.write_text(code, encoding="utf-8")
    environment = os.environ | {
        "PYTHONPATH": str(ROOT / "src"),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    }
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # or each process would compile Nima's modules anew
    return subprocess.Popen([sys.executable, script, folder], env=environment, stdout=subprocess.DEVNULL)


def seconds_of(code: str, folder: Path) -> float:
    """From a new process to its first batch."""
    started = time.perf_counter()
    with started_path(code, folder) as process:
        pass
    assert process.returncode == 0
    return time.perf_counter() - started


def train_tokenizer(folder: Path) -> None:
    sys.path.insert(0, str(ROOT / "src"))
    from nima.tokenizer import Tokenizer

    Tokenizer.train(texts(), VOCAB_SIZE).save(folder / "tokenizer")


def speed(folder: Path) -> None:
    path = corpus(folder / "corpus.jsonl", CORPUS_BYTES)
    megabytes = path.stat().st_size / 1e6
    pairs = [(seconds_of(NIMA, folder), seconds_of(HUGGING_FACE, folder)) for _ in range(RUNS)]
    ours, theirs = (statistics.median(times) for times in zip(*pairs, strict=True))
    ratio = statistics.median(second / first for first, second in pairs)
    print("| JSONL to batches | s | MB/s |\n|---|---|---|")
    print(f"| Nima: read, clean, judge, tokenize, plan | {ours:.1f} | {megabytes / ours:.1f} |")
    print(f"| datasets: load, map, group | {theirs:.1f} | {megabytes / theirs:.1f} |")
    print(f"| Nima / datasets, median of pairs | {ratio:.1f}× | |")


# ------------------------------------------------------------------------------------------------- memory


def resident_bytes(process: psutil.Process) -> int:
    """Of a process and its children; pages that they share count once (PSS)."""
    total = 0
    for member in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            total += member.memory_full_info().pss
    return total


def peaks_of(folder: Path) -> tuple[dict[str, int], float]:
    """Peak bytes of each part of Nima's path, and its seconds."""
    started, peaks = time.perf_counter(), dict.fromkeys(PARTS, 0)
    (folder / "part").write_text(PARTS[0])
    with started_path(NIMA, folder) as process:
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            part = (folder / "part").read_text() or PARTS[0]
            with contextlib.suppress(psutil.Error):
                peaks[part] = max(peaks[part], resident_bytes(watched))
            time.sleep(0.2)
    assert process.returncode == 0
    return peaks, time.perf_counter() - started


def memory(folder: Path) -> None:
    print(f"| corpus, MB | {', MB | '.join(PARTS)}, MB | s |\n|---|---|---|---|---|---|", flush=True)
    for num_bytes in MEMORY_BYTES:
        corpus(folder / "corpus.jsonl", num_bytes)
        peaks, seconds = peaks_of(folder)
        found = " | ".join(f"{peak / 1e6:.0f}" for peak in peaks.values())
        print(f"| {num_bytes / 1e6:.0f} | {found} | {seconds:.0f} |", flush=True)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        train_tokenizer(Path(name))
        (memory if sys.argv[1:] == ["memory"] else speed)(Path(name))


if __name__ == "__main__":
    main()
