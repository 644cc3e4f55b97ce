"""Pictures of what exits do: where images leave, and what accuracy costs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compress.exits.sweep import ExitReport
from compress.files import replacing
from compress.optional import require

__all__ = ["save_exit_rates", "save_tradeoff"]

BLUE, RED, GREY = "#3b6fb6", "#c0392b", "#888888"
MOST_LETTERS = 50  # along the axis, beside one another


def save_exit_rates(report: ExitReport, path: Path) -> None:
    """Draw the share of images that leave at each exit, and their accuracy.

    Args:
        report: at the deployed thresholds.
        path: its ending names the format, such as .svg or .png.
    """
    figure, axes = _figure()
    places = [str(position) for position in report.positions]
    axes.bar(places, report.rates, color=BLUE)
    axes.set_xlabel("leaves behind block" if report.depth else "leaves behind")
    if sum(map(len, places)) > MOST_LETTERS:  # else names of modules run into one another
        axes.tick_params(axis="x", rotation=45)
    axes.set_ylabel("share of images, %", color=BLUE)
    accuracy = axes.twinx()
    nobody = float("nan")  # leaves a gap where no image leaves
    values = [nobody if value is None else value for value in report.accuracies]
    accuracy.plot(places, values, color=RED, marker="o")
    accuracy.set_ylabel("accuracy of these, %", color=RED)
    accuracy.set_ylim(top=101)
    accuracy.spines["top"].set_visible(False)
    _write(figure, path)


def save_tradeoff(
    reports: Sequence[ExitReport], path: Path, *, chosen: ExitReport | None = None
) -> None:
    """Draw accuracy over the expected multiply-adds of a sweep.

    Args:
        reports: one for each threshold.
        path: its ending names the format.
        chosen: a point to mark.
    """
    figure, axes = _figure()
    costs = [report.expected_macs / 1e6 for report in reports]
    axes.plot(costs, [report.acc1 for report in reports], color=BLUE, marker=".")
    axes.axvline(reports[0].full_macs / 1e6, color=GREY, linestyle=":", linewidth=1)
    axes.annotate("without exits", (reports[0].full_macs / 1e6, 0.02), color=GREY, rotation=90,
                  xycoords=("data", "axes fraction"), ha="right", va="bottom")  # fmt: skip
    if chosen is not None:
        axes.plot(chosen.expected_macs / 1e6, chosen.acc1, color=RED, marker="o", linestyle="")
        axes.annotate(
            f"threshold {chosen.threshold_text}", (chosen.expected_macs / 1e6, chosen.acc1),
            xytext=(6, -10), textcoords="offset points", color=RED,
        )  # fmt: skip
    axes.set_xlabel("expected multiply-adds of an image, millions")
    axes.set_ylabel("accuracy, %")
    _write(figure, path)


def _figure() -> tuple[Any, Any]:
    require("matplotlib", "drawing figures")
    from matplotlib.figure import Figure  # without pyplot: no window system, no global state

    figure = Figure(figsize=(6, 3.4), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _write(figure: Any, path: Path) -> None:
    metadata = {"Date": None} if path.suffix == ".svg" else None  # same figures, same file
    with replacing(path) as part:
        figure.savefig(part, format=path.suffix.lstrip("."), metadata=metadata)
