"""Where the time of a run's steps goes, operator by operator: torch.profiler over some of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Self

import torch
from torch.profiler import ProfilerActivity, profile, schedule

# The first steps allocate and compile; the profiler's own first step is slow too.
STEPS_BEFORE, STEPS_WARMING, STEPS_MEASURED = 3, 1, 5
LAST_STEP = STEPS_BEFORE + STEPS_WARMING + STEPS_MEASURED
NUM_OPERATORS = 50


class Profile:
    """Writes trace.json.gz (for https://ui.perfetto.dev) and operators.txt to `folder`; with None, nothing.

    `say` gets the line that tells where they are, or why they are not.
    """

    def __init__(self, folder: Path | None, say: Callable[[str], None]) -> None:
        self.folder, self.say = folder, say
        self.num_steps = 0
        self.profiler = profile(
            schedule=schedule(wait=STEPS_BEFORE, warmup=STEPS_WARMING, active=STEPS_MEASURED, repeat=1),
            on_trace_ready=self.write,
            profile_memory=True,
        )

    def __enter__(self) -> Self:
        if self.folder is not None:
            self.profiler.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.folder is not None and self.num_steps < LAST_STEP:
            self.profiler.stop()  # writes what was measured
            if self.num_steps <= STEPS_BEFORE + STEPS_WARMING:
                self.say(f"no profile: the run had {self.num_steps} steps, and measuring begins later")

    def step(self) -> None:
        """A step is done. Those behind the measured ones cost nothing."""
        if self.folder is not None and self.num_steps < LAST_STEP:
            self.num_steps += 1
            self.profiler.step()
            if self.num_steps == LAST_STEP:
                self.profiler.stop()

    def write(self, measured: profile) -> None:
        if self.folder is None:
            return
        on_gpu = ProfilerActivity.CUDA in measured.activities and torch.cuda.is_available()
        order = "self_cuda_time_total" if on_gpu else "self_cpu_time_total"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            measured.export_chrome_trace(str(self.folder / "trace.json.gz"))
            table = measured.key_averages().table(sort_by=order, row_limit=NUM_OPERATORS)
            (self.folder / "operators.txt").write_text(table, encoding="utf-8")
        except OSError as error:
            self.say(f"{self.folder}: no profile is written: {error.strerror}")
        else:
            self.say(f"profile: {self.folder} (trace.json.gz, operators.txt)")
