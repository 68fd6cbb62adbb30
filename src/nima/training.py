"""The loop, read from top to bottom: evaluate → save → stop? → update → log.

Step N means that N updates are done. Everything a step needs follows from (params, data, N) and from the
state below, so a run that was killed at any point continues to the very bytes of one that never was.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nima.batches import Batch, TrainingBatches
from nima.checkpoint import Checkpoint, NoFolder, RunFolder
from nima.decoder import Decoder, autocast
from nima.errors import NonFiniteError
from nima.evaluation.likelihood import Likelihood, Scorer, total
from nima.memory import MicroBatch
from nima.metrics import Row
from nima.objective import objective_of
from nima.optimizer import Optimizer, rates_of
from nima.params import RunParams, TrainingParams
from nima.processes import ALONE, Processes
from nima.progress import TrainingProgress
from nima.signals import StopRequest
from nima.steering import Steering
from nima.stopping import improves
from nima.targets import IGNORED
from nima.tracking import StageLive, Unlogged

# Beyond any number of steps: each process draws its own dropout, the first what a single one draws.
SEED_DISTANCE = 1_000_003 * 1_000_003


@dataclass
class State:
    """All that changes during a run beside weights and optimizer; saved as JSON."""

    step: int = 0
    validated_step: int = 0
    rows: list[Row] = field(default_factory=list)
    best: dict[str, Any] | None = None
    steering: dict[str, Any] = field(default_factory=dict)
    scaler: dict[str, Any] = field(default_factory=dict)
    skipped_updates: int = 0
    non_finite_updates: int = 0
    threads: int = 0
    processes: int = 1
    halvings: list[dict[str, Any]] = field(default_factory=list)
    # Sums since the last logged row.
    nats: float = 0.0
    tokens: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class Run:
    """Where a run keeps its progress, shows it, and hears that it should stop."""

    folder: RunFolder | NoFolder
    live: StageLive | Unlogged
    progress: TrainingProgress
    stop: StopRequest
    settings: RunParams


@dataclass(frozen=True)
class Result:
    state: State
    best_weights: dict[str, Tensor]
    last_weights: dict[str, Tensor]
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
    processes: Processes = ALONE,
) -> Result:
    """Train `model` in place for `total_steps` updates, or until a rule stops it.

    `scorer` scores the validation part. A rule of update that averages leaves the average in the model. Each
    of several processes computes its part of every batch; weights that come out are the first one's. With
    the progress saved it raises `Interrupted` after a stop signal, `NonFiniteError` when loss or gradient is
    not finite and params say to stop, and `ObjectiveError` when the user's own function fails.
    """
    device = next(model.parameters()).device
    objective, steering = objective_of(settings), Steering(settings, total_steps)
    loss_sum = processes.share(model, objective, settings)
    optimizer = processes.divided(Optimizer(model, rates_of(settings), processes.spread))
    scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "fp16")
    state = restore(run, model, optimizer, scaler, steering, processes)
    state.threads, state.processes = torch.get_num_threads(), processes.count
    first_step, started, saved = state.step, time.perf_counter(), time.perf_counter()
    say_what_begins(run, model, batches, state, settings, total_steps)
    run.progress.start_at(state.step)
    micro_batch = MicroBatch(
        settings.tokens_at_once, settings.block_tokens, state.halvings, run.progress.say, processes.count == 1
    )
    model.recomputes = run.settings.activation_checkpointing
    model.train()

    def save() -> None:
        nonlocal saved
        state.steering, state.scaler = steering.state(), scaler.state_dict()
        with optimizer.weights("trained"):
            weights, moments = processes.weights(model), processes.whole(optimizer.tensors())
            run.folder.begin_save(Checkpoint(state.step, weights, moments, vars(state), validation_at(state)))
        saved = time.perf_counter()

    def save_for_good() -> None:
        save()
        run.folder.wait()
        processes.wait()

    def poll() -> None:
        run.folder.check()
        if processes.any(bool(run.stop)):
            save_for_good()
            run.stop.saved(f"the state after step {state.step}")

    def add_gradients(batch: Batch, num_trained: int, max_tokens: int) -> Tensor:
        optimizer.zero_grad()
        # Dropout draws from the step's own seed, so no generator needs saving.
        torch.manual_seed(settings.seed * 1_000_003 + state.step + processes.rank * SEED_DISTANCE)
        nats_sum = torch.zeros((), device=device)
        parts = list(batch.micro_batches(max_tokens))
        for number, part in enumerate(parts, start=1):
            poll()
            processes.sum_gradients(now=number == len(parts))
            ids, targets, documents = on_device(part, device, mask_documents=settings.mask_documents)
            with objective.blamed(save if processes.has_all else lambda: None):
                with autocast(device, settings.precision):
                    loss = loss_sum(ids, targets, documents)
                # The sum over the global batch's tokens divided by their number: no mean of means.
                scaler.scale(processes.weighted(loss / max(1, num_trained))).backward()
            nats_sum += loss.detach()
        return nats_sum

    while True:
        # Evaluate
        last = state.step == total_steps or steering.stops
        poll()
        if validation_due(state, settings, last):
            with optimizer.weights("averaged"):
                by_source = micro_batch.fitting(state.step, partial(scorer, model, poll))
                metrics = total(by_source).metrics()
                value = metrics[settings.best_metric]
                if improves(settings.best_metric, value, state.best["value"] if state.best else None):
                    recovers = steering.recoveries_left > 0
                    kept = best_tensors(model, optimizer, processes, can_recover=recovers)
                    state.best = run.folder.save_best(state.step, kept)
                    state.best |= {"step": state.step, "value": value}
            log_validation(run, state, metrics, by_source)
            steering.validated(by_source)
            state.validated_step = state.step

        # Save
        done = last or steering.stops
        due = save_due(state.step, saved, run.settings, batches.epochs)
        if done or processes.from_first(due or run.folder.wants(state.step, validation_at(state))):
            save()

        # Stop?
        if done:
            if steering.stops:
                run.progress.say(f"after step {state.step}: {steering.why}; stopping early")
            optimizer.hold("averaged")
            break
        if steering.recovers:
            go_back(run, state, model, optimizer, steering, processes)

        # Update
        factor = steering.lr_factor(state.step)
        optimizer.set_rate(factor)
        batch = batches.batch(state.step, processes.rank, processes.count)
        [num_trained] = processes.sums(batch.num_trained_tokens)
        nats_sum = micro_batch.fitting(state.step, partial(add_gradients, batch, num_trained))
        optimizer.unscale(scaler)
        processes.agree_on_overflow(scaler)
        num_bytes = int(scorer.token_bytes[batch.targets[batch.targets != IGNORED]].sum())
        nats, num_tokens, num_bytes = processes.sums(float(nats_sum), batch.num_tokens, num_bytes)
        norm = processes.clip(model, settings.max_grad_norm or math.inf)
        if math.isfinite(nats) and math.isfinite(norm):
            optimizer.step(scaler)
            steering.finite()
        elif settings.precision == "fp16" and math.isfinite(nats) and scaler.get_scale() > 1:
            state.skipped_updates += 1  # the loss scale was too large: it halves, and the next batch goes on
        else:
            problem = non_finite(nats, norm, batches, state.step)
            if not steering.survives_non_finite():
                save_for_good()
                raise problem
            run.progress.say(f"{problem}. The run goes on without this update")
            state.skipped_updates += 1
            state.non_finite_updates += 1
        scaler.update()
        state.step += 1
        steering.updated(norm)

        # Log
        if math.isfinite(nats):
            state.nats += nats
            state.tokens += num_trained
            state.bytes += num_bytes if objective.is_cross_entropy else 0
        run.progress.step(state.step, nats / max(1, num_trained), bits_per_byte(state), num_tokens)
        if state.step % settings.log_every_steps == 0 or state.step == total_steps:
            log(run, state, training_row(state, settings.lr * factor, norm))
            state.nats, state.tokens, state.bytes = 0.0, 0, 0

    weights = processes.weights(model)
    best = run.folder.load_best(state.best) if state.best and processes.is_first else weights
    return Result(
        state=state,
        best_weights={name: best[name] for name in weights},
        last_weights=weights,
        stopped_early=state.step < total_steps,
        seconds=time.perf_counter() - started,
        first_step=first_step,
    )


def restore(
    run: Run,
    model: Decoder,
    optimizer: Optimizer,
    scaler: torch.amp.GradScaler,
    steering: Steering,
    processes: Processes,
) -> State:
    """Continue from the newest whole checkpoint, its history replayed into a fresh log; else begin."""
    checkpoint = run.folder.load_newest(warn=run.progress.say) or Checkpoint(0, {}, {}, {})
    saved = processes.from_first(checkpoint.state)
    if not saved:
        return State()
    state = State(**saved)
    processes.set_weights(model, processes.parts_of(checkpoint.model, model))
    optimizer.load_tensors(processes.parts_of(checkpoint.optimizer, model))
    steering.load_state(state.steering)
    if scaler.is_enabled():
        scaler.load_state_dict(state.scaler)
    run.live.replay(state.rows)
    run.progress.say(f"continuing after step {state.step}, from {run.folder.step_path(state.step)}")
    now = State(threads=torch.get_num_threads(), processes=processes.count)
    if workforce(state) != workforce(now):
        run.progress.say(
            f"begun with {workforce(state)}, continued with {workforce(now)}: the data keeps its order, but "
            "sums are taken in another, so the result will equal an uninterrupted run's only to rounding"
        )
    return state


def workforce(state: State) -> str:
    threads = f"{state.threads} threads"
    return threads if state.processes == 1 else f"{state.processes} processes of {threads} each"


def say_what_begins(
    run: Run,
    model: Decoder,
    batches: TrainingBatches,
    state: State,
    settings: TrainingParams,
    total_steps: int,
) -> None:
    device = next(model.parameters()).device
    run.progress.say(
        f"{model.num_parameters():,} parameters on {device.type} with {workforce(state)}, "
        f"{total_steps} updates of {settings.batch_tokens} tokens, an epoch has {batches.order.num_tokens}, "
        f"{batches.packing_efficiency:.1%} of slots are filled"
    )


def on_device(
    part: Batch, device: torch.device, *, mask_documents: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Ids, targets and, to cut attention by, documents, each (rows, slots)."""
    ids, targets = torch.from_numpy(part.ids).to(device), torch.from_numpy(part.targets).to(device)
    return ids, targets, torch.from_numpy(part.documents).to(device) if mask_documents else None


