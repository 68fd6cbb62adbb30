"""Trainings as `benchmarks.trainer` and `benchmarks.time_to_quality` race them: ours and the peers'.

All see the same batches of the finished pipeline in the same order, with the same precision and threads.
The peers' recipe is nanoGPT's (see `peers.py`), for all of them; `transformers`' Trainer runs its own loop.
"""

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peers import nanogpt_optimizer, nanogpt_rate
from benchmarks.turns import Competitor
from nima.batches import TrainingBatches
from nima.checkpoint.run_folder import open_run
from nima.network.decoder import Decoder
from nima.scoring.likelihood import Scorer, total
from nima.training.loop import Run, train
from nima.workspace.metrics import Row
from nima.workspace.params import RunParams, TrainingParams
from nima.workspace.signals import StopRequest

# After which step, at which own second, which bits per byte of the validation part.
Curve = list[tuple[int, float, float]]


class Watch:
    """Stands where a run's log and console stand; marks the steps and keeps the validations."""

    def __init__(self, competitor: Competitor, curve: Curve) -> None:
        self.competitor = competitor
        self.curve = curve
        self.validating = None

    def step(self, *_: object) -> None:
        self.competitor.mark()

    def log_row(self, row: Row) -> None:
        if "validation/bits_per_byte" in row:
            self.curve.append((row["step"], self.competitor.seconds, row["validation/bits_per_byte"]))

    def say(self, *_: object) -> None:
        pass

    start_at = row = say


class Unclocked:
    """A scorer whose time does not count."""

    def __init__(self, scorer: Scorer, competitor: Competitor) -> None:
        self.scorer, self.competitor = scorer, competitor
        self.token_bytes = scorer.token_bytes

    def __call__(self, *args: Any) -> Any:
        with self.competitor.paused():
            return self.scorer(*args)


def nima(
    model: Decoder, batches: TrainingBatches, scorer: Scorer, settings: TrainingParams, curve: Curve
) -> Callable[[Competitor], None]:
    """The loop itself, with its checks, log and checkpoints."""

    def work(competitor: Competitor) -> None:
        torch.set_num_threads(THREADS)
        watch = Watch(competitor, curve)
        with tempfile.TemporaryDirectory() as folder, open_run(Path(folder) / "run", {}, 1) as kept:
            run = Run(kept, watch, watch, StopRequest(), RunParams())  # type: ignore[arg-type]
            train(model, batches, Unclocked(scorer, competitor), settings, settings.max_steps or 0, run)  # type: ignore[arg-type]

    return work


def torch_loop(
    model: nn.Module,
    batches: TrainingBatches,
    score: Callable[[], float],
    total_steps: int,
    lr: float,
    validate_at: frozenset[int],
    curve: Curve,
) -> Callable[[Competitor], None]:
    """The plainest loop: what nanoGPT's and LitGPT's scripts do in a step."""

    def work(competitor: Competitor) -> None:
        torch.set_num_threads(THREADS)
        optimizer = nanogpt_optimizer(model, lr)
        for step in range(total_steps):
            for group in optimizer.param_groups:
                group["lr"] = lr * nanogpt_rate(step, total_steps, total_steps // 20)
            ids, targets = batch_of(batches, step)
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(ids, targets)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            competitor.mark()
            if step + 1 in validate_at:
                with competitor.paused():
                    curve.append((step + 1, competitor.seconds, score()))

    return work


def hugging_face(
    model: Any,
    batches: TrainingBatches,
    score: Callable[[], float],
    total_steps: int,
    lr: float,
    validate_at: frozenset[int],
    curve: Curve,
) -> Callable[[Competitor], None]:
    """`transformers`' Trainer with its own loop, data loader and scheduler."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    rows = batch_of(batches, 0)[0].shape[0]

    class Marks(TrainerCallback):  # type: ignore[misc]
        def __init__(self, competitor: Competitor) -> None:
            self.competitor = competitor

        def on_step_end(self, _args: Any, state: Any, *_: Any, **__: Any) -> None:
            self.competitor.mark()
            if state.global_step in validate_at:
                with self.competitor.paused():
                    curve.append((state.global_step, self.competitor.seconds, score()))

    class Rows(torch.utils.data.Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return rows * total_steps

        def __getitem__(self, row: int) -> dict[str, Tensor]:
            ids = batch_of(batches, row // rows)[0][row % rows]
            return {"input_ids": ids, "labels": ids}

    class InOrder(Trainer):  # type: ignore[misc]
        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(Rows())

        def create_optimizer(self, *_: Any, **__: Any) -> Any:
            self.optimizer = nanogpt_optimizer(self.model, lr)
            return self.optimizer

    def work(competitor: Competitor) -> None:
        torch.set_num_threads(THREADS)
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=rows,
                max_steps=total_steps,
                learning_rate=lr,
                warmup_steps=total_steps // 20,
                lr_scheduler_type="cosine_with_min_lr",
                lr_scheduler_kwargs={"min_lr_rate": 0.1},
                max_grad_norm=1.0,
                bf16=True,
                use_cpu=True,
                report_to=[],
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
            )
            trainer = InOrder(model, arguments, train_dataset=Rows(), callbacks=[Marks(competitor)])
            trainer.train()

    return work


THREADS = 2


def batch_of(batches: TrainingBatches, step: int) -> tuple[Tensor, Tensor]:
    batch = batches.batch(step)
    return torch.from_numpy(batch.ids), torch.from_numpy(batch.targets)


class Scored(nn.Module):
    """A peer as the scorer wants a model: `hidden` states and the `head` that makes logits of them."""

    def __init__(self, model: nn.Module, head: nn.Module, hidden: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.head, self.hidden = model, head, hidden


def bits_per_byte(scorer: Scorer, scored: nn.Module) -> float:
    return total(scorer(scored)).metrics()["bits_per_byte"]  # type: ignore[arg-type]


@contextlib.contextmanager
def without_head(model: nn.Module, name: str) -> Iterator[None]:
    """Within it `model` gives what its head would be given."""
    head = getattr(model, name)
    setattr(model, name, nn.Identity())
    try:
        yield
    finally:
        setattr(model, name, head)
