"""The loop, read from top to bottom: evaluate → save → stop? → update → log.

Step N means that N updates are done. Everything a step needs follows from (params, data, N) and from the
state below, so a run that was killed at any point continues to the very bytes of one that never was.
"""

import math
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nima.batches import TrainingBatches
from nima.checkpoint import Checkpoint, RunFolder
from nima.decoder import Decoder, autocast
from nima.errors import NonFiniteError
from nima.evaluation.likelihood import Likelihood, Scorer, total
from nima.metrics import Row
from nima.optimizer import Optimizer, Rates
from nima.params import RunParams, TrainingParams
from nima.progress import TrainingProgress
from nima.schedule import lr_factor, warmup_steps_of
from nima.signals import StopRequest
from nima.stopping import EarlyStopping, improves
from nima.targets import IGNORED
from nima.tracking import StageLive


@dataclass
class State:
    """All that changes during a run beside weights and optimizer; saved as JSON."""

    step: int = 0
    validated_step: int = 0
    rows: list[Row] = field(default_factory=list)
    best: dict[str, Any] | None = None
    stopper: dict[str, Any] = field(default_factory=lambda: {"best": None, "misses": 0})
    scaler: dict[str, Any] = field(default_factory=dict)
    skipped_updates: int = 0
    threads: int = 0
    # Sums since the last logged row.
    nats: float = 0.0
    tokens: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class Run:
    """Where a run keeps its progress, shows it, and hears that it should stop."""

    folder: RunFolder
    live: StageLive
    progress: TrainingProgress
    stop: StopRequest
    settings: RunParams


@dataclass(frozen=True)
class Result:
    state: State
    best_weights: dict[str, Tensor]
    stopped_early: bool
    seconds: float
    first_step: int


def train(
    model: Decoder,
    batches: TrainingBatches,
    scorer: Scorer,
    settings: TrainingParams,
    total_steps: int,
    run: Run,
) -> Result:
    """Train `model` in place for `total_steps` updates, or until early stopping. (A rule that averages
    leaves the average in it.)

    `scorer` scores the validation part. Raises `Interrupted` after a stop signal, with the progress saved,
    and `NonFiniteError` when loss or gradient is not finite.
    """
    device = next(model.parameters()).device
    optimizer = Optimizer(model, rates_of(settings))
    scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "fp16")
    stopper = EarlyStopping(
        settings.early_stopping.metric, settings.early_stopping.patience, settings.early_stopping.min_delta
    )
    warmup_steps = warmup_steps_of(settings.warmup_steps, settings.warmup_fraction, total_steps)
    state = restore(run, model, optimizer, scaler, stopper)
    state.threads = torch.get_num_threads()
    first_step, started, saved = state.step, time.perf_counter(), time.perf_counter()
    run.progress.say(
        f"{model.num_parameters():,} parameters on {device.type} with {state.threads} threads, "
        f"{total_steps} updates of {settings.batch_tokens} tokens, an epoch has {batches.order.num_tokens}, "
        f"{batches.packing_efficiency:.1%} of slots are filled"
    )
    run.progress.start_at(state.step)
    model.train()

    def save() -> None:
        nonlocal saved
        state.stopper, state.scaler = stopper.state(), scaler.state_dict()
        with optimizer.weights("trained"):
            run.folder.save(Checkpoint(state.step, weights_of(model), optimizer.tensors(), vars(state)))
        saved = time.perf_counter()

    def poll() -> None:
        if run.stop:
            save()
            run.stop.check(f"the state after step {state.step} is saved")

    while True:
        # Evaluate
        last = state.step == total_steps
        poll()
        if validation_due(state, settings, last):
            with optimizer.weights("averaged"):
                by_source = scorer(model, poll)
                metrics = total(by_source).metrics()
                value = metrics[settings.best_metric]
                if improves(settings.best_metric, value, state.best["value"] if state.best else None):
                    state.best = run.folder.save_best(state.step, weights_of(model))
                    state.best |= {"step": state.step, "value": value}
            log(run, state, validation_row(state.step, metrics, by_source))
            run.progress.say(
                f"step {state.step}: validation loss {metrics['loss']:.4f}, "
                f"{metrics['bits_per_byte']:.4f} bits per byte"
            )
            stopper(metrics[stopper.metric])
            state.validated_step = state.step

        # Save
        done = last or stopper.stops
        if done or save_due(state.step, saved, run.settings):
            save()

        # Stop?
        if done:
            optimizer.hold("averaged")
            break

        # Update
        factor = lr_factor(
            state.step,
            total_steps,
            schedule=settings.schedule,
            warmup_steps=warmup_steps,
            decay_fraction=settings.decay_fraction,
            min_lr_ratio=settings.min_lr_ratio,
            decay_shape=settings.decay_shape,
            num_cycles=settings.num_cycles,
            cycle_growth=settings.cycle_growth,
        )
        optimizer.set_rate(factor)
        optimizer.zero_grad()
        # Dropout draws from the step's own seed, so no generator needs saving.
        torch.manual_seed(settings.seed * 1_000_003 + state.step)
        batch = batches.batch(state.step)
        num_trained = batch.num_trained_tokens
        nats_sum = torch.zeros((), device=device)
        for part in batch.micro_batches(settings.micro_batch_tokens):
            poll()
            ids, targets = torch.from_numpy(part.ids).to(device), torch.from_numpy(part.targets).to(device)
            documents = torch.from_numpy(part.documents).to(device) if settings.mask_documents else None
            with autocast(device, settings.precision):
                loss = model.loss_sum(ids, targets, documents)
            # The sum over the global batch's tokens divided by their number: no mean of means.
            scaler.scale(loss / max(1, num_trained)).backward()
            nats_sum += loss.detach()
        for inner in optimizer.optimizers:
            scaler.unscale_(inner)
        nats = float(nats_sum)
        norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm or math.inf))
        if math.isfinite(nats) and math.isfinite(norm):
            for inner in optimizer.optimizers:
                scaler.step(inner)
        elif settings.precision == "fp16" and math.isfinite(nats) and scaler.get_scale() > 1:
            state.skipped_updates += 1  # the loss scale was too large: it halves, and the next batch goes on
        else:
            raise non_finite(nats, norm, batches, state.step)
        scaler.update()
        state.step += 1

        # Log
        state.nats += nats
        state.tokens += num_trained
        state.bytes += int(scorer.token_bytes[batch.targets[batch.targets != IGNORED]].sum())
        run.progress.step(state.step, nats / max(1, num_trained), bits_per_byte(state), batch.num_tokens)
        if state.step % settings.log_every_steps == 0 or state.step == total_steps:
            row = {
                "step": state.step,
                "train/loss": state.nats / max(1, state.tokens),
                "train/bits_per_byte": bits_per_byte(state),
                "train/lr": settings.lr * factor,
                "train/gradient_norm": norm,
            }
            log(run, state, row)
            state.nats, state.tokens, state.bytes = 0.0, 0, 0

    return Result(
        state=state,
        best_weights=run.folder.load_best(state.best) if state.best else weights_of(model),
        stopped_early=state.step < total_steps,
        seconds=time.perf_counter() - started,
        first_step=first_step,
    )


