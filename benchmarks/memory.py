"""The most memory that a training process has: the loop with its checks and checkpoints, and the Trainer.

Run with `python -m benchmarks.memory`, or `python -m benchmarks.memory speed` for what layers cost that are
computed again or compiled (medians of steps that take turns); each takes a minute. Each side is a process of
its own at 6 layers × 384, 16 rows of 256 tokens, a vocabulary of 4,096, bf16: the loop with Muon, with and
without activation checkpointing, validating and saving as it goes; `transformers`' Trainer with its Llama and
fused AdamW, which saves nothing. What importing takes is part of the figure, and given beside it.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.batches import Synthetic
from benchmarks.peers import Shape, llama
from nima.batches import Stream, evenly_spread, scoring_windows, training_batches
from nima.checkpoint.run_folder import open_run
from nima.monitoring.progress import TrainingProgress
from nima.network.decoder import Decoder, DecoderConfig, autocast, init_parameters
from nima.scoring.likelihood import Scorer
from nima.training.compilation import compile_layers
from nima.training.loop import Run, train
from nima.training.process_memory import peak_resident_bytes, resident_bytes
from nima.workspace.params import RunParams, TrainingParams
from nima.workspace.params.presets import resolve
from nima.workspace.runtime import keep_freed_memory
from nima.workspace.signals import StopRequest

SHAPE = Shape(num_layers=6, width=384, num_heads=6, vocab_size=4096, block_tokens=256)
ROWS, STEPS, WARM_UP_STEPS, THREADS = 16, 4, 2, 2
BATCH_TOKENS = ROWS * SHAPE.block_tokens


class Unwatched:
    """Stands where a run's log stands."""

    def log_row(self, _: object) -> None: ...

    replay = log_row


def nima(*, recomputes: bool) -> None:
    keep_freed_memory()
    torch.use_deterministic_algorithms(True)
    tokens: Any = Synthetic(2000)
    settings = TrainingParams(
        seed=0,
        max_steps=STEPS,
        lr=0.01,
        block_tokens=SHAPE.block_tokens,
        batch_tokens=BATCH_TOKENS,
        micro_batch_tokens=BATCH_TOKENS,
        validate_every_steps=STEPS // 2,
    )
    model = Decoder(DecoderConfig(vocab_size=SHAPE.vocab_size, **resolve("gpt-small", {})))
    init_parameters(model, seed=0)
    batches = training_batches(
        tokens,
        np.arange(1900),
        seed=0,
        batching="blocks",
        mixture={},
        block_tokens=SHAPE.block_tokens,
        batch_tokens=BATCH_TOKENS,
        end_of_text=0,
    )
    stream = Stream(tokens, np.arange(1900, 2000))
    windows = evenly_spread(scoring_windows(stream.num_tokens, 256, 256), 4 * BATCH_TOKENS)
    sizes = np.ones(SHAPE.vocab_size, dtype=np.int64)
    scorer = Scorer(stream, windows, 0, sizes, tokens.sources.tolist(), BATCH_TOKENS, "bf16")
    choices = RunParams(save_every_steps=STEPS // 2, activation_checkpointing=recomputes)
    with (
        tempfile.TemporaryDirectory() as folder,
        open_run(Path(folder) / "run", {}, keep=2) as kept,
        TrainingProgress(STEPS, print_every_steps=1000) as progress,
    ):
        run = Run(kept, Unwatched(), progress, StopRequest(), choices)  # type: ignore[arg-type]
        train(model, batches, scorer, settings, STEPS, run)


def transformers() -> None:
    from transformers import Trainer, TrainingArguments

    drawn = np.random.default_rng(0).integers(0, SHAPE.vocab_size, (ROWS * STEPS, SHAPE.block_tokens))
    rows = [{"input_ids": row, "labels": row} for row in torch.from_numpy(drawn)]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            use_cpu=True,
            bf16=True,
            max_steps=STEPS,
            per_device_train_batch_size=ROWS,
            optim="adamw_torch_fused",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        Trainer(model=llama(SHAPE), args=arguments, train_dataset=rows).train()


SIDES = {
    "Nima": lambda: nima(recomputes=False),
    "Nima, activation checkpointing": lambda: nima(recomputes=True),
    "transformers' Trainer, Llama": transformers,
}


def speed() -> None:
    """Forward and backward of one batch, three ways in turns."""
    torch.set_num_threads(THREADS)
    keep_freed_memory()
    shape = DecoderConfig(vocab_size=SHAPE.vocab_size, **resolve("gpt-small", {}))
    models = {name: Decoder(shape) for name in ("as it is", "computed again", "compiled")}
    models["computed again"].recomputes = True
    compile_layers(models["compiled"])
    seconds: dict[str, list[float]] = {name: [] for name in models}
    ids = torch.zeros((ROWS, SHAPE.block_tokens), dtype=torch.int64)
    for model in models.values():
        init_parameters(model, seed=0)
    for _ in range(WARM_UP_STEPS + STEPS):
        for name, model in models.items():
            started = time.perf_counter()
            with autocast(ids.device, "bf16"):
                loss = model.loss_sum(ids, ids)
            loss.backward()
            seconds[name].append(time.perf_counter() - started)
    print("| layers | first step, s | step, s | tokens/s |\n|---|---|---|---|")
    for name, taken in seconds.items():
        typical = statistics.median(taken[WARM_UP_STEPS:])
        print(f"| {name} | {taken[0]:.1f} | {typical:.3f} | {BATCH_TOKENS / typical:,.0f} |")


def child(side: str) -> None:
    torch.set_num_threads(THREADS)
    if side.startswith("transformers"):
        import transformers as package

        package.Trainer  # noqa: B018 - it is imported when it is asked for
    imported = resident_bytes()
    SIDES[side]()
    print(f"BYTES {imported} {peak_resident_bytes()}")


def main() -> None:
    print("| training process | peak, MB | there after imports, MB |\n|---|---|---|")
    for side in SIDES:
        command = [sys.executable, "-m", "benchmarks.memory", side]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        line = next(line for line in told.splitlines() if line.startswith("BYTES"))
        imported, peak = map(int, line.split()[1:])
        print(f"| {side} | {peak / 1e6:.0f} | {imported / 1e6:.0f} |", flush=True)


if __name__ == "__main__":
    chosen = sys.argv[1] if len(sys.argv) > 1 else ""
    speed() if chosen == "speed" else child(chosen) if chosen else main()
