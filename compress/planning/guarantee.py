"""Thresholds with a guarantee: P(loss against the whole network > risk) <= 1 - confidence.

The probability is over the draw of the calibration images; new images must come from where they
came from. What is bounded is a share of images that lose (`compress.planning.outcomes.harmless`):

consistency   the class differs from what the whole network says.
accuracy      the whole network is right and the exit is not. The accuracy that is lost is this
              share less the share of images that the exit alone gets right, so a bound on the share
              bounds it too, on the safe side. The difference itself takes values in {-1, 0, 1}; an
              exact test of its mean would have to bound the share of -1 as well, and Hoeffding's
              or a betting bound, which need not, certify less at such small risks.

Of n images k lose, k ~ Bin(n, R). The hypothesis R > risk has the exact p-value
P(Bin(n, risk) <= k), and is refused where that is at most 1 - confidence. Candidates are tested in
an order that was fixed before these images were seen, the most careful first, up to the first that
is not refused (fixed-sequence testing; Angelopoulos et al., "Learn then Test", arXiv 2110.01052).
What stands BEFORE that one is certified, all together: for one of them to be bad, the first bad
one in the order must have been refused, and that happens with probability at most 1 - confidence,
however many are tested and whether or not the risk rises along the order.

An order over one threshold for all exits is fixed by itself: from 1 down. Settings with one
threshold an exit have no such order; Pareto testing (Laufer-Goldenshluger et al., arXiv 2210.07913)
splits the images: one half finds the front of loss against cost, which gives the order, after some
steps from no exits to its most careful point; the other half tests along it.

Exits that nobody takes are left out without touching the bound. In Pareto testing a candidate loses
those that no image of the first half takes before the second half is looked at, so what is tested
is what is deployed. In a fixed sequence there is no first half, and to leave an exit out because of
the images that test would be a choice that the test does not cover: images that would have left
there go on, and may leave at a worse exit behind it. There an image counts as losing where ANY of
the exits that fire for it would lose. That bounds the loss with every subset of the exits at once,
so any of them may be left out afterwards, for whatever reason. It is strict, and costs little: on
lifelike tables of 11 exits the threshold rises by 0.00 to 0.02.

Worked example: risk 0.01, confidence 0.95, 1000 images. P(Bin(1000, 0.01) <= 4) = 0.029 and
P(Bin(1000, 0.01) <= 5) = 0.066, so up to 4 images may lose. Losses of 0, 2, 4, 7, 3 along an order
certify the first three; the last one is not reached. No loss at all certifies from 299 images on.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compress.errors import UserInputError
from compress.exits.replay import ReplayTable, Source
from compress.optional import require
from compress.planning.costs import ExitCosts
from compress.planning.cuts import Settings, pose_problem
from compress.planning.front import cuts_for, search_front
from compress.planning.outcomes import firing, harmless, leaving, without_unused
from compress.planning.uniform import uniform_settings

__all__ = [
    "Risk",
    "Tested",
    "check_fresh",
    "clopper_pearson",
    "halves",
    "images_needed",
    "p_value",
    "pareto_testing",
    "passed_before_failure",
    "uniform_testing",
]

PURPOSE = "exact binomial tests"
MOST_CANDIDATES = 100
HOPELESS = 2.0  # times the risk: what loses so much on one half is not tried on the other
NEAR = 32  # numbers of losses below one that do, which are tried too
MOST_LOSSES = 1 << 40
SMALLEST_RISK = 1e-6  # three million images without one that loses
CALIBRATION = "calibration"
KNOWN_SPLITS = ("train", "validation", "test")  # each has another use, which makes it unfit here
CAREFUL = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875)  # of the way from 1 down to a threshold


@dataclass(frozen=True, kw_only=True)
class Risk:
    """What is to be guaranteed.

    Attributes:
        loss: "consistency" or "accuracy".
        risk: largest share of images that may lose, in [1e-6, 1).
        confidence: in (0, 1).
    """

    loss: str
    risk: float
    confidence: float

    def __post_init__(self) -> None:
        """Raise UserInputError where a field is out of range."""
        if self.loss not in ("consistency", "accuracy"):
            raise UserInputError(f"the loss is {self.loss!r}; expected consistency or accuracy")
        for name, value in (("risk", self.risk), ("confidence", self.confidence)):
            if not 0 < value < 1:
                raise UserInputError(f"--{name} is {value}; expected 0 < {name} < 1")
        if self.risk < SMALLEST_RISK:
            raise UserInputError(
                f"--risk is {self.risk:g}; expected at least {SMALLEST_RISK:g}, for which three "
                "million images are needed"
            )


@dataclass(frozen=True, kw_only=True)
class Tested:
    """Candidates in the order in which they were tested.

    Attributes:
        risk: what was to be guaranteed.
        candidates: the most careful first.
        violations: images that count as losing, of each candidate.
        images: on which they were tested, by their numbers in the table (n,), ascending.
        passed: how many candidates are certified, from the first on.
    """

    risk: Risk
    candidates: tuple[Settings, ...]
    violations: tuple[int, ...]
    images: NDArray[np.int64]
    passed: int

    @property
    def certified(self) -> Settings | None:
        """The last that passed; None where none did."""
        return self.candidates[self.passed - 1] if self.passed else None

    def needed(self) -> int | None:
        """Return how many images would certify the first candidate, if it keeps losing as here.

        None where it loses too much for any number of images.
        """
        lost = self.violations[0] / len(self.images) if self.violations else 0.0
        return images_needed(self.risk.risk, self.risk.confidence, lost)


def check_fresh(source: Source, *, split_is_fresh: bool = False) -> None:
    """Raise UserInputError unless nothing was fitted or chosen by the images of a table.

    A guarantee is a statement on images that the network and its training have not seen. Those of
    the calibration split are; whether those of a split of one's own are, only its owner can say.

    Args:
        source: of the table.
        split_is_fresh: whether the owner says so.
    """
    if source.split == CALIBRATION or (split_is_fresh and source.split not in KNOWN_SPLITS):
        return
    remedy = (
        "such images were used otherwise, so give the table of the calibration split"
        if source.split in KNOWN_SPLITS
        else "give that table, or --split-is-fresh where nothing was fitted or chosen by these"
    )
    raise UserInputError(
        f"the replay table is of the split {source.split!r:.60} of {source.data:.60}; a guarantee "
        f"needs calibration images: {remedy}"
    )


def p_value(violations: int, images: int, risk: float) -> float:
    """Return P(Bin(images, risk) <= violations): how likely so few losses are at the risk."""
    return float(require("scipy.stats", PURPOSE).binom.cdf(violations, images, risk))


def passed_before_failure(
    violations: Sequence[int], images: int, *, risk: float, confidence: float
) -> int:
    """Return how many candidates are certified: those before the first that fails.

    Args:
        violations: images that lose, of each candidate in the order that was fixed beforehand.
        images: on which all were tested.
        risk: largest share that may lose.
        confidence: of the guarantee.
    """
    p_values = require("scipy.stats", PURPOSE).binom.cdf(np.array(violations), images, risk)
    failed = np.flatnonzero(p_values > 1 - confidence)
    return int(failed[0]) if len(failed) else len(violations)


def images_needed(risk: float, confidence: float, loss: float = 0.0) -> int | None:
    """Return the least number of images on which a share `loss` of losses is certified.

    Args:
        risk: to be guaranteed, in (0, 1).
        confidence: in (0, 1).
        loss: share that is expected to lose, in [0, 1].

    Returns:
        The least n at which floor(n loss) losses have a p-value of at most 1 - confidence; None
        where `loss` is not below the risk. No loss at all, risk 0.01, confidence 0.95: 299.
    """
    if loss >= risk:
        return None
    fails, holds = -1, 1  # numbers of losses
    while holds <= MOST_LOSSES and not _allows(holds, risk, confidence, loss):
        fails, holds = holds, 2 * holds
    if holds > MOST_LOSSES:
        return None
    while holds - fails > 1:
        middle = (fails + holds) // 2
        if _allows(middle, risk, confidence, loss):
            holds = middle
        else:
            fails = middle
    # The images that so many losses need grow in steps, so near the crossing fewer may do as well.
    while (fewer := _fewer_that_do(holds, risk, confidence, loss)) is not None:
        holds = fewer
    return _least_images(holds, risk, confidence)


def _fewer_that_do(holds: int, risk: float, confidence: float, loss: float) -> int | None:
    window = range(max(0, holds - NEAR), holds)
    return next((k for k in window if _allows(k, risk, confidence, loss)), None)


def _allows(losses: int, risk: float, confidence: float, loss: float) -> bool:
    """Whether images on which so many losses pass are expected to have no more of them."""
    return math.floor(_least_images(losses, risk, confidence) * loss) <= losses


def _least_images(losses: int, risk: float, confidence: float) -> int:
    """Return the least n with P(Bin(n, risk) <= losses) <= 1 - confidence."""
    fails, holds = losses, 2 * losses + 2
    while p_value(losses, holds, risk) > 1 - confidence:
        fails, holds = holds, 2 * holds
    while holds - fails > 1:
        middle = (fails + holds) // 2
        if p_value(losses, middle, risk) <= 1 - confidence:
            holds = middle
        else:
            fails = middle
    return holds


def clopper_pearson(successes: int, images: int, confidence: float) -> tuple[float, float]:
    """Return the exact two-sided interval of a share (Clopper and Pearson, 1934)."""
    beta, tail = require("scipy.stats", PURPOSE).beta, (1 - confidence) / 2
    low = beta.ppf(tail, successes, images - successes + 1) if successes else 0.0
    high = beta.ppf(1 - tail, successes + 1, images - successes) if successes < images else 1.0
    return float(low), float(high)


def uniform_testing(
    table: ReplayTable, risk: Risk, *, exits: Sequence[int], values: Sequence[float]
) -> Tested:
    """Test one threshold for all of some exits, from the highest down.

    An image counts as losing where any exit that fires for it would lose, see the module; what
    passes may be deployed with any of its exits left out.

    Args:
        table: of the calibration split; all images test.
        risk: what is to be guaranteed.
        exits: numbers of the exits that are checked, ascending.
        values: thresholds, chosen before the images were seen.
    """
    numbers = tuple(exits)
    candidates = [
        Settings(exits=numbers, thresholds=(value,) * len(numbers))
        for value in sorted(set(map(float, values)), reverse=True)
    ]
    harmful = ~harmless(table, risk.loss)
    losing = [np.any(firing(table, one) & harmful, axis=1) for one in candidates]
    return _tested(risk, candidates, losing, np.arange(len(table)))


def pareto_testing(
    table: ReplayTable,
    costs: ExitCosts,
    risk: Risk,
    *,
    seed: int = 0,
    uniform: Sequence[float] = (),
    cuts_per_exit: int | None = None,
    effort: float = 1.0,
) -> Tested:
    """Find the front of loss against cost on one half of the images, and test on the other.

    Args:
        table: of the calibration split, at least two images.
        costs: of the parts of the network.
        risk: what is to be guaranteed.
        seed: of the split into halves.
        uniform: thresholds for all exits together that the search may use too.
        cuts_per_exit: of the search; by default what can be counted.
        effort: of the search.

    Raises:
        UserInputError: there is only one image.
    """
    finding, testing = halves(len(table), seed)
    good = harmless(table, risk.loss)
    problem = pose_problem(
        table.scores[finding],
        good[finding],
        costs,
        cuts_per_exit=cuts_per_exit or cuts_for(table.exits, len(uniform)),
        also=uniform_settings(table.exits, uniform),
    )
    front = search_front(problem, uniform=uniform, effort=effort)
    allowed = HOPELESS * risk.risk * len(finding) + 1
    points = np.flatnonzero(len(finding) - front.good <= allowed)[::-1]
    if len(points) > MOST_CANDIDATES:
        points = points[np.linspace(0, len(points) - 1, MOST_CANDIDATES).astype(np.int64)]
    candidates = [front.settings(int(point)) for point in points]
    used = [
        without_unused(table, one, finding) for one in _more_careful(candidates[:1]) + candidates
    ]
    candidates = list(dict.fromkeys(used))
    losing = [_losing(good, leaving(table, one))[testing] for one in candidates]
    return _tested(risk, candidates, losing, testing)


def halves(images: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the numbers of the images of two random halves, each ascending.

    Raises:
        UserInputError: there are fewer than two images.
    """
    if images < 2:
        raise UserInputError(f"{images} image cannot be split in halves; expected at least 2")
    order = np.random.default_rng(seed).permutation(images)
    return np.sort(order[: images // 2]), np.sort(order[images // 2 :])


def _more_careful(first: Sequence[Settings]) -> list[Settings]:
    """Return the same exits with thresholds nearer to 1.

    The front begins where nobody lost on one half of the images, which is no margin on the other.
    """
    return [
        Settings(exits=one.exits, thresholds=tuple(1 - (1 - bar) * share for bar in one.thresholds))
        for one in first
        for share in CAREFUL
        if one.exits
    ]


def _losing(good: NDArray[np.bool_], taken: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return (N,) whether each image loses at the exit that it takes."""
    losing: NDArray[np.bool_] = ~good[np.arange(len(taken)), taken]
    return losing


def _tested(
    risk: Risk,
    candidates: Sequence[Settings],
    losing: Sequence[NDArray[np.bool_]],
    images: NDArray[np.int64],
) -> Tested:
    """Test candidates in their order, each with whether every one of the images (n,) loses."""
    violations = [int(each.sum()) for each in losing]
    return Tested(
        risk=risk,
        candidates=tuple(candidates),
        violations=tuple(violations),
        images=images,
        passed=passed_before_failure(
            violations, len(images), risk=risk.risk, confidence=risk.confidence
        ),
    )
