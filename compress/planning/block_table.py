"""Success and cost of every combination of choices at a few exits, the other exits held fixed.

Of an image only this matters: where it would leave if the free exits were off, and its places at
the free exits before that. With counts over these places (one axis a free exit), summed up along
every axis, all combinations are known at once: those who do not fire at choice a are those at
places <= a. With all exits free it is every combination there is.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compress.planning.cuts import Problem

__all__ = ["BlockTable", "block_table", "fired_at", "first_fired"]


@dataclass(frozen=True, kw_only=True)
class BlockTable:
    """Sums over all images, per combination of the choices of the free exits.

    Attributes:
        free: numbers of the free exits, ascending.
        choices: per free exit its choices (m,), ascending.
        good: (m_1, …, m_k) float64, successes.
        cost: (m_1, …, m_k) float64.
    """

    free: tuple[int, ...]
    choices: tuple[NDArray[np.int16], ...]
    good: NDArray[np.float64]
    cost: NDArray[np.float64]

    def choice_at(self, fixed: NDArray[np.int16], places: NDArray[np.int64]) -> NDArray[np.int16]:
        """Return the whole choices (P, E) at flat places (P,) of the table."""
        whole = np.repeat(fixed[None], len(places), axis=0)
        axes = np.unravel_index(places, self.good.shape)
        for number, choices, axis in zip(self.free, self.choices, axes, strict=True):
            whole[:, number] = choices[axis]
        return whole


def fired_at(problem: Problem, choice: NDArray[np.int16]) -> NDArray[np.int64]:
    """Return (N,) the exits that would fire for each image, as bits; the final head always does."""
    fired = np.full(problem.images, 1 << problem.exits, dtype=np.int64)
    for number in np.flatnonzero(choice < problem.off).tolist():
        fired |= (problem.places[number] > choice[number]).astype(np.int64) << number
    return fired


def first_fired(fired: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return (N,) the number of the lowest bit that is set."""
    _, exponent = np.frexp((fired & -fired).astype(np.float64))
    return exponent.astype(np.int64) - 1


def block_table(
    problem: Problem,
    fixed: NDArray[np.int16],
    fired: NDArray[np.int64],
    free: Sequence[int],
    choices: Sequence[NDArray[np.int16]],
) -> BlockTable:
    """Return the sums for every combination of `choices` at `free`.

    Args:
        problem: of N images.
        fixed: choice (E,) of the other exits; what stands at free ones means nothing.
        fired: of `fixed`, from `fired_at`.
        free: numbers of exits, ascending.
        choices: per free exit some of its choices, ascending, off (the last) among them.
    """
    chosen = tuple(free)
    leaves = first_fired(fired & ~sum(1 << number for number in chosen))
    on = fixed < problem.off
    on[list(chosen)] = False
    paid = problem.costs.per_exit(np.flatnonzero(on))
    late_good = problem.good.ravel()[leaves * problem.images + np.arange(problem.images)]
    late_cost = paid[leaves]
    shape = tuple(len(values) for values in choices)
    good, cost = np.full(shape, late_good.sum()), np.full(shape, late_cost.sum())
    kept, place = np.arange(problem.images), np.zeros(problem.images, dtype=np.int64)
    for axis, number in enumerate(chosen):
        reaches = leaves[kept] > number
        kept, place = kept[reaches], place[reaches]
        values, off = choices[axis], problem.off[number]
        checked = problem.costs.checks[number] * (values < off)
        cost += _spread(_sums(place, None, shape[:axis])[..., None] * checked, len(shape))
        rank = np.searchsorted(values, np.arange(off + 1)).astype(np.int64)  # fires at lower ones
        place = place * len(values) + rank[problem.places[number][kept]]
        gained = problem.good[number][kept] - late_good[kept]
        good += _spread(_of_those_who_fire(place, gained, shape[: axis + 1]), len(shape))
        spent = paid[number] - late_cost[kept]
        cost += _spread(_of_those_who_fire(place, spent, shape[: axis + 1]), len(shape))
    return BlockTable(free=chosen, choices=tuple(choices), good=good, cost=cost)


def _sums(
    place: NDArray[np.int64], weights: NDArray[np.float64] | None, shape: tuple[int, ...]
) -> NDArray[np.float64]:
    """Return sums of the weights at places <= each, along every axis."""
    counts = np.bincount(place, weights, minlength=int(np.prod(shape)))
    sums = counts.astype(np.float64).reshape(shape)
    for axis in range(len(shape)):
        np.cumsum(sums, axis=axis, out=sums)
    return sums


def _of_those_who_fire(
    place: NDArray[np.int64], weights: NDArray[np.float64], shape: tuple[int, ...]
) -> NDArray[np.float64]:
    """Return sums of the weights that pass every axis but fire at the last."""
    sums = _sums(place, weights, shape)
    passed: NDArray[np.float64] = sums[..., -1:] - sums
    return passed


def _spread(sums: NDArray[np.float64], axes: int) -> NDArray[np.float64]:
    """Return the sums with axes behind, along which they repeat."""
    return sums.reshape(sums.shape + (1,) * (axes - sums.ndim))
