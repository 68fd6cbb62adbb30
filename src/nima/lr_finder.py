"""A learning rate from one rising rate: the range test of Smith 2017, https://arxiv.org/abs/1506.01186.

The rate grows by the same factor from step to step. While it is too small the loss hardly falls, at good
rates it falls fastest, and beyond them it rises. Where the fall is steepest is early, since the first nats
are the easiest, and where the loss is lowest is late: the suggestion is in the middle of the two. Trainings
that differ in seed are averaged. Everything follows from params and data.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from nima.network.decoder import autocast
from nima.optimizer import Optimizer, rates_of
from nima.scoring.pictures import PLOTS, draw_rate_range
from nima.training.loop import on_device
from nima.training.objective import objective_of
from nima.training.recipe import Recipe, assemble
from nima.training.tracking import StageLive
from nima.workspace import runtime as runtime_settings
from nima.workspace.errors import UserError
from nima.workspace.metrics import Row
from nima.workspace.params import LrFinderParams, Params, params_file
from nima.workspace.runtime import set_up_torch

NAME = "lr_finder"
# A run ends when its loss is so many times its lowest.
DIVERGED = 1.5
# Steps to either side that smoothing takes in, as a share of all steps.
SMOOTHED_SHARE = 0.04


@dataclass(frozen=True)
class Suggestion:
    """Learning rates of the curve, to two significant digits."""

    suggested_lr: float
    steepest_lr: float
    lowest_loss_lr: float

    @property
    def command(self) -> str:
        return f"dvc exp run -S training.lr={self.suggested_lr:.2g}"


def search(say: Callable[[str], None], root: Path = Path()) -> tuple[Params, list[Row]]:
    """Train as params.yaml says with a rising rate; the curve's points, each with lr, loss, smoothed_loss.

    Reads the outputs of `split` and `tokenize` in the current folder. Raises `UserError` if they are missing,
    or if even the smallest rate is too large.
    """
    params = params_file.load(root / "params.yaml")
    device = set_up_torch(runtime_settings.load(Path.cwd()))
    settings, curves = params.lr_finder, []
    for number in range(settings.runs):
        say(f"run {number + 1} of {settings.runs}: {settings.steps} steps at most")
        training = params.training.model_copy(update={"seed": params.training.seed + number})
        curves.append(curve_of(params.model_copy(update={"training": training}), device))
    steps = min(map(len, curves))
    if steps < settings.steps // 4:
        raise UserError(
            f"lr_finder.min_lr: the loss grows from step {steps} of {settings.steps} on; make it less than "
            f"{settings.min_lr:g}"
        )
    losses = [sum(curve[step] for curve in curves) / len(curves) for step in range(steps)]
    smoothed = smooth(losses, round(SMOOTHED_SHARE * settings.steps))
    points = enumerate(zip(losses, smoothed, strict=True))
    return params, [
        {"step": step, "lr": rate(settings, step), "loss": loss, "smoothed_loss": mean}
        for step, (loss, mean) in points
    ]


def rate(settings: LrFinderParams, step: int) -> float:
    """Of step `step`, from 0."""
    return settings.min_lr * (settings.max_lr / settings.min_lr) ** (step / (settings.steps - 1))


def curve_of(params: Params, device: torch.device) -> list[float]:
    """The loss (nats per token) of each step before its update, until it diverges."""
    parts = assemble(
        params,
        device,
        tokenizer=Path("models/tokenizer"),
        tokens=Path("data/tokens"),
        split=Path("data/splits"),
    )
    optimizer = Optimizer(parts.model, rates_of(params.training))
    parts.model.train()
    losses: list[float] = []
    for step in range(params.lr_finder.steps):
        optimizer.set_rate(rate(params.lr_finder, step) / params.training.lr)
        loss = update(parts, params, optimizer, step, device)
        if not math.isfinite(loss) or loss > DIVERGED * min([*losses, loss]):
            break
        losses.append(loss)
    return losses


def update(parts: Recipe, params: Params, optimizer: Optimizer, step: int, device: torch.device) -> float:
    """One update as the loop does it; the loss before it."""
    settings, batch = params.training, parts.batches.batch(step)
    objective = objective_of(settings)
    torch.manual_seed(settings.seed * 1_000_003 + step)
    optimizer.zero_grad()
    nats = 0.0
    for part in batch.micro_batches(settings.tokens_at_once):
        cuts_by = parts.model.cuts_by if settings.mask_documents else None
        ids, targets, documents = on_device(part, device, cuts_by)
        with autocast(device, settings.precision):
            loss = objective(parts.model, ids, targets, documents)
        (loss / max(1, batch.num_trained_tokens)).backward()
        nats += float(loss.detach())
    torch.nn.utils.clip_grad_norm_(parts.model.parameters(), settings.max_grad_norm or math.inf)
    optimizer.step()
    return nats / max(1, batch.num_trained_tokens)


def smooth(losses: list[float], reach: int) -> list[float]:
    """The mean over each point and up to `reach` neighbours on either side, as many on both."""
    smoothed = []
    for place in range(len(losses)):
        width = min(reach, place, len(losses) - 1 - place)
        near = losses[place - width : place + width + 1]
        smoothed.append(sum(near) / len(near))
    return smoothed


def suggestion(rows: list[Row]) -> Suggestion:
    """The geometric mean of the rate at which the loss falls fastest and that at which it is lowest."""
    smoothed = [row["smoothed_loss"] for row in rows]
    lowest = min(range(len(rows)), key=lambda step: smoothed[step])
    if lowest == 0:
        raise UserError("lr_finder: the loss never falls; make lr_finder.min_lr smaller, or look at the data")
    falls = range(1, lowest + 1)
    steepest = max(falls, key=lambda step: smoothed[step - 1] - smoothed[min(step + 1, len(rows) - 1)])
    first, last = rows[steepest]["lr"], rows[lowest]["lr"]
    return Suggestion(short(math.sqrt(first * last)), short(first), short(last))


def short(value: float) -> float:
    return float(f"{value:.2g}")


def record(params: Params, rows: list[Row], found: Suggestion) -> None:
    """plots/lr_finder (curves, picture) and metrics/lr_finder.json, equal to the byte for equal params."""
    live = StageLive(NAME)
    for row in rows:
        live.log_row(row)
    live.finish(asdict(found) | {"settings": params.lr_finder.model_dump()})
    marks = {
        "steepest": found.steepest_lr,
        "suggested": found.suggested_lr,
        "lowest loss": found.lowest_loss_lr,
    }
    draw_rate_range(PLOTS / NAME / "loss.png", rows, marks)
