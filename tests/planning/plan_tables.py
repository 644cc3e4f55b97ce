"""Tables for the planners: one whose optimum is known, and one that looks like a real network."""

import itertools

import numpy as np

from compress.exits.replay import ReplayTable
from compress.planning.costs import ExitCosts
from tests.exits.tables import SOURCE


def table_from(right, scores, check=0, block=100):
    """A table whose exits are right (N, E+1) as told; a segment is a block."""
    images, places = right.shape
    labels = np.arange(images) % 5
    said = np.where(right, labels[:, None], labels[:, None] + 1) % 5
    logits = np.zeros((images, places, 5), dtype=np.float32)
    np.put_along_axis(logits, said[..., None], 3.0, axis=2)
    checks = np.full(places - 1, check)
    return ReplayTable(
        logits=logits,
        scores=scores.astype(np.float32),
        labels=labels.astype(np.int64),
        positions=tuple(range(places - 1)),
        depth=places,
        macs=np.cumsum([*(block + checks), block]).astype(np.int64),
        check_macs=checks.astype(np.int64),
        source=SOURCE,
    )


def sorted_table(groups, bars, check=0):
    """Group g (of `groups[g]` images) is right from exit g on, and gates know it.

    Exit e scores just above `bars[e]` whom it gets right and just below whom it does not, so only
    these bars are perfect, and no one threshold is where they differ.
    """
    group = np.repeat(np.arange(len(groups)), groups)
    right = np.arange(len(groups)) >= group[:, None]
    spread = (np.arange(len(group)) % 7 - 3) * 1e-3
    scores = np.array(bars) + np.where(right[:, :-1], 0.05, -0.05) + spread[:, None]
    return table_from(right, scores, check)


def lifelike_table(images, exits, seed, check=5):
    """Images of many difficulties; deeper exits are right more often, gates see it with noise."""
    rng = np.random.default_rng(seed)
    difficulty = rng.normal(size=(images, 1))
    skill = -0.8 + 2.6 * (np.arange(exits + 1) + 1) / (exits + 1)
    margin = skill - difficulty + 0.5 * rng.normal(size=(images, exits + 1))
    scores = 1 / (1 + np.exp(-2 * margin[:, :-1] - rng.normal(size=(images, exits))))
    return table_from(margin > 0, scores, check)


def noise_table(images, exits, seed):
    """Nothing means anything: the hardest front to search, full of corners."""
    rng = np.random.default_rng(seed)
    scores = rng.random((images, exits)).round(2)
    scores[rng.random(scores.shape) < 0.1] = np.nan
    return table_from(rng.random((images, exits + 1)) < 0.5, scores, int(rng.integers(1, 30)))


def brute_force(table, costs):
    """Least cost of every number of right images, by plain loops over all thresholds."""
    options = [
        [*sorted({float(s) for s in table.scores[:, e] if s == s}), None]
        for e in range(table.exits)
    ]
    right, best = table.correct.tolist(), {}
    scores = table.scores.tolist()
    for bars in itertools.product(*options):
        good, cost = 0, 0.0
        for image, row in enumerate(scores):
            for place, bar in enumerate([*bars, -1.0]):
                cost += float(costs.segments[place])
                if place == table.exits:
                    break
                if bar is None:
                    continue
                cost += float(costs.checks[place])
                if row[place] >= bar:
                    break
            good += right[image][place]
        best[good] = min(cost, best.get(good, np.inf))
    return best


def floor_of(front, good):
    """Least cost at so many successes."""
    point = front.cheapest(good)
    return np.inf if point is None else front.cost[point]


def free_checks(exits, unit="ms"):
    return ExitCosts(
        segments=np.ones(exits + 1), checks=np.zeros(exits), unit=unit, source="made up"
    )
