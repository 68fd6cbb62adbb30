"""The size of a micro-batch, when params leave it open: found once, before a run begins, and remembered.

The number found stands in for `auto` from there on: in the run's fingerprint, in metrics/train.json, and with
what it was chosen for in metrics/micro_batch.json, which Git tracks. A repetition of the commit, on whatever
machine, takes it from there and computes the same; `.nima/micro_batch` has it for other commits.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from nima.network.decoder import DecoderConfig
from nima.processes import Processes
from nima.tokenizer import Tokenizer
from nima.training.memory_trials import Trial, Trials, Work
from nima.training.recipe import INPUTS
from nima.workspace.errors import UserError
from nima.workspace.metrics import METRICS, write_json
from nima.workspace.params import Params
from nima.workspace.runtime import Runtime

RECORD = METRICS / "micro_batch.json"
# A larger micro-batch must be so much faster on a CPU to be worth its memory.
FASTER = 1.02
# How many in a row may be no faster before larger ones are left untried.
PATIENCE = 2


def settled(params: Params, runtime: Runtime, device: torch.device, processes: Processes) -> Params:
    """The params with a number for `training.micro_batch_tokens`. Raises `UserError` if nothing fits.

    The first of several processes finds it for all.
    """
    settings = params.training
    if settings.micro_batch_tokens != "auto":
        return params
    tokens = processes.from_first(
        found(params, runtime, device, processes.count) if processes.is_first else 0
    )
    training = settings.model_copy(update={"micro_batch_tokens": tokens})
    return params.model_copy(update={"training": training})


def found(params: Params, runtime: Runtime, device: torch.device, count: int) -> int:
    """The number, from a record or from trials, and recorded now."""
    vocab_size = Tokenizer.load(INPUTS["tokenizer"]).vocab_size
    question = asked(params, device, vocab_size)
    kept = runtime.scratch / "micro_batch" / f"{fingerprint_of(question)}.json"
    tokens = known(RECORD, question) or known(kept, question)
    if tokens is None:
        config = DecoderConfig(vocab_size=vocab_size, **params.model.shape())
        recomputes = params.run.activation_checkpointing
        share = 1 / count if device.type == "cpu" else 1.0
        tokens = chosen(Work(config, params.training, device, runtime.threads, recomputes, share))
    answer = {"micro_batch_tokens": tokens, "chosen_for": question}
    for path in (kept, RECORD):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, answer)
    return tokens


def asked(params: Params, device: torch.device, vocab_size: int) -> dict[str, Any]:
    """What the memory of a micro-batch depends on. A processor's own amount does not count: a repetition on
    another one shall compute the same, and has `MicroBatch.fitting` if it can't."""
    keys = (
        "block_tokens",
        "batch_tokens",
        "batching",
        "mask_documents",
        "precision",
        "optimizer",
        "compile",
        "kernels",
    )
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "device": name,
        "vocab_size": vocab_size,
        **params.model.shape(),
        **{key: getattr(params.training, key) for key in keys},
        "activation_checkpointing": params.run.activation_checkpointing,
    }


def fingerprint_of(question: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()[:16]


def known(path: Path, question: dict[str, Any]) -> int | None:
    """The number that a record has for this very question."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["chosen_for"] == question:
            return int(record["micro_batch_tokens"])
    return None


def chosen(work: Work) -> int:
    """Try sizes, say what was found, and return the tokens of the best."""
    block = work.settings.block_tokens
    sizes = divisors(work.settings.batch_tokens // block)
    with Trials(work) as trials:
        limit = trials.limit_bytes
        found = search(sizes, trials, limit, until_slower=work.device.type == "cpu")
    if not found:
        raise UserError(
            f"training.micro_batch_tokens: not one block of {block} tokens fits {limit / 1e9:.1f} GB, which "
            "are free; set run.activation_checkpointing to true, or make the model smaller"
        )
    best = fastest(found) if work.device.type == "cpu" else found[-1]
    tried = ", ".join(
        f"{trial.rows * block} ({trial.num_bytes / 1e9:.2f} GB, {trial.tokens_per_second:,.0f} tokens/s)"
        for trial in found
    )
    print(  # noqa: T201
        f"train: micro_batch_tokens: {best.rows * block}, of {tried}; {limit / 1e9:.1f} GB may be used",
        file=sys.stderr,
        flush=True,
    )
    return best.rows * block


def divisors(number: int) -> list[int]:
    """Ascending. Others than the batch's would leave a smaller micro-batch at its end."""
    return [size for size in range(1, number + 1) if number % size == 0]


def search(
    sizes: Sequence[int], trial: Callable[[int], Trial | None], limit: int, *, until_slower: bool
) -> list[Trial]:
    """Trials that fit, ascending, up to the largest of `sizes` (ascending) that does.

    `trial` gives None where memory gave out. `until_slower` ends it when larger ones are no faster.
    """
    fits: list[Trial] = []
    left, failed = list(sizes), False
    while left and not (until_slower and no_faster(fits)):
        size = next_size(left, fits, limit, failed=failed)
        if size is None:
            break
        found = trial(size)
        if found is None or found.num_bytes > limit:
            left, failed = [other for other in left if other < size], True
        else:
            fits.append(found)
            left = [other for other in left if other > size]
    return fits


def next_size(sizes: list[int], fits: list[Trial], limit: int, *, failed: bool) -> int | None:
    """About twice the last one, if the last two promise that it fits; in the middle after a failure."""
    promising = [size for size in sizes if foreseen_bytes(fits, size) <= limit]
    if not promising or not fits:
        return promising[0] if promising else None
    if failed:
        return promising[len(promising) // 2]
    return max((size for size in promising if size <= 2 * fits[-1].rows), default=promising[0])


def foreseen_bytes(fits: list[Trial], rows: int) -> float:
    """On the line through the last two trials; 0 while there are fewer."""
    if len(fits) < 2:
        return 0.0
    first, second = fits[-2:]
    slope = (second.num_bytes - first.num_bytes) / (second.rows - first.rows)
    return second.num_bytes + slope * (rows - second.rows)


def no_faster(fits: list[Trial]) -> bool:
    best = fits.index(fastest(fits)) if fits else 0
    return len(fits) - 1 - best >= PATIENCE


def fastest(fits: list[Trial]) -> Trial:
    """A larger one only if it is faster by more than measurements differ."""
    best = fits[0]
    for trial in fits[1:]:
        if trial.tokens_per_second > FASTER * best.tokens_per_second:
            best = trial
    return best
