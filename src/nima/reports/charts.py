"""Charts as inline SVG: no script, no network, colours from the page's own style (classes s0 to s7)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from markupsafe import Markup

WIDTH, HEIGHT = 560, 300
LEFT, RIGHT, TOP, BOTTOM = 62, 12, 34, 44
NUM_COLOURS = 8
BAR_HEIGHT, BAR_GAP = 18, 6


@dataclass(frozen=True)
class Line:
    """A series of (x, y). Lines without a legend entry share another line's colour."""

    label: str
    points: Sequence[tuple[float, float]]
    colour: int = 0
    in_legend: bool = True
    notes: Sequence[str] = ()
    """What a pointer over each point shows."""
    is_dots: bool = False
    """Points alone, not joined."""


@dataclass(frozen=True)
class Axis:
    """A scale from data to pixels, and where its marks stand."""

    low: float
    high: float
    first: float
    last: float
    is_log: bool = False
    names: Sequence[str] = ()
    """Of the values 0, 1, 2 ..., where they are no numbers."""
    is_whole: bool = False
    """Marks stand at whole numbers only."""

    def place(self, value: float) -> float:
        low, high = self.low, self.high
        if self.is_log:
            value, low, high = math.log(value), math.log(low), math.log(high)
        return round(self.first + (value - low) / (high - low) * (self.last - self.first), 1)

    def marks(self) -> list[tuple[float, str]]:
        """Values and what is written there."""
        if self.names:
            return [(float(place), name[:14]) for place, name in enumerate(self.names)]
        return [(value, figure(value)) for value in (self.powers() if self.is_log else self.ticks())]

    def ticks(self) -> list[float]:
        step = tick_step(self.high - self.low)
        step = max(1.0, step) if self.is_whole else step
        start = math.ceil(self.low / step - 1e-9)
        return [number * step for number in range(start, math.floor(self.high / step + 1e-9) + 1)]

    def powers(self) -> list[float]:
        """1, 2 and 5 times powers of ten; plain ticks where these are too few."""
        span = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        found = [factor * 10.0**power for power in span for factor in (1, 2, 5)]
        inside = [value for value in found if self.low <= value <= self.high]
        return inside if len(inside) > 1 else self.ticks()


def tick_step(span: float) -> float:
    """A round distance (1, 2 or 5 times a power of ten) that gives four to eight marks."""
    raw = span / 6
    power = 10.0 ** math.floor(math.log10(raw))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)


def axis(
    values: Sequence[float],
    first: float,
    last: float,
    *,
    is_log: bool = False,
    names: Sequence[str] = (),
    margin: float = 0.0,
) -> Axis:
    """An axis over the values, with a margin at both ends that is a share of their range."""
    if names:
        return Axis(-0.5, len(names) - 0.5, first, last, names=names)
    low, high = min(values), max(values)
    if high == low:
        low, high = low - (abs(low) or 1) * 0.1, high + (abs(high) or 1) * 0.1
    if is_log:
        room = (high / low) ** margin
        return Axis(low / room, high * room, first, last, is_log=True)
    room = margin * (high - low)
    is_whole = high - low > 1 and all(float(value).is_integer() for value in values)
    return Axis(low - room, high + room, first, last, is_whole=is_whole)


def line_chart(
    title: str,
    x_label: str,
    y_label: str,
    lines: Sequence[Line],
    *,
    is_log: bool = False,
    names: Sequence[str] = (),
    reach: Sequence[float] = (),
    is_log_y: bool = False,
) -> Markup:
    """Curves over one another; an empty text if no line has a point.

    `is_log`: along x. `names`: what x = 0, 1, 2 ... stand for. `reach`: what x also extends to.
    """
    lines = [line for line in lines if line.points]
    if not lines:
        return Markup("")
    places = [point[0] for line in lines for point in line.points]
    margin = 0.04 if any(line.is_dots for line in lines) else 0.0
    x = axis([*places, *reach], LEFT, WIDTH - RIGHT, is_log=is_log, names=names, margin=margin)
    values = [point[1] for line in lines for point in line.points]
    y = axis(values, HEIGHT - BOTTOM, TOP, is_log=is_log_y and min(values) > 0, margin=0.05)
    parts = [frame(title, x_label, y_label, x, y)]
    for line in lines:
        parts.append("" if line.is_dots else path(line, x, y))
        parts.append(dots(line, x, y) if line.is_dots or len(line.points) < 30 else "")
    shown = [line for line in lines if line.in_legend]
    return svg(title, HEIGHT + 18 * math.ceil(len(shown) / 2), [*parts, legend(shown)])


