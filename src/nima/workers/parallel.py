"""One function over many parts of the data: in this process, in several, or on a Ray cluster.

Results come in the order of the parts, whoever works on them and whenever they finish, so that outputs are
the same bytes everywhere. A function must be pure but for files that it writes whole under a name of its
part: a part whose worker dies is given to another.
"""

import hashlib
import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

from nima.workers.scratch import own_folder
from nima.workers.server import fork_server, forking_server, source_path, start_worker
from nima.workspace.errors import UserError
from nima.workspace.runtime import Runtime

Part = TypeVar("Part")
Result = TypeVar("Result")

AHEAD_PER_WORKER = 2
"""Parts that are under way or waiting for their turn, for each worker: bounds memory, hides uneven parts."""
ANSWER_SECONDS = 10
MAX_DEATHS = 3
"""How often a part may lose its worker."""


class Workers(Protocol):
    """What maps a function over parts."""

    def map(self, function: Callable[[Part], Result], parts: Iterable[Part]) -> Iterator[Result]:
        """The results in the order of the parts, which are drawn only a little ahead of the results."""
        ...


def workers(runtime: Runtime) -> AbstractContextManager[Workers]:
    """The workers that NIMA_ENGINE and NIMA_WORKERS ask for. Raises `UserError` if they can't be had."""
    if runtime.engine == "ray":
        return on_ray()
    return in_processes(runtime.workers) if runtime.workers > 1 else in_this_process()


def get_ready(runtime: Runtime) -> None:
    """For the start of a stage that has work for them, before there are threads: then they start sooner."""
    if runtime.engine == "local" and runtime.workers > 1:
        fork_server()


@contextmanager
def working(runtime: Runtime, stage: str, rules: str) -> Iterator[tuple[Workers, Path]]:
    """The workers, and a folder for what they have finished: found again by a stage with the same `rules`
    after an interruption, removed once all is done. Raises `UserError`.
    """
    name = hashlib.sha256(rules.encode()).hexdigest()[:16]
    with own_folder(runtime.scratch / stage, name) as folder, workers(runtime) as hands:
        yield hands, folder


# ------------------------------------------------------------------------------------ one process


class InThisProcess:
    def map(self, function: Callable[[Part], Result], parts: Iterable[Part]) -> Iterator[Result]:
        return map(function, parts)


@contextmanager
def in_this_process() -> Iterator[Workers]:
    yield InThisProcess()


# ------------------------------------------------------------------------------- several processes


class InProcesses:
    """A pool that is started at the first need of a second worker, and anew when a worker died."""

    def __init__(self, num_workers: int) -> None:
        self.num_workers = num_workers
        self.pool: ProcessPoolExecutor | None = None

    def map(self, function: Callable[[Part], Result], parts: Iterable[Part]) -> Iterator[Result]:
        waiting = iter(parts)
        first = list(islice(waiting, 2))
        if len(first) < 2:  # a process costs more than one part's share of the work
            yield from map(function, first)
            return
        under_way: deque[tuple[Part, Future[Result]]] = deque()
        for part in (*first, *islice(waiting, AHEAD_PER_WORKER * self.num_workers - 2)):
            under_way.append((part, self.submit(function, part)))
        deaths = 0
        while under_way:
            try:
                result = under_way[0][1].result()
            except BrokenProcessPool:
                deaths += 1
                if deaths > MAX_DEATHS:
                    raise UserError(
                        f"a worker process died {deaths} times in a row; "
                        "if memory ran out, set NIMA_WORKERS lower"
                    ) from None
                self.close()
                under_way = deque((part, self.again(function, part, future)) for part, future in under_way)
                continue
            deaths = 0
            under_way.popleft()
            for part in islice(waiting, 1):
                under_way.append((part, self.submit(function, part)))
            yield result

    def submit(self, function: Callable[[Part], Result], part: Part) -> "Future[Result]":
        if self.pool is None:
            self.pool = ProcessPoolExecutor(
                self.num_workers, forking_server(), start_worker, (os.getpid(), dict(os.environ))
            )
        try:
            return self.pool.submit(function, part)
        except BrokenProcessPool as error:
            broken: Future[Result] = Future()
            broken.set_exception(error)
            return broken

    def again(
        self, function: Callable[[Part], Result], part: Part, future: "Future[Result]"
    ) -> "Future[Result]":
        done = future.done() and not future.cancelled() and future.exception() is None
        return future if done else self.submit(function, part)

    def close(self) -> None:
        if self.pool is not None:
            self.pool.shutdown(wait=True, cancel_futures=True)
        self.pool = None


@contextmanager
def in_processes(num_workers: int) -> Iterator[Workers]:
    pool = InProcesses(num_workers)
    try:
        yield pool
    finally:
        pool.close()


# --------------------------------------------------------------------------------------------- Ray


class OnRay:
    """Tasks on the cluster that RAY_ADDRESS names, or on one of this machine.

    Its nodes must see the project's folder at the same path (a shared file system).
    """

    def __init__(self, ray: Any) -> None:
        self.ray = ray
        self.num_workers = max(1, int(ray.cluster_resources().get("CPU", 1)))

    def map(self, function: Callable[[Part], Result], parts: Iterable[Part]) -> Iterator[Result]:
        # A worker that dies takes no part with it: Ray gives the part to another.
        task = partial(self.ray.remote(max_retries=MAX_DEATHS)(work_in).remote, Path.cwd(), function)
        waiting = iter(parts)
        under_way = deque(map(task, islice(waiting, AHEAD_PER_WORKER * self.num_workers)))
        while under_way:
            yield self.result_of(under_way.popleft())
            under_way.extend(map(task, islice(waiting, 1)))

    def result_of(self, reference: Any) -> Any:
        try:
            return self.ray.get(reference)
        except self.ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise error.cause from None
            raise
        except (self.ray.exceptions.WorkerCrashedError, self.ray.exceptions.ObjectLostError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"Ray lost a worker {MAX_DEATHS + 1} times on the same part: {reason}") from None


def work_in(folder: Path, function: Callable[[Part], Result], part: Part) -> Result:
    """Paths in parts and params are relative to the project's folder; a Ray worker starts elsewhere."""
    os.chdir(folder)
    return function(part)


def check_answers(address: str | None) -> None:
    """Ray itself would try for minutes. Raises `OSError` if nothing listens at HOST:PORT."""
    host, separator, port = (address or "").removeprefix("ray://").rpartition(":")
    if separator and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS).close()


@contextmanager
def on_ray() -> Iterator[Workers]:
    try:
        import ray
    except ImportError:
        raise UserError("NIMA_ENGINE=ray needs the extra ray: pip install 'nima-lm[ray]'") from None
    address = os.environ.get("RAY_ADDRESS")
    try:
        check_answers(address)
        ray.init(
            address=address,
            runtime_env={"env_vars": {"PYTHONPATH": source_path()}},
            include_dashboard=None if address else False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"RAY_ADDRESS: no Ray cluster answers at {address}: {reason}") from None
    try:
        yield OnRay(ray)
    finally:
        ray.shutdown()
