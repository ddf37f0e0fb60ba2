"""Charts as inline SVG: they take their colours from the page, by day and by night."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias
from xml.etree.ElementTree import Element

from .elements import tag

__all__ = ["Series", "dots", "layers_over_time", "lines", "percent", "thinned"]

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 400, 54, 22, 10, 36
MOST_POINTS = 500  # of a line; more could not be told apart

Points: TypeAlias = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Attributes:
        label: What it shows.
        points: (step, value) pairs, by step.
        stepped: Whether a value holds until the next point.
        dashed: Whether it is what was planned, not what was measured.
        marked: Whether every point gets a dot.
    """

    label: str
    points: Points
    stepped: bool = False
    dashed: bool = False
    marked: bool = False


@dataclass(frozen=True)
class Frame:
    """Where values lie in the picture: x from 0 to ``wide``, y from 0 to ``high``."""

    wide: float
    high: float
    height: int

    def x(self, value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * value / self.wide

    def y(self, value: float) -> float:
        return self.height - BOTTOM - (self.height - TOP - BOTTOM) * value / self.high


def percent(value: float) -> str:
    """A share in percent, four digits; that of nothing is not known.

    >>> percent(0.1), percent(0.012345), percent(math.nan)
    ('10 %', '1.234 %', 'unknown')
    """
    return "unknown" if math.isnan(value) else f"{100 * value:.4g} %"


def thinned(items: Sequence[Any], most: int) -> list[Any]:
    """At most that many, at least 1, evenly spread: the first and, of several, the last too.

    >>> thinned([0, 1, 2, 3, 4, 5, 6], 3), thinned([0, 1, 2], 1)
    ([0, 3, 6], [0])
    """
    if len(items) <= most:
        return list(items)
    if most == 1:
        return [items[0]]
    return [items[round(place * (len(items) - 1) / (most - 1))] for place in range(most)]


def ticks(high: float, most: int, whole: bool = False) -> list[float]:
    """Round numbers from 0 to at most ``high``.

    >>> ticks(0.34, 5)
    [0.0, 0.1, 0.2, 0.3]
    """
    rough = max(high / most, 1.0 if whole else 0.0)
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough * (1 - 1e-9))
    return [round(number * step, 12) for number in range(int(high / step + 1e-9) + 1)]


def lines(alt: str, series: Sequence[Series], last_step: int) -> Element:
    """Shares over training steps; the vertical axis starts at 0 and is in percent.

    Args:
        alt: What the chart says, for those who cannot see it.
        series: At most three.
        last_step: Where the horizontal axis ends.
    """
    high = max((value for one in series for _, value in one.points), default=0.0)
    frame = Frame(max(last_step, 1), 1.05 * high if high > 0 else 1.0, 220)
    names = ("one", "two", "three")
    drawn = [
        shape
        for name, one in zip(names, series, strict=False)
        for shape in _line(frame, one, name, last_step)
    ]
    keys = [
        tag("span", tag("span", class_=f"key {name}{' dashed' if one.dashed else ''}"), one.label)
        for name, one in zip(names, series, strict=False)
    ]
    chart = _svg(alt, frame.height, *_across(frame), *_up(frame, percent), *drawn)
    return tag("div", chart, tag("p", *keys, class_="keys"))


def _line(frame: Frame, one: Series, name: str, last_step: int) -> list[Element]:
    finite = [(step, value) for step, value in one.points if math.isfinite(value)]
    if not finite:
        return []
    points = thinned(finite, MOST_POINTS)
    begun = f"M{frame.x(points[0][0]):.1f} {frame.y(points[0][1]):.1f}"
    path = begun
    for step, value in points[1:]:
        x, y = frame.x(step), frame.y(value)
        path += f"H{x:.1f}V{y:.1f}" if one.stepped else f"L{x:.1f} {y:.1f}"
    path += f"H{frame.x(last_step):.1f}" if one.stepped else ""
    shapes = [tag("path", d=path, class_=f"{name} dashed" if one.dashed else name)]
    if one.marked and len(points) <= 60:
        shapes.append(_dots([(frame.x(x), frame.y(y)) for x, y in points], f"{name} dots"))
    return shapes


def dots(alt: str, values: Sequence[float], label: str, below: str, count: int) -> Element:
    """One dot per value, in order, on an axis from 0 to ``count - 1``; none where not finite."""
    finite = [(number, value) for number, value in enumerate(values) if math.isfinite(value)]
    high = max((value for _, value in finite), default=0.0)
    frame = Frame(max(count - 1, 1), 1.08 * high if high > 0 else 1.0, 130)
    apart = (count - 1) / max(len(values) - 1, 1)
    places = [(frame.x(number * apart), frame.y(value)) for number, value in finite]
    drawn = [_dots(places, "one small")] if places else []
    return tag(
        "div",
        tag("p", label, class_="axis"),
        _svg(alt, frame.height, *_across(frame, below), *_up(frame, short, 3), *drawn),
    )


def layers_over_time(alt: str, picture: str, layers: int, last_step: int) -> Element:
    """A picture of a row per layer and a column per stretch of training, with its axes.

    Args:
        alt: What the chart says.
        picture: The picture as a ``data:`` address.
        layers: How many rows it has.
        last_step: Where the horizontal axis ends.
    """
    height = round(TOP + BOTTOM + min(max(18 * layers, 60), 420))
    frame = Frame(max(last_step, 1), float(layers), height)
    image = tag(
        "image", href=picture, preserveAspectRatio="none", x=LEFT, y=TOP,
        width=WIDTH - LEFT - RIGHT, height=height - TOP - BOTTOM,
    )  # fmt: skip
    every = math.ceil(12 * layers / (height - TOP - BOTTOM))
    rows = [
        _text(LEFT - 6, TOP + (number - 0.5) * (height - TOP - BOTTOM) / layers + 4,
              f"{number}", "end")
        for number in range(1, layers + 1, every)
    ]  # fmt: skip
    return _svg(alt, height, image, *_across(frame), *rows)


def short(value: float) -> str:
    """A number in few characters.

    >>> short(1250.0), short(0.5), short(3e7)
    ('1,250', '0.5', '3e+07')
    """
    return f"{value:,.0f}" if 1000 <= value < 1e6 else f"{value:g}"


def _across(frame: Frame, label: str = "optimizer steps") -> list[Element]:
    bottom = frame.height - BOTTOM
    marks = [
        _text(frame.x(value), bottom + 15, short(value), "middle")
        for value in ticks(frame.wide, 4, whole=True)
    ]
    axis = tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=bottom, y2=bottom)
    return [axis, *marks, _text((LEFT + WIDTH - RIGHT) / 2, frame.height - 5, label, "middle")]


def _up(frame: Frame, form: Any, most: int = 5) -> list[Element]:
    shapes = []
    for value in ticks(frame.high, most):
        y = frame.y(value)
        shapes.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y))
        shapes.append(_text(LEFT - 6, y + 4, form(value), "end"))
    return shapes


def _dots(places: Points, name: str) -> Element:
    return tag("path", d="".join(f"M{x:.1f} {y:.1f}h0" for x, y in places), class_=name)


def _text(x: float, y: float, text: str, anchor: str) -> Element:
    return tag("text", text, x=x, y=y, text_anchor=anchor)


def _svg(alt: str, height: int, *shapes: Element) -> Element:
    return tag("svg", *shapes, viewBox=f"0 0 {WIDTH} {height}", role="img", aria_label=alt)
