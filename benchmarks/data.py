"""The data front end against the Hugging Face path, and its memory on a corpus ten times as large.

    python -m benchmarks.data            # JSONL to training batches: Nima and `datasets`, taking turns
    python -m benchmarks.data memory     # 0.5 GB and 5 GB: peak memory of each part, all processes together

The text is the AWS CLI's documentation, copied until it is long enough; each copy numbers its documents, so
that none is a duplicate. Both sides read JSONL, tokenize with the same vocabulary on two cores and make rows
of 256 tokens; Nima also cleans, judges, hashes, and writes checked shards.
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
PARTS = ("prepare", "tokenize", "plan")


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

# Each runs in a process of its own: FOLDER holds corpus.jsonl and tokenizer/. Nima's takes the parts to run.
NIMA = """
import gc
import sys
from functools import cache
from pathlib import Path
gc.disable()  # until the work begins, as in a stage
from nima import batches
from nima.corpus.collection import Collection
from nima.corpus.document import document_writer, rejection_writer
from nima.dataset import splits
from nima.dataset.tokens import Tokens
from nima.encoding.encoding import write_tokens
from nima.encoding.token_writer import TokenWriter
from nima.workers.parallel import get_ready, workers
from nima.tokenizer import Tokenizer
from nima.workspace import runtime
from nima.workspace.params import PrepareParams, TokenizeParams

@cache
def tokenizer(folder):
    return Tokenizer.load(folder / "tokenizer")

def prepare(folder, hands):
    source = {"name": "corpus", "path": str(folder / "corpus.jsonl")}
    settings = PrepareParams.model_validate({"sources": [source], "quality": {"min_chars": 40}})
    scratch = folder / "scratch" / "prepare"
    with rejection_writer(folder / "rejected") as refused, document_writer(folder / "documents") as kept:
        collection = Collection(settings, folder=scratch, packages=folder, downloads=folder, code="")
        collection.write(hands, kept, refused)

def tokenize(folder, hands):
    scratch, settings = folder / "scratch" / "tokenize", TokenizeParams(kind="bpe", vocab_size=16384)
    scratch.mkdir(parents=True, exist_ok=True)
    with TokenWriter(folder / "tokens", tokenizer(folder).vocab_size, 500_000_000) as writer:
        write_tokens(folder / "documents", folder / "tokenizer", settings, scratch, hands, writer)

def plan(folder, hands):
    tokens = Tokens.open(folder / "tokens")
    parts = splits.assign(tokens.groups, 0, (0.9, 0.05, 0.05))
    plan = batches.training_batches(
        tokens,
        parts["train"],
        seed=0,
        batching="packed",
        mixture={},
        block_tokens=256,
        batch_tokens=4096,
        end_of_text=tokenizer(folder).end_of_text,
    )
    print(tokens.num_tokens, plan.batch(0).ids.shape)

if __name__ == "__main__":
    gc.freeze()
    gc.enable()
    folder = Path(sys.argv[1])
    (folder / "scratch").mkdir(exist_ok=True)
    settings = runtime.load(folder)
    get_ready(settings)
    with workers(settings) as hands:
        for part in sys.argv[2:]:
            globals()[part](folder, hands)
"""
# As the scripts of `transformers` have it: every column that the tokenizer gives is joined and cut to blocks,
# and the labels are a copy of the ids. By itself its tokenizer takes `threads`; held to one `thread`,
# or with `processes`, it does not.
HUGGING_FACE = """
import os
import sys
from itertools import chain
from pathlib import Path
from datasets import load_dataset
from transformers import PreTrainedTokenizerFast

def tokenized(examples, tokenizer):
    return tokenizer(examples["text"])

def grouped(examples):
    joined = {name: list(chain.from_iterable(rows)) for name, rows in examples.items()}
    total = len(joined["input_ids"]) // 256 * 256
    blocks = {name: [row[at : at + 256] for at in range(0, total, 256)] for name, row in joined.items()}
    return blocks | {"labels": blocks["input_ids"].copy()}

