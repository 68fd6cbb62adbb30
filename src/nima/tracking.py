"""One run's metrics: logged through DVCLive, drawn as pictures, timed in a file of their own."""

import json
import math
from pathlib import Path
from typing import Any

from dvclive import Live

METRICS = Path("metrics")
PLOTS = Path("plots")
TIMING = METRICS / "timing.json"

Row = dict[str, Any]
"""One logged point: {"step": N, "train/loss": …}."""


class StageLive(Live):
    """DVCLive that writes metrics/STAGE.json and plots/STAGE/, touches no dvc.yaml and phones nobody."""

    def __init__(self, stage: str) -> None:
        self.stage = stage
        super().__init__(dir=str(PLOTS / stage), dvcyaml=False, save_dvc_exp=False)

    @property
    def metrics_file(self) -> str:
        return str(METRICS / f"{self.stage}.json")

    @property
    def plots_dir(self) -> str:
        return str(PLOTS / self.stage)

    def log_row(self, row: Row) -> None:
        """Append one point. `next_step()` would read every curve again, at a cost that grows with the run."""
        self.step = row["step"]
        for name, value in row.items():
            if name != "step":
                self.log_metric(name, value)

    def finish(self, summary: Row) -> None:
        """Write the metrics file. (`Live.end()` would also git-add outputs that DVC caches.)"""
        self.summary.update(summary)
        self.make_summary()


def write_metrics(stage: str, metrics: Row) -> None:
    """metrics/STAGE.json, rewritten whole."""
    METRICS.mkdir(exist_ok=True)
    text = json.dumps(metrics, indent=2, ensure_ascii=False, allow_nan=False)
    (METRICS / f"{stage}.json").write_text(text + "\n", encoding="utf-8")


def write_timing(stage: str, figures: dict[str, float]) -> None:
    """Put a stage's clock figures beside the other stages' in metrics/timing.json.

    The file is in no stage's outputs: it differs from run to run, and dvc.lock must not.
    """
    METRICS.mkdir(exist_ok=True)
    try:
        timing = json.loads(TIMING.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        timing = {}
    if not isinstance(timing, dict):
        timing = {}
    timing[stage] = {name: round(value, 3) for name, value in figures.items()}
    partial = TIMING.with_suffix(".partial")
    partial.write_text(json.dumps(dict(sorted(timing.items())), indent=2) + "\n", encoding="utf-8")
    partial.replace(TIMING)


def draw_curves(stage: str, rows: list[Row]) -> None:
    """loss.png, perplexity.png and learning_rate.png in plots/STAGE/."""
    curves = {
        "loss": ("Loss", "nats per token", {"train": "train/loss", "validation": "validation/loss"}),
        "perplexity": (
            "Perplexity on the validation split",
            "perplexity",
            {"validation": "validation/perplexity"},
        ),
        "learning_rate": ("Learning rate of the matrices", "learning rate", {"learning rate": "train/lr"}),
    }
    for name, (title, label, series) in curves.items():
        points = {
            legend: [(row["step"], row[key]) for row in rows if key in row and math.isfinite(row[key])]
            for legend, key in series.items()
        }
        draw_lines(PLOTS / stage / f"{name}.png", title, label, points)


def draw_lines(path: Path, title: str, label: str, series: dict[str, list[tuple[float, float]]]) -> None:
    figure, axes = new_figure(title)
    for legend, points in series.items():
        axes.plot(
            *zip(*points, strict=True) if points else ([], []), label=legend, marker="." * (len(points) < 40)
        )
    axes.set(xlabel="step (updates)", ylabel=label)
    axes.legend(frameon=False)
    save_figure(figure, path)


def draw_bars(path: Path, title: str, label: str, bars: dict[str, float]) -> None:
    """Horizontal bars, the first on top, each with its value."""
    figure, axes = new_figure(title)
    names = list(bars)[::-1]
    drawn = axes.barh(names, [bars[name] for name in names])
    axes.bar_label(drawn, fmt="%.3f", padding=3)
    axes.margins(x=0.12)
    axes.set(xlabel=label)
    save_figure(figure, path)


def new_figure(title: str) -> tuple[Any, Any]:
    # The object interface: no global state, no display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.add_subplot(title=title)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def save_figure(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # No version of the drawing library in the file, so that equal numbers give equal bytes.
    figure.savefig(path, dpi=120, metadata={"Software": None})
