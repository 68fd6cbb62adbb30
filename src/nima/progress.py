"""What a person watching sees: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn


class TrainingProgress:
    """Loss, bits per byte, tokens per second and time left of a running training."""

    def __init__(self, total_steps: int, print_every_steps: int) -> None:
        self.total_steps = total_steps
        self.print_every_steps = print_every_steps
        self.console = Console(stderr=True, highlight=False)
        self.bar = Progress(
            TextColumn("train"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )

    def __enter__(self) -> Self:
        self.bar.start()
        self.task = self.bar.add_task("train", total=self.total_steps, figures="")
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def start_at(self, step: int) -> None:
        """The clock starts here: steps done before a resume don't count into the speed."""
        self.started, self.first_step, self.tokens = time.perf_counter(), step, 0
        self.bar.update(self.task, completed=step)

    def step(self, step: int, loss: float, bits_per_byte: float, tokens: int) -> None:
        self.tokens += tokens
        seconds = max(time.perf_counter() - self.started, 1e-9)
        speed = self.tokens / seconds
        figures = f"loss {loss:.3f}  {bits_per_byte:.3f} bits/byte  {speed:,.0f} tokens/s"
        self.bar.update(self.task, completed=step, figures=figures)
        last = step == self.total_steps
        if not self.console.is_terminal and (last or step % self.print_every_steps == 0):
            left = (self.total_steps - step) * seconds / max(1, step - self.first_step)
            line = f"step {step}/{self.total_steps}  {figures}  {left:.0f} s left"
            print(line, file=sys.stderr, flush=True)  # noqa: T201

    def say(self, line: str) -> None:
        """A line above the bar."""
        self.console.print(line, soft_wrap=True, markup=False)
