"""What a GPU makes of the trainer: is it right, and how fast beside a GPT of nanoGPT's shape and Llama.

    python benchmarks/gpu.py             # checks, measures, and writes benchmarks/RESULTS.md
    python benchmarks/gpu.py --shapes 124M --compile off

Needs torch, numpy and transformers, and this folder with `src` beside it; nothing is installed or downloaded.
A step is forward, backward, clipping and update in bf16, on one batch that lies in the GPU already. Ours is
the network with its default optimizer, deterministic as the trainer runs it; two rows have its attention cut
at the borders of documents, by a mask and by the kernel for it. LitGPT and Liger's loss take part where they
are installed (see `peers.py`). Without a GPU the table says "not measured", unless it holds
figures already.
"""

import argparse
import functools
import gc
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from benchmarks.peers import GPT, LitGPT, Shape, llama, nanogpt_optimizer  # noqa: E402
from nima.batches import Batch  # noqa: E402
from nima.monitoring.speed import peak_flops  # noqa: E402
from nima.network.decoder import Cache, Decoder, DecoderConfig, autocast, init_parameters  # noqa: E402
from nima.network.varlen import Documents, obstacle, segments_of  # noqa: E402
from nima.optimizer import Optimizer, Rates  # noqa: E402
from nima.training.compilation import compile_layers  # noqa: E402

SHAPES = {
    "tiny": Shape(num_layers=2, width=32, num_heads=2, vocab_size=64, block_tokens=16),
    "124M": Shape(num_layers=12, width=768, num_heads=12, vocab_size=50304, block_tokens=1024),
    "1B": Shape(num_layers=24, width=1792, num_heads=14, vocab_size=50304, block_tokens=1024),
}
# Sequences of a step; halved until they fit.
ROWS = {"tiny": 4, "124M": 64, "1B": 32}
CHECKED = Shape(num_layers=2, width=256, num_heads=4, vocab_size=1024, block_tokens=128)
DOCUMENT_TOKENS = 256  # in the mean, where attention is cut
WARM_UP_STEPS, STEPS = 5, 20
LEARNING_RATE = 3e-4
BEGIN, END = "<!-- gpu -->", "<!-- /gpu -->"
RATES = {"lr": 0.01, "embedding_lr_ratio": 1.0, "head_lr_ratio": 1.0, "weight_decay": 0.0}
RATES |= {"beta1": 0.9, "beta2": 0.95, "momentum": 0.95}


def decoder(shape: Shape) -> Decoder:
    """Of a shape, with the same number of parameters in its matrices as the peers have."""
    config = DecoderConfig(
        vocab_size=shape.vocab_size,
        num_layers=shape.num_layers,
        width=shape.width,
        num_heads=shape.num_heads,
        num_kv_heads=shape.num_heads,
        mlp="relu2",
        mlp_width=4 * shape.width,
        context_tokens=shape.block_tokens,
        dropout=0.0,
        tie_embeddings=True,
        rope_theta=10_000.0,
        norm_eps=1e-6,
    )
    model = Decoder(config)
    init_parameters(model, seed=0)
    return model


