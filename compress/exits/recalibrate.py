"""Thresholds for a network whose scores moved: after slimming, quantisation, another precision.

The thresholds of the network before let certain shares of the calibration images leave at each
exit. Here thresholds are found at which the same shares leave the network after.

Exit by exit, in the order of the network: `c` of the `n` images that arrived before left, so of
the `m` that arrive now, k = c * m / n shall leave, rounded to the nearest whole number, halves
down. Images leave in the order of their scores, the highest first, so a threshold between two
neighbouring scores decides how many. Rules:

- A threshold that already lets k leave is kept.
- Else it is set in the middle between the score of the last that leaves and the first that stays,
  rounded to float32, so that a device that compares in float32 decides the same. Where all leave,
  0 takes the place of the score below, and where none does, 1 that of the score above.
- Equal scores leave together or not at all: of the numbers that can leave, the nearest to k is
  taken, the smaller of two that are equally near. A score of 1 leaves at every threshold, one that
  is not a number at none.
- An exit at which no image arrived, before or now, or whose scores are no numbers, keeps its
  threshold.

Example: 2 of 5 images left at the threshold 0.8. Their scores are now 0.70, 0.50, 0.40, 0.30 and
0.20. At 0.8 none would leave; 2 shall, so the threshold is (0.50 + 0.40) / 2 = 0.45. Were the
scores 0.70, 0.50, 0.50, 0.30 and 0.20, then 1 or 3 could leave, which are equally near to 2, so 1
does, at (0.70 + 0.50) / 2 = 0.60.

With no ties, no score of 1 and no NaN, the rates after are those before. Otherwise an exit misses
its share by the images that cannot be parted, and the exits behind it keep their shares of those
that arrive, so that the miss is not made up for by images of another kind.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.errors import UserInputError
from compress.exits.replay import ReplayTable
from compress.exits.sweep import ExitReport, evaluate_at
from compress.runtime.decision import fires
from compress.runtime.exit_spelling import joined
from compress.runtime.thresholds import check_thresholds

__all__ = ["Recalibration", "recalibrated"]


@dataclass(frozen=True, kw_only=True)
class Recalibration:
    """What became of exit rates and accuracy, and thresholds that bring the rates back.

    Attributes:
        thresholds: the new ones, one for each exit of the network after.
        before: the network before at the old thresholds.
        drifted: the network after at the old thresholds.
        after: the network after at the new thresholds.
    """

    thresholds: tuple[float, ...]
    before: ExitReport
    drifted: ExitReport
    after: ExitReport

    @property
    def drift(self) -> float:
        """The largest change of an exit's rate at the old thresholds, in points of per cent."""
        return _largest_change(self.before, self.drifted)

    @property
    def remaining_drift(self) -> float:
        """The same at the new thresholds."""
        return _largest_change(self.before, self.after)

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON values; rates and accuracies in per cent."""
        reports = {"before": self.before, "drifted": self.drifted, "after": self.after}
        return {
            "thresholds": list(self.thresholds),
            "former_thresholds": list(self.before.thresholds),
            "rates": {name: list(report.rates) for name, report in reports.items()},
            "acc1": {name: report.acc1 for name, report in reports.items()},
            "expected_macs": {name: report.expected_macs for name, report in reports.items()},
            "drift": self.drift,
            "remaining_drift": self.remaining_drift,
            "images": self.before.images,
        }

    def to_text(self) -> str:
        """Return the figures in one line."""
        former, new = (
            ", ".join(f"{bar:.4g}" for bar in bars)
            for bars in (self.before.thresholds, self.thresholds)
        )
        return (
            f"exit rates had moved by up to {self.drift:.1f} points; thresholds {former} -> {new} "
            f"leave {self.remaining_drift:.1f}; accuracy {self.before.acc1:.2f} % -> "
            f"{self.after.acc1:.2f} % of {self.before.images} calibration images"
        )


def recalibrated(
    before: ReplayTable, after: ReplayTable, thresholds: float | Sequence[float]
) -> Recalibration:
    """Return thresholds at which `after` lets the same shares leave as `before` does at the old.

    Args:
        before: of the calibration split; exits that `after` does not have are not used.
        after: of the same images in the same order.
        thresholds: one for all exits of `after`, or one for each, in [0, 1].

    Raises:
        UserInputError: the tables are not of the same images, `after` has no exits or others than
            `before`, or the thresholds do not fit.
    """
    _check_comparable(before, after)
    bars = check_thresholds(thresholds, after.exits)
    exits = before.subset(after.positions)
    renewed = _renewed(before.scores[:, exits], after.scores, bars)
    return Recalibration(
        thresholds=tuple(renewed),
        before=evaluate_at(before, bars, positions=after.positions),
        drifted=evaluate_at(after, bars),
        after=evaluate_at(after, renewed),
    )


def _renewed(
    before: NDArray[np.float32], after: NDArray[np.float32], bars: Sequence[float]
) -> list[float]:
    """Return the new thresholds for scores (N, E) before and after."""
    was_here = np.ones(len(before), dtype=bool)
    is_here = was_here.copy()
    renewed = []
    for i, bar in enumerate(bars):
        left = was_here & fires(before[:, i], bar)
        arrived, arrive = int(was_here.sum()), int(is_here.sum())
        if arrived and arrive:
            wanted = _nearest(int(left.sum()) * arrive, arrived)
            bar = _threshold(after[is_here, i], wanted, bar)
        renewed.append(bar)
        was_here &= ~left
        is_here &= ~fires(after[:, i], bar)
    return renewed


def _threshold(scores: NDArray[np.float32], wanted: int, bar: float) -> float:
    """Return the threshold at which the wanted number leaves, or the nearest that can."""
    if int(fires(scores, bar).sum()) == wanted:
        return bar
    # Distinct values, the highest first; above them 1, at which none leaves, below them 0.
    values, counts = np.unique(scores[~np.isnan(scores)], return_counts=True)
    if not len(values):
        return bar
    values, counts = values[::-1].astype(np.float64), counts[::-1]
    leaving = np.concatenate([[0], np.cumsum(counts)])
    above, below = np.concatenate([[1.0], values]), np.concatenate([values, [0.0]])
    possible = np.flatnonzero((above > below) | (np.arange(len(above)) == len(values)))
    # argmin takes the first of equals, where fewer leave.
    cut = possible[np.abs(leaving[possible] - wanted).argmin()]
    middle = float(np.float32((above[cut] + below[cut]) / 2))
    return middle if middle > below[cut] or cut == len(values) else float(above[cut])


def _nearest(numerator: int, denominator: int) -> int:
    """Return the fraction rounded to the nearest whole number, halves down, in whole numbers."""
    return -((denominator - 2 * numerator) // (2 * denominator))


def _largest_change(one: ExitReport, other: ExitReport) -> float:
    return max(abs(a - b) for a, b in zip(one.rates, other.rates, strict=True))


def _check_comparable(before: ReplayTable, after: ReplayTable) -> None:
    if not np.array_equal(before.labels, after.labels):
        raise UserInputError(
            f"the replay tables are of other images ({len(before)} of {before.source.data} "
            f"{before.source.split}, {len(after)} of {after.source.data} {after.source.split}); "
            "expected both of the same calibration split"
        )
    if not after.exits or not set(after.positions) <= set(before.positions):
        raise UserInputError(
            f"the network has exits behind {joined(after.positions) or 'nothing'} now and had them "
            f"behind {joined(before.positions)}; expected at least one, and each among those before"
        )
