"""SIGKILL at random points of a run, then once more on the way back: the files at the end must not differ.

Run with `python -m benchmarks.kill_points` (100 points), or with another number and a seed
behind it. Points lie anywhere in time, at a micro-batch, within an evaluation, and within the writing of a
checkpoint: before the n-th change of the file system, or a moment later. Each run is a process of its own,
forked from one that has torch loaded.
"""

import hashlib
import json
import math
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nima.batches import Stream, scoring_windows, training_batches
from nima.checkpoint.run_folder import open_run
from nima.monitoring.progress import TrainingProgress
from nima.network import tensors
from nima.network.decoder import Decoder, DecoderConfig, init_parameters
from nima.network.tensors import write_tensors
from nima.processes import ALONE
from nima.scoring.likelihood import Scorer
from nima.training import loop
from nima.training.tracking import StageLive
from nima.workspace.params import EarlyStoppingParams, RunParams, TrainingParams
from nima.workspace.signals import StopRequest

BLOCK, STEPS = 8, 6
OVERFLOW_AT_UPDATE = 3
Kind = Literal["clock", "poll", "evaluation", "file"]
KINDS: tuple[Kind, ...] = ("clock", "poll", "evaluation", "file")
MODES: dict[str, dict[str, Any]] = {
    "accumulation and dropout in bf16": {"precision": "bf16", "micro_batch_tokens": 2 * BLOCK},
    "fp16 with an overflow": {"precision": "fp16", "max_grad_norm": None},
    "packed, attention cut, compressed": {"batching": "packed", "mask_documents": True},
    "early stopping": {
        "early_stopping": EarlyStoppingParams(metric="accuracy", patience=2, min_delta=0.5),
        "validate_every_steps": 1,
        "max_steps": 2 * STEPS,
    },
    "AdamW, across epochs": {"optimizer": "adamw", "batch_tokens": 24 * BLOCK, "weight_decay": 0.1},
}


@dataclass
class Documents:
    """Arithmetic sequences of tokens, of unlike lengths."""

    num_documents: int = 60
    weights: NDArray[np.float64] = field(default_factory=lambda: np.ones(60))
    lengths: NDArray[np.int64] = field(default_factory=lambda: np.arange(60) * 7 % 23 + 2)

    def document(self, index: int) -> NDArray[np.uint16]:
        return ((index + np.arange(self.lengths[index]) * (index % 3 + 1)) % 60 + 4).astype(np.uint16)

    def spans(self, index: int) -> NDArray[np.int64]:
        return np.array([[0, self.lengths[index]]])

    @property
    def ids(self) -> list[str]:
        return [f"document-{index}" for index in range(self.num_documents)]

    @property
    def sources(self) -> list[str]:
        return ["all"] * self.num_documents


@dataclass
class Point:
    """Where a run is killed: before the n-th event of a kind, or some milliseconds into it."""

    kind: Kind
    place: float
    delay_seconds: float = 0.0


class Executioner(StopRequest):
    """Counts the events of a run, and ends the process at one of them."""

    def __init__(self, point: Point | None) -> None:
        super().__init__()
        self.point, self.counts, self.evaluates = point, Counter[str](), False

    def event(self, kind: Kind) -> None:
        self.counts[kind] += 1
        if self.point and self.point.kind == kind and self.counts[kind] == self.point.place:
            if self.point.delay_seconds:
                threading.Thread(target=self.kill, daemon=True).start()
            else:
                os.kill(os.getpid(), signal.SIGKILL)

    def kill(self) -> None:
        assert self.point is not None
        time.sleep(self.point.delay_seconds)
        os.kill(os.getpid(), signal.SIGKILL)

    def __bool__(self) -> bool:
        self.event("evaluation" if self.evaluates else "poll")
        return False

    def watch_files(self) -> None:
        """Count what changes the file system, wherever it is called from.

        Nothing is synced: a killed process loses nothing of what it gave to the system, and time is saved.
        """
        setattr(os, "fsync", lambda _: self.event("file"))  # noqa: B010
        for owner, name in (
            *((os, name) for name in ("rename", "mkdir", "unlink", "rmdir")),
            (tensors, "save_file"),
        ):
            setattr(owner, name, self.counted(getattr(owner, name)))

    def counted(self, change: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*arguments: Any, **named: Any) -> Any:
            self.event("file")
            return change(*arguments, **named)

        return counting


@dataclass(frozen=True)
class WatchedScorer(Scorer):
    """Tells the executioner when it is at work."""

    executioner: Executioner | None = None

    def __call__(
        self, model: Decoder, poll: Callable[[], None] = lambda: None, max_tokens: int | None = None
    ) -> Any:
        assert self.executioner is not None
        self.executioner.evaluates = True
        found = super().__call__(model, poll, max_tokens)
        self.executioner.evaluates = False
        return found


def model_of(mode: str) -> Decoder:
    shape: dict[str, Any] = {
        "vocab_size": 64,
        "num_layers": 1,
        "width": 16,
        "num_heads": 2,
        "num_kv_heads": 1,
    }
    shape |= {"mlp": "relu2", "mlp_width": 32, "context_tokens": 16, "tie_embeddings": False}
    model = Decoder(DecoderConfig(**shape, dropout=0.1, rope_theta=10_000.0, norm_eps=1e-6))
    init_parameters(model, seed=0)
    if "overflow" in mode:
        model.norm.gain.register_hook(overflow)
    return model