def tokens_of(shape: Shape, rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Inputs and targets (rows, block), drawn from a seed."""
    drawn = np.random.default_rng(0).integers(0, shape.vocab_size, (rows, shape.block_tokens + 1))
    ids = torch.from_numpy(drawn).to(device)
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


@functools.cache
def documents_of(rows: int, slots: int) -> NDArray[np.int64]:
    """Numbers of the documents that rows are packed with, of lengths drawn from a seed."""
    begins = np.random.default_rng(1).random((rows, slots)) < 1 / DOCUMENT_TOKENS
    return begins.cumsum(axis=1)


def on_device(numbers: NDArray[np.int64], model: Decoder, device: torch.device) -> Documents:
    """Documents as the trainer hands them to this model."""
    if model.cuts_by == "segments":
        return segments_of(Batch(numbers, numbers, numbers).borders, device)
    return torch.from_numpy(numbers).to(device)


# -------------------------------------------------------------------------------------------- correctness


@dataclass(frozen=True)
class Check:
    """How far the device is from the CPU in float32: |a - b| / |b|."""

    what: str
    error: float
    limit: float

    @property
    def passed(self) -> bool:
        return self.error <= self.limit


def outcome(device: torch.device, precision: str, prepare: Callable[[Decoder], object]) -> dict[str, Tensor]:
    """Loss, gradients, the weights after two updates, and logits from a cache: on the CPU, float32."""
    model = decoder(CHECKED)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():  # outputs that begin at zero would hide what comes before them
        nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.05, generator)
    model.to(device)
    prepare(model)
    ids, targets = tokens_of(CHECKED, 4, device)
    numbers = np.broadcast_to(np.arange(CHECKED.block_tokens) // 48, tuple(ids.shape)).copy()
    documents = on_device(numbers, model, device)
    optimizer = Optimizer(model, Rates(optimizer="muon", **RATES))
    found: dict[str, Tensor] = {}
    for name, borders in (("loss", None), ("loss, cut at borders", documents)):
        optimizer.zero_grad()
        with autocast(device, precision):
            loss = model.loss_sum(ids, targets, borders)
        (loss / targets.numel()).backward()
        found[name] = loss.detach()
        gradients = {key: parameter.grad for key, parameter in model.named_parameters()}
        found |= {f"gradient/{name}/{key}": grad for key, grad in gradients.items() if grad is not None}
        optimizer.step()
    found["weights after updates"] = nn.utils.parameters_to_vector(model.parameters()).detach()
    with torch.no_grad():
        cache = Cache(model.config, len(ids), device, torch.float32)
        halves = [model(part, cache) for part in ids.chunk(2, dim=1)]
        found["logits from a cache"] = torch.cat(halves, dim=1)
    return {name: tensor.float().cpu() for name, tensor in found.items()}


def checks(device: torch.device, compiled: bool) -> Iterator[Check]:
    """The device against the CPU; in float32 it must agree to rounding, in bf16 to bf16's."""
    expected = outcome(torch.device("cpu"), "fp32", as_it_is)
    kinds: list[tuple[str, str, Callable[[Decoder], object]]] = [
        ("float32", "fp32", as_it_is),
        ("bf16", "bf16", as_it_is),
    ]
    if compiled:
        kinds.append(("bf16, compiled", "bf16", compile_here))
    if device.type == "cuda" and find_spec("liger_kernel"):
        kinds.append(("bf16, Liger", "bf16", with_liger))
    if device.type == "cuda":
        reason = obstacle(
            device,
            torch.bfloat16,
            num_heads=CHECKED.num_heads,
            num_kv_heads=CHECKED.num_heads,
            head_width=CHECKED.width // CHECKED.num_heads,
        )
        print("attention cut by the kernel:", reason or "right in the probe", flush=True)
        kinds += [] if reason else [("bf16, cut by the kernel", "bf16", with_segments)]
    for name, precision, prepare in kinds:
        found = outcome(device, precision, prepare)
        for group, limits in LIMITS.items():
            keys = [key for key in expected if key.startswith(group)]
            yield Check(f"{group}, {name}", error_of(found, expected, keys, precision), limits[precision])


def error_of(found: dict[str, Tensor], expected: dict[str, Tensor], keys: list[str], precision: str) -> float:
    """The largest of any tensor; with bf16, which leaves little of the smallest ones, of all together."""
    if precision == "fp32":
        return max(distance(found[key], expected[key]) for key in keys)
    return distance(*(torch.cat([side[key].flatten() for key in keys]) for side in (found, expected)))


LIMITS = {
    "loss": {"fp32": 1e-5, "bf16": 1e-3},
    "gradient": {"fp32": 1e-3, "bf16": 1e-1},
    "weights after updates": {"fp32": 1e-2, "bf16": 5e-2},
    "logits from a cache": {"fp32": 1e-2, "bf16": 5e-2},
}


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm().clamp(min=1e-12))


def as_it_is(model: nn.Module) -> None:
    """Neither compiled nor changed."""


def with_liger(model: Decoder) -> Decoder:
    model.kernels = "liger"
    return model


def with_segments(model: Decoder) -> Decoder:
    model.cuts_by = "segments"
    return model


def cut_loss(model: Decoder, ids: Tensor, targets: Tensor) -> Tensor:
    """The mean loss of rows packed with documents."""
    documents = on_device(documents_of(*ids.shape), model, ids.device)
    return model.loss_sum(ids, targets, documents) / targets.numel()


def compile_here(model: nn.Module) -> None:
    if isinstance(model, Decoder):
        compile_layers(model)
    else:
        model.compile()


# -------------------------------------------------------------------------------------------------- speed


