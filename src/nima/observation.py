"""What a training run tells while it goes on and at its end: console, log file, trackers, record, timing."""

import json
import math
import os
import resource
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import torch

from nima.monitoring.log_file import logging_to, note
from nima.monitoring.monitor import Monitor
from nima.monitoring.profiling import Profile
from nima.monitoring.progress import TrainingProgress, duration
from nima.monitoring.run_record import RunRecord, facts_of, input_hashes, label_of
from nima.monitoring.speed import flops_per_token, peak_flops
from nima.trackers.tracked_run import Ending, Outcome
from nima.trackers.trackers import Trackers, figures_in
from nima.training.loop import Result
from nima.training.recipe import Recipe, timing_of
from nima.training.tracking import StageLive
from nima.workspace.errors import Interrupted
from nima.workspace.inputs import contents
from nima.workspace.metrics import METRICS, Row
from nima.workspace.params import Params
from nima.workspace.runtime import Runtime

# Scoring a token is a forward pass; training on it is that, and a backward pass of twice the work.
FORWARD_SHARE = 1 / 3


@contextmanager
def observe(
    parts: Recipe, params: Params, runtime: Runtime, run_folder: Path, inputs: Mapping[str, str]
) -> Iterator["Observation"]:
    """All that hears of the run in `run_folder`, from here to its end, however it ends. Of several processes
    that train together only the first has one.

    `inputs` are the contents of what dvc.yaml names as the stage's inputs.
    """
    telling = runtime.telling
    record = RunRecord.open(runtime.records, run_folder, label_of(params, runtime), telling.run_name)
    part = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-train-{os.getpid()}"
    log = telling.log_file or runtime.logs / f"{part}.jsonl"
    progress = TrainingProgress(parts.total_steps, params.run.print_every_steps, extra_steps(parts, params))
    with (
        logging_to(log, telling.log_level, "train"),
        Monitor(telling.monitor_seconds, runtime.scratch) as monitor,
        progress,
        Profile(runtime.profiles / part if telling.profile else None, progress.say) as profile,
    ):
        progress.after_step = profile.step
        facts = facts_of(params, runtime, parts.model, input_hashes(inputs))
        record.begin_session(log=str(log), **facts)
        note("run", name=record.content["name"], record=str(record.path))
        clock = clock_of(progress, monitor, flops_per_token(parts.model, params.training.block_tokens))
        trackers = Trackers(runtime, printed=log, say=progress.say, clock=clock, model=parts.model)
        trackers.begin(record.content, run_folder / "trackers")
        observation = Observation(parts, params, progress, monitor, trackers, record)
        try:
            yield observation
        except BaseException as error:
            outcome: Outcome = "interrupted" if isinstance(error, Interrupted) else "failed"
            record.end_session(outcome, {"reason": str(error) or type(error).__name__})
            observation.ending = Ending(outcome)
            raise
        finally:
            trackers.end(observation.ending)
            record.add(trackers=trackers.runs())


def extra_steps(parts: Recipe, params: Params) -> float:
    """The work of a run's validations, in updates that would take as long."""
    tokens = sum(window.num_tokens for window in parts.scorer.windows)
    times = math.ceil(parts.total_steps / params.training.validate_every_steps)
    return times * tokens * FORWARD_SHARE / params.training.batch_tokens


def clock_of(progress: TrainingProgress, monitor: Monitor, flops: int) -> Callable[[Row], dict[str, float]]:
    """Speed and load for trackers, with each new point of training; `flops` are a token's."""

    def clock(row: Row) -> dict[str, float]:
        if not progress.is_training or "train/loss" not in row:
            return {}
        speed = progress.pace.tokens_per_second_of_late()
        load = {f"system/{name}": value for name, value in monitor.latest.items()}
        return {"speed/tokens_per_second": speed, "speed/flops_per_second": speed * flops} | load

    return clock


