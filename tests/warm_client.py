"""What stands for `dvc` and `python` before the server of tests/warm_start.py: it imports little."""

import json
import os
import signal
import socket
import sys
from collections.abc import Sequence


def command_of(program: str, words: Sequence[str]) -> Sequence[str] | None:
    """What the server is to run, if it can."""
    if program == "dvc":
        return ("dvc", *words)
    if words[:2] == ["-m", "dvc"]:
        return words[1:]
    if words[:1] == ["-m"] and words[1].startswith(("stages.", "nima.")):
        return ("python", *words[1:])
    return None


def exit_code(address: str, command: Sequence[str]) -> int | None:
    """Of the command, which the server ran; None if there is none, or its interpreter does not fit."""
    folder = os.getcwd()  # noqa: PTH109 - pathlib takes longer than all the rest here
    request = {"command": command, "folder": folder, "environment": dict(os.environ)}
    with socket.socket(socket.AF_UNIX) as server:
        try:
            server.connect(address)
            socket.send_fds(server, [b"\n"], [0, 1, 2])
            server.sendall(json.dumps(request).encode() + b"\n")
            answer = server.recv(64)
        except OSError:
            return None
    return int(answer) if answer else None


def main(address: str, true_program: str, *words: str) -> None:
    command = command_of(os.path.basename(true_program), list(words))  # noqa: PTH119
    code = exit_code(address, command) if command else None
    if code is None:
        os.execv(true_program, [true_program, *words])
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


main(*sys.argv[1:])
