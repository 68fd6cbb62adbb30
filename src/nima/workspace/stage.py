"""What every stage does around its story: read params, guard inputs, report errors in one line, keep time."""

import errno
import gc
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

from nima.workspace import runtime as runtime_settings
from nima.workspace.errors import EXIT_INTERRUPTED, InputsChangedError, Interrupted, UserError
from nima.workspace.inputs import fingerprint, guard_inputs
from nima.workspace.metrics import write_timing
from nima.workspace.params import Params, params_file
from nima.workspace.runtime import Runtime
from nima.workspace.signals import die_with_dvc
from nima.workspace.surroundings import write_environment

PARAMS = Path("params.yaml")
# What the user's machine refuses: a disk that is full or read-only, a folder that is someone else's.
REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
Story = Callable[[Params, Runtime], dict[str, float] | None]
"""A stage's main function: does the work in the current folder, may return clock figures of its own."""


def run_stage(name: str, story: Story, first: Callable[[Runtime], None] | None = None) -> None:
    """Run one stage in the project's root, and exit: 0 done, 2 a user's error, 3 interrupted.

    `first`: what must happen before this process has threads.
    """
    if not gc.isenabled():  # nothing of what was imported until now is garbage
        gc.freeze()
        gc.enable()
    try:
        runtime = runtime_settings.load(Path.cwd())
        if first is not None:
            first(runtime)
        die_with_dvc()
        tell_time(name, story, runtime)
    except UserError as error:
        if isinstance(error, Interrupted) and error.figures:
            write_timing(name, error.figures)
        for line in str(error).splitlines():
            print(f"{name}: {line}", file=sys.stderr)  # noqa: T201
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print(f"{name}: stopped", file=sys.stderr)  # noqa: T201
        sys.exit(EXIT_INTERRUPTED)


def code_of(name: str) -> str:
    """Fingerprint of the code that dvc.yaml names as the stage's input: modules, and packages whole."""
    return fingerprint(filter(is_code, params_file.stage_dependencies(name)))


def is_code(path: Path) -> bool:
    return path.suffix == ".py" or (path / "__init__.py").exists()


def tell_time(name: str, story: Story, runtime: Runtime) -> None:
    started = time.perf_counter()
    params = params_file.load(PARAMS)
    with guard_inputs(params_file.stage_dependencies(name)):
        told = tell_story(story, params, runtime) or {}
    # DVC records the params as they are when the stage ends.
    sections = params_file.stage_sections(name)
    after = params_file.load(PARAMS)
    if changed := [key for key in sections if getattr(after, key) != getattr(params, key)]:
        raise InputsChangedError(f"{PARAMS}: {', '.join(changed)} changed while the stage ran; run again")
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    seconds = time.perf_counter() - started
    figures = {"seconds": seconds, "peak_memory_bytes": peak_bytes} | told
    write_timing(name, figures)
    write_environment(name, runtime)
    peak = figures["peak_memory_bytes"] / 1e6
    print(f"{name}: done in {seconds:.1f} s, at most {peak:.0f} MB; see metrics/{name}.json")  # noqa: T201


def tell_story(story: Story, params: Params, runtime: Runtime) -> dict[str, float] | None:
    """The stage's work, with what the machine refuses as a `UserError`."""
    try:
        return story(params, runtime)
    except OSError as error:
        if error.errno not in REFUSED:
            raise
        place = error.filename or Path.cwd()
        raise UserError(f"{place}: cannot be written or read: {error.strerror}") from None
