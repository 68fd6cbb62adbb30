"""A stage that trains in several processes starts them itself, so that its command never changes.

The stage that DVC started becomes their parent: it guards inputs and keeps time as for any stage, passes
signals on, and tells of the first process that failed; what the others then say is only that it is gone.
When something killed one (the kernel, out of memory), all begin again from the newest checkpoint.
"""

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from nima.workspace import runtime as runtime_settings
from nima.workspace.errors import EXIT_INTERRUPTED, EXIT_USER_ERROR, Interrupted, UserError
from nima.workspace.params import Params, params_file
from nima.workspace.runtime import Runtime
from nima.workspace.signals import STOP_SIGNALS, end_with
from nima.workspace.stage import PARAMS, Story, run_stage, tell_story

NumProcesses = Callable[[Params, Runtime], int]
"""How many processes a stage is to run in. Raises `UserError` if it cannot be so many."""
NOTES = "NIMA_NOTES"
"""The variable that names the folder in which processes leave their figures, or what stopped them."""
PARENT = "NIMA_PARENT"
"""The variable that holds the process id of the stage that started them."""
FIGURES = "figures.json"
MAX_RESTARTS = 3
# How long the others may go on after one was killed or broke, and after one has said why it ends: then the
# first may still be saving.
GRACE_SECONDS = 5.0
SAVING_SECONDS = 120.0
POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Failure:
    """What ended a process: its exit code (a signal's as a negative one), and what there is to say."""

    code: int
    message: str
    nanoseconds: int = 0
    figures: dict[str, float] = field(default_factory=dict)
    """The clock's, of an interruption."""


class ProcessError(Interrupted):
    """A process ended with a failure, or was interrupted; the message is its own."""

    def __init__(self, code: int, message: str, figures: dict[str, float]) -> None:
        super().__init__(message)
        self.exit_code = code
        self.figures = figures


def run_stage_in_processes(name: str, story: Story, num_processes: NumProcesses) -> None:
    """As `run_stage`, in as many processes as `num_processes` says; or as the one of them that this is."""
    if NOTES in os.environ or os.environ.get("RANK", "0") != "0":
        work(name, story)
    else:
        run_stage(name, lambda params, runtime: lead(name, story, num_processes, params, runtime))


def lead(
    name: str, story: Story, num_processes: NumProcesses, params: Params, runtime: Runtime
) -> dict[str, float] | None:
    count = num_processes(params, runtime)
    if runtime.place is None and (count > 1 or runtime.launcher):
        return launch(name, runtime, count)
    return tell_story(story, params, runtime)


def launch(name: str, runtime: Runtime, count: int) -> dict[str, float]:
    """Run the stage in `count` processes, or as NIMA_LAUNCHER says; gives the figures of the first.

    Raises `ProcessError` with what the first that failed says.
    """
    restarts = 0
    while True:
        with tempfile.TemporaryDirectory(prefix="nima-") as notes, Crew(Path(notes)) as crew:
            crew.start(name, runtime, count)
            failure = crew.wait()
            if failure is None:
                return crew.figures()
        if failure.code >= 0 or crew.stopped or restarts == MAX_RESTARTS:
            break
        print(f"{name}: {failure.message}; all begin again", file=sys.stderr, flush=True)  # noqa: T201
        restarts += 1
    if failure.code < 0 and crew.stopped:
        raise Interrupted(f"stopped by {crew.stopped.name}: {failure.message}; run again to continue")
    code = failure.code if failure.code > 0 else EXIT_USER_ERROR
    raise ProcessError(code, failure.message, failure.figures)


