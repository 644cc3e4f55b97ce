"""The tables of exits, plans, exports, dispatches and profiles, and of where all was measured."""

from collections.abc import Callable, Sequence

from compress.report.comparison import EMPTY, runtime_words
from compress.report.facts import (
    Dispatch,
    Environment,
    Exits,
    Latency,
    Network,
    Parity,
    Plan,
    Profile,
)
from compress.report.layout import Cell, Table
from compress.report.numbers import (
    bytes_text,
    count_text,
    ms_text,
    number_text,
    percent_text,
)
from compress.report.svg import data_number

__all__ = [
    "dispatch_table",
    "environment_table",
    "exits_table",
    "latency_table",
    "parity_table",
    "plan_table",
    "profile_table",
]

Row = tuple[Cell, ...]


def exits_table(found: Exits) -> Table:
    """Return where images leave, how often they are right, and how good the scores are."""
    rows = [
        (
            Cell(words=each.place),
            _cell(each.count, str),
            _cell(100 * each.share, percent_text),
            _cell(each.acc1, percent_text),
            _cell(each.auroc, _three),
            _cell(each.ece_before, _three),
            _cell(each.ece_after, _three),
        )
        for each in found.exits
    ]
    head = ("Leaves behind", "Images", "Share", "Accuracy", "AUROC", "ECE", "ECE, scaled")
    note = (
        f"Threshold {found.threshold}, {found.images} images. Accuracy is of the images that leave "
        "there. AUROC and expected calibration error (ECE, also after temperature scaling) are of "
        "the exit's own scores over all images."
    )
    return _table(f"Exits of {found.network}", head, rows, note)


def plan_table(plans: Sequence[Plan]) -> Table | None:
    """Return the chosen plans; None where there are none."""
    rows = [
        (
            Cell(words=each.network),
            Cell(words=each.exits or "none"),
            Cell(words=each.thresholds or "–"),
            Cell(words=each.objective.strip() or "–"),
            _cell(None if each.cost_share is None else 100 * each.cost_share, percent_text),
            _cell(each.acc1, percent_text),
            Cell(words=_interval(each)),
            Cell(words=each.guarantee or "–"),
        )
        for each in plans
    ]
    head = ("Network", "Exits", "Thresholds", "Objective", "Cost", "Accuracy", "Interval",
            "Guarantee")  # fmt: skip
    return _table("Plans", head, rows) if rows else None


def parity_table(found: Sequence[Parity]) -> Table | None:
    """Return how far exported networks compute what torch does; None where none was exported."""
    rows = [
        (
            Cell(words=each.network),
            Cell(words=each.form),
            _cell(each.opset, str),
            _cell(each.segments, str),
            _cell(each.size_bytes, bytes_text),
            _cell(each.worst_relative_error, number_text),
            _cell(each.worst_gate_error, number_text),
            _share(each.top1_agreement),
            _share(each.exit_agreement),
            _cell(each.images, str),
        )
        for each in found
    ]
    head = ("Network", "Form", "Opset", "Segments", "Size", "Worst relative error",
            "Worst gate error", "Same class", "Same exit", "Images")  # fmt: skip
    return _table("Parity of exports with torch", head, rows) if rows else None


def dispatch_table(found: Sequence[Dispatch]) -> Table | None:
    """Return how many decisions of the bundles are torch's; None where none was dispatched."""
    rows = [
        (
            Cell(words=each.network),
            _cell(each.images, str),
            _cell(each.same, str),
            _cell(100 * each.same / each.images, percent_text),
            _cell(each.acc1, percent_text),
            Cell(words=" · ".join(map(str, each.exit_counts)) or "–"),
        )
        for each in found
    ]
    head = ("Network", "Images", "Same decision", "Agreement", "Accuracy", "Images at each exit")
    note = "A decision is the same when class and exit are those of torch."
    return _table("Dispatch agreement", head, rows, note) if rows else None


def latency_table(networks: Sequence[Network]) -> Table | None:
    """Return the spread of all latencies; None where nothing was timed."""
    rows = [
        (Cell(words=network.name), Cell(words=runtime_words(each.runtime)), *_spread(each))
        for network in networks
        for each in network.latencies
    ]
    head = ("Network", "Runtime", "10%", "Median", "90%", "99%", "Images per second")
    note = "Percentiles of the time of one image; images per second at the median."
    return _table("Latency", head, rows, note) if rows else None


def profile_table(profile: Profile) -> Table:
    """Return the operations of a network."""
    rows = [
        (
            Cell(words=each.name),
            _cell(each.hits, str),
            _cell(each.total_ms, ms_text),
            _cell(each.per_hit_ms, ms_text),
            _share(each.share),
        )
        for each in profile.operations
    ]
    head = ("Operation", "Hits", "Total", "Per hit", "Share")
    return _table(f"Operations of {profile.network}", head, rows)


def environment_table(environment: Environment, title: str) -> Table:
    """Return hardware and versions that steps ran with."""
    rows = [(Cell(words=name), Cell(words=value)) for name, value in environment.values]
    return _table(title, ("Part", "Version"), rows)


def _table(title: str, head: tuple[str, ...], rows: Sequence[Row], note: str = "") -> Table:
    """Return a table without the columns in which nothing stands."""
    told = [i for i in range(len(head)) if i == 0 or any(row[i] != EMPTY for row in rows)]
    return Table(
        title=title,
        head=tuple(head[i] for i in told),
        rows=tuple(tuple(row[i] for i in told) for row in rows),
        note=note,
    )


def _cell(value: float | None, words: Callable[[float], str]) -> Cell:
    return EMPTY if value is None else Cell(words=words(value), value=data_number(value))


def _three(value: float) -> str:
    return f"{value:.3f}"


def _share(value: float | None) -> Cell:
    return (
        EMPTY if value is None else Cell(words=percent_text(100 * value), value=data_number(value))
    )


def _spread(latency: Latency) -> Row:
    values = (latency.p10_ms, latency.median_ms, latency.p90_ms, latency.p99_ms)
    fps = 1e3 / latency.median_ms if latency.median_ms > 0 else None
    return (*(_cell(value, ms_text) for value in values), _cell(fps, count_text))


def _interval(plan: Plan) -> str:
    if plan.interval is None:
        return "–"
    low, high = plan.interval
    return f"{percent_text(low)} to {percent_text(high)}"
