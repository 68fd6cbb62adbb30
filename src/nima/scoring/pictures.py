"""Pictures of a run, drawn without a display and equal to the byte for equal numbers."""

import math
from pathlib import Path
from typing import Any

from nima.workspace.metrics import Row

PLOTS = Path("plots")


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


def draw_rate_range(path: Path, rows: list[Row], marks: dict[str, float]) -> None:
    """The loss over a rising learning rate, and rates that are marked, with their names."""
    figure, axes = new_figure("Loss while the learning rate rises")
    rates = [row["lr"] for row in rows]
    axes.plot(rates, [row["loss"] for row in rows], alpha=0.35, label="loss")
    axes.plot(rates, [row["smoothed_loss"] for row in rows], label="smoothed")
    for number, (name, rate) in enumerate(marks.items()):
        axes.axvline(rate, linestyle="--", color=f"C{number + 2}", label=f"{name}: {rate:.2g}")
    axes.set(xscale="log", xlabel="learning rate", ylabel="nats per token")
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
