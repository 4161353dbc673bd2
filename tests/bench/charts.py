"""A line chart and a bar chart as SVG text, drawn by matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from io import StringIO
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from .report import short

Points = Sequence[tuple[float, float]]
STYLE = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "pgnotifier",  # the same file for the same figures
    "font.family": "sans-serif",
    "axes.titleweight": "bold",
}


def lines(title: str, x_title: str, y_title: str, series: dict[str, Points]) -> str:
    """Both axes logarithmic."""

    def draw(axes: Any) -> None:
        for name, points in series.items():
            drawn = [(x, y) for x, y in points if x > 0 and y > 0]
            axes.plot(*zip(*drawn, strict=True), label=name, marker="o" if len(drawn) <= 12 else "", markersize=4)
        axes.set(xscale="log", yscale="log", xlabel=x_title, ylabel=y_title)
        axes.grid(color="#e3e3e3")
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)

    return _svg(title, draw if any(series.values()) else None)


def bars(title: str, unit: str, values: dict[str, tuple[float, float, float]]) -> str:
    """One bar for each name: first quartile, median, third quartile."""

    def draw(axes: Any) -> None:
        medians = [middle for _, middle, _ in values.values()]
        errors = [[m - low for low, m, _ in values.values()], [high - m for _, m, high in values.values()]]
        colours = ["#0b62c4" if name == "ours" else "#9aa5b1" for name in values]
        drawn = axes.barh(list(values), medians, xerr=errors, color=colours)
        axes.bar_label(drawn, [f"{short(m)} {unit}" for m in medians], padding=4)
        axes.margins(x=0.2)
        axes.invert_yaxis()

    return _svg(title, draw if values else None)


def _svg(title: str, draw: Any) -> str:
    text = StringIO()
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8, 4), layout="constrained")
        axes = figure.subplots()
        axes.set_title(title, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        if draw is not None:
            draw(axes)
        figure.savefig(text, format="svg", metadata={"Date": None})
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"