class Crew:
    """Processes that end together; stop signals that come here go to all of them."""

    def __init__(self, notes: Path) -> None:
        self.notes = notes
        self.processes: list[subprocess.Popen[bytes]] = []
        self.stopped: signal.Signals | None = None

    def __enter__(self) -> "Crew":
        self.previous = {number: signal.signal(number, self.pass_on) for number in STOP_SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def pass_on(self, number: int, _frame: FrameType | None) -> None:
        self.stopped = signal.Signals(number)
        for process in self.processes:
            process.send_signal(number)

    def start(self, name: str, runtime: Runtime, count: int) -> None:
        stage = ["-m", f"stages.{name}"]
        environment = os.environ | {NOTES: str(self.notes), PARENT: str(os.getpid())}
        if runtime.launcher:
            self.add([*runtime.launcher, *stage], environment)
            return
        self.store = open_store()
        environment = {"GLOO_SOCKET_IFNAME": "lo"} | environment if sys.platform == "linux" else environment
        environment |= {
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(self.store.port),
            # They meet in a store of this process: it holds the port, so nobody can take it in between.
            "TORCHELASTIC_USE_AGENT_STORE": "True",
        }
        for rank in range(count):
            self.add([sys.executable, *stage], environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)})

    def add(self, command: list[str], environment: dict[str, str]) -> None:
        try:
            # In a session of its own: Ctrl-C reaches it from here, once.
            process = subprocess.Popen(command, env=environment, start_new_session=True)
        except OSError as error:
            raise UserError(f"NIMA_LAUNCHER: {command[0]}: {error.strerror}") from None
        self.processes.append(process)
        if self.stopped:
            process.send_signal(self.stopped)

    def wait(self) -> Failure | None:
        """Until all have ended; once one has failed, the others soon must. The first failure, if any."""
        until = float("inf")
        killed: Failure | None = None
        while any(code is None for code in self.codes()) and time.monotonic() < until:
            time.sleep(POLL_SECONDS)
            if any(codes := self.codes()):
                in_order = all(
                    code is None or code in (0, EXIT_USER_ERROR, EXIT_INTERRUPTED) for code in codes
                )
                until = min(until, time.monotonic() + (SAVING_SECONDS if in_order else GRACE_SECONDS))
                killed = killed or kill_among(codes)
        if not any(codes := self.codes()) and None not in codes:
            return None
        told = first_failure(self.notes)
        if killed and not (told and told.code > 1):
            return killed
        return told or silent_among(codes)

    def codes(self) -> list[int | None]:
        return [process.poll() for process in self.processes]

    def figures(self) -> dict[str, float]:
        with contextlib.suppress(FileNotFoundError):  # under a launcher the first is on another machine
            return json.loads((self.notes / FIGURES).read_text(encoding="utf-8"))
        return {}


def open_store() -> Any:
    from torch.distributed import TCPStore

    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def kill_among(codes: list[int | None]) -> Failure | None:
    """The first process that a signal killed. (To abort is a way to fail when another is gone.)"""
    for rank, code in enumerate(codes):
        if code is not None and code < 0 and code != -signal.SIGABRT:
            return Failure(code, f"process {rank} was killed by {signal.Signals(-code).name}")
    return None


def silent_among(codes: list[int | None]) -> Failure:
    """One that failed without a note, as Python itself does when it cannot begin."""
    rank, code = next((rank, code) for rank, code in enumerate(codes) if code)
    return Failure(max(code, 1), f"process {rank} ended with exit code {code}")


def first_failure(notes: Path) -> Failure | None:
    """Of the failures noted, the one that came first: the others followed from it."""
    noted = [json.loads(path.read_text(encoding="utf-8")) for path in notes.glob("failure-*.json")]
    return min((Failure(**note) for note in noted), key=lambda note: note.nanoseconds, default=None)


# ------------------------------------------------------------------------------------- one of several


def work(name: str, story: Story) -> None:
    """What a process does that was started among others: the story, and a note of how it ended."""
    try:
        if parent := os.environ.get(PARENT):
            end_with(int(parent))
        params, runtime = params_file.load(PARAMS), runtime_settings.load(Path.cwd())
        figures = tell_story(story, params, runtime)
    except Interrupted as error:
        fail(name, error.exit_code, str(error), error.figures)
    except UserError as error:
        fail(name, error.exit_code, str(error))
    except KeyboardInterrupt:
        fail(name, EXIT_INTERRUPTED, "stopped")
    except Exception:
        fail(name, 1, traceback.format_exc().rstrip())
    if NOTES in os.environ and runtime.place and runtime.place.rank == 0:
        peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        note(FIGURES, (figures or {}) | {"peak_memory_bytes": peak_bytes})


def fail(name: str, code: int, message: str, figures: dict[str, float] | None = None) -> None:
    """Leave a note, so that the parent tells of the first failure alone; without a parent, tell it."""
    if NOTES in os.environ:
        rank = os.environ.get("RANK", "0")
        note(f"failure-{rank}.json", asdict(Failure(code, message, time.time_ns(), figures or {})))
    else:
        for line in message.splitlines():
            print(f"{name}: {line}", file=sys.stderr)  # noqa: T201
    sys.exit(code)


def note(name: str, content: dict[str, Any]) -> None:
    """Whole or not at all: the parent may read at any time, or be gone."""
    path = Path(os.environ[NOTES]) / name
    with contextlib.suppress(OSError):
        path.with_suffix(".partial").write_text(json.dumps(content), encoding="utf-8")
        path.with_suffix(".partial").replace(path)