@dataclass(frozen=True)
class Contender:
    name: str
    build: Callable[[Shape], nn.Module]
    loss: Callable[[Any, Tensor, Tensor], Tensor]
    """Mean over the tokens."""
    optimizer: Callable[[Any], Any]
    deterministic: bool = False


def contenders() -> list[Contender]:
    adamw = lambda model: nanogpt_optimizer(model, LEARNING_RATE)  # noqa: E731
    mean = lambda model, ids, targets: model.loss_sum(ids, targets) / targets.numel()  # noqa: E731
    muon = lambda model: Optimizer(model, Rates(optimizer="muon", **RATES))  # noqa: E731
    ours = Contender("Nima", decoder, mean, muon, deterministic=True)
    liger = replace(ours, name="Nima, Liger", build=lambda shape: with_liger(decoder(shape)))
    found = [
        ours,
        replace(ours, name="Nima, AdamW", optimizer=adamw),
        *([liger] if find_spec("liger_kernel") and torch.cuda.is_available() else []),
        Contender("nanoGPT-shaped", GPT, lambda model, ids, targets: model(ids, targets), adamw),
    ]
    if find_spec("transformers"):
        # Its labels are the inputs: it moves them by one itself.
        loss = lambda model, ids, _: model(input_ids=ids, labels=ids, use_cache=False).loss  # noqa: E731
        found.append(Contender("transformers, Llama", llama, loss, adamw))
    if find_spec("litgpt"):
        found.append(Contender("LitGPT", LitGPT, lambda model, ids, targets: model(ids, targets), adamw))
    masked = replace(ours, name="Nima, cut by a mask", loss=cut_loss)
    by_kernel = lambda shape: with_segments(decoder(shape))  # noqa: E731
    return [*found, masked, replace(masked, name="Nima, cut by the kernel", build=by_kernel)]


@dataclass(frozen=True)
class Figure:
    """Of one contender at one shape. `problem` says why there are no figures."""

    shape: str
    contender: str
    compiled: bool
    parameters: int = 0
    rows: int = 0
    tokens_per_second: float = 0.0
    mfu: float = 0.0
    peak_bytes: int = 0
    problem: str = ""


def measure(
    contender: Contender, name: str, device: torch.device, *, compiled: bool, steps: int, peak: float
) -> Figure:
    """With as many rows as fit, from ROWS downwards."""
    figure = Figure(name, contender.name, compiled)
    rows = ROWS[name]
    while rows:
        try:
            with arithmetic(contender.deterministic):
                return timed(contender, figure, rows, device, steps, peak)
        except torch.cuda.OutOfMemoryError:
            rows //= 2
        except Exception as error:  # one contender's failure must not cost the others' figures
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            return replace(figure, problem=f"{type(error).__name__}: {reason[:100]}")
        finally:
            release(device)
    return replace(figure, problem="out of memory with one row")