def overflow(gradient: Tensor) -> Tensor:
    """Infinite in one update, which is known by the seed of its dropout."""
    return gradient * math.inf if torch.initial_seed() == 1_000_003 + OVERFLOW_AT_UPDATE - 1 else gradient


def settings_of(mode: str) -> TrainingParams:
    settings: dict[str, Any] = {"seed": 1, "max_steps": STEPS, "precision": "fp32", "lr": 0.01}
    settings |= {"block_tokens": BLOCK, "batch_tokens": 8 * BLOCK, "micro_batch_tokens": 4 * BLOCK}
    settings |= {"warmup_steps": 2, "validate_every_steps": 2, "log_every_steps": 2}
    return TrainingParams(**settings | MODES[mode])


def train(folder: Path, mode: str, executioner: Executioner) -> None:
    """One attempt at the run in `folder`; writes its outcome there at the end."""
    settings, text = settings_of(mode), Documents()
    batches = training_batches(
        text,
        np.arange(45),
        seed=1,
        batching=settings.batching,
        mixture={},
        block_tokens=BLOCK,
        batch_tokens=settings.batch_tokens,
        end_of_text=0,
    )
    stream = Stream(text, np.arange(45, 60))
    scorer = WatchedScorer(
        stream,
        scoring_windows(stream.num_tokens, BLOCK, BLOCK),
        end_of_text=0,
        token_bytes=np.arange(64) % 5,
        sources=text.sources,
        micro_batch_tokens=4 * BLOCK,
        precision=settings.precision,
        executioner=executioner,
    )
    model, total_steps = model_of(mode), settings.max_steps or STEPS
    compression = "zstd" if "compressed" in mode else "none"
    os.chdir(folder)
    with (
        open_run(folder / "run", {}, keep=2, compression=compression) as saved,
        TrainingProgress(total_steps, print_every_steps=1000) as progress,
    ):
        often = RunParams(save_every_steps=1, save_every_seconds=None)
        live = StageLive("train")
        run = loop.Run(saved, live, progress, executioner, often)
        result = loop.train(model, batches, scorer, settings, total_steps, run)
        live.finish({"best": result.state.best, "skipped_updates": result.state.skipped_updates})
        write_tensors(folder / "best.safetensors", result.best_weights)
        write_tensors(folder / "last.safetensors", ALONE.weights(model))


def attempt(folder: Path, mode: str, point: Point | None) -> tuple[bool, Counter[str], float]:
    """Run in a child until the end or the kill: whether it ended, its events, its seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            executioner = Executioner(point)
            os.dup2(os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
            executioner.watch_files()
            train(folder, mode, executioner)
            os.write(writing, json.dumps(executioner.counts).encode())
            os._exit(0)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
    os.close(writing)
    if point and point.kind == "clock":
        time.sleep(point.place)
        os.kill(child, signal.SIGKILL)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.waitstatus_to_exitcode(status) not in (0, -signal.SIGKILL):
        raise SystemExit(f"{mode}: failed\n{(folder / 'log').read_text()}")
    return status == 0, Counter(json.loads(text or "{}")), time.perf_counter() - started


def outcome(folder: Path) -> dict[str, str]:
    """The hash of every file that a run leaves behind."""
    files = [*folder.glob("*.safetensors"), *folder.glob("metrics/*"), *folder.glob("plots/**/*.tsv")]
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(files)
    }


def random_point(draw: random.Random, counts: Counter[str], seconds: float, kind: Kind) -> Point:
    if kind == "clock":
        return Point(kind, draw.uniform(0, seconds))
    delay = draw.choice([0.0, draw.uniform(0, 0.003)])
    return Point(kind, draw.randint(1, counts[kind]), delay)


def main(num_points: int, seed: int) -> bool:
    torch.set_num_threads(1)
    draw, num_equal, killed = random.Random(seed), 0, Counter[str]()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        whole = {mode: attempt(place / mode, mode, None) for mode in MODES}
        expected = {mode: outcome(place / mode) for mode in MODES}
        for number in range(num_points):
            mode, kind = list(MODES)[number % len(MODES)], KINDS[number % len(KINDS)]
            folder, (_, counts, seconds) = place / str(number), whole[mode]
            ended = False
            for at in (kind, draw.choice(KINDS)):  # the second one on the way back, if it comes that far
                point = random_point(draw, counts, seconds, at)
                ended = ended or attempt(folder, mode, point)[0]
                killed[at] += not ended
            if not ended:
                attempt(folder, mode, None)
            if outcome(folder) == expected[mode]:
                num_equal += 1
            else:
                print(f"{mode}, killed at {kind}: other bytes (seed {seed}, point {number})")
            shutil.rmtree(folder)
    kills = ", ".join(f"{count} at {kind}" for kind, count in sorted(killed.items()))
    print(f"{num_equal} of {num_points} points end in equal bytes (seed {seed}; kills: {kills})")
    return num_equal == num_points


if __name__ == "__main__":
    given = [int(word) for word in sys.argv[1:]]
    count, chosen = (given + [100, random.SystemRandom().randrange(10**6)][len(given) :])[:2]
    sys.exit(not main(count, chosen))
