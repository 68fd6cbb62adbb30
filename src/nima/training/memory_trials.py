"""The worst of a run, done once in a process of its own to see how much memory and time it takes.

A process of its own, because only so the most memory that it had can be told from what others had before,
and because the kernel then ends this process, and not the run, when there is not enough.
"""

import multiprocessing
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nima.network.decoder import Cache, Decoder, DecoderConfig, autocast, init_parameters
from nima.network.varlen import Documents, segments_of
from nima.optimizer import Optimizer, rates_of
from nima.scoring.likelihood import token_losses
from nima.training.compilation import choose_cut, choose_kernels, compile_layers
from nima.training.memory import is_out_of_memory
from nima.training.process_memory import available_memory_bytes, peak_resident_bytes, resident_bytes
from nima.workspace.params import TrainingParams
from nima.workspace.runtime import compute_deterministically, keep_freed_memory
from nima.workspace.signals import end_with

# Of the memory that is free when the trials begin: the rest is for what they don't see.
USABLE_SHARE = {"cpu": 0.8, "cuda": 0.95}
# Documents of a row's worst case.
SHORT_TOKENS = 32
# The kernel's badness of this process at most: if memory gives out, it is ended first.
OOM_SCORE = Path("/proc/self/oom_score_adj")


@dataclass(frozen=True)
class Trial:
    """One size of micro-batch, in rows of block_tokens."""

    rows: int
    num_bytes: int
    """Needed at most, beside what the process had before."""
    tokens_per_second: float


@dataclass(frozen=True)
class Work:
    """What is tried."""

    config: DecoderConfig
    settings: TrainingParams
    device: torch.device
    threads: int
    recomputes: bool
    share: float = 1.0
    """Of the machine's memory: several processes on one have to get by with a part each."""


class Trials:
    """Trials in a process that is started when needed, and again after one that it did not survive."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.process: Any = None
        self.most_rows = 0

    def __enter__(self) -> "Trials":
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def __call__(self, rows: int) -> Trial | None:
        """The trial, or None if memory gave out."""
        if self.process is None or rows <= self.most_rows:  # the most memory so far would hide what it needs
            self.end()
            self.start()
        self.most_rows = rows
        try:
            self.pipe.send(rows)
            found = self.pipe.recv()
        except (EOFError, OSError):
            self.end()
            return None
        if isinstance(found, str):
            raise RuntimeError(f"a trial of {rows} rows failed:\n{found}")
        return found

    @property
    def limit_bytes(self) -> int:
        """What a trial may need."""
        if self.process is None:
            self.start()
        return self.limit

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=answer, args=(self.work, other), daemon=True)
        self.process.start()
        other.close()
        self.most_rows = 0
        self.limit = self.pipe.recv()

    def end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.pipe.close()
            self.process = None


def answer(work: Work, pipe: Connection) -> None:
    """In the process: first how much it may need, then a trial for each number of rows that comes."""
    end_with(multiprocessing.parent_process().pid)  # type: ignore[union-attr]
    with suppress(OSError):
        OOM_SCORE.write_text("1000", encoding="ascii")
    torch.set_num_threads(work.threads)
    compute_deterministically()
    keep_freed_memory()
    before = used_bytes(work.device)
    pipe.send(int(USABLE_SHARE[work.device.type] * work.share * free_bytes(work.device)))
    run: WorstCase | None = None
    while True:
        try:
            rows = pipe.recv()
        except EOFError:
            return
        try:
            run = run or WorstCase(work)
            speed = run(rows)
            pipe.send(Trial(rows, peak_bytes(work.device) - before, speed))
        except Exception as error:  # the process that asked has to know, whatever it is
            pipe.send(None if is_out_of_memory(error) else traceback.format_exc())


def free_bytes(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory_bytes()


def used_bytes(device: torch.device) -> int:
    return torch.cuda.memory_reserved(device) if device.type == "cuda" else resident_bytes()


def peak_bytes(device: torch.device) -> int:
    return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else peak_resident_bytes()


class WorstCase:
    """A model with all that a run holds beside it, and what a run does with it."""

    def __init__(self, work: Work) -> None:
        self.work, self.device = work, work.device
        self.model = Decoder(work.config)
        init_parameters(self.model, work.settings.seed)
        self.model.to(work.device).train()
        self.model.recomputes = work.recomputes
        choose_kernels(self.model, work.settings.kernels)
        choose_cut(self.model, work.settings, lambda _: None)  # the run says it
        if work.settings.compile:
            compile_layers(self.model)
        self.optimizer = Optimizer(self.model, rates_of(work.settings))
        self.step(1)
        self.optimizer.step()
        self.save()
        self.sample()

    def __call__(self, rows: int) -> float:
        """Train with gradients there already, and evaluate. Returns tokens per second."""
        self.step(rows)  # what is done for the first time takes longer
        wait(self.device)
        started = time.perf_counter()
        self.step(rows)
        wait(self.device)
        seconds = time.perf_counter() - started
        self.evaluate(rows)
        return rows * self.work.settings.block_tokens / seconds

    def ids(self, rows: int) -> torch.Tensor:
        """Rows without a gap: any token will do."""
        shape = (rows, self.work.settings.block_tokens)
        return torch.zeros(shape, dtype=torch.int64, device=self.device)

    def step(self, rows: int) -> None:
        ids = self.ids(rows)
        with autocast(self.device, self.work.settings.precision):
            loss = self.model.loss_sum(ids, ids, self.documents(ids))
        loss.backward()

    def documents(self, ids: torch.Tensor) -> Documents | None:
        """Short ones: the kernel for segments needs memory for each."""
        if not self.work.settings.mask_documents:
            return None
        if self.model.cuts_by == "mask":
            return ids
        borders = np.append(np.arange(0, ids.numel(), SHORT_TOKENS), ids.numel())
        return segments_of(borders.astype(np.int32), self.device)

    @torch.no_grad()
    def evaluate(self, rows: int) -> None:
        ids = self.ids(rows)
        with autocast(self.device, self.work.settings.precision):
            x_BTD = self.model.hidden(ids)
        token_losses(x_BTD.flatten(0, 1), self.model.head.weight, ids.flatten())

    def save(self) -> None:
        """A checkpoint is written from a copy of everything, beside the training."""
        tensors = [*self.model.state_dict().values(), *self.optimizer.tensors().values()]
        copies = [tensor.detach().to("cpu", copy=True) for tensor in tensors]
        del copies

    @torch.no_grad()
    def sample(self) -> None:
        """A prompt that fills the context."""
        cache = Cache(self.work.config, 1, self.device, torch.float32)
        ids = torch.zeros((1, self.work.config.context_tokens), dtype=torch.int64, device=self.device)
        self.model.head(self.model.hidden(ids, cache)[:, -1])


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
