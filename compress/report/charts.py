"""The three drawings of a report: bars in rows, lines and points over two axes, a histogram.

All are 320 wide, so that on a telephone, and three beside each other on a wide screen, their text
is as large as the text around them.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from compress.report.scale import Scale, round_scale
from compress.report.svg import add, data_number, drawing, svg_text

__all__ = ["Bar", "Series", "bars", "histogram", "lines"]

WIDTH = 320.0
HEIGHT = 220.0
LEFT, RIGHT, TOP, BOTTOM = 40.0, 12.0, 24.0, 38.0
ROW = 21.0  # height of a bar with its gap
NAME_CHARACTERS = 14
DASHES = ("", "5 3", "2 3")


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One bar.

    Attributes:
        name: to its left.
        value: its length, at least 0.
        words: to its right.
        of: length of a paler bar behind it.
    """

    name: str
    value: float
    words: str
    of: float | None = None


@dataclass(frozen=True, kw_only=True)
class Series:
    """Points over two axes.

    Attributes:
        name: in the legend.
        slot: number of its colour.
        points: x and y, in the order in which they are joined.
        joined: whether a line is drawn through them.
        words: written beside the only point, such as "chosen".
    """

    name: str
    slot: int
    points: tuple[tuple[float, float], ...]
    joined: bool = True
    words: str = ""


def bars(rows: Sequence[Bar], title: str, *, left: float = 92.0, right: float = 64.0) -> str:
    """Draw bars below each other, all to one scale that begins at 0.

    Args:
        rows: from top to bottom.
        title: for who cannot see it.
        left: room for the names.
        right: room for the words.
    """
    root = drawing(WIDTH, ROW * len(rows) + 4, title)
    most = max((max(row.value, row.of or 0.0) for row in rows), default=0.0) or 1.0
    room = WIDTH - left - right
    for number, row in enumerate(rows):
        top = number * ROW + 4
        middle = top + 11
        name = add(root, "text", x=left - 8, y=middle, text_anchor="end", words=_cut(row.name))
        if _cut(row.name) != row.name:
            name.text = _cut(row.name)
            add(name, "title", words=row.name)
        if row.of is not None:
            width = room * max(row.of, 0) / most
            add(root, "rect", class_="pale", x=left, y=top, width=width, height=ROW - 6, rx=2.0)
        data = [("name", row.name), ("value", data_number(row.value))]
        data += [] if row.of is None else [("of", data_number(row.of))]
        add(
            root,
            "rect",
            class_="bar",
            x=left,
            y=top,
            width=room * max(row.value, 0) / most,
            height=ROW - 6,
            rx=2.0,
            data=data,
            tip=f"{row.name}: {row.words}",
        )
        add(root, "text", class_="number", x=WIDTH - right + 6, y=middle, words=row.words)
    return svg_text(root)


def lines(
    series: Sequence[Series],
    title: str,
    *,
    x_words: str,
    y_words: str,
    y_most: float | None = None,
    x_line: tuple[float, str] | None = None,
    x_step: float = 0.0,
) -> str:
    """Draw series over two axes.

    Args:
        series: at least one, with at least one point each.
        title: for who cannot see it.
        x_words: what stands along the horizontal axis, with its unit.
        y_words: the same of the vertical axis.
        y_most: the vertical axis never goes above this.
        x_line: a value to draw a dotted line at, and what it is.
        x_step: the least between ticks of the horizontal axis.
    """
    root = drawing(WIDTH, HEIGHT, title)
    xs = [x for each in series for x, _ in each.points] + ([x_line[0]] if x_line else [])
    ys = [y for each in series for _, y in each.points]
    across = round_scale(xs, LEFT, WIDTH - RIGHT, count=5, least_step=x_step)
    room = any(not each.joined for each in series)  # marks on the axis itself would be cut by it
    up = round_scale(ys, HEIGHT - BOTTOM, TOP, most=y_most, room=room)
    _axes(root, across, up, x_words, y_words)
    if x_line is not None:
        place = across.at(x_line[0])
        add(root, "line", class_="reference", x1=place, x2=place, y1=TOP, y2=HEIGHT - BOTTOM)
        turn = f"rotate(-90 {place - 5:.1f} {HEIGHT - BOTTOM - 6:.1f})"
        add(root, "text", class_="faint", x=place - 5, y=HEIGHT - BOTTOM - 6, transform=turn,
            words=x_line[1])  # fmt: skip
    for each in series:
        _draw(root, each, across, up)
    return svg_text(root)


