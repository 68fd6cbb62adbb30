"""A study's charts: history, curves, importances, slices through the space, parallel coordinates."""

import math
from collections.abc import Sequence
from html import escape

from markupsafe import Markup

from nima.reports.charts import LEFT, RIGHT, TOP, WIDTH, Axis, Line, axis, bar_chart, line_chart, svg
from nima.tuning.search_space import Dimension, Value, written
from nima.tuning.study import Record, Study

COMPLETE, PRUNED, BEST = 0, 7, 1
UNITS = {
    "loss": "loss, nats per token",
    "perplexity": "perplexity",
    "bits_per_byte": "bits per byte of text",
    "accuracy": "share of tokens predicted first",
}
NUM_SHADES = 5
TALL, FOOT = 300, 46


def note(record: Record) -> str:
    """What a pointer over a trial shows."""
    settings = "\n".join(f"{key} {written(value)}" for key, value in record.params.items())
    figure = f"{record.value:.4f}" if record.value is not None else record.reason or record.state
    return f"trial {record.number}: {figure}\n{settings}"


def reached(record: Record) -> float | None:
    """The value, or where a pruned trial had got to."""
    if record.value is not None:
        return record.value
    return record.curve[-1][1] if record.state == "pruned" and record.curve else None


def drawn(study: Study, record: Record) -> float:
    """Where a trial stands in a chart: figures far off are moved to the rim, not to fill it."""
    figures = sorted(value for found in study.records() if (value := reached(found)) is not None)
    if study.is_more_better:
        figures.reverse()
    best, usual, worst = figures[0], figures[len(figures) * 3 // 4], figures[-1]
    rim = best + 3 * (usual - best)
    value = reached(record) or 0.0
    if study.is_more_better:
        return max(value, min(rim, usual), worst)
    return min(value, max(rim, usual), worst)


def history(study: Study) -> Markup:
    """Every trial's value, and the best one up to it."""
    complete = [found for found in study.records() if found.value is not None]
    better = max if study.is_more_better else min
    values = [found.value or 0.0 for found in complete]
    best = [(float(found.number), better(values[: place + 1])) for place, found in enumerate(complete)]
    lines = [Line("best so far", best, BEST, notes=[f"best so far: {value:.4f}" for _, value in best])]
    lines += [dots(study, "complete", complete, COMPLETE), pruned_dots(study)]
    return line_chart("Trials one after another", "trial", UNITS[study.tune.metric], lines)


def dots(study: Study, label: str, records: Sequence[Record], colour: int) -> Line:
    points = [(float(found.number), drawn(study, found)) for found in records]
    return Line(label, points, colour, notes=[note(found) for found in records], is_dots=True)


def pruned_dots(study: Study) -> Line:
    records = [found for found in study.records() if found.state == "pruned" and found.curve]
    return dots(study, "pruned, where it stopped", records, PRUNED)


def curves(study: Study) -> Markup:
    """All validation curves; the best trial's stands out."""
    best = study.best()
    records = [found for found in study.records() if found.curve]
    records.sort(key=lambda found: best is not None and found.number == best.number)
    lines, seen = [], set()
    for found in records:
        is_best = best is not None and found.number == best.number
        label = f"best: trial {found.number}" if is_best else found.state
        colour = BEST if is_best else COMPLETE if found.state == "complete" else PRUNED
        points = [(float(step), value) for step, value in found.curve]
        notes = [f"trial {found.number}, step {step}: {value:.4f}" for step, value in found.curve]
        lines.append(Line(label, points, colour, in_legend=label not in seen, notes=notes))
        seen.add(label)
    return line_chart("Validation curves", "step (updates)", UNITS[study.tune.metric], lines, is_log_y=True)


def importances(study: Study) -> Markup:
    bars = [(key, round(share, 3), COMPLETE) for key, share in study.importances().items()]
    return bar_chart("What decides", "share of importance (PED-ANOVA)", bars)


def slices(study: Study) -> list[Markup]:
    """The metric over each param."""
    return [chart for dimension in study.space if (chart := slice_of(study, dimension))]


def slice_of(study: Study, dimension: Dimension) -> Markup:
    names = list(map(written, dimension.settings.choices))
    lines = []
    best = study.best()
    for label, colour in (("complete", COMPLETE), ("pruned", PRUNED), ("best", BEST)):
        found = [
            record
            for record in study.records()
            if (("best" if best and record.number == best.number else record.state) == label)
            and reached(record) is not None
        ]
        points = [(position(dimension, one.params[dimension.key]), drawn(study, one)) for one in found]
        lines.append(Line(label, points, colour, notes=[note(one) for one in found], is_dots=True))
    is_log, reach = dimension.settings.log, () if names else dimension.settings.bounds
    unit = UNITS[study.tune.metric]
    return line_chart(dimension.key, dimension.key, unit, lines, is_log=is_log, names=names, reach=reach)


def position(dimension: Dimension, value: Value) -> float:
    choices = dimension.settings.choices
    if choices:
        return float(next(place for place, choice in enumerate(choices) if repr(choice) == repr(value)))
    return float(value or 0)


def parallel_coordinates(study: Study) -> Markup:
    """A line for each complete trial through its params' values to its figure; strong lines are good ones."""
    records = [found for found in study.records() if found.value is not None]
    if len(records) < 2:
        return Markup("")
    sign = -1 if study.is_more_better else 1
    records.sort(key=lambda found: -sign * (found.value or 0.0))  # the best are drawn last, on top
    scales = [scale(dimension) for dimension in study.space]
    scales.append(axis([found.value or 0.0 for found in records], TALL - FOOT, TOP + 12))
    left = [
        LEFT + 20 + round(n * (WIDTH - LEFT - RIGHT - 60) / (len(scales) - 1), 1) for n in range(len(scales))
    ]
    parts = ['<text class="title" x="8" y="18">Params and what came of them</text>']
    for place, found in enumerate(records):
        values = [position(one, found.params[one.key]) for one in study.space] + [found.value or 0.0]
        points = " ".join(
            f"{x},{scale.place(value)}" for x, scale, value in zip(left, scales, values, strict=True)
        )
        shade = math.floor(NUM_SHADES * (len(records) - 1 - place) / len(records))
        parts.append(
            f'<polyline class="q{shade}" points="{points}"><title>{escape(note(found))}</title></polyline>'
        )
    keys = [*(dimension.key for dimension in study.space), study.tune.metric]
    for number, (x, found_scale, key) in enumerate(zip(left, scales, keys, strict=True)):
        parts.append(upright(x, found_scale, key, lower=number % 2 == 1))
    return svg("Params and what came of them", TALL, parts)


def scale(dimension: Dimension) -> Axis:
    """Of the whole range that was searched."""
    names = list(map(written, dimension.settings.choices))
    return axis(dimension.settings.bounds, TALL - FOOT, TOP + 12, is_log=dimension.settings.log, names=names)


def upright(x: float, scale: Axis, key: str, *, lower: bool) -> str:
    """A vertical axis; names of neighbours stand at two heights, so that long ones don't touch."""
    parts = [f'<line class="axis" x1="{x}" y1="{TOP + 12}" x2="{x}" y2="{TALL - FOOT}"/>']
    parts += [
        f'<text class="tick" x="{x - 5}" y="{scale.place(value) + 4}" text-anchor="end">{escape(text)}</text>'
        for value, text in scale.marks()
    ]
    top = TALL - FOOT + (36 if lower else 20)
    parts.append(f'<text class="tick" x="{x}" y="{top}" text-anchor="middle">{escape(key)}</text>')
    return "".join(parts)
