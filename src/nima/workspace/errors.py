"""Errors that a user can cause and can mend.

A `UserError` reaches the terminal as one line and exit code 2. Any other exception is a bug of
Nima's and keeps its traceback.
"""

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 3


class UserError(Exception):
    """Names the key or file:line, what was found there, and what would be right."""

    exit_code = EXIT_USER_ERROR


class ParamsError(UserError):
    """params.yaml does not fit its schema; holds every problem, one per line."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class SourceError(UserError):
    """A source of text is missing, unreadable or not what its checksum says."""


class InputsChangedError(UserError):
    """An input of a stage changed while the stage ran, so its outputs belong to neither version."""


class CheckpointError(UserError):
    """A checkpoint is broken, or belongs to another run."""


class NonFiniteError(UserError):
    """Loss or gradient became NaN or infinite."""


class Interrupted(UserError):  # noqa: N818 - an interruption is no error of anybody's
    """A signal asked the stage to stop; its progress is saved. Non-zero, so that DVC records nothing."""

    exit_code = EXIT_INTERRUPTED

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.figures: dict[str, float] = {}
        """The clock's, for metrics/timing.json."""
