"""The drawings of a report, each from the facts of one step."""

import base64
from collections.abc import Callable, Sequence
from dataclasses import replace

from compress.report.charts import Bar, Series, bars, histogram, lines
from compress.report.facts import Chain, Curve, Epoch, Exits, Front, Point, Profile, Slim
from compress.report.layout import Figure
from compress.report.numbers import number_text, percent_text

__all__ = [
    "accuracy_figure",
    "curve_figures",
    "exits_figure",
    "front_figure",
    "gamma_figure",
    "profile_figure",
    "sweep_figure",
    "widths_figure",
]

HELD_OUT = (
    "On calibration images. The chosen plan was counted on other images than those which its "
    "thresholds were found on, the curves on all of them."
)
MORE_EPOCHS = 500  # a line of more has no more to show at this width


def accuracy_figure(chain: Chain) -> Figure | None:
    """Draw the networks of a chain, accuracy over MACs; None where fewer than two have both."""
    series: list[Series] = []
    for network in chain.networks:
        if network.macs is not None and network.acc1 is not None:
            points = ((network.macs / 1e6, network.acc1),)
            series.append(Series(name=network.name, slot=len(series), points=points, joined=False))
    if len(series) < 2:
        return None
    title = "Accuracy against cost"
    svg = lines(series, title, x_words="Million MACs an image", y_words="Accuracy, %", y_most=100)
    return Figure(title=title, svg=svg, legend=_legend(series))


def widths_figure(slim: Slim) -> Figure | None:
    """Draw the channels of every layer before and after; None where no layer was told."""
    if not slim.layers:
        return None
    rows = [
        Bar(
            name=each.name, value=each.after, of=each.before, words=f"{each.after} of {each.before}"
        )
        for each in slim.layers
    ]
    title = f"Widths of {slim.network}"
    note = "Channels that stay, over a bar of those that were there."
    return Figure(title=title, svg=bars(rows, title, right=70), note=note)


def gamma_figure(slim: Slim) -> Figure | None:
    """Draw how |γ| are spread, and the threshold; None where nothing tells it."""
    title = f"|γ| of {slim.network}"
    note = _gamma_note(slim)
    if slim.histogram is not None:
        found = slim.histogram
        svg = histogram(found.edges, found.counts, title, x_words="|γ|", line=slim.threshold)
        return Figure(title=title, svg=svg, note=note)
    if slim.picture:
        # As a picture, not as markup: whatever an SVG file holds, a browser runs and fetches none.
        content = base64.b64encode(slim.picture).decode()
        return Figure(title=title, picture=f"data:image/svg+xml;base64,{content}", note=note)
    return None


def curve_figures(curves: Sequence[Curve]) -> list[Figure]:
    """Draw accuracy, loss on validation images and training loss of trainings, an epoch each."""
    wanted: tuple[tuple[str, str, Callable[[Epoch], float | None], float | None], ...] = (
        ("Validation accuracy", "Accuracy, %", lambda epoch: epoch.acc1, 100.0),
        ("Validation loss", "Cross entropy, nats", lambda epoch: epoch.validation_loss, None),
        ("Training loss", "Loss", lambda epoch: epoch.train_loss, None),
    )
    found = []
    for title, y_words, value, most in wanted:
        series = [
            Series(name=curve.name, slot=slot, points=points)
            for slot, curve in enumerate(curves)
            if (points := _points_of(curve, value))
        ]
        if series:
            svg = lines(series, title, x_words="Epoch", y_words=y_words, y_most=most, x_step=1)
            found.append(Figure(title=title, svg=svg, legend=_legend(series)))
    return found


def exits_figure(found: Exits) -> Figure:
    """Draw the share of images that leave at each exit."""
    rows = [
        Bar(
            name=each.place,
            value=100 * each.share,
            words=f"{percent_text(100 * each.share, 1)}{_right(each.acc1)}",
        )
        for each in found.exits
    ]
    title = f"Where images leave: {found.network}"
    note = "Share of the images, and how many of them are classified rightly."
    longest = max(len(each.place) for each in found.exits)
    left = 64 if longest <= len("final head") else 92  # a path of a module needs more room
    return Figure(title=title, svg=bars(rows, title, left=left, right=124), note=note)


def sweep_figure(found: Exits) -> Figure | None:
    """Draw accuracy against cost over all thresholds, with the chosen one."""
    series = [Series(name="one threshold for all exits", slot=0, points=_places(found.sweep))]
    for words, point in (("chosen", found.chosen), ("oracle", found.oracle)):
        series.append(_mark(words, point, len(series)))
    return _against_cost([each for each in series if each.points], found.network)


def front_figure(found: Front) -> Figure | None:
    """Draw accuracy against cost for every method of planning, with the chosen plan."""
    series = [
        Series(name=method, slot=slot, points=_places(points))
        for slot, (method, points) in enumerate(found.series)
    ]
    series.append(_mark("chosen", found.chosen, len(series)))
    figure = _against_cost([each for each in series if each.points], found.network)
    return replace(figure, note=HELD_OUT) if figure and found.held_out else figure


def profile_figure(profile: Profile) -> Figure | None:
    """Draw the share of every operation; None where no share was told."""
    rows = [
        Bar(name=each.name, value=100 * each.share, words=percent_text(100 * each.share, 1))
        for each in profile.operations
        if each.share is not None
    ]
    title = f"Time in operations: {profile.network}"
    return Figure(title=title, svg=bars(rows, title, left=112)) if rows else None


def _against_cost(series: Sequence[Series], network: str) -> Figure | None:
    if not series:
        return None
    title = f"Accuracy against cost: {network}"
    svg = lines(
        series,
        title,
        x_words="Cost of an image, % of the whole network",
        y_words="Accuracy, %",
        y_most=100,
        x_line=(100.0, "whole network"),
    )
    oracle = any(each.name == "oracle" for each in series)
    note = "The oracle lets every image leave at the first exit that is right." if oracle else ""
    return Figure(title=title, svg=svg, legend=_legend(series), note=note)


def _mark(words: str, point: Point | None, slot: int) -> Series:
    points = () if point is None else _places([point])
    label = point.label if point is not None and words == "chosen" else ""
    name = f"{words}: {label}" if label and label != "plan" else words
    return Series(name=name, slot=slot, points=points, joined=False, words=words)


def _places(points: Sequence[Point]) -> tuple[tuple[float, float], ...]:
    ascending = sorted(points, key=lambda each: (each.cost_share, each.acc1))
    return tuple((100 * each.cost_share, each.acc1) for each in ascending)


def _points_of(
    curve: Curve, value: Callable[[Epoch], float | None]
) -> tuple[tuple[float, float], ...]:
    every = -(-len(curve.epochs) // MORE_EPOCHS)
    pairs = [(epoch.epoch, value(epoch)) for epoch in curve.epochs[::every]]
    return tuple((x, y) for x, y in pairs if y is not None)


def _legend(series: Sequence[Series]) -> tuple[tuple[int, str], ...]:
    return tuple((each.slot % 8, each.name) for each in series)


def _right(acc1: float | None) -> str:
    return "" if acc1 is None else f", {percent_text(acc1, 1)} right"


def _gamma_note(slim: Slim) -> str:
    said = []
    if slim.threshold is not None:
        said.append(f"Channels below the threshold of {number_text(slim.threshold)} are removed.")
    if slim.share_below_1pct is not None:
        share = percent_text(100 * slim.share_below_1pct, 1)
        said.append(f"{share} of all |γ| are below 1% of the largest.")
    return " ".join(said)
