"""The real loop in two processes of one thread against one process of two threads, in tokens per second.

Run with `python -m benchmarks.processes`. The two take turns, so that a machine whose speed drifts does not
favour one; medians are printed, and their ratio.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch

from nima.batches import Stream, evenly_spread, scoring_windows, training_batches
from nima.checkpoint.run_folder import NoFolder, open_run
from nima.monitoring.progress import TrainingProgress
from nima.network.decoder import Decoder, DecoderConfig, init_parameters
from nima.processes.joining import joined
from nima.scoring.likelihood import Scorer
from nima.training.loop import Run, train
from nima.training.tracking import Unlogged
from nima.workspace.params import RunParams, TrainingParams
from nima.workspace.runtime import load
from nima.workspace.signals import StopRequest

ROUNDS, STEPS, UNCOUNTED = 3, 7, 2
VOCABULARY, BLOCK, BATCH = 4096, 256, 4096


class Documents:
    """Random tokens: only time is measured."""

    num_documents = 64
    lengths = np.full(64, 4096)
    weights = np.ones(64)
    sources = np.array(["text"] * 64)
    ids = ("document",) * 64

    def document(self, index: int) -> np.ndarray:
        return np.random.default_rng(index).integers(0, VOCABULARY, 4096, dtype=np.uint16)

    def spans(self, index: int) -> np.ndarray:  # noqa: ARG002
        return np.array([[0, 4096]])


class Clock(TrainingProgress):
    """Notes when each update was done."""

    def __init__(self) -> None:
        super().__init__(STEPS, 1000, quiet=True)
        self.times: list[float] = []

    def step(self, *_: float) -> None:
        self.times.append(time.perf_counter())


def tokens_per_second(folder: Path) -> float:
    """Of the updates after the first few, in this process and those that were started with it."""
    runtime = load(folder)
    torch.set_num_threads(runtime.threads)
    settings = TrainingParams(
        seed=1,
        max_steps=STEPS,
        block_tokens=BLOCK,
        batch_tokens=BATCH,
        micro_batch_tokens=BATCH,
        lr=0.01,
        validate_every_steps=STEPS,
        validation_max_tokens=BLOCK,
    )
    shape = {"num_layers": 6, "width": 384, "num_heads": 6, "num_kv_heads": 6, "mlp_width": 1536}
    config = DecoderConfig(
        vocab_size=VOCABULARY,
        mlp="relu2",
        context_tokens=BLOCK,
        dropout=0.0,
        tie_embeddings=False,
        rope_theta=10_000.0,
        norm_eps=1e-6,
        **shape,
    )
    model, documents, numbers = Decoder(config), Documents(), np.arange(64)
    init_parameters(model, seed=1)
    batches = training_batches(
        documents,
        numbers,
        seed=1,
        batching="blocks",
        mixture={},
        block_tokens=BLOCK,
        batch_tokens=BATCH,
        end_of_text=0,
    )
    stream, never = Stream(documents, numbers), RunParams(save_every_steps=None, save_every_seconds=None)
    with joined(runtime, torch.device("cpu")) as processes, Clock() as clock, StopRequest() as stop:
        scorer = Scorer(
            stream,
            evenly_spread(scoring_windows(stream.num_tokens, BLOCK, BLOCK), BLOCK),
            0,
            np.ones(VOCABULARY, dtype=np.int64),
            ["text"] * 64,
            BATCH,
            "bf16",
            processes,
        )
        opened = open_run(folder, {}, 1) if processes.is_first else nullcontext(NoFolder())
        with opened as place:
            run = Run(place, Unlogged(), clock, stop, never)
            train(model, batches, scorer, settings, STEPS, run, processes)
    seconds = clock.times[-1] - clock.times[UNCOUNTED - 1]
    return BATCH * (STEPS - UNCOUNTED) / seconds


def measured(num_processes: int, num_threads: int) -> float:
    """In fresh processes."""
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    threads = {"NIMA_THREADS": str(num_threads), "OMP_NUM_THREADS": str(num_threads)}
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "GLOO_SOCKET_IFNAME": "lo"}
    place |= {"WORLD_SIZE": str(num_processes), "LOCAL_WORLD_SIZE": str(num_processes)}
    place |= {"TORCHELASTIC_USE_AGENT_STORE": "True"} | threads
    with tempfile.TemporaryDirectory() as folder:
        started = [
            subprocess.Popen(
                [sys.executable, "-m", "benchmarks.processes", folder],
                env=os.environ | place | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(num_processes)
        ]
        printed = [process.communicate()[0] for process in started]
    return float(printed[0])


def main() -> None:
    if len(sys.argv) > 1:
        print(tokens_per_second(Path(sys.argv[1])))
        return
    pairs = []
    for _ in range(ROUNDS):
        pairs.append((measured(2, 1), measured(1, 2)))
        print("{:,.0f} and {:,.0f} tokens/s".format(*pairs[-1]), file=sys.stderr, flush=True)
    two, one = (statistics.median(pair[place] for pair in pairs) for place in (0, 1))
    ratio = statistics.median(first / second for first, second in pairs)
    print("| what | tokens/s |\n|---|---|")
    print(f"| 2 processes × 1 thread | {two:,.0f} |\n| 1 process × 2 threads | {one:,.0f} |")
    print(f"| ratio, median of {ROUNDS} pairs | {ratio:.2f} |")


if __name__ == "__main__":
    main()
