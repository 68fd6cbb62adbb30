"""The trainer's end of a tracker's pipe. Nothing in it waits for the tracker until the run is over."""

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, cast

# A tracker that is so many messages behind does not keep up.
MAX_WAITING = 200_000
# What the trackers' makers would learn beside what is logged. Whoever sets it otherwise keeps it so.
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "COMET_ERROR_TRACKING_ENABLE": "0", "WANDB_ERROR_REPORTING": "0"}
SOURCE = Path(__file__).parents[2]


class Courier:
    """Brings messages to the process of one tracker.

    `say` gets a line when the tracker has begun the run, and one if it fails. Relative paths in the tracker's
    variables, which `environment` holds, begin at `folder`; `printed` takes what the tracker prints.
    """

    def __init__(
        self,
        name: str,
        *,
        folder: Path,
        environment: Mapping[str, str],
        printed: Path,
        say: Callable[[str], None],
    ) -> None:
        self.name, self.printed, self.say = name, printed, say
        self.is_on = True
        self.is_done = False
        self.id = self.url = ""
        """Of the run at the tracker, once it has begun."""
        self.waiting: queue.Queue[bytes | None] = queue.Queue(MAX_WAITING)
        self.process = started(name, folder, environment, printed)
        self.threads = [
            threading.Thread(target=work, name=f"{name}-{work.__name__}", daemon=True)
            for work in (self.bring, self.listen)
        ]
        for thread in self.threads:
            thread.start()

    def send(self, message: bytes) -> None:
        """Put a message, a line, on its way; returns at once."""
        if self.is_on:
            try:
                self.waiting.put_nowait(message)
            except queue.Full:
                self.switch_off(f"{MAX_WAITING:,} messages behind")
                self.process.kill()

    def close(self, until: float) -> None:
        """Let what waits be delivered until `until` (time.monotonic); what is later goes on without us."""
        with suppress(queue.Full):
            self.waiting.put_nowait(None)
        for thread in self.threads:
            thread.join(max(0.0, until - time.monotonic()))
        if self.is_on and not self.is_done:
            self.is_on = False
            self.say(f"{self.name}: not done yet; process {self.process.pid} goes on sending for a while")
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(max(0.0, until - time.monotonic()))

    def switch_off(self, reason: str) -> None:
        if self.is_on:
            self.is_on = False
            self.say(f"{self.name}: {reason}; switched off, training goes on ({self.printed} says more)")

    # ------------------------------------------------------------------------- each in a thread of its own

    def bring(self) -> None:
        pipe = cast(IO[bytes], self.process.stdin)
        with suppress(OSError):  # a broken pipe: the other thread hears why
            while (line := self.waiting.get()) is not None:
                pipe.write(line)
                if self.waiting.empty():
                    pipe.flush()
        with suppress(OSError):
            pipe.close()

    def listen(self) -> None:
        """Take the answers until there are no more."""
        for line in cast(IO[bytes], self.process.stdout):
            self.hear(json.loads(line))
        if not self.is_done:
            self.switch_off(f"its process ended with code {self.process.wait()}")

    def hear(self, answer: Mapping[str, Any]) -> None:
        if "begun" in answer:
            self.id, self.url = answer["begun"], answer["url"]
            self.say(f"{self.name}: {self.url}")
        elif "failed" in answer:
            self.switch_off(answer["failed"])
        else:
            self.is_done = True


def started(
    name: str, folder: Path, environment: Mapping[str, str], printed: Path
) -> subprocess.Popen[bytes]:
    printed.parent.mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join(filter(None, [str(SOURCE), environment.get("PYTHONPATH")]))
    with printed.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "nima.trackers.sender", name],
            cwd=folder,
            env={**QUIET, **environment, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            # Ctrl-C reaches the trainer alone, and the tracker through it; so does whatever kills a group.
            start_new_session=True,
        )
