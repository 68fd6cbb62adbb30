"""The process that serves one tracker: `python -m nima.trackers.sender NAME`.

Standard input brings one JSON message a line: the run, then its rows, then its ending. Standard output takes
back what became of it: {"begun": id, "url": url}, {"failed": reason} or {"done": true}. What the tracker's
library prints goes to standard error.

A row's step is its key, among rows of its kind (train, validation): an interrupted run repeats its history,
and then steps that the tracker may have already, to the last digit. So the last step of each kind is all that
must be remembered for a tracker to get each row once. When the trainer is killed, the pipe ends: what it held
is delivered.
"""

import fcntl
import json
import os
import re
import select
import signal
import sys
import threading
import traceback
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO

from nima.trackers.tracked_run import Ending, Histogram, Point, TrackedRun, Tracker

END_SECONDS = 600
MAX_CHARS = 200
SECRETS = ("KEY", "TOKEN", "SECRET", "PASSWORD")


def main(name: str) -> None:
    stand_back()
    threading.Thread(target=end_after_the_trainer, daemon=True).start()
    with answering() as answers:
        try:
            serve(name, map(json.loads, sys.stdin), answers)
            answer(answers, done=True)
        except Exception as error:  # a tracker's library may raise anything, and none of it matters
            answer(answers, failed=in_one_line(str(error) or type(error).__name__))
            sys.exit(without_secrets(traceback.format_exc()))


def stand_back() -> None:
    """Take what training leaves of the processors: this process, and those that it starts."""
    os.nice(10)
    with suppress(OSError):  # Linux weighs sessions against each other first, where it groups them
        Path("/proc/self/autogroup").write_text("10")


def end_after_the_trainer() -> None:
    """Once nothing more can come, what waits has some minutes left: no process stays for ever."""
    pipe = select.poll()
    pipe.register(sys.stdin.fileno(), 0)  # tells of its other end's closing, and of nothing else
    pipe.poll()
    signal.alarm(END_SECONDS)


@contextmanager
def answering() -> Iterator[TextIO]:
    """Standard output for answers alone: what libraries print is turned to standard error."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        yield answers


def answer(answers: TextIO, **content: Any) -> None:
    with suppress(OSError):  # the trainer is gone, and the rest goes on without it
        answers.write(json.dumps(content) + "\n")
        answers.flush()


def serve(name: str, messages: Iterator[dict[str, Any]], answers: TextIO) -> None:
    """Take the messages to the tracker, the rows that it does not have yet."""
    run = TrackedRun(**next(messages))
    with memory_of(run) as memory:
        tracker: Tracker = import_module(f"nima.trackers.to_{name}").begin(run, memory.id)
        url = in_one_line(tracker.url)
        memory.keep(id=tracker.id, url=url)
        answer(answers, begun=tracker.id, url=url)
        ending = Ending("interrupted")  # unless it comes, as from a trainer that was killed
        for message in messages:
            if "outcome" in message:
                ending = Ending(**message)
            elif memory.lacks(message["row"]):
                tracker.log(point_of(memory.rows, message))
                memory.keep_row(message["row"])
        tracker.end(replace(ending, number=max(ending.number, memory.rows)))


def point_of(number: int, message: dict[str, Any]) -> Point:
    row, clock = message["row"], message["clock"]
    return Point(
        number=number,
        step=row["step"],
        figures={name: value for name, value in row.items() if name != "step"} | clock,
        histograms={name: Histogram(**found) for name, found in message["histograms"].items()},
    )


class Memory:
    """What must be known to go on with a run at a tracker: its id there and which rows it has."""

    def __init__(self, path: Path | None, known_id: str | None) -> None:
        self.path = path
        self.id, self.url = known_id, None
        self.rows = 0
        """How many rows the tracker has."""
        self.steps: dict[str, int] = {}
        """The last step of each kind of row."""
        if path is not None and path.is_file():
            vars(self).update(json.loads(path.read_text(encoding="utf-8")))

    def lacks(self, row: dict[str, Any]) -> bool:
        return row["step"] > self.steps.get(kind_of(row), -1)

    def keep_row(self, row: dict[str, Any]) -> None:
        self.keep(rows=self.rows + 1, steps=self.steps | {kind_of(row): row["step"]})

    def keep(self, **changes: Any) -> None:
        vars(self).update(changes)
        if self.path is not None and self.path.parent.is_dir():  # a finished run's folder goes away
            content = {name: value for name, value in vars(self).items() if name != "path"}
            partial = self.path.with_suffix(".partial")
            partial.write_text(json.dumps(content))
            partial.replace(self.path)


def kind_of(row: dict[str, Any]) -> str:
    """What stands before the slash in its figures' names: train and validation may share a step."""
    return next((name.partition("/")[0] for name in row if name != "step"), "")


@contextmanager
def memory_of(run: TrackedRun) -> Iterator[Memory]:
    """The run's memory, held alone: a sender of the run before it may still be ending."""
    if run.state is None:
        yield Memory(None, run.known_id)
        return
    path = Path(run.state)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield Memory(path, run.known_id)


def new_id() -> str:
    """32 characters of a-z and 0-9, as every tracker takes them."""
    return uuid.uuid4().hex


def without_secrets(text: str) -> str:
    """Without those of the environment and of URLs."""
    text = re.sub(r"(?<=//)[^/@\s]+@", "***@", text)
    for key, value in os.environ.items():
        if len(value) >= 8 and any(word in key for word in SECRETS):
            text = text.replace(value, "***")
    return text


def in_one_line(text: str) -> str:
    """Without secrets, and not too long."""
    text = " ".join(without_secrets(text).split())
    return text if len(text) <= MAX_CHARS else text[: MAX_CHARS - 1] + "…"


if __name__ == "__main__":
    main(sys.argv[1])
