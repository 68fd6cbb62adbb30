"""Processes that were started together find each other; how many there may be."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from nima.processes import ALONE, Processes
from nima.processes.divided import Sharded
from nima.processes.replicated import PATIENCE, Joined
from nima.processes.zero import Zero1, Zero2, Zero3
from nima.workspace.errors import UserError
from nima.workspace.params import Params, TrainingParams
from nima.workspace.runtime import Runtime, is_installed, usable_gpus

# Gradients travel in pieces of this size while the rest is still being computed.
BUCKET_MEGABYTES = 25
KINDS = {"ddp": Joined, "fsdp": Sharded, "zero1": Zero1, "zero2": Zero2, "zero3": Zero3}
# Rules of update that work on parts of parameters as they do on whole ones; FSDP2 can also gather matrices.
BY_NUMBER = ("adamw", "adam", "sgd")
DIVISIBLE = {
    "fsdp": ("muon", "schedule_free", *BY_NUMBER),
    "zero1": BY_NUMBER,
    "zero2": BY_NUMBER,
    "zero3": BY_NUMBER,
}


@contextmanager
def joined(runtime: Runtime, device: torch.device) -> Iterator[Processes]:
    """This process among those that were started with it. Raises `UserError` when they don't meet."""
    if runtime.place is None or runtime.place.num_ranks == 1:
        yield ALONE
        return
    from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs

    # Accelerate would else set the threads itself.
    os.environ.setdefault("OMP_NUM_THREADS", str(runtime.threads))
    layout = DistributedDataParallelKwargs(
        bucket_cap_mb=BUCKET_MEGABYTES, gradient_as_bucket_view=True, broadcast_buffers=False
    )
    try:
        accelerator = Accelerator(
            cpu=device.type == "cpu", kwargs_handlers=[layout, InitProcessGroupKwargs(timeout=PATIENCE)]
        )
    except dist.DistError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"MASTER_ADDR: process {runtime.place.rank} finds no others: {reason}") from None
    try:
        yield KINDS[runtime.sharding](accelerator)
    finally:
        accelerator.end_training()
        accelerator.state._reset_state(reset_partial_state=True)


def num_processes(params: Params, runtime: Runtime) -> int:
    """How many processes train. Raises `UserError` when a batch, or the machine, cannot be divided so."""
    training, place = params.training, runtime.place
    rows, gpus = training.batch_tokens // training.block_tokens, usable_gpus(runtime)
    count = place.num_ranks if place else runtime.processes or min(gpus, rows)
    if count > rows:
        raise UserError(
            f"NIMA_PROCESSES: {count} processes cannot share a batch of {rows} rows (training.batch_tokens "
            f"{training.batch_tokens} / block_tokens {training.block_tokens}); set at most {rows}"
        )
    if count > 1:
        check_sharding(runtime.sharding, training)
    if place is None and count > gpus and runtime.device == "cuda":
        raise UserError(
            f"NIMA_PROCESSES: {count} processes need a GPU each, found {gpus}; set fewer, or NIMA_DEVICE=cpu"
        )
    return count


def check_sharding(sharding: str, training: TrainingParams) -> None:
    """Raises `UserError` when the model cannot be shared so."""
    rule, rules = training.optimizer, DIVISIBLE.get(sharding)
    if rules and rule not in rules:
        others = " or ".join(other for other in KINDS if rule in DIVISIBLE.get(other, (rule,)))
        raise UserError(
            f"NIMA_SHARDING: {sharding} cannot divide training.optimizer {rule}; set {others}, or one of "
            f"{', '.join(rules)}"
        )
    if sharding == "zero3" and training.compile:
        raise UserError(
            "NIMA_SHARDING: zero3 gathers a layer's weights when it is called, which training.compile "
            "does not see; set training.compile to false, or fsdp or zero2"
        )
    if sharding.startswith("zero") and not is_installed("deepspeed"):
        raise UserError(
            f"NIMA_SHARDING: {sharding} needs the extra deepspeed: pip install 'nima-lm[deepspeed]'"
        )
