"""The points of both planners, of one threshold for all exits, and of the choice by hand.

Two planners propose settings, the search over all subsets and thresholds
(`compress.planning.front`) and the stopping rule (`compress.planning.stopping`). The search starts
from the others' points, so on the calibration images it is never behind them. Whatever is
reported is counted anew, by the decisions of the early return.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.errors import UserInputError
from compress.exits.replay import ReplayTable, exit_numbers
from compress.planning.costs import ExitCosts, expected_cost
from compress.planning.cuts import Settings, pose_problem
from compress.planning.front import Front, cuts_for, search_front
from compress.planning.outcomes import leaving, right
from compress.planning.stopping import stopping_rules
from compress.planning.uniform import uniform_settings
from compress.runtime.exit_spelling import Position
from compress.runtime.thresholds import check_thresholds

__all__ = [
    "UNIFORM",
    "PlanFront",
    "PlanPoint",
    "check_costs",
    "hand_made_settings",
    "plan_front",
    "point_of",
]

UNIFORM = tuple(i / 100 for i in range(101))
MOST_POINTS = 200  # of a planner in a report


@dataclass(frozen=True, kw_only=True)
class PlanPoint:
    """What some settings do on the calibration images.

    Attributes:
        exits: where images can leave, by block or module.
        thresholds: one for each.
        cost: of an image on average, in the unit of the costs.
        share: of the cost of the whole network.
        correct: images classified rightly.
        acc1: accuracy in per cent.
        exit_rates: share of the images that leave at each of `exits` and at the final head.
    """

    exits: tuple[Position, ...]
    thresholds: tuple[float, ...]
    cost: float
    share: float
    correct: int
    acc1: float
    exit_rates: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class PlanFront:
    """What can be had: the points of every planner.

    Attributes:
        search: the front that the search found, whole.
        points: per planner ("search", "stopping", "uniform", "hand-made") its points by rising
            cost; of a long front 200 of them. "uniform" has all exits at one threshold.
        images: that everything was counted on.
        full_correct: images that the whole network classifies rightly.
        full_cost: of the whole network without exits.
        unit: of the costs.
    """

    search: Front
    points: dict[str, tuple[PlanPoint, ...]]
    images: int
    full_correct: int
    full_cost: float
    unit: str

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        return {
            "images": self.images,
            "full_acc1": 100.0 * self.full_correct / self.images,
            "full_cost": self.full_cost,
            "unit": self.unit,
            "exact": self.search.exact,
            "points": {
                name: [asdict(one) for one in points] for name, points in self.points.items()
            },
        }


def hand_made_settings(
    table: ReplayTable, positions: Sequence[Position], thresholds: float | Sequence[float]
) -> Settings:
    """Return settings from positions and thresholds, one for all or one for each.

    Raises:
        UserInputError: there is no exit at a position, or a threshold does not fit.
    """
    exits = exit_numbers(positions, table.positions)
    bars = check_thresholds(thresholds, len(exits))
    return Settings(exits=tuple(exits), thresholds=tuple(map(float, bars)))


def plan_front(
    table: ReplayTable,
    costs: ExitCosts,
    *,
    uniform: Sequence[float] = UNIFORM,
    hand_made: Settings | None = None,
    effort: float = 1.0,
) -> PlanFront:
    """Return the points of all planners.

    Args:
        table: of the calibration split.
        costs: of the parts of its network.
        uniform: thresholds for all exits together.
        hand_made: a choice to compare with, and never to fall behind.
        effort: of the search, times the usual work.

    Raises:
        UserInputError: the costs are of a network with another number of exits.
    """
    check_costs(table, costs)
    alone = [] if hand_made is None else [hand_made]
    together = uniform_settings(table.exits, check_thresholds(list(uniform), len(uniform)))
    good = right(table)
    problem = pose_problem(
        table.scores,
        good,
        costs,
        cuts_per_exit=cuts_for(table.exits, len(together) + len(alone)),
        also=[*together, *alone],
    )
    stopping = stopping_rules(problem)
    front = search_front(problem, uniform=uniform, seeds=[*stopping, *alone], effort=effort)
    shown = np.unique(np.linspace(0, len(front) - 1, MOST_POINTS).astype(np.int64))
    proposals = {
        "search": [front.settings(int(point)) for point in shown],
        "stopping": stopping,
        "uniform": together,
        "hand-made": alone,
    }
    return PlanFront(
        search=front,
        points={
            name: _points(table, good, costs, settings) for name, settings in proposals.items()
        },
        images=len(table),
        full_correct=int(good[:, -1].sum()),
        full_cost=costs.full,
        unit=costs.unit,
    )


def _points(
    table: ReplayTable, good: NDArray[np.bool_], costs: ExitCosts, settings: Sequence[Settings]
) -> tuple[PlanPoint, ...]:
    found = [point_of(table, good, costs, one) for one in settings]
    return tuple(sorted(found, key=lambda point: (point.cost, point.correct)))


def point_of(
    table: ReplayTable,
    good: NDArray[np.bool_],
    costs: ExitCosts,
    settings: Settings,
    images: NDArray[np.int64] | None = None,
) -> PlanPoint:
    """Return what settings do.

    Args:
        table: of the images.
        good: (N, E+1), whether each exit is right.
        costs: of the parts of the network.
        settings: exits and thresholds.
        images: numbers of those to count on; all by default.
    """
    images = np.arange(len(table)) if images is None else images
    taken = leaving(table, settings)[images]
    exits = np.array(settings.exits, dtype=np.int64)
    cost = expected_cost(costs, taken, exits)
    counts = np.bincount(taken, minlength=table.exits + 1)[[*settings.exits, table.exits]]
    correct = int(good[images, taken].sum())
    return PlanPoint(
        exits=tuple(table.positions[number] for number in settings.exits),
        thresholds=settings.thresholds,
        cost=cost,
        share=cost / costs.full,
        correct=correct,
        acc1=100.0 * correct / len(images),
        exit_rates=tuple((counts / len(images)).tolist()),
    )


def check_costs(table: ReplayTable, costs: ExitCosts) -> None:
    """Raise UserInputError unless the costs are of as many exits as the table."""
    if costs.exits != table.exits:
        raise UserInputError(
            f"the costs are of {costs.exits} exits, the replay table has {table.exits}; expected "
            "both of one network"
        )
