"""The process that forks workers: it has imported Nima, and never has threads.

A fork of a stage that is at work would copy locks of threads that don't exist in it, and a fresh interpreter
for each worker would import everything anew.
"""

import ctypes
import gc
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import forkserver, resource_tracker, util
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

from nima.workspace.columns import pa
from nima.workspace.signals import end_with

COLLECTED_OBJECTS = 50_000
"""After so many new ones a worker looks for garbage."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Names of settings in malloc.h."""
STDERR = 2


def fork_server() -> None:
    """Make that process now, as a fork of this one: then it need not import anything.

    For the start of a stage. As long as nothing but imports has happened, there are no threads of whose locks
    the fork would have a copy; those of OpenBLAS and jemalloc, which start when they are loaded, survive it.
    """
    # Python 3.14 hands its server more than two files.
    is_known = sys.platform.startswith("linux") and sys.version_info < (3, 14)
    if not is_known or threading.active_count() > 1:
        return
    resource_tracker.ensure_running()
    fresh_interpreter = util.spawnv_passfds
    util.spawnv_passfds = serve_in_fork  # type: ignore[assignment]
    try:
        forkserver.ensure_running()
    finally:
        util.spawnv_passfds = fresh_interpreter


def serve_in_fork(_program: bytes, _arguments: Sequence[Any], kept: tuple[int, int]) -> int:
    """Do what `multiprocessing` would start a fresh interpreter for; only the `kept` files stay open."""
    sys.stdout.flush()
    sys.stderr.flush()
    if process := os.fork():
        return process
    try:
        for file in [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]:
            if file > STDERR and file not in kept:
                with suppress(OSError):  # the folder's own
                    os.close(file)
        listener, alive = kept
        forkserver.main(listener, alive, [])
    except SystemExit:
        pass
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


def forking_server() -> BaseContext:
    """How workers are started: by the fork of the stage if there is one, else by a fresh interpreter."""
    context = multiprocessing.get_context("forkserver")
    ours = sorted(name for name in sys.modules if name.partition(".")[0] == "nima")
    context.set_forkserver_preload(["nima.workers.first", *ours])
    before = dict(os.environ)
    os.environ.update({"OPENBLAS_NUM_THREADS": "1"} | before | {"PYTHONPATH": source_path()})
    try:
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)
    return context


def source_path() -> str:
    """PYTHONPATH with which another process imports this very code."""
    source = Path(__file__).resolve().parent.parent.parent
    return os.pathsep.join([str(source), *filter(None, [os.environ.get("PYTHONPATH")])])


def start_worker(parent: int, environment: dict[str, str]) -> None:
    """Ctrl-C is the parent's to handle, and a worker ends with it.

    `environment`: the parent's own one; the server may be older than a change of it.
    """
    os.environ.clear()
    os.environ.update(environment)
    keep_memory()
    # What is imported stays, and documents hold no cycles: the collector need not walk through them so often.
    gc.freeze()
    gc.set_threshold(COLLECTED_OBJECTS)
    gc.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with(parent)


def keep_memory() -> None:
    """What one part gives back is there for the next: to return it to the system in between costs a fifteenth
    of all time.
    """
    with suppress(AttributeError):  # a C library without it
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, 32 << 20)
        mallopt(M_TRIM_THRESHOLD, 64 << 20)
    pa.set_memory_pool(pa.system_memory_pool())