def timed(
    contender: Contender, figure: Figure, rows: int, device: torch.device, steps: int, peak: float
) -> Figure:
    shape = SHAPES[figure.shape]
    with torch.device(device):
        model = contender.build(shape)
    model.to(device).train()
    optimizer = contender.optimizer(model)
    if figure.compiled:
        compile_here(model)
    ids, targets = tokens_of(shape, rows, device)

    def step() -> None:
        optimizer.zero_grad()
        with autocast(device, "bf16"):
            loss = contender.loss(model, ids, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    for _ in range(min(WARM_UP_STEPS, steps)):
        step()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = statistics.median(seconds_of(step, device) for _ in range(steps))
    rate = ids.numel() / seconds
    return replace(
        figure,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        rows=rows,
        tokens_per_second=rate,
        mfu=rate * flops_of(model, shape) / peak,
        peak_bytes=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0,
    )


def seconds_of(step: Callable[[], None], device: torch.device) -> float:
    wait(device)
    started = time.perf_counter()
    step()
    wait(device)
    return time.perf_counter() - started


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def flops_of(model: nn.Module, shape: Shape) -> int:
    """Of a trained token, counted alike for all: 6 a weight of a matrix product, and attention's products."""
    weights = {
        id(part.weight): part.weight.numel() for part in model.modules() if isinstance(part, nn.Linear)
    }
    return 6 * sum(weights.values()) + 12 * shape.num_layers * shape.width * shape.block_tokens


@contextmanager
def arithmetic(deterministic: bool) -> Iterator[None]:
    torch.use_deterministic_algorithms(deterministic)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def release(device: torch.device) -> None:
    """What a contender leaves behind must not take room from the next."""
    torch.compiler.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


# ------------------------------------------------------------------------------------------------ results


def report(device: torch.device, found: list[Check], figures: list[Figure], peak: float) -> str:
    """The section of RESULTS.md, in Markdown."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "CPU"
    lines = [
        f"{datetime.now(UTC):%Y-%m-%d}, {name}, {versions()}; "
        f"MFU against {peak / 1e12:,.{0 if peak > 1e13 else 2}f} TFLOP/s.",
        "",
        "| against the CPU in float32 | largest relative error | limit | |",
        "|---|---|---|---|",
        *(
            f"| {c.what} | {c.error:.1e} | {c.limit:.0e} | {'right' if c.passed else 'WRONG'} |"
            for c in found
        ),
        "",
        table(figures),
    ]
    return "\n".join(lines)


def table(figures: list[Figure]) -> str:
    lines = [
        "| shape | model | compiled | parameters | rows × tokens | tokens/s | MFU | peak | × nanoGPT |",
        "|---|---|---|---|---|---|---|---|---|",
        *(line_of(figure, figures) for figure in figures),
    ]
    return "\n".join(lines)


def line_of(figure: Figure, figures: list[Figure]) -> str:
    start = f"| {figure.shape} | {figure.contender} | {'yes' if figure.compiled else 'no'} |"
    if figure.problem:
        return f"{start} {figure.problem} | | | | | |"
    peer = max(
        (f.tokens_per_second for f in figures if (f.shape, f.contender) == (figure.shape, "nanoGPT-shaped")),
        default=0.0,
    )
    return (
        f"{start} {figure.parameters / 1e6:,.1f} M | {figure.rows} × {SHAPES[figure.shape].block_tokens} "
        f"| {figure.tokens_per_second:,.0f} | {figure.mfu:.1%} | {figure.peak_bytes / 1e9:.1f} GB "
        f"| {f'{figure.tokens_per_second / peer:.2f}×' if peer else ''} |"
    )


def versions() -> str:
    found = []
    for package in ("torch", "numpy", "transformers", "litgpt"):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join([f"Python {platform.python_version()}", *found, f"CUDA {torch.version.cuda or 'none'}"])


def write_section(results: Path, section: str, *, keep: bool = False) -> None:
    """Put the section between its marks; `keep` leaves one alone that is there already."""
    text = results.read_text(encoding="utf-8") if results.is_file() else "# Results\n"
    if BEGIN not in text:
        text += f"\n## On a GPU (`python benchmarks/gpu.py`)\n\n{BEGIN}\n{END}\n"
    elif keep:
        return
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    results.write_text(f"{before}{BEGIN}\n{section}\n{END}{after}", encoding="utf-8")


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--shapes", nargs="+", choices=tuple(SHAPES), default=["124M", "1B"])
    parser.add_argument("--compile", choices=("both", "on", "off"), default="both")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "RESULTS.md")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 1 if the device computes something wrong."""
    chosen = parsed(arguments)
    kind = "cuda" if torch.cuda.is_available() else "none" if chosen.device == "auto" else chosen.device
    kind = "cpu" if chosen.device == "cpu" else kind
    if kind == "none" or (kind == "cuda" and not torch.cuda.is_available()):
        print("no GPU here: not measured")
        absent = [
            Figure(name, contender.name, compiled, problem="not measured")
            for name in chosen.shapes
            for contender in contenders()
            for compiled in (False, True)
        ]
        write_section(chosen.results, f"{versions()}, no GPU.\n\n{table(absent)}", keep=True)
        return 0
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(ROOT / ".nima" / "compiled" / "inductor"))
    device = torch.device(kind)
    kinds = {"both": [False, True], "on": [True], "off": [False]}[chosen.compile]
    found = list(checks(device, compiled=True in kinds))
    for check in found:
        print(check, "" if check.passed else "WRONG", flush=True)
    peak = peak_flops(device, "bf16")
    figures: list[Figure] = []
    write_section(chosen.results, report(device, found, figures, peak))
    for name in chosen.shapes:
        for contender in contenders():
            for compiled in kinds:
                figures.append(
                    measure(contender, name, device, compiled=compiled, steps=chosen.steps, peak=peak)
                )
                print(figures[-1], flush=True)
                # After each, so that a run that is cut short leaves what it has.
                write_section(chosen.results, report(device, found, figures, peak))
    return 0 if all(check.passed for check in found) else 1


if __name__ == "__main__":
    sys.exit(main())
