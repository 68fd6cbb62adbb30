"""Programs for tests that start many: an interpreter that has torch and DVC imported, forked for each one.

A fresh `python -m stages.train` spends two seconds of CPU on imports, a fresh `dvc` half a second.
`warm_programs` is a folder of programs `dvc` and `python` for the front of a PATH. They hand `dvc ...` and
`python -m` with a stage or a module of Nima over to a server, and everything else to the true programs. What
is forked has the caller's folder, environment and streams, and imports Nima itself, from the project that it
runs in; but it is no child of the caller and not in its process group. So what is about signals or about how
programs start is tested with true ones.
"""

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

PRELOADED = (
    *("torch", "numpy", "pyarrow.parquet", "tokenizers", "safetensors.torch"),
    *("pydantic", "ruamel.yaml", "psutil", "dvclive", "tiktoken", "chardet", "rich", "typer"),
    *(
        "dvc.cli.parser",
        "dvc.repo.reproduce",
        "dvc.stage.run",
        "dvc.output",
        "dvc.data_cloud",
        "dvc_s3",
        "s3fs",
    ),
    *("dvc.repo.experiments.run", "dvc.repo.experiments.queue.celery", "dvc.repo.experiments.executor.local"),
    *("dvc.utils.hydra", "dvc.repo.plots", "hydra", "s3fs", "networkx", "pygit2", "dulwich.porcelain"),
)
# The last one: no thread of Arrow's allocator.
SETTINGS = {
    "OMP_NUM_THREADS": "1",
    "GOMP_SPINCOUNT": "1000",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
}
# What libraries read when they are loaded: with other values a program must be fresh.
READ_AT_IMPORT = ("OMP_", "GOMP_", "KMP_", "MKL_", "LD_", "TORCH_", "MPL", "PYTHON")
BEGUN_WITH = dict(os.environ)
# `become` takes over the one; the other, which Ray leaves behind in whoever asks it, is read at a breakpoint.
NOT_AT_IMPORT = ("PYTHONPATH", "PYTHONBREAKPOINT")
CLIENT = Path(__file__).with_name("warm_client.py")


@functools.cache
def warm_programs() -> Path:
    """The folder of programs. Until their server is ready they are the true ones; it ends with us."""
    folder = Path(tempfile.mkdtemp(prefix="nima-"))  # short: a socket's path must be
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    programs = folder / "bin"
    programs.mkdir()
    for name in ("dvc", "python"):
        true = Path(sys.executable).with_name(name)
        words = (sys.executable, "-IS", str(CLIENT), str(folder / "socket"), str(true))
        script = "#!/bin/sh\nexec " + " ".join(f"'{word}'" for word in words) + ' "$@"\n'
        (programs / name).write_text(script, encoding="utf-8")
        (programs / name).chmod(0o755)
    settings = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, __file__, str(folder)]
    server = subprocess.Popen(command, env=settings | SETTINGS, stdin=subprocess.PIPE, start_new_session=True)
    atexit.register(server.wait)
    atexit.register(server.kill)
    return programs


# ------------------------------------------------------------------------------------------- the server


class Server:
    """Forks itself for each request; ends when the tests do."""

    def __init__(self, folder: Path) -> None:
        self.programs = folder / "bin"
        self.selector = selectors.DefaultSelector()
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(folder / "socket"))
        self.listener.listen(64)
        self.running: dict[int, tuple[socket.socket, int]] = {}
        self.selector.register(self.listener, selectors.EVENT_READ, self.accept)
        self.selector.register(sys.stdin, selectors.EVENT_READ, lambda _: sys.exit())

    def next_request(self) -> dict[str, Any]:
        """Serves for ever; returns in each forked process, with what that is to do."""
        while True:
            for key, _ in self.selector.select():
                if request := key.data(key.fileobj):
                    return request

    def accept(self, listener: socket.socket) -> dict[str, Any] | None:
        client, _ = listener.accept()
        request, streams = None, []
        # Whoever asked may be gone already.
        with contextlib.suppress(OSError, ValueError), client.makefile("rb") as file:
            first, streams, _, _ = socket.recv_fds(client, 1, 3)
            request = json.loads(file.readline()) if first else None
        if request is None or not fits(request["environment"]):
            client.close()
            for stream in streams:
                os.close(stream)
            return None
        child = os.fork()
        if child == 0:
            self.selector.close()
            listener.close()
            client.close()
            for other, _ in self.running.values():
                other.close()
            return request | {"streams": streams, "programs": self.programs}
        for stream in streams:
            os.close(stream)
        ended = os.pidfd_open(child)
        self.running[ended] = (client, child)
        self.selector.register(ended, selectors.EVENT_READ, self.report)
        self.selector.register(client, selectors.EVENT_READ, lambda _: self.kill(client, child))
        return None

    def kill(self, client: socket.socket, child: int) -> None:
        """Whoever asked is gone."""
        if client.fileno() < 0:  # and so is what was asked for: it was reported a moment ago
            return
        self.selector.unregister(client)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)

    def report(self, ended: int) -> None:
        client, child = self.running.pop(ended)
        self.selector.unregister(ended)
        os.close(ended)
        _, status = os.waitpid(child, 0)
        with contextlib.suppress(KeyError):
            self.selector.unregister(client)
        with contextlib.suppress(OSError):
            client.sendall(str(os.waitstatus_to_exitcode(status)).encode())
        client.close()


def fits(environment: dict[str, str]) -> bool:
    def read(variables: Any) -> dict[str, str]:
        return {
            name: value
            for name, value in variables.items()
            if name.startswith(READ_AT_IMPORT) and name not in NOT_AT_IMPORT
        }

    # The stages set it themselves.
    return read({"GOMP_SPINCOUNT": "1000"} | environment) == read(BEGUN_WITH)


def become(request: dict[str, Any]) -> None:
    """Be the program that was asked for."""
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for number, stream in enumerate(request["streams"]):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(request["folder"])
    before = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:] = [place for place in sys.path[1:] if place not in before]
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.path[:0] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    sys.executable = str(request["programs"] / "python")
    try:
        end(run(*request["command"], programs=request["programs"]))
    except SystemExit as ended:
        end(ended.code)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        end(1)


def run(program: str, *words: str, programs: Path) -> object:
    if program == "dvc":
        from dvc.cli import main

        sys.argv = [str(programs / "dvc"), *words]
        return main()
    sys.path.insert(0, str(Path.cwd()))
    sys.argv = list(words)
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    return None


def end(code: object) -> None:
    """As Python does, but without taking apart all that was imported: that takes longer than most runs."""
    if isinstance(code, str):
        print(code, file=sys.stderr)
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    for name in PRELOADED:
        importlib.import_module(name)
    if len(list(Path("/proc/self/task").iterdir())) > 1:
        sys.exit("a package that is imported starts a thread: it can't be forked")
    gc.collect()
    gc.freeze()
    become(Server(Path(sys.argv[1])).next_request())
