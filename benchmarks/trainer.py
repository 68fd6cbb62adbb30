"""How fast the training loop steps, beside its peers, and what it costs beside the arithmetic.

Run as `python -m benchmarks.trainer` after `make repro`; takes about three minutes on two cores. The model
has 6 layers of 384 channels, batches have 16 rows of 256 tokens of the recipe's text (vocabulary 4,096), in
bf16 mixed precision on two threads. All take turns, two steps each, with clocks of their own; the medians of
steps are printed, and only their ratios should be quoted.
"""

import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers import GPT, LitGPT, Shape, llama
from benchmarks.systems import THREADS, hugging_face, nima, torch_loop
from benchmarks.turns import Competitor, Turns
from nima.network.decoder import Decoder
from nima.optimizer import Muon
from nima.training import recipe
from nima.training.tracking import StageLive
from nima.workspace import runtime
from nima.workspace.params import Params, params_file

STEPS = 16
SHAPE = Shape(num_layers=6, width=384, num_heads=6, vocab_size=4096, block_tokens=256)
LOGGED_STEPS = (100, 10_000)


def main() -> None:
    torch.set_num_threads(THREADS)
    runtime.keep_freed_memory()  # for all of them: the peers gain by it too
    clocks = race()
    fastest = min((name for name in clocks if not name.startswith("Nima")), key=clocks.__getitem__)
    tokens = parts_of("muon").batches.tokens_per_batch
    for name, seconds in clocks.items():
        print(f"{name:30} {tokens / seconds:8,.0f} tokens/s   {clocks[fastest] / seconds:.2f} of {fastest}")
    print(f"outside forward, backward, clipping and the rule of update: {overhead():.2%} of a step")
    before, after = (log_seconds(steps) for steps in LOGGED_STEPS)
    print(
        f"a logged row after {LOGGED_STEPS[1]:,} steps, to one after {LOGGED_STEPS[0]}: {after / before:.2f}"
    )


def parts_of(optimizer: str) -> recipe.Recipe:
    return recipe.assemble(
        params_with(optimizer),
        torch.device("cpu"),
        tokenizer=Path("models/tokenizer"),
        tokens=Path("data/tokens"),
        split=Path("data/splits"),
    )


def params_with(optimizer: str) -> Params:
    params = params_file.load(Path("params.yaml"))
    model = params.model.model_copy(update={"preset": "gpt-small", "context_tokens": SHAPE.block_tokens})
    training = params.training.model_copy(
        update={
            "optimizer": optimizer,
            "max_steps": STEPS,
            "warmup_steps": 2,
            "validate_every_steps": 10 * STEPS,
            "validation_max_tokens": SHAPE.block_tokens,
        }
    )
    return params.model_copy(update={"model": model, "training": training})


def race() -> dict[str, float]:
    """Median seconds of a step by system."""
    ways: dict[str, Callable[[Competitor], None]] = {}
    for optimizer in ("adamw", "muon"):
        parts, settings = parts_of(optimizer), params_with(optimizer).training
        ways[f"Nima, {optimizer}"] = nima(parts.model, parts.batches, parts.scorer, settings, [])
    batches = parts_of("adamw").batches
    never: frozenset[int] = frozenset()
    for name, model in (("nanoGPT's shape", GPT(SHAPE)), ("LitGPT", LitGPT(SHAPE))):
        ways[name] = torch_loop(model, batches, lambda: 0.0, STEPS, 1e-3, never, [])
    name = "Hugging Face Trainer, Llama"
    ways[name] = hugging_face(llama(SHAPE), batches, lambda: 0.0, STEPS, 1e-3, never, [])
    done = Turns(steps_a_turn=2).run(ways)
    return {name: statistics.median(done[name].step_seconds()[1:]) for name in ways}


def overhead() -> float:
    """Share of the loop's time that is not spent in what any training has to compute."""
    parts, settings = parts_of("muon"), params_with("muon").training
    spent: list[tuple[float, float]] = []
    with (
        timed(Decoder, "loss_sum", spent),
        timed(torch.Tensor, "backward", spent),
        timed(torch.optim.AdamW, "step", spent),
        timed(Muon, "step", spent),
        timed(torch.nn.utils, "clip_grad_norm_", spent),
    ):
        way = nima(parts.model, parts.batches, parts.scorer, settings, [])
        [clock] = Turns().run({"Nima": way}).values()
    first, last = clock.marked[0], clock.marked[-1]
    computed = sum(seconds for ended, seconds in spent if first < ended <= last)
    return 1 - computed / (last - first)


@contextmanager
def timed(owner: Any, name: str, spent: list[tuple[float, float]]) -> Iterator[None]:
    """Within it each call's end and seconds are noted."""
    inner = getattr(owner, name)

    def outer(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        try:
            return inner(*args, **kwargs)
        finally:
            ended = time.perf_counter()
            spent.append((ended, ended - started))

    setattr(owner, name, outer)
    try:
        yield
    finally:
        setattr(owner, name, inner)


def log_seconds(steps: int) -> float:
    """The median cost of a row once `steps` of them are logged."""
    names = ("train/loss", "train/bits_per_byte", "train/lr", "train/gradient_norm")
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        live = StageLive("train")
        costs = []
        for step in range(steps + 50):
            started = time.perf_counter()
            live.log_row({"step": step} | dict.fromkeys(names, 1.0))
            costs.append(time.perf_counter() - started)
    return statistics.median(costs[-100:])


if __name__ == "__main__":
    main()
