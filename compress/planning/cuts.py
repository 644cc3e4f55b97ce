"""Where thresholds can lie, and every image's place among them.

Between two neighbouring scores of an exit every threshold means the same, so a threshold is a cut
of the sorted scores; it is written in the middle between its neighbours (the lowest cut in the
middle between 0 and the lowest score), where a score that comes out a little different does the
least harm. One more choice stands above all cuts: the exit is off, so that nobody is checked there
and nobody pays. A choice of one cut, or off, for every exit names both a subset of exits and its
thresholds.

Worked example: scores 0.2, 0.6, 0.6, 0.9 have the cuts 0.1 (all leave), 0.4 (three leave), 0.75
(one leaves) and off; a threshold of 0.5 means the cut 0.4, one of 0.95 means off.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compress.planning.costs import ExitCosts

__all__ = ["Problem", "Settings", "pose_problem"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Exits that are checked, and the thresholds of these.

    Attributes:
        exits: their numbers, ascending.
        thresholds: one for each, in [0, 1].
    """

    exits: tuple[int, ...]
    thresholds: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Images at cuts.

    Attributes:
        places: (E, N) int16, how many cuts of each exit lie at or below the score of each image;
            0 of a score that is not a number.
        cuts: per exit the thresholds (M,), ascending float64. Choice M of an exit is off.
        lowest: per exit the lowest score (M,) that reaches each cut.
        good: (E+1, N) float64, 1 where leaving at an exit counts as success, otherwise 0.
        costs: of the parts of the network.
    """

    places: NDArray[np.int16]
    cuts: tuple[NDArray[np.float64], ...]
    lowest: tuple[NDArray[np.float64], ...]
    good: NDArray[np.float64]
    costs: ExitCosts

    @property
    def images(self) -> int:
        """N."""
        return int(self.good.shape[1])

    @property
    def exits(self) -> int:
        """E, the exits before the final head."""
        return len(self.cuts)

    @property
    def off(self) -> NDArray[np.int16]:
        """(E,) the choice that is off, per exit; the number of its cuts."""
        return np.array([len(cuts) for cuts in self.cuts], dtype=np.int16)

    def settings_of(self, choice: NDArray[np.int16]) -> Settings:
        """Return exits and thresholds of a choice (E,)."""
        on = np.flatnonzero(choice < self.off)
        return Settings(
            exits=tuple(on.tolist()),
            thresholds=tuple(float(self.cuts[exit_][choice[exit_]]) for exit_ in on),
        )

    def choice_of(self, settings: Settings) -> NDArray[np.int16]:
        """Return the choice (E,) that means these settings, or the next cuts above them."""
        choice = self.off
        for number, threshold in zip(settings.exits, settings.thresholds, strict=True):
            choice[number] = np.searchsorted(self.lowest[number], threshold)
        return choice


def pose_problem(
    scores: NDArray[np.float32],
    good: NDArray[np.bool_],
    costs: ExitCosts,
    *,
    cuts_per_exit: int,
    also: Sequence[Settings] = (),
) -> Problem:
    """Return images at cuts.

    Args:
        scores: (N, E), in [0, 1] or NaN, which never fires.
        good: (N, E+1), where leaving counts as success.
        costs: of the parts of the network.
        cuts_per_exit: so many, at quantiles of the scores; all cuts where there are fewer.
        also: settings whose thresholds get their exact cuts besides.
    """
    images, exits = scores.shape
    wanted: list[list[float]] = [[] for _ in range(exits)]
    for settings in also:
        for number, threshold in zip(settings.exits, settings.thresholds, strict=True):
            wanted[number].append(threshold)
    places = np.zeros((exits, images), dtype=np.int16)
    cuts, lowest = [], []
    for number in range(exits):
        column = scores[:, number].astype(np.float64)
        found = _cuts_of(column, cuts_per_exit, wanted[number])
        cuts.append(found[0])
        lowest.append(found[1])
        reached = np.searchsorted(found[0], column, side="right")
        places[number] = np.where(np.isnan(column), 0, reached)
    return Problem(
        places=places,
        cuts=tuple(cuts),
        lowest=tuple(lowest),
        good=np.ascontiguousarray(good.T, dtype=np.float64),
        costs=costs,
    )


def _cuts_of(
    scores: NDArray[np.float64], count: int, wanted: Sequence[float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return cuts and the lowest score that reaches each."""
    ordered = np.sort(scores[~np.isnan(scores)])
    values = np.unique(ordered)
    if len(values) <= count:
        chosen = np.arange(len(values))
    else:
        ranks = np.arange(count) * len(ordered) // count
        exact = np.searchsorted(values, np.array(wanted, dtype=np.float64))
        chosen = np.union1d(np.searchsorted(values, ordered[ranks]), exact[exact < len(values)])
    below, lowest = np.concatenate([[0.0], values])[chosen], values[chosen]
    # In float32, so that a device that compares in float32 decides the same; between two floats
    # that are next to each other there is none, and the upper one is the cut.
    middle = ((below + lowest) / 2).astype(np.float32).astype(np.float64)
    return np.where(middle <= below, lowest, middle), lowest
