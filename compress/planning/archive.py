"""The best choices that a search has met: for every number of successes the cheapest.

Successes are whole, so the exact front of N images has at most N + 1 points and all are kept.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

__all__ = ["Archive"]

EQUAL = 1e-12  # costs that differ by less, relative, are the same sum in another order


class Archive:
    """For every number of successes the least cost and a choice that has it.

    Attributes:
        cost: (N+1,) float64, infinite where no choice was met.
        choices: (N+1, E) int16.
        level: (N+1,) how far the neighbourhood of the choice has been looked through, from 0.
        floor: (N+1,) float64, least cost of at least so many successes.
    """

    def __init__(self, images: int, exits: int) -> None:
        self.cost = np.full(images + 1, np.inf)
        self.choices = np.zeros((images + 1, exits), dtype=np.int16)
        self.level = np.zeros(images + 1, dtype=np.int64)
        self.floor = np.full(images + 1, np.inf)

    def add(
        self,
        good: NDArray[np.float64],
        cost: NDArray[np.float64],
        choices_at: Callable[[NDArray[np.int64]], NDArray[np.int16]],
    ) -> int:
        """Take in what improves the front; return how many points did.

        Args:
            good: successes, of any shape.
            cost: of the same shape.
            choices_at: gives the choices (P, E) at flat places (P,) of these arrays.
        """
        rounded = np.rint(good).astype(np.int64).ravel()
        flat = cost.ravel()
        better = np.flatnonzero(flat < self.floor[rounded] * (1 - EQUAL))
        if not len(better):
            return 0
        # Most successes first, the cheapest of equals first; then only what is cheaper than all
        # before it improves the front.
        better = better[np.lexsort((flat[better], -rounded[better]))]
        sinking = np.minimum.accumulate(flat[better])
        better = better[np.concatenate([[True], sinking[1:] < sinking[:-1] * (1 - EQUAL)])]
        keys = rounded[better]
        self.cost[keys] = flat[better]
        self.choices[keys] = choices_at(better)
        self.level[keys] = 0
        self.floor = np.minimum.accumulate(self.cost[::-1])[::-1]
        return len(better)

    def front(self) -> NDArray[np.int64]:
        """Return the numbers of successes (P,) on the front, ascending; cost ascends with them."""
        more = np.append(self.floor[1:], np.inf)
        return np.flatnonzero(np.isfinite(self.cost) & (self.cost < more))
