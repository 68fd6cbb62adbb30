"""Where a stream is read to score it: each of its tokens once, with context before it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """Where to read, and how many of its last targets to score; those before are context."""

    start: int
    num_tokens: int
    num_scored: int


def scoring_windows(stream_tokens: int, window_tokens: int, stride_tokens: int) -> list[Window]:
    """Windows over a stream so that each token is a scored target exactly once.

    The first window scores all it holds, each later one its last `stride_tokens`. The stream's first
    token is predicted from the end-of-text token that stands before it.
    """
    windows = []
    scored = 0
    while scored < stream_tokens:
        fresh = min(window_tokens if scored == 0 else stride_tokens, stream_tokens - scored)
        start = max(0, scored + fresh - window_tokens)
        windows.append(Window(start=start, num_tokens=scored + fresh - start, num_scored=fresh))
        scored += fresh
    return windows


def evenly_spread(windows: list[Window], max_tokens: int | None) -> list[Window]:
    """At most `max_tokens` scored tokens' worth of windows, at equal distances over the list."""
    if max_tokens is None or not windows:
        return windows
    keep = max(1, max_tokens // max(window.num_scored for window in windows))
    if keep >= len(windows):
        return windows
    return [windows[index * len(windows) // keep] for index in range(keep)]