def histogram(
    edges: Sequence[float], counts: Sequence[int], title: str, *, x_words: str, line: float | None
) -> str:
    """Draw counts between edges, over a logarithmic axis where all edges are above 0.

    Args:
        edges: ascending, one more than counts.
        counts: of each gap.
        title: for who cannot see it.
        x_words: what stands along the horizontal axis.
        line: the threshold, drawn where it is inside the edges.
    """
    root = drawing(WIDTH, HEIGHT, title)
    logarithmic = edges[0] > 0
    places = [math.log10(edge) for edge in edges] if logarithmic else list(edges)
    across = round_scale(places, LEFT, WIDTH - RIGHT, count=5)
    up = round_scale([0, *counts], HEIGHT - BOTTOM, TOP)
    _axes(root, across, up, f"{x_words}, power of ten" if logarithmic else x_words, "Channels")
    gaps = zip(itertools.pairwise(edges), itertools.pairwise(places), counts, strict=True)
    for (low, high), (a, b), count in gaps:
        x, width = across.at(a), max(across.at(b) - across.at(a) - 0.5, 0.3)
        data = [("low", data_number(low)), ("high", data_number(high)), ("value", str(count))]
        add(root, "rect", class_="bar", x=x, y=up.at(count), width=width,
            height=up.at(0) - up.at(count), data=data,
            tip=f"{count} channels from {low:.3g} to {high:.3g}")  # fmt: skip
    if line is not None and edges[0] <= line <= edges[-1]:
        place = across.at(math.log10(line) if logarithmic else line)
        add(root, "line", class_="threshold", x1=place, x2=place, y1=TOP, y2=HEIGHT - BOTTOM,
            data=[("threshold", data_number(line))])  # fmt: skip
    return svg_text(root)


def _axes(root: Element, across: Scale, up: Scale, x_words: str, y_words: str) -> None:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    for value, words in up.ticks():
        y = up.at(value)
        add(root, "line", class_="grid", x1=LEFT, x2=right, y1=y, y2=y)
        add(root, "text", class_="tick", x=LEFT - 6, y=y + 3.5, text_anchor="end", words=words)
    for value, words in across.ticks():
        x = across.at(value)
        add(root, "line", class_="axis", x1=x, x2=x, y1=bottom, y2=bottom + 4)
        add(root, "text", class_="tick", x=x, y=bottom + 15, text_anchor="middle", words=words)
    add(root, "line", class_="axis", x1=LEFT, x2=right, y1=bottom, y2=bottom)
    add(root, "text", x=right, y=HEIGHT - 5, text_anchor="end", words=x_words)
    add(root, "text", x=4.0, y=11.0, words=y_words)


def _draw(root: Element, series: Series, across: Scale, up: Scale) -> None:
    places = [(across.at(x), up.at(y)) for x, y in series.points]
    xs, ys = (",".join(map(data_number, values)) for values in zip(*series.points, strict=True))
    data = [("name", series.name), ("x", xs), ("y", ys)]
    colour = f"s{series.slot % 8}"
    tip = f"{series.name}: {series.points[-1][1]:.4g} at {series.points[-1][0]:.4g}"
    if series.joined and len(places) > 1:
        dash = DASHES[series.slot // 8 % len(DASHES)]
        line = add(root, "polyline", class_=f"line {colour}", data=data, tip=tip,
                   points=" ".join(f"{x:.1f},{y:.1f}" for x, y in places))  # fmt: skip
        if dash:
            line.set("stroke-dasharray", dash)
        return
    group = add(root, "g", class_=f"mark {colour}", data=data, tip=tip)
    for x, y in places:
        add(group, "circle", cx=x, cy=y, r=4.5)
    if series.words:
        x, y = places[-1]
        before, below = x > WIDTH / 2, y < HEIGHT / 2
        add(root, "text", class_=f"label {colour}", x=x - 8 if before else x + 8,
            y=y + 15 if below else y - 8, text_anchor="end" if before else "start",
            words=series.words)  # fmt: skip


def _cut(name: str) -> str:
    """Return a name that fits, without its middle: its end tells layers apart."""
    if len(name) <= NAME_CHARACTERS:
        return name
    return f"{name[:5]}…{name[-(NAME_CHARACTERS - 6) :]}"