@dataclass
class Observation:
    """All that hears of one run."""

    parts: Recipe
    params: Params
    progress: TrainingProgress
    monitor: Monitor
    trackers: Trackers
    record: RunRecord
    ending: Ending = field(default_factory=lambda: Ending("failed"))

    def live(self) -> StageLive:
        """DVCLive, whose points trackers get too."""
        return StageLive("train", self.trackers.log_row)

    def finish(self, result: Result, model: Path) -> dict[str, float]:
        """Tell what came out, once the outputs are written; returns the clock's figures."""
        figures = timing_of(self.parts, result) | self.progress.pace.figures() | self.speed()
        figures |= self.monitor.figures() | accelerator_memory()
        metrics = json.loads((METRICS / "train.json").read_text(encoding="utf-8"))
        step, num_rows = result.state.step, len(result.state.rows)
        self.record.end_session(
            "finished",
            {"first_step": result.first_step, "last_step": step, "figures": rounded(figures)},
            metrics=metrics,
            num_rows=num_rows,
            outputs=contents([model]),
        )
        files = (Path("params.yaml"), METRICS / "train.json", self.record.path)
        self.ending = Ending(
            "finished",
            number=num_rows,
            step=step,
            summary=dict(figures_in({"final": metrics, "timing": figures})),
            files=[str(path.resolve()) for path in files],
            model=str(model.resolve()) if self.trackers.telling.track_model else None,
        )
        self.progress.summarize(self.record.content["name"], self.lines(result, figures, model))
        return figures

    def speed(self) -> dict[str, float]:
        """Achieved and possible FLOP/s and their ratio, MFU; none if no update was done."""
        pace, settings = self.progress.pace, self.params.training
        if not pace.step_seconds:
            return {}
        tokens = pace.tokens / len(pace.step_seconds)
        flops = flops_per_token(self.parts.model, settings.block_tokens) * tokens
        achieved = flops / pace.typical_step_seconds()
        peak = peak_flops(next(self.parts.model.parameters()).device, settings.precision)
        return {"flops_per_second": achieved, "peak_flops_per_second": peak, "mfu": achieved / peak}

    def lines(self, result: Result, figures: Mapping[str, float], model: Path) -> dict[str, str]:
        """The summary, in words."""
        state, metric = result.state, self.params.training.best_metric
        last = {key: value for row in state.rows for key, value in row.items()}
        early = ", stopped early" if result.stopped_early else ""
        lines = {"updates": f"{state.step:,} of {self.parts.total_steps:,}{early}"}
        if state.best:
            lines["best"] = f"step {state.best['step']:,}: validation {metric} {state.best['value']:.4f}"
        names = ("loss", "bits_per_byte", "perplexity", "accuracy")
        found = [f"{name} {last[f'validation/{name}']:.4g}" for name in names if f"validation/{name}" in last]
        lines["last validation"] = ", ".join(found) or "none"
        lines["duration"] = (
            f"{duration(figures['training_seconds'])}, {figures['tokens_per_second']:,.0f} tokens/s"
            + (f" (forecast: {duration(figures['forecast_seconds'])})" if "forecast_error" in figures else "")
        )
        if "mfu" in figures:
            rate = f"{figures['flops_per_second'] / 1e12:.3f} TFLOP/s"
            lines["speed"] = f"{rate}, {figures['mfu']:.0%} of what matrix products reach here (MFU)"
        peaks = {"host": peak_bytes(), "GPU": figures.get("gpu_allocated_bytes_max")}
        memory = [f"{size / 1e9:.2f} GB ({place})" for place, size in peaks.items() if size]
        lines["peak memory"] = ", ".join(memory)
        if joules := sum(figures.get(name, 0.0) for name in ("cpu_joules", "gpu_joules")):
            lines["energy"] = f"{joules / 1e3:,.1f} kJ (whole machine)"
        lines |= {"model": str(model), "metrics": str(METRICS / "train.json")}
        return lines | {"record": shown(self.record.path), "log": shown(Path(self.record.content["log"]))}


def rounded(figures: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in figures.items()}


def shown(path: Path) -> str:
    """Short where it can be, from the current folder."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def accelerator_memory() -> dict[str, float]:
    if not torch.cuda.is_available():
        return {}
    return {"gpu_allocated_bytes_max": float(torch.cuda.max_memory_allocated())}


def peak_bytes() -> int:
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