def best_tensors(
    model: Decoder, optimizer: Optimizer, processes: Processes, *, can_recover: bool
) -> dict[str, Tensor]:
    """The weights that were judged; for a run that may go back to them also what training went on from."""
    if not can_recover:
        return processes.weights(model)
    trained = {f"trained/{name}": tensor for name, tensor in optimizer.trained_weights().items()}
    moments = {f"optimizer/{key}": tensor for key, tensor in optimizer.tensors().items()}
    return processes.weights(model) | processes.whole(trained | moments)


def go_back(
    run: Run,
    state: State,
    model: Decoder,
    optimizer: Optimizer,
    steering: Steering,
    processes: Processes,
) -> None:
    """Put back the best weights and go on from them, at a lower rate, with the next data.

    The steps count on and no batch is met again, as with a loss spike of PaLM (Chowdhery et al. 2022,
    section 5.1, https://arxiv.org/abs/2204.02311). Before the first validation the weights stay.
    """
    why, target = steering.why, "no weights yet that were validated"
    if state.best:
        tensors = processes.parts_of(run.folder.load_best(state.best), model)
        names = (name for name in tensors if "/" not in name)
        processes.set_weights(model, {name: tensors.get(f"trained/{name}", tensors[name]) for name in names})
        moments = ((key.partition("/"), tensor) for key, tensor in tensors.items())
        optimizer.load_tensors({key: t for (kind, _, key), t in moments if kind == "optimizer"})
        target = f"back to the weights of step {state.best['step']}"
    steering.recovered()
    run.progress.say(
        f"after step {state.step}: {why}; {target}; the rate is multiplied by {steering.lr_ratio:g}, "
        f"recovery {steering.recoveries} of {steering.settings.recovery.max_recoveries}"
    )


