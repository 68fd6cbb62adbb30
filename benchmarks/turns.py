"""Long-running things that take turns, so that they meet the same noise of the machine."""

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self


class Turns:
    """Each competitor runs in a thread of its own; only one is awake at a time.

    Inside, a competitor calls `mark()` after each step; after `steps_a_turn` of them the next one goes on.
    `paused()` stops its clock, for work that is not part of the race.
    """

    def __init__(self, steps_a_turn: int = 5) -> None:
        self.steps_a_turn = steps_a_turn
        self.waiting: list[Competitor] = []
        self.awake = threading.Condition()
        self.problems: list[BaseException] = []

    def run(self, competitors: dict[str, "Callable[[Competitor], None]"]) -> dict[str, "Competitor"]:
        """All of them to their end. Raises what the first of them raised."""
        entered = {name: Competitor(name, self) for name in competitors}
        self.waiting = list(entered.values())
        threads = [
            threading.Thread(target=self.live, args=(competitors[name], entered[name]), name=name)
            for name in entered
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self.problems:
            raise self.problems[0]
        return entered

    def live(self, work: "Callable[[Competitor], None]", competitor: "Competitor") -> None:
        self.wait_for(competitor)
        competitor.start_clock()
        try:
            work(competitor)
        except BaseException as problem:
            self.problems.append(problem)
        finally:
            competitor.stop_clock()
            with self.awake:
                self.waiting.remove(competitor)
                self.awake.notify_all()

    def wait_for(self, competitor: "Competitor") -> None:
        with self.awake:
            self.awake.wait_for(lambda: self.waiting[0] is competitor)

    def hand_over(self, competitor: "Competitor") -> None:
        with self.awake:
            self.waiting.remove(competitor)
            self.waiting.append(competitor)
            self.awake.notify_all()
        self.wait_for(competitor)


class Competitor:
    """One that takes turns, with its own clock: `at_step` has seconds of its own work, `marked` readings."""

    def __init__(self, name: str, turns: Turns) -> None:
        self.name = name
        self.turns = turns
        self.seconds = 0.0
        self.at_step: list[float] = []
        self.marked: list[float] = []
        self.started: float | None = None

    def start_clock(self) -> None:
        self.started = time.perf_counter()

    def stop_clock(self) -> None:
        if self.started is not None:
            self.seconds += time.perf_counter() - self.started
            self.started = None

    def mark(self) -> None:
        """A step is done."""
        self.stop_clock()
        self.at_step.append(self.seconds)
        self.marked.append(time.perf_counter())
        if len(self.at_step) % self.turns.steps_a_turn == 0:
            self.turns.hand_over(self)
        self.start_clock()

    def paused(self) -> "Pause":
        return Pause(self)

    def step_seconds(self) -> list[float]:
        """Of each step but the first, which sets up."""
        return [after - before for before, after in zip(self.at_step, self.at_step[1:], strict=False)]


class Pause:
    def __init__(self, competitor: Competitor) -> None:
        self.competitor = competitor

    def __enter__(self) -> Self:
        self.competitor.stop_clock()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.competitor.start_clock()
