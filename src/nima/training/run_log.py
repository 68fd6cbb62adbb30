"""What a run writes down of itself: a row for each point of its curves, and lines for who watches."""

import math

from nima.batches import TrainingBatches
from nima.network.decoder import Decoder
from nima.scoring.likelihood import Likelihood
from nima.training.run_state import Run, State
from nima.workspace.metrics import Row
from nima.workspace.params import TrainingParams


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


def workforce(state: State) -> str:
    threads = f"{state.threads} threads"
    return threads if state.processes == 1 else f"{state.processes} processes of {threads} each"


def log_training(run: Run, state: State, lr: float, norm: float) -> None:
    """The point of the updates since the one before; begins the next one's sums."""
    log(run, state, training_row(state, lr, norm))
    state.nats, state.tokens, state.bytes = 0.0, 0, 0


def training_row(state: State, lr: float, norm: float) -> Row:
    """What was learnt since the row before; figures that no finite update stands behind are left out."""
    row: Row = {"step": state.step}
    if state.tokens:
        row |= {"train/loss": state.nats / state.tokens}
    if state.bytes:
        row |= {"train/bits_per_byte": state.bits_per_byte}
    row |= {"train/lr": lr}
    return row | ({"train/gradient_norm": norm} if math.isfinite(norm) else {})


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