if __name__ == "__main__":
    folder, cores = Path(sys.argv[1]), sys.argv[2]
    num_proc = 2 if cores == "processes" else None
    os.environ["TOKENIZERS_PARALLELISM"] = "false" if cores == "thread" else "true"
    settings = {"tokenizer": PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")}
    corpus = str(folder / "corpus.jsonl")
    data = load_dataset("json", data_files=corpus, split="train", cache_dir=folder / "hf")
    data = data.map(tokenized, batched=True, num_proc=num_proc, remove_columns=["text"], fn_kwargs=settings)
    data = data.map(grouped, batched=True, num_proc=num_proc)
    print(len(data) * 256, len(data[0]["input_ids"]))
"""


def started(code: str, folder: Path, *parts: str) -> subprocess.Popen[bytes]:
    """A path, or parts of it, as a new process."""
    script = folder / "path.py"
    script.write_text(code, encoding="utf-8")
    environment = os.environ | {
        "PYTHONPATH": str(ROOT / "src"),
        "PYDANTIC_DISABLE_PLUGINS": "__all__",  # as in a stage
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    }
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # or each process would compile Nima's modules anew
    command = [sys.executable, script, folder, *parts]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)


def clear(folder: Path) -> None:
    """Remove what an earlier path left."""
    for name in ("hf", "scratch", "documents", "rejected", "tokens"):
        shutil.rmtree(folder / name, ignore_errors=True)


def seconds_of(code: str, folder: Path, *parts: str) -> float:
    """From a new process to its first batch."""
    clear(folder)
    begun = time.perf_counter()
    with started(code, folder, *parts) as process:
        pass
    assert process.returncode == 0
    return time.perf_counter() - begun


def train_tokenizer(folder: Path) -> None:
    sys.path.insert(0, str(ROOT / "src"))
    from nima.tokenizer import Tokenizer

    Tokenizer.train(texts(), VOCAB_SIZE).save(folder / "tokenizer")


def speed(folder: Path) -> None:
    path = corpus(folder / "corpus.jsonl", CORPUS_BYTES)
    megabytes = path.stat().st_size / 1e6
    paths = {
        "Nima: read, clean, judge, tokenize, plan": (NIMA, *PARTS),
        "datasets: load, map, group": (HUGGING_FACE, "threads"),
        "datasets: the same with num_proc=2": (HUGGING_FACE, "processes"),
        "datasets: the same, its tokenizer held to one thread": (HUGGING_FACE, "thread"),
    }
    rounds = [[seconds_of(code, folder, *words) for code, *words in paths.values()] for _ in range(RUNS)]
    print("| JSONL to batches | s | MB/s | to Nima, median of rounds |\n|---|---|---|---|")
    for place, name in enumerate(paths):
        seconds = statistics.median(times[place] for times in rounds)
        ratio = statistics.median(times[place] / times[0] for times in rounds)
        print(f"| {name} | {seconds:.1f} | {megabytes / seconds:.1f} | {ratio:.1f}× |")


# ------------------------------------------------------------------------------------------------- memory


def resident_bytes(process: psutil.Process) -> int:
    """Of a process and its children; pages that they share count once (PSS)."""
    total = 0
    for member in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            total += member.memory_full_info().pss
    return total


def peaks_of(folder: Path) -> tuple[dict[str, int], float]:
    """Peak bytes of Nima's parts, a process each as in the pipeline, and the seconds of all."""
    clear(folder)
    begun, peaks = time.perf_counter(), dict.fromkeys(PARTS, 0)
    for part in PARTS:
        with started(NIMA, folder, part) as process:
            watched = psutil.Process(process.pid)
            while process.poll() is None:
                with contextlib.suppress(psutil.Error):
                    peaks[part] = max(peaks[part], resident_bytes(watched))
                time.sleep(0.2)
        assert process.returncode == 0
    return peaks, time.perf_counter() - begun


def memory(folder: Path) -> None:
    print(f"| corpus, MB | {', MB | '.join(PARTS)}, MB | s |\n|---|---|---|---|---|", flush=True)
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
