"""Figures at a threshold, and over many: counts first, so that everything adds up exactly.

Percentages are floats of these counts, computed in the order in which the published logs compute
theirs (share first, then times 100), so that they agree to the last digit.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.errors import UserInputError
from compress.exits.replay import ReplayTable, decide
from compress.measure.accuracy import Accuracy
from compress.runtime.exit_spelling import Position

__all__ = [
    "ExitReport",
    "choose_threshold",
    "evaluate_at",
    "parse_sweep",
    "sweep",
    "whole_network",
]

MAX_STEPS = 10_000


@dataclass(frozen=True, kw_only=True)
class ExitReport:
    """What a network does at given thresholds.

    Attributes:
        positions: where images can leave, the final head last, as `ReplayTable.last` names it.
        thresholds: one for each exit but the final head.
        depth: blocks of the network, 0 where it is not counted in blocks.
        counts: images that leave at each exit.
        correct: how many of these are classified rightly.
        correct5: how many have their class among the five largest logits.
        loss_sum: cross entropy over all images, nats.
        macs_sum: multiply-adds over all images.
        full_macs: multiply-adds of one image through the whole network without exits.
    """

    positions: tuple[Position, ...]
    thresholds: tuple[float, ...]
    depth: int
    counts: tuple[int, ...]
    correct: tuple[int, ...]
    correct5: int
    loss_sum: float
    macs_sum: int
    full_macs: int

    @property
    def images(self) -> int:
        """How many images there are."""
        return sum(self.counts)

    @property
    def threshold_text(self) -> str:
        """The threshold where all exits have the same, otherwise one for each."""
        bars = self.thresholds
        return ", ".join(map(str, bars[:1] if len(set(bars)) == 1 else bars))

    @property
    def rates(self) -> tuple[float, ...]:
        """Share of the images that leave at each exit, in per cent."""
        return tuple(count / self.images * 100 for count in self.counts)

    @property
    def accuracies(self) -> tuple[float | None, ...]:
        """Accuracy of the images that leave at each exit, in per cent; None where none does."""
        pairs = zip(self.correct, self.counts, strict=True)
        return tuple(right / count * 100 if count else None for right, count in pairs)

    @property
    def acc1(self) -> float:
        """Accuracy over all images, in per cent."""
        return 100.0 * sum(self.correct) / self.images

    @property
    def acc5(self) -> float:
        """Share of images whose class is among the five largest logits, in per cent."""
        return 100.0 * self.correct5 / self.images

    @property
    def loss(self) -> float:
        """Mean cross entropy, nats."""
        return self.loss_sum / self.images

    @property
    def expected_macs(self) -> float:
        """Multiply-adds of an image on average."""
        return self.macs_sum / self.images

    @property
    def macs_share(self) -> float:
        """Expected multiply-adds over those of the whole network without exits."""
        return self.expected_macs / self.full_macs

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        return {
            "positions": list(self.positions),
            "thresholds": list(self.thresholds),
            "counts": list(self.counts),
            "correct": list(self.correct),
            "rates": list(self.rates),
            "accuracies": list(self.accuracies),
            "images": self.images,
            "correct5": self.correct5,
            "macs_sum": self.macs_sum,
            "acc1": self.acc1,
            "acc5": self.acc5,
            "loss": self.loss if math.isfinite(self.loss) else None,
            "expected_macs": self.expected_macs,
            "macs_share": self.macs_share,
        }


def evaluate_at(
    table: ReplayTable,
    thresholds: float | Sequence[float],
    *,
    positions: Sequence[Position] | None = None,
) -> ExitReport:
    """Return what the network does at these thresholds.

    Args:
        table: of the images.
        thresholds: one for all exits, or one for each, in [0, 1].
        positions: of the exits that are used; all by default. The others cost nothing.

    Raises:
        UserInputError: a position or a threshold does not fit.
    """
    exits = table.subset(positions)
    taken = decide(table, thresholds, exits=exits)
    logits = table.logits[np.arange(len(table)), taken]  # (N, K)
    ahead = _classes_ahead(logits, table.labels)
    places = [*exits.tolist(), table.exits]
    counts = [int((taken == place).sum()) for place in places]
    macs = table.macs_of(exits)
    bars = [thresholds] * len(exits) if isinstance(thresholds, int | float) else thresholds
    none = np.array([], dtype=np.int64)
    return ExitReport(
        positions=(*(table.positions[i] for i in exits), table.last),
        thresholds=tuple(float(bar) for bar in bars),
        depth=table.depth,
        counts=tuple(counts),
        correct=tuple(int((ahead[taken == place] < 1).sum()) for place in places),
        correct5=int((ahead < 5).sum()),
        loss_sum=_cross_entropy_sum(logits, table.labels),
        macs_sum=sum(count * int(macs[i]) for count, i in zip(counts, places, strict=True)),
        full_macs=int(table.macs_of(none)[-1]),
    )


def sweep(
    table: ReplayTable, values: Sequence[float], *, positions: Sequence[Position] | None = None
) -> list[ExitReport]:
    """Return what the network does at each of these thresholds, the same for all exits."""
    return [evaluate_at(table, value, positions=positions) for value in values]


def choose_threshold(table: ReplayTable, values: Sequence[float], *, max_drop: float) -> float:
    """Return the threshold that costs least and loses at most `max_drop` points of accuracy.

    Args:
        table: of the calibration split; a threshold chosen on test data would flatter itself.
        values: thresholds to choose from, the same for all exits.
        max_drop: points below the accuracy of the whole network, at least 0.

    Returns:
        The cheapest such threshold; where none keeps the accuracy, 1, at which hardly any gate
        fires.
    """
    whole = 100.0 * float(table.correct[:, -1].mean())
    fit = [r for r in sweep(table, values) if r.acc1 >= whole - max_drop - 1e-9]
    best = min(fit, key=lambda report: (report.macs_sum, -report.acc1), default=None)
    return 1.0 if best is None else best.thresholds[0]


def whole_network(table: ReplayTable) -> Accuracy:
    """Return the accuracy of the final head on all images."""
    logits = table.logits[:, -1]
    ahead = _classes_ahead(logits, table.labels)
    return Accuracy(
        count=len(table),
        correct=int((ahead < 1).sum()),
        correct5=int((ahead < 5).sum()),
        loss_sum=_cross_entropy_sum(logits, table.labels),
    )


def parse_sweep(text: str) -> list[float]:
    """Return the thresholds of "first:last:step", both ends included, in decimal arithmetic.

    >>> parse_sweep("0.2:0.4:0.1")
    [0.2, 0.3, 0.4]

    Raises:
        UserInputError: it has another form, or a threshold is outside [0, 1].
    """
    try:
        first, last, step = (Decimal(part) for part in text.split(":"))
        steps = int((last - first) / step) if step > 0 else -1
    except (ValueError, InvalidOperation, OverflowError) as err:
        raise UserInputError(f"--sweep is {text!r}; expected FIRST:LAST:STEP") from err
    if not (0 <= first <= last <= 1) or not 0 <= steps < MAX_STEPS:
        raise UserInputError(
            f"--sweep is {text!r}; expected 0 <= FIRST <= LAST <= 1 and a STEP above 0 that gives "
            f"at most {MAX_STEPS} thresholds"
        )
    return [float(first + i * step) for i in range(steps + 1)]


def _classes_ahead(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many classes stand before the right one (N,); of equal logits the first leads."""
    own = logits[np.arange(len(labels)), labels][:, None]
    earlier = np.arange(logits.shape[1]) < labels[:, None]
    ahead: NDArray[np.int64] = ((logits > own) | ((logits == own) & earlier)).sum(axis=1)
    return ahead


def _cross_entropy_sum(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    log_sum = np.log(np.exp(wide).sum(axis=1))
    return float((log_sum - wide[np.arange(len(labels)), labels]).sum())
