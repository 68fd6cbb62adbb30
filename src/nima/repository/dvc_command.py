"""DVC's own commands, with this environment's programs first on the path.

DVC starts its queue's workers, and stages start Python, by name.
"""

import os
import subprocess
import sys
from pathlib import Path


def environment() -> dict[str, str]:
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return os.environ | {"PATH": programs}


def dvc(root: Path, *arguments: str, settings: dict[str, str] | None = None) -> tuple[int, str]:
    """Exit code, and all that it printed. `settings`: the whole environment, if not this process's."""
    done = subprocess.run(
        ["dvc", *arguments],
        cwd=root,
        env=settings or environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    return done.returncode, done.stdout


def reason(printed: str) -> str:
    """The line of DVC's output that says what went wrong."""
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["no output"])[-1].removeprefix("ERROR: ")