def training_row(state: State, lr: float, norm: float) -> Row:
    """What was learnt since the row before; figures that no finite update stands behind are left out."""
    row: Row = {"step": state.step}
    if state.tokens:
        row |= {"train/loss": state.nats / state.tokens}
    if state.bytes:
        row |= {"train/bits_per_byte": bits_per_byte(state)}
    row |= {"train/lr": lr}
    return row | ({"train/gradient_norm": norm} if math.isfinite(norm) else {})


def validation_due(state: State, settings: TrainingParams, last: bool) -> bool:
    return state.step > state.validated_step and (last or state.step % settings.validate_every_steps == 0)


def validation_row(step: int, metrics: dict[str, float], by_source: dict[str, Likelihood]) -> Row:
    """The figures in total, and each source's where there are several."""
    row = {"step": step} | {f"validation/{key}": value for key, value in metrics.items()}
    for source, part in by_source.items() if len(by_source) > 1 else ():
        figures = part.metrics()
        row |= {f"validation/sources/{source}/{key}": figures[key] for key in ("loss", "bits_per_byte")}
    return row


def validation_at(state: State) -> Row:
    """The metrics of the validation at this very step, if there was one."""
    row = next((row for row in reversed(state.rows[-8:]) if "validation/loss" in row), {"step": None})
    if row["step"] != state.step:
        return {}
    return {key.removeprefix("validation/"): value for key, value in row.items() if key != "step"}


def save_due(step: int, saved: float, settings: RunParams, epochs: Callable[[int], float]) -> bool:
    by_steps = settings.save_every_steps is not None and step > 0 and step % settings.save_every_steps == 0
    every = settings.save_every_epochs
    by_epochs = every is not None and step > 0 and epochs(step) // every > epochs(step - 1) // every
    by_time = (
        settings.save_every_seconds is not None and time.perf_counter() - saved >= settings.save_every_seconds
    )
    return by_steps or by_epochs or by_time


def log(run: Run, state: State, row: Row) -> None:
    state.rows.append(row)
    run.live.log_row(row)
    run.progress.row(row)


def log_validation(
    run: Run, state: State, metrics: dict[str, float], by_source: dict[str, Likelihood]
) -> None:
    log(run, state, validation_row(state.step, metrics, by_source))
    run.progress.say(
        f"step {state.step}: validation loss {metrics['loss']:.4f}, "
        f"{metrics['bits_per_byte']:.4f} bits per byte"
    )


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
