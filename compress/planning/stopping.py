"""Thresholds by optimal stopping: backward induction on calibrated scores.

With a price λ of cost against errors, what it is worth to go on from exit l is known once the exits
behind it are decided, so they are decided from the last to the first:

    V_E = wrong_E + λ c_E            the final head, c its segment
    stop_l(s) = E[wrong_l | s]       cont_l(s) = E[V_{l+1} | s]
    leave where stop_l < cont_l;     V_l = λ (c_l + check_l) + (wrong_l where left, else V_{l+1})

s is the score of the exit; both expectations are isotonic regressions over the calibration images:
P(right | s) rises with the score, and the value of going on falls, since an image that is easy here
is easy later. One threshold an exit comes of it: that with the least sum of stop_l(s) - cont_l(s)
over the images that leave. An exit whose check costs more than it saves is off. Each λ gives one
point, a sweep over λ a front; cf. T-Tamer (arXiv 2509.22992) and EERO (arXiv 2402.03779).

It is a second opinion to the search: fast, smooth, and hard to overfit, as each threshold answers
for the expected future and not for the images at hand. It reads one score at a time over all
images, as though who arrives at an exit did not depend on the exits before it, so its front lies
somewhat above the one that the search finds.

Worked example, λ = 1, one exit with segments of 0.5 and 0.5 and a free check, and a final head that
is always right: going on costs 0.5. Leave where 1 - P(right | s) < 0.5, from the score on at which
the exit is right more often than not.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from compress.optional import require
from compress.planning.cuts import Problem, Settings

__all__ = ["PRICES", "stopping_rule", "stopping_rules"]

PRICES = (0.0, *np.geomspace(1e-3, 1e2, 101).tolist())  # errors for the cost of the whole network


def stopping_rules(problem: Problem, prices: Sequence[float] = PRICES) -> list[Settings]:
    """Return the settings of each price, without those that are the same."""
    found = dict.fromkeys(stopping_rule(problem, price) for price in prices)
    return list(found)


def stopping_rule(problem: Problem, price: float) -> Settings:
    """Return exits and thresholds of the stopping rule.

    Args:
        problem: images at cuts.
        price: λ, what the cost of the whole network is worth in errors, at least 0.
    """
    segments = price * problem.costs.segments / problem.costs.full
    checks = price * problem.costs.checks / problem.costs.full
    choice = problem.off
    value = 1 - problem.good[-1] + segments[-1]
    for number in reversed(range(problem.exits)):
        places = problem.places[number]
        wrong = 1 - problem.good[number]
        cut = _best_cut(places, wrong, value, int(problem.off[number]))
        leaves = places > cut
        saved = float((value - wrong)[leaves].sum())
        if saved > checks[number] * problem.images:
            choice[number] = cut
            value = np.where(leaves, wrong, value) + checks[number]
        value = value + segments[number]
    return problem.settings_of(choice)


def _best_cut(
    places: NDArray[np.int16],
    wrong: NDArray[np.float64],
    value: NDArray[np.float64],
    off: int,
) -> int:
    """Return the cut above which leaving is expected to lose least; `off` where it never pays."""
    isotonic = require("scipy.optimize", "the stopping rule").isotonic_regression
    counts = np.bincount(places, minlength=off + 1)
    filled = np.flatnonzero(counts[1:]) + 1  # at place 0 no cut is reached
    if not len(filled):
        return off
    fits = []
    for sums in (np.bincount(places, wrong, off + 1), np.bincount(places, value, off + 1)):
        means = sums[filled] / counts[filled]
        fits.append(isotonic(means, weights=counts[filled], increasing=False).x)
    losses = np.zeros(off + 1)
    losses[filled] = counts[filled] * (fits[0] - fits[1])
    above = np.append(np.cumsum(losses[::-1])[::-1][1:], 0.0)  # sum over places > cut
    return int(off - above[::-1].argmin())  # of equals the highest, at which fewest leave
