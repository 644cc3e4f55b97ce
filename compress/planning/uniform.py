"""One threshold for all exits, on every subset of the exits: what is otherwise tried by hand.

At a threshold every image has one bit an exit that fires. With a subset S it leaves at exit e when
e is in S, bit e is set, and none of its bits below e are in S. Counts over bit patterns, summed
over the patterns within the complement of S (a zeta transform), give that for all 2^E subsets at
once.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from compress.planning.cuts import Problem, Settings

__all__ = ["MOST_EXITS", "subset_sums", "uniform_settings"]

MOST_EXITS = 12  # 4096 subsets; beyond, a table of all subsets is not made


def uniform_settings(exits: int, values: Sequence[float]) -> list[Settings]:
    """Return settings with all exits at each of these thresholds."""
    numbers = tuple(range(exits))
    return [Settings(exits=numbers, thresholds=(float(value),) * exits) for value in values]


def subset_sums(
    problem: Problem, fires: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return successes and cost (2^E,) over all images for every subset, written as bits.

    Args:
        problem: of N images and at most `MOST_EXITS` exits.
        fires: (N,) the exits that fire, as bits.
    """
    exits = problem.exits
    subsets = np.arange(1 << exits)
    good, cost = np.zeros(len(subsets)), np.zeros(len(subsets))
    paid = np.zeros(len(subsets))
    for number in range(exits + 1):
        here = (subsets >> number) & 1 if number < exits else np.ones_like(subsets)
        leaving = np.flatnonzero((fires >> number) & 1) if number < exits else slice(None)
        below = (1 << number) - 1
        patterns, complement = fires[leaving] & below, ~subsets & below
        paid += problem.costs.segments[number]
        if number < exits:
            paid += problem.costs.checks[number] * here
        counts = _within(_sums(patterns, np.ones(len(patterns)), number))
        cost += here * counts[complement] * paid
        hits = _within(_sums(patterns, problem.good[number][leaving], number))
        good += here * hits[complement]
    return good, cost


def _sums(
    patterns: NDArray[np.int64], weights: NDArray[np.float64], bits: int
) -> NDArray[np.float64]:
    return np.bincount(patterns, weights, minlength=1 << bits).astype(np.float64, copy=False)


def _within(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return for every set of bits the sum over its subsets, in place (the zeta transform)."""
    step = 1
    while step < len(sums):
        pairs = sums.reshape(-1, 2, step)
        pairs[:, 1] += pairs[:, 0]
        step *= 2
    return sums