def bar_chart(title: str, label: str, bars: Sequence[tuple[str, float, int]]) -> Markup:
    """Horizontal bars from 0, each (name, value, colour) with its value; an empty text without bars."""
    if not bars:
        return Markup("")
    left = 16 + 7 * min(34, max(len(name) for name, _, _ in bars))
    longest = max(max(value for _, value, _ in bars), 1e-12)
    parts = [f'<text class="title" x="8" y="18">{escape(title)}</text>']
    top = TOP
    for name, value, colour in bars:
        length = max(0.0, round(value / longest * (WIDTH - left - 70), 1))
        middle = top + BAR_HEIGHT - 5
        parts.append(
            f'<text class="tick" x="{left - 6}" y="{middle}" text-anchor="end">{escape(name[:34])}</text>'
            f'<rect class="s{colour % NUM_COLOURS}" x="{left}" y="{top}" width="{length}" '
            f'height="{BAR_HEIGHT}" rx="2"/>'
            f'<text class="tick" x="{left + length + 5}" y="{middle}">{figure(value)}</text>'
        )
        top += BAR_HEIGHT + BAR_GAP
    parts.append(f'<text class="tick" x="{left}" y="{top + 14}">{escape(label)}</text>')
    return svg(title, top + 22, parts)


def svg(title: str, height: float, parts: Sequence[str]) -> Markup:
    opening = f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">'
    return Markup(opening + "".join(parts) + "</svg>")  # noqa: S704 - every text in it is escaped above


def frame(title: str, x_label: str, y_label: str, x: Axis, y: Axis) -> str:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = [f'<text class="title" x="8" y="18">{escape(title)}</text>']
    for value, text in y.marks():
        at = y.place(value)
        parts.append(f'<line class="grid" x1="{LEFT}" y1="{at}" x2="{right}" y2="{at}"/>')
        parts.append(
            f'<text class="tick" x="{LEFT - 6}" y="{at + 4}" text-anchor="end">{escape(text)}</text>'
        )
    for value, text in x.marks():
        at = x.place(value)
        parts.append(
            f'<text class="tick" x="{at}" y="{bottom + 16}" text-anchor="middle">{escape(text)}</text>'
        )
    middle = (TOP + bottom) / 2
    parts += [
        f'<line class="axis" x1="{LEFT}" y1="{bottom}" x2="{right}" y2="{bottom}"/>',
        f'<text class="tick" x="{(LEFT + right) / 2}" y="{bottom + 34}" text-anchor="middle">'
        f"{escape(x_label)}</text>",
        f'<text class="tick" transform="translate(13 {middle}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_label)}</text>",
    ]
    return "".join(parts)


def path(line: Line, x: Axis, y: Axis) -> str:
    points = " ".join(f"{x.place(step)},{y.place(value)}" for step, value in line.points)
    thin = "" if line.in_legend else " thin"
    return f'<polyline class="s{line.colour % NUM_COLOURS}{thin}" points="{points}"/>'


def dots(line: Line, x: Axis, y: Axis) -> str:
    radius = 4 if line.is_dots else 2.5
    notes = line.notes or [f"{line.label}: {figure(value)} at {figure(step)}" for step, value in line.points]
    colour = line.colour % NUM_COLOURS
    return "".join(
        f'<circle class="s{colour}" cx="{x.place(step)}" cy="{y.place(value)}" r="{radius}">'
        f"<title>{escape(note)}</title></circle>"
        for (step, value), note in zip(line.points, notes, strict=True)
    )


def legend(lines: Sequence[Line]) -> str:
    parts = []
    for number, line in enumerate(lines):
        left, top = LEFT + (number % 2) * 250, HEIGHT + 4 + 18 * (number // 2)
        parts.append(
            f'<rect class="s{line.colour % NUM_COLOURS}" x="{left}" y="{top - 9}" width="14" height="10"/>'
            f'<text class="tick" x="{left + 20}" y="{top}">{escape(line.label[:34])}</text>'
        )
    return "".join(parts)


def figure(value: float) -> str:
    """A number short enough for an axis."""
    return f"{value:,.0f}" if abs(value) >= 1000 and value == round(value) else f"{value:.4g}"
