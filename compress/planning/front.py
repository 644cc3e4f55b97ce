"""The front of success against cost over all subsets of exits and all thresholds.

A choice is one cut, or off, for every exit (`compress.planning.cuts`), so subsets need no search of
their own: an exit that does not pay for its check is found off. `good` may be accuracy, or
agreement with the whole network.

What is guaranteed. Where all combinations of cuts are at most 2^22 (one exit with 4096 cuts, two
with 2047, three with 160) every one is counted, and the front is exact over these cuts. Otherwise
it is searched: every point is real, counted on the images, and nothing of the following is better
than the front: one threshold, of the list that was given, for all exits of any subset (up to 12
exits); any one exit at any cut, any two or three at 2^15 combinations of their cuts; any of the
given settings; any change of the threshold of one exit at a point that the search went out from.
How far a searched front is from the exact one was measured on small tables, where every combination
can be counted: tests/exits/test_front.py holds it within 0.1 % of the exact cost at equal success.

How it is searched. Exits fire in order, so who arrives at one depends on all thresholds before it,
and no exit can be optimised by itself. But success and cost of all combinations at one, two or
three exits, the others fixed, are counted in one pass (`compress.planning.block_table`). The search
is a Pareto local search over such blocks: from all off, all triples of exits; then from points
spread along the front, coarsely first, all single exits, then pairs, then triples, until nothing
improves or the work that was granted is done. It draws no random numbers and counts its work
instead of seconds, so that it finds the same front everywhere.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compress.planning.archive import Archive
from compress.planning.block_table import block_table, fired_at
from compress.planning.cuts import Problem, Settings
from compress.planning.uniform import MOST_EXITS, subset_sums, uniform_settings

__all__ = ["EXACT_CELLS", "Front", "cuts_for", "search_front"]

EXACT_CELLS = 1 << 22
BLOCK_CELLS = 1 << 15
FEWEST_CUTS, MOST_CUTS = 64, 4096  # an exit
EVERY = 1 << 30
# So many points along the front, and at how many of them all single exits, pairs, … are counted.
STAGES = (
    (6, (EVERY, 6)),
    (12, (EVERY, 12)),
    (24, (EVERY, 12)),
    (48, (EVERY, 12)),
    (96, (EVERY, 12)),
    (96, (EVERY,) * 3),
    (EVERY, (EVERY,) * 5),
)
WIDEST_START = 3  # exits of the subsets that the search begins with
BATCH = 12  # pairs or triples at so many points, before single exits have their turn again
WORK = 2.5e9  # nanoseconds of a core of 2020, about, at up to 10,000 images
WORK_IMAGES = 10_000


@dataclass(frozen=True, kw_only=True)
class Front:
    """Choices of which none is as good and cheaper, from the cheapest to the best.

    Attributes:
        problem: what was searched.
        good: (P,) int64, successes, ascending.
        cost: (P,) float64, over all images, ascending.
        choices: (P, E) int16.
        exact: whether every combination of cuts was counted.
    """

    problem: Problem
    good: NDArray[np.int64]
    cost: NDArray[np.float64]
    choices: NDArray[np.int16]
    exact: bool

    def __len__(self) -> int:
        return len(self.good)

    def settings(self, point: int) -> Settings:
        """Return exits and thresholds of a point."""
        return self.problem.settings_of(self.choices[point])

    def cheapest(self, good: float) -> int | None:
        """Return the point of least cost with at least so many successes; None where none has."""
        point = int(np.searchsorted(self.good, good - 1e-9))
        return point if point < len(self) else None

    def best(self, cost: float) -> int | None:
        """Return the point of most successes at no more than this cost over all images."""
        point = int(np.searchsorted(self.cost, cost * (1 + 1e-12), side="right")) - 1
        return point if point >= 0 else None


def cuts_for(exits: int, besides: int = 0) -> int:
    """Return at how many quantiles an exit gets cuts: as many as can be counted, or else 64.

    Args:
        exits: of the network.
        besides: cuts that come besides.
    """
    countable = int(EXACT_CELLS ** (1 / exits) + 1e-9) - 1
    return max(min(countable, MOST_CUTS) - besides, FEWEST_CUTS if exits > 3 else 1)


def search_front(
    problem: Problem,
    *,
    uniform: Sequence[float] = (),
    seeds: Sequence[Settings] = (),
    effort: float = 1.0,
    exact_cells: int = EXACT_CELLS,
) -> Front:
    """Return the front of a problem.

    Args:
        problem: N images at cuts.
        uniform: thresholds that are tried for all exits together, on every subset of up to 12
            exits; their cuts should be in the problem.
        seeds: further settings that the front must not fall behind, with cuts in the problem.
        effort: times the usual work.
        exact_cells: up to so many combinations every one is counted.
    """
    search = _Search(problem, WORK * effort * math.sqrt(max(1.0, problem.images / WORK_IMAGES)))
    exact = math.prod(int(off) + 1 for off in problem.off) <= exact_cells
    if exact:
        search.count_block(problem.off, tuple(range(problem.exits)), most=exact_cells)
    else:
        search.start(uniform, seeds)
        for stage in STAGES:
            search.improve(*stage)
    archive = search.archive
    good = archive.front()
    return Front(
        problem=problem,
        good=good,
        cost=archive.cost[good],
        choices=archive.choices[good],
        exact=exact,
    )


class _Search:
    """A Pareto local search: an archive, and how much work is left."""

    def __init__(self, problem: Problem, work: float) -> None:
        self.problem = problem
        self.archive = Archive(problem.images, problem.exits)
        self.work = work

    def start(self, uniform: Sequence[float], seeds: Sequence[Settings]) -> None:
        """Take in one threshold for all, the seeds, and all subsets of up to three exits."""
        if self.problem.exits <= MOST_EXITS:
            for settings in uniform_settings(self.problem.exits, uniform):
                self._count_subsets(self.problem.choice_of(settings))
        for settings in seeds:
            self.count_block(self.problem.choice_of(settings), (0,))
        for width in range(1, min(WIDEST_START, self.problem.exits) + 1):
            for free in self._blocks(width):
                self.count_block(self.problem.off, free)

    def improve(self, points: int, limits: Sequence[int]) -> None:
        """Look through the neighbourhood of points along the front until nothing is new."""
        left = list(limits[: self.problem.exits])
        while self.work > 0:
            along = _spread_points(self.archive, points)
            for width, more in enumerate(left, start=1):
                new = along[self.archive.level[along] < width]
                if len(new) and more > 0:
                    most = EVERY if width == 1 else min(BATCH, more)
                    left[width - 1] -= self._expand(_thinned(new, most), width)
                    break
            else:
                return

    def count_block(
        self, fixed: NDArray[np.int16], free: Sequence[int], most: int = BLOCK_CELLS
    ) -> None:
        """Take in all combinations at the exits `free`, thinned to `most` of them."""
        axis = int(most ** (1 / len(free)) + 1e-9)
        sizes = [int(self.problem.off[number]) + 1 for number in free]
        whole = math.prod(sizes) <= most
        choices = [
            np.arange(size, dtype=np.int16) if whole else _some(int(fixed[number]), size, axis)
            for number, size in zip(free, sizes, strict=True)
        ]
        table = block_table(self.problem, fixed, fired_at(self.problem, fixed), free, choices)
        self.archive.add(table.good, table.cost, lambda at: table.choice_at(fixed, at))
        self.work -= 6e4 + 22 * self.problem.images * len(free) + 25 * table.good.size

    def _expand(self, keys: NDArray[np.int64], width: int) -> int:
        """Look through all blocks of a width at these points; return at how many."""
        for done, key in enumerate(keys):
            if self.work <= 0:
                return done
            self.archive.level[key] = width
            fixed = self.archive.choices[key].copy()
            for free in self._blocks(width):
                self.count_block(fixed, free)
        return len(keys)

    def _blocks(self, width: int) -> Iterator[tuple[int, ...]]:
        return itertools.combinations(range(self.problem.exits), width)

    def _count_subsets(self, choice: NDArray[np.int16]) -> None:
        good, cost = subset_sums(self.problem, fired_at(self.problem, choice))
        numbers = np.arange(self.problem.exits)

        def choices_at(subsets: NDArray[np.int64]) -> NDArray[np.int16]:
            member = (subsets[:, None] >> numbers) & 1 == 1
            return np.where(member, choice, self.problem.off)

        self.archive.add(good, cost, choices_at)


def _some(here: int, size: int, most: int) -> NDArray[np.int16]:
    """Return at most `most` choices of `size`: around the present one and spread, off included."""
    near = np.arange(max(here - 2, 0), min(here + 3, size))
    spread = np.linspace(0, size - 1, max(most - len(near), 2)).astype(np.int64)
    return np.union1d(near, spread).astype(np.int16)


def _thinned(keys: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    if len(keys) <= most:
        return keys
    return keys[np.linspace(0, len(keys) - 1, most).astype(np.int64)]


def _spread_points(archive: Archive, count: int) -> NDArray[np.int64]:
    """Return points along the front: in each of `count` ranges of cost the one next to its hull."""
    keys = archive.front()
    if len(keys) <= count:
        return keys
    cost = archive.cost[keys]
    corners = _hull(cost, keys)
    gap = np.interp(cost, cost[corners], keys[corners]) - keys
    place = ((cost - cost[0]) / (cost[-1] - cost[0]) * count).astype(np.int64).clip(max=count - 1)
    order = np.lexsort((gap, place))
    _, first = np.unique(place[order], return_index=True)
    return keys[order[first]]


def _hull(x: NDArray[np.float64], y: NDArray[np.int64]) -> list[int]:
    """Return the corners of the upper hull of points in order of x."""
    corners: list[int] = []
    for point in range(len(x)):
        while len(corners) > 1:
            a, b = corners[-2:]
            if (y[point] - y[b]) * (x[b] - x[a]) < (y[b] - y[a]) * (x[point] - x[b]):
                break
            corners.pop()
        corners.append(point)
    return corners
