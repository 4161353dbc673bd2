"""A line chart and a bar chart as SVG text."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from math import ceil, floor, log10

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 380, 80, 170, 44, 52
COLOURS = ("#0b62c4", "#d1495b", "#2e8b57", "#8a5a00", "#7b4fb5", "#5c6670", "#c2185b")
Points = Sequence[tuple[float, float]]


def short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def label(value: float) -> str:
    if value >= 1e6:
        return f"{value / 1e6:g} M"
    return f"{value / 1e3:g} k" if value >= 1e3 else f"{value:g}"


def _frame(title: str, body: list[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}" font-family="system-ui, sans-serif" font-size="12" fill="#222">'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>'
        f'<text x="{LEFT}" y="24" font-size="15" font-weight="600">{escape(title)}</text>'
    )
    return "\n".join([head, *body, "</svg>"]) + "\n"


class _Log:
    """A logarithmic axis from pixel to pixel."""

    def __init__(self, values: Sequence[float], first: float, last: float) -> None:
        self.low, self.high = floor(log10(min(values))), ceil(log10(max(values)))
        self.high += self.high == self.low
        self.first, self.last = first, last

    def at(self, value: float) -> float:
        return self.first + (log10(value) - self.low) / (self.high - self.low) * (self.last - self.first)

    def ticks(self) -> list[float]:
        return [10.0**n for n in range(self.low, self.high + 1)]


def lines(title: str, x_title: str, y_title: str, series: dict[str, Points]) -> str:
    """Both axes logarithmic."""
    every = [(x, y) for points in series.values() for x, y in points if x > 0 and y > 0]
    if not every:
        return _frame(title, [])
    xs = _Log([x for x, _ in every], LEFT, WIDTH - RIGHT)
    ys = _Log([y for _, y in every], HEIGHT - BOTTOM, TOP)
    body = []
    for tick in xs.ticks():
        x = xs.at(tick)
        body.append(f'<path d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="#e3e3e3"/>')
        body.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{label(tick)}</text>')
    for tick in ys.ticks():
        y = ys.at(tick)
        body.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#e3e3e3"/>')
        body.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{label(tick)}</text>')
    body.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 12}" text-anchor="middle">{escape(x_title)}</text>'
    )
    middle = (TOP + HEIGHT - BOTTOM) / 2
    body.append(f'<text transform="translate(18 {middle}) rotate(-90)" text-anchor="middle">{escape(y_title)}</text>')
    for number, (name, points) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        drawn = [(xs.at(x), ys.at(y)) for x, y in points if x > 0 and y > 0]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in drawn)
        body.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        if len(drawn) <= 12:
            body += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in drawn]
        y = TOP + 14 + number * 20
        body.append(f'<rect x="{WIDTH - RIGHT + 14}" y="{y - 9}" width="10" height="10" fill="{colour}"/>')
        body.append(f'<text x="{WIDTH - RIGHT + 30}" y="{y}">{escape(name)}</text>')
    return _frame(title, body)


def bars(title: str, unit: str, values: dict[str, tuple[float, float, float]]) -> str:
    """One bar for each name: first quartile, median, third quartile."""
    left, step = 170, (HEIGHT - TOP - 30) / max(1, len(values))
    most = max((high for _, _, high in values.values()), default=1.0) or 1.0
    scale = (WIDTH - left - 110) / most
    body = []
    for number, (name, (low, middle, high)) in enumerate(values.items()):
        y = TOP + number * step
        colour = COLOURS[0] if name == "ours" else "#9aa5b1"
        body.append(f'<text x="{left - 8}" y="{y + step / 2 + 4:.1f}" text-anchor="end">{escape(name)}</text>')
        body.append(
            f'<rect x="{left}" y="{y + 4:.1f}" width="{middle * scale:.1f}" height="{step - 8:.1f}" fill="{colour}"/>'
        )
        span = f"M{left + low * scale:.1f} {y + step / 2:.1f}H{left + high * scale:.1f}"
        body.append(f'<path d="{span}" stroke="#222" stroke-width="1.5"/>')
        at = left + max(high, middle) * scale + 8
        body.append(f'<text x="{at:.1f}" y="{y + step / 2 + 4:.1f}">{short(middle)} {escape(unit)}</text>')
    return _frame(title, body)
