"""The loop, read from top to bottom: evaluate → save → stop? → update → log.

Step N means that N updates are done. Everything a step needs follows from (params, data, N) and from the
run's `State`, so a run that was killed at any point continues to the very bytes of one that never was.
"""

import math
import time
from functools import partial

import torch
from torch import Tensor

from nima.batches import Batch, TrainingBatches
from nima.network.decoder import Decoder, autocast
from nima.network.targets import IGNORED
from nima.network.varlen import Documents, segments_of
from nima.optimizer import Optimizer, rates_of
from nima.processes import ALONE, Processes
from nima.scoring.likelihood import Scorer, total
from nima.training.memory import MicroBatch
from nima.training.objective import objective_of
from nima.training.resuming import Resumable, save_due
from nima.training.run_log import log_training, log_validation, say_what_begins, validation_at
from nima.training.run_state import Result, Run, State
from nima.training.steering import Steering
from nima.workspace.errors import NonFiniteError
from nima.workspace.params import TrainingParams

# Beyond any number of steps: each process draws its own dropout, the first what a single one draws.
SEED_DISTANCE = 1_000_003 * 1_000_003


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
    cuts_by = model.cuts_by if settings.mask_documents else None
    objective, steering = objective_of(settings), Steering(settings, total_steps)
    loss_sum = processes.share(model, objective, settings)
    optimizer = processes.divided(Optimizer(model, rates_of(settings), processes.spread))
    scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "fp16")
    resumable = Resumable(run, model, optimizer, scaler, steering, processes)
    state = resumable.restore()
    first_step, started = state.step, time.perf_counter()
    say_what_begins(run, model, batches, state, settings, total_steps)
    run.progress.start_at(state.step)
    micro_batch = MicroBatch(
        settings.tokens_at_once, settings.block_tokens, state.halvings, run.progress.say, processes.count == 1
    )
    model.recomputes = run.settings.activation_checkpointing
    model.train()

    def poll() -> None:
        run.folder.check()
        if processes.any(bool(run.stop)):
            resumable.save_for_good()
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
            ids, targets, documents = on_device(part, device, cuts_by)
            with objective.blamed(resumable.save if processes.has_all else lambda: None):
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
                resumable.keep_if_best(settings.best_metric, metrics[settings.best_metric])
            log_validation(run, state, metrics, by_source)
            steering.validated(by_source)
            state.validated_step = state.step

        # Save
        done = last or steering.stops
        due = save_due(state.step, resumable.saved, run.settings, batches.epochs)
        if done or processes.from_first(due or run.folder.wants(state.step, validation_at(state))):
            resumable.save()

        # Stop?
        if done:
            if steering.stops:
                run.progress.say(f"after step {state.step}: {steering.why}; stopping early")
            optimizer.hold("averaged")
            break
        if steering.recovers:
            resumable.go_back()

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
                resumable.save_for_good()
                raise problem
            run.progress.say(f"{problem}. The run goes on without this update")
            state.skipped_updates += 1
            state.non_finite_updates += 1
        scaler.update()
        state.step += 1
        steering.updated(norm)

        # Log
        state.add(nats, num_trained, num_bytes if objective.is_cross_entropy else 0)
        run.progress.step(state.step, nats / max(1, num_trained), state.bits_per_byte, num_tokens)
        if state.step % settings.log_every_steps == 0 or state.step == total_steps:
            log_training(run, state, settings.lr * factor, norm)

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


def validation_due(state: State, settings: TrainingParams, last: bool) -> bool:
    return state.step > state.validated_step and (last or state.step % settings.validate_every_steps == 0)


def on_device(
    part: Batch, device: torch.device, cuts_by: str | None
) -> tuple[Tensor, Tensor, Documents | None]:
    """Ids and targets, each (rows, slots), and the documents to cut attention by."""
    ids, targets = torch.from_numpy(part.ids).to(device), torch.from_numpy(part.targets).to(device)
    if cuts_by is None:
        return ids, targets, None
    if cuts_by == "segments":
        return ids, targets, segments_of(part.borders, device)
    return ids, targets, torch.from_numpy(part.documents).to(device)


def non_finite(nats: float, norm: float, batches: TrainingBatches, step: int) -> NonFiniteError:
    ids = batches.tokens.ids
    named = [ids[document] for document in batches.documents_of(step)]
    more = f" and {len(named) - 5} more" if len(named) > 5 else ""
    return NonFiniteError(
        f"update {step + 1}: loss sum {nats}, gradient norm {norm}; the weights of step {step} are "
        f"untouched. Lower training.lr, or look at the batch's documents: {', '.join(named[:5])}{more}"
    )
