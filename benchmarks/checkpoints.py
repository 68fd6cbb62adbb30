"""What saving costs a training, and how soon an interrupted one goes on, at 12 million parameters.

Run with `OMP_NUM_THREADS=2 python -m benchmarks.checkpoints`; it takes less than three minutes. Windows of
updates with and without a save take turns; the extra time of a window with one, everything included (the
copy, and hashing and writing beside the arithmetic), is what a save costs. Divided by a minute it is the
share of a run that saves once a minute.
"""

import contextlib
import statistics
import tempfile
import time
from pathlib import Path

import torch

from nima.checkpoint.run_folder import RunFolder, open_run
from nima.checkpoint.state import Checkpoint
from nima.network.decoder import Decoder, DecoderConfig, autocast, init_parameters
from nima.optimizer import Optimizer, rates_of
from nima.processes import ALONE
from nima.training.tracking import StageLive
from nima.workspace.params import TrainingParams

SHAPE = {"num_layers": 6, "width": 384, "num_heads": 6, "num_kv_heads": 6, "mlp": "swiglu", "mlp_width": 1024}
VOCABULARY, BLOCK, ROWS = 4096, 256, 4
WINDOW_UPDATES, PAIRS = 8, 7
STEPS = (100, 10_000, 100_000)
SETTINGS = TrainingParams(
    seed=1,
    max_steps=10,
    lr=0.01,
    block_tokens=BLOCK,
    batch_tokens=ROWS * BLOCK,
    micro_batch_tokens=ROWS * BLOCK,
)


def model_of() -> Decoder:
    more = {"context_tokens": BLOCK, "dropout": 0.0, "tie_embeddings": True}
    model = Decoder(
        DecoderConfig(vocab_size=VOCABULARY, **SHAPE, **more, rope_theta=10_000.0, norm_eps=1e-6)  # type: ignore[arg-type]
    )
    init_parameters(model, seed=0)
    return model


def update(model: Decoder, optimizer: Optimizer, ids: torch.Tensor) -> None:
    optimizer.zero_grad()
    with autocast(torch.device("cpu"), "bf16"):
        loss = model.loss_sum(ids, ids)
    (loss / ids.numel()).backward()
    optimizer.step()


def state_of(step: int) -> dict[str, object]:
    """With the log that a run of so many steps has, at a row every tenth."""
    names = ("train/loss", "train/bits_per_byte", "train/lr", "train/gradient_norm")
    return {"step": step, "rows": [{"step": at} | dict.fromkeys(names, 0.1) for at in range(0, step, 10)]}


def stalls(folder: RunFolder, model: Decoder, optimizer: Optimizer) -> None:
    ids = torch.randint(0, VOCABULARY, (ROWS, BLOCK), generator=torch.Generator().manual_seed(0))
    state, copies = state_of(1000), []

    def window(step: int, *, saves: bool) -> float:
        started = time.perf_counter()
        if saves:
            folder.begin_save(Checkpoint(step, ALONE.weights(model), optimizer.tensors(), state))
            copies.append(time.perf_counter() - started)
        for _ in range(WINDOW_UPDATES):
            update(model, optimizer, ids)
        folder.wait()
        return time.perf_counter() - started

    window(0, saves=True)
    pairs = [(window(step, saves=False), window(step, saves=True)) for step in range(1, PAIRS + 1)]
    cost = statistics.median(saving - plain for plain, saving in pairs)
    plain = statistics.median(pair[0] for pair in pairs)
    started = time.perf_counter()
    folder.save(Checkpoint(99, ALONE.weights(model), optimizer.tensors(), state))
    whole = time.perf_counter() - started
    print("| what | figure |\n|---|---|")
    print(f"| {WINDOW_UPDATES} updates without a save, s | {plain:.2f} |")
    print(f"| the training stands still for the copy, s | {statistics.median(copies[1:]):.3f} |")
    print(f"| a save in the foreground, s | {whole:.2f} |")
    print(f"| one save costs, all included, s | {cost:.3f} |")
    print(f"| share of the run at one save a minute | {cost / 60:.2%} |")


def resuming(place: Path, model: Decoder, optimizer: Optimizer) -> None:
    """From the opening of the run to the moment before the next update, with the log replayed."""
    print("\n| resuming at step | s |\n|---|---|")
    for step in STEPS:
        with open_run(place / str(step), {}, keep=2) as folder:
            folder.save(Checkpoint(step, ALONE.weights(model), optimizer.tensors(), state_of(step)))
        started = time.perf_counter()
        with open_run(place / str(step), {}, keep=2) as folder:
            again = model_of()
            rules = Optimizer(again, rates_of(SETTINGS))
            checkpoint = folder.load_newest(print)
            assert checkpoint is not None
            with torch.no_grad():
                for name, parameter in again.named_parameters():
                    parameter.copy_(checkpoint.model[name])
            rules.load_tensors(checkpoint.optimizer)
            StageLive("train").replay(checkpoint.state["rows"])
            print(f"| {step:,} | {time.perf_counter() - started:.2f} |")


def main() -> None:
    torch.set_num_threads(2)
    model = model_of()
    optimizer = Optimizer(model, rates_of(SETTINGS))
    print(f"{model.num_parameters():,} parameters\n")
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        with open_run(Path("run"), {}, keep=2) as folder:
            stalls(folder, model, optimizer)
        resuming(Path("runs"), model, optimizer)


if __name__ == "__main__":
    main()
