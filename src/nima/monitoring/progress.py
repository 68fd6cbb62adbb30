"""What a person watching sees: a bar on a terminal, plain lines elsewhere. The log file hears the same."""

import sys
from collections.abc import Callable, Mapping
from typing import Self

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from nima.monitoring.log_file import note
from nima.monitoring.pace import Pace
from nima.workspace.metrics import Row


class TrainingProgress:
    """Loss, bits per byte, tokens per second and time left of a running training, and a summary after it."""

    def __init__(
        self, total_steps: int, print_every_steps: int, extra_steps: float = 0.0, *, quiet: bool = False
    ) -> None:
        self.total_steps = total_steps
        self.print_every_steps = print_every_steps
        self.quiet = quiet
        self.pace = Pace(total_steps, extra_steps)
        self.is_training = False
        self.after_step: Callable[[], None] = lambda: None
        """Called behind each step."""
        self.console = Console(stderr=True, highlight=False, quiet=quiet)
        self.bar = Progress(
            TextColumn("train"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=quiet or not self.console.is_terminal,
        )

    def __enter__(self) -> Self:
        self.bar.start()
        self.task = self.bar.add_task("train", total=self.total_steps, figures="")
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def start_at(self, step: int) -> None:
        """The clock starts here: steps done before a resume don't count into the speed."""
        self.is_training = True
        self.pace.start_at(step)
        self.bar.update(self.task, completed=step)

    def step(self, step: int, loss: float, bits_per_byte: float, tokens: int) -> None:
        had_forecast = self.pace.forecast_seconds is not None
        self.pace.step(step, tokens)
        note("step", "debug", step=step, loss=loss, tokens=tokens, seconds=self.pace.step_seconds[-1])
        speed = self.pace.tokens_per_second
        figures = f"loss {loss:.3f}  {bits_per_byte:.3f} bits/byte  {speed:,.0f} tokens/s"
        self.bar.update(self.task, completed=step, figures=figures)
        last = step == self.total_steps
        if not self.quiet and not self.console.is_terminal and (last or step % self.print_every_steps == 0):
            line = f"step {step}/{self.total_steps}  {figures}  {self.pace.left_seconds():.0f} s left"
            print(line, file=sys.stderr, flush=True)  # noqa: T201
        if self.pace.forecast_seconds is not None and not had_forecast:
            note("forecast", step=step, seconds=round(self.pace.forecast_seconds, 3))
            self.say(f"forecast: {duration(self.pace.forecast_seconds)} of training")
        self.after_step()

    def row(self, row: Row) -> None:
        """A point of the curves, for the log file."""
        note("point", **row)

    def say(self, line: str) -> None:
        """A line above the bar."""
        note(line, step=self.pace.last_step)
        self.console.print(line, soft_wrap=True, markup=False)

    def summarize(self, title: str, lines: Mapping[str, str]) -> None:
        """A table with the run's results, after the bar."""
        self.bar.stop()
        note(
            "summary",
            step=self.pace.last_step,
            **{name.replace(" ", "_"): value for name, value in lines.items()},
        )
        if self.console.is_terminal:
            table = Table(title=title, box=box.ROUNDED, show_header=False)
            for name, value in lines.items():
                table.add_row(name, value)
            self.console.print(table, markup=False)
            return
        width = max(map(len, lines))
        for line in (title, *(f"  {name:<{width}}  {value}" for name, value in lines.items())):
            print(line, file=sys.stderr, flush=True)  # noqa: T201


def duration(seconds: float) -> str:
    """12 s, 3.5 min or 2.1 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
