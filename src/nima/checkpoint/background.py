"""Writing beside the training: tensors are copied, then a thread of low priority writes the copies."""

import contextlib
import os
import threading
from collections.abc import Callable
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

NICENESS = 10


class Staging:
    """Copies of named tensors in main memory, which is used again: new memory would cost page faults."""

    def __init__(self) -> None:
        self.held: dict[str, Tensor] = {}

    def copy(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The copies are good until the next call."""
        self.held = {name: self.place_for(name, tensor) for name, tensor in tensors.items()}
        for name, tensor in tensors.items():
            self.held[name].copy_(tensor.detach(), non_blocking=True)
        if any(tensor.is_cuda for tensor in tensors.values()):
            torch.cuda.synchronize()
        return self.held

    def place_for(self, name: str, tensor: Tensor) -> Tensor:
        held = self.held.get(name)
        if held is not None and (held.shape, held.dtype) == (tensor.shape, tensor.dtype):
            return held
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)


class Writer:
    """Does jobs one after the other in a thread. After one has failed, no other begins."""

    def __init__(self) -> None:
        self.jobs: dict[str, Future[None]] = {}
        self.executor: ThreadPoolExecutor | None = None
        self.has_failed = False

    def begin(self, kind: str, job: Callable[[], None]) -> None:
        """Queue a job. The former one of its kind must have been waited for."""
        if self.executor is None:
            self.executor = ThreadPoolExecutor(1, "checkpoint", initializer=lower_priority)
        self.jobs[kind] = self.executor.submit(self.run, job)

    def run(self, job: Callable[[], None]) -> None:
        if self.has_failed:
            return
        try:
            job()
        except BaseException:
            self.has_failed = True
            raise

    def wait(self, kind: str | None = None) -> None:
        """Until the jobs (of one kind) are done. Raises what they raised, once."""
        waited = [job for name in ([kind] if kind else list(self.jobs)) if (job := self.jobs.pop(name, None))]
        try:
            for job in waited:
                job.result()
        except BaseException:
            # Those behind it must have seen the failure before it is forgotten.
            futures.wait([*waited, *self.jobs.values()])
            self.jobs.clear()
            self.has_failed = False
            raise

    def check(self) -> None:
        """Raise what a job has raised by now."""
        if self.has_failed:
            self.wait()

    def close(self) -> None:
        """Wait for the jobs, whatever comes of them."""
        if self.executor is not None:
            self.executor.shutdown(wait=True)
            self.executor = None


def lower_priority() -> None:
    """Linux gives each thread its own: hashing and compressing take what the arithmetic leaves over."""
    with contextlib.suppress(AttributeError, OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
