"""How long each trainer takes to a given quality, on the text of the default recipe.

Run as `python -m benchmarks.time_to_quality` after `make repro`; takes about a quarter of an hour on two
cores. The peers train 300 updates of 4,096 tokens by nanoGPT's recipe: the GPT of nanoGPT's shape with each
of four learning rates, the others with the best of these. Nima trains 110 updates by its default recipe. All
take turns, five updates each, with clocks of their own; validation is not counted. The quality is bits per
byte of the same validation text.
"""

import math
from pathlib import Path

import torch

from benchmarks.peers import GPT, LitGPT, Shape, llama
from benchmarks.systems import (
    THREADS,
    Curve,
    Scored,
    bits_per_byte,
    hugging_face,
    nima,
    torch_loop,
    without_head,
)
from benchmarks.turns import Turns
from nima.training import recipe
from nima.workspace import runtime
from nima.workspace.params import params_file

PEER_STEPS = 300
NIMA_STEPS = 110
RATES = (1e-3, 2e-3, 4e-3, 8e-3)
VALIDATE_AT = frozenset(range(50, PEER_STEPS + 1, 50))


def main() -> None:
    torch.set_num_threads(THREADS)
    runtime.keep_freed_memory()  # for all of them: the peers gain by it too
    params = params_file.load(Path("params.yaml"))
    settings = params.training.model_copy(
        update={"max_steps": NIMA_STEPS, "validate_every_steps": 10, "warmup_steps": 10}
    )
    ours = recipe.assemble(
        params.model_copy(update={"training": settings}),
        torch.device("cpu"),
        tokenizer=Path("models/tokenizer"),
        tokens=Path("data/tokens"),
        split=Path("data/splits"),
    )
    config = ours.model.config
    shape = Shape(config.num_layers, config.width, config.num_heads, config.vocab_size, settings.block_tokens)
    curves: dict[str, Curve] = {}
    ways = {}

    def peer(name: str, model: torch.nn.Module, scored: Scored, lr: float, way=torch_loop) -> None:  # type: ignore[no-untyped-def]
        curves[name] = []
        score = lambda: bits_per_byte(ours.scorer, scored)  # noqa: E731
        ways[name] = way(model, ours.batches, score, PEER_STEPS, lr, VALIDATE_AT, curves[name])

    for lr in RATES:
        torch.manual_seed(1)
        gpt = GPT(shape)
        peer(f"nanoGPT's shape, lr {lr:g}", gpt, Scored(gpt, gpt.head, gpt.hidden), lr)
    curves["Nima"] = []
    ways["Nima"] = nima(ours.model, ours.batches, ours.scorer, settings, curves["Nima"])
    print("first race: learning rates of nanoGPT's shape, and Nima", flush=True)
    Turns().run(ways)
    for name, curve in curves.items():
        show(name, curve)
    best = min(RATES, key=lambda lr: curves[f"nanoGPT's shape, lr {lr:g}"][-1][2])
    target = curves[f"nanoGPT's shape, lr {best:g}"][-1]
    tell_ratio(target, curves["Nima"], best)

    print("second race: the other trainers at that rate", flush=True)
    ways.clear()
    lit, hf = LitGPT(shape), llama(shape)
    peer("LitGPT", lit, Scored(lit, lit.model.lm_head, lambda ids: lit_hidden(lit, ids)), best)
    hidden = lambda ids: hf.model(ids).last_hidden_state  # noqa: E731
    peer("Hugging Face Trainer, Llama", hf, Scored(hf, hf.lm_head, hidden), best, hugging_face)
    Turns().run(ways)
    for name in ways:
        show(name, curves[name])


def lit_hidden(peer: LitGPT, ids: torch.Tensor) -> torch.Tensor:
    with without_head(peer.model, "lm_head"):
        return peer.model(ids)


def show(name: str, curve: Curve) -> None:
    points = "  ".join(f"{step}: {value:.3f} ({seconds:.0f} s)" for step, seconds, value in curve)
    print(f"{name:28} {points}", flush=True)


def tell_ratio(target: tuple[int, float, float], curve: Curve, lr: float) -> None:
    _, seconds, quality = target
    print(f"\nnanoGPT's shape at its best rate ({lr:g}): {quality:.4f} bits per byte after {seconds:.0f} s")
    reached = next((point for point in curve if point[2] <= quality), None)
    if reached is None:
        print(f"Nima did not reach it: {min(point[2] for point in curve):.4f}")
    else:
        step, mine, value = reached
        print(f"Nima: {value:.4f} after {step} updates and {mine:.0f} s, {mine / seconds:.2f} of the time\n")
    assert math.isfinite(quality)


if __name__ == "__main__":
    main()
