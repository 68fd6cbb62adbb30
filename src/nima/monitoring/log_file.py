"""The log file: one JSON object a line, with time (UTC), level, stage, step, message and what belongs to it.

Any module logs by `logging.getLogger(__name__).info("message", extra={"fields": {...}})`; nothing is written
until `logging_to` opens a file. What the log holds goes into no output: it tells the time.
"""

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

FIRST = ("time", "level", "stage", "step", "message")
LOGGER = logging.getLogger("nima")


class JsonLines(logging.Formatter):
    """A log record as one line of JSON. Infinite and undefined numbers become text: JSON has none."""

    def __init__(self, stage: str) -> None:
        super().__init__()
        self.stage = stage

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "stage": self.stage,
            "message": record.getMessage(),
        }
        # What belongs to a message may have a step, but changes none of the rest.
        line = {"step": None} | getattr(record, "fields", {}) | line
        line = {name: line[name] for name in dict.fromkeys((*FIRST, *line))}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        try:
            return json.dumps(line, ensure_ascii=False, allow_nan=False, default=str)
        except ValueError:
            return json.dumps(finite(line), ensure_ascii=False, default=str)


class LogFile(logging.FileHandler):
    """Appends to the file. A disk that refuses is told once, and stops nothing."""

    refused = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002, N802 - the name is logging's
        self.tell(sys.exc_info()[1])

    def close(self) -> None:
        try:
            super().close()
        except OSError as error:  # what still waited did not fit
            self.tell(error)

    def tell(self, reason: BaseException | None) -> None:
        if not self.refused:
            self.refused = True
            print(f"{self.baseFilename}: the log is incomplete: {reason}", file=sys.stderr)  # noqa: T201


@contextmanager
def logging_to(path: Path, level: str, stage: str) -> Iterator[None]:
    """Write what Nima's modules log from `level` on to `path`. A file that can't be opened stops nothing."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        log = LogFile(path, encoding="utf-8")
    except OSError as error:
        print(f"{path}: no log is written: {error.strerror}", file=sys.stderr)  # noqa: T201
        yield
        return
    log.setFormatter(JsonLines(stage))
    before = LOGGER.level, LOGGER.propagate
    LOGGER.addHandler(log)
    LOGGER.setLevel(level.upper())
    LOGGER.propagate = False
    try:
        yield
    except BaseException as error:
        LOGGER.error("ended", extra={"fields": {"error": type(error).__name__, "reason": str(error)}})
        raise
    finally:
        LOGGER.removeHandler(log)
        LOGGER.setLevel(before[0])
        LOGGER.propagate = before[1]
        log.close()


def note(message: str, level: str = "info", **fields: Any) -> None:
    """Log a message with its fields; costs next to nothing below the level that is written."""
    LOGGER.log(logging.getLevelNamesMapping()[level.upper()], message, extra={"fields": fields})


def finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return str(value) if isinstance(value, float) and value - value != 0 else value