def restore(
    run: Run, model: Decoder, optimizer: Optimizer, scaler: torch.amp.GradScaler, stopper: EarlyStopping
) -> State:
    """Continue from the newest whole checkpoint, its history replayed into a fresh log; else begin."""
    checkpoint = run.folder.load_newest(warn=run.progress.say)
    if checkpoint is None:
        return State()
    state = State(**checkpoint.state)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(checkpoint.model[name])
    optimizer.load_tensors(checkpoint.optimizer)
    stopper.load_state(state.stopper)
    if scaler.is_enabled():
        scaler.load_state_dict(state.scaler)
    for row in state.rows:
        run.live.log_row(row)
    run.progress.say(f"continuing after step {state.step}, from {run.folder.step_path(state.step)}")
    if state.threads != torch.get_num_threads():
        run.progress.say(
            f"begun with {state.threads} threads, continued with {torch.get_num_threads()}: sums are taken "
            "in another order, so the result will equal an uninterrupted run's only to rounding"
        )
    return state


def weights_of(model: Decoder) -> dict[str, Tensor]:
    """The parameters by name; the embedding and a head that is tied to it are one."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def rates_of(settings: TrainingParams) -> Rates:
    names = Rates.__dataclass_fields__
    return Rates(**{name: getattr(settings, name) for name in names})


def validation_due(state: State, settings: TrainingParams, last: bool) -> bool:
    return state.step > state.validated_step and (last or state.step % settings.validate_every_steps == 0)


def validation_row(step: int, metrics: dict[str, float], by_source: dict[str, Likelihood]) -> Row:
    """The figures in total, and each source's where there are several."""
    row = {"step": step} | {f"validation/{key}": value for key, value in metrics.items()}
    for source, part in by_source.items() if len(by_source) > 1 else ():
        figures = part.metrics()
        row |= {f"validation/sources/{source}/{key}": figures[key] for key in ("loss", "bits_per_byte")}
    return row


def save_due(step: int, saved: float, settings: RunParams) -> bool:
    by_steps = settings.save_every_steps is not None and step > 0 and step % settings.save_every_steps == 0
    by_time = (
        settings.save_every_seconds is not None and time.perf_counter() - saved >= settings.save_every_seconds
    )
    return by_steps or by_time


def log(run: Run, state: State, row: Row) -> None:
    state.rows.append(row)
    run.live.log_row(row)
    run.progress.row(row)


def bits_per_byte(state: State) -> float:
    return state.nats / math.log(2) / state.bytes if state.bytes else math.nan


def non_finite(nats: float, norm: float, batches: TrainingBatches, step: int) -> NonFiniteError:
    ids = batches.tokens.ids
    named = [ids[document] for document in batches.documents_of(step)]
    more = f" and {len(named) - 5} more" if len(named) > 5 else ""
    return NonFiniteError(
        f"update {step + 1}: loss sum {nats}, gradient norm {norm}; the weights of step {step} are "
        f"untouched. Lower training.lr, or look at the batch's documents: {', '.join(named[:5])}{more}"
    )
