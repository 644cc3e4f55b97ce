"""From a replay table and costs to a plan.

`plan_exits` chooses from the front of `compress.planning.points`; `plan_with_guarantee` takes what
the images can certify (`compress.planning.guarantee`).

A threshold an exit is much freedom, and a front fits the images that it was found on: of 10,000
lifelike images with 11 exits (tests/planning/plan_tables.py) the search made 0.5 points of drop
that were 1.1 on new images, of 2000 images 1.9. Its points are still the better ones at equal
accuracy; they do not keep what was asked for. So a plan is better chosen with `held_out`, and where
a bound must hold, with a guarantee.

Whatever was chosen, two things are never in a plan: an exit that none of the images takes by which
the plan was chosen, and exits that cost no less than the network without them, in whose place it
stands.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from compress.errors import AccuracyError, UserInputError
from compress.exits.replay import ReplayTable
from compress.planning.costs import ExitCosts
from compress.planning.cuts import Settings
from compress.planning.guarantee import (
    Risk,
    Tested,
    clopper_pearson,
    halves,
    p_value,
    pareto_testing,
    uniform_testing,
)
from compress.planning.outcomes import right, without_unused
from compress.planning.plan import (
    ExitPlan,
    Guarantee,
    Objective,
    PlanAccuracy,
    PlanCost,
    RefusedExits,
)
from compress.planning.points import (
    UNIFORM,
    PlanFront,
    PlanPoint,
    check_costs,
    hand_made_settings,
    plan_front,
    point_of,
)

__all__ = ["measure_plan", "plan_exits", "plan_with_guarantee"]

CONFIDENCE = 0.95  # of the interval of the accuracy


def plan_exits(
    table: ReplayTable,
    costs: ExitCosts,
    objective: Objective,
    *,
    planner: str = "search",
    front: PlanFront | None = None,
    held_out: bool = False,
    uniform: Sequence[float] = UNIFORM,
    seed: int = 0,
    effort: float = 1.0,
) -> ExitPlan:
    """Return the plan that meets an objective best on the calibration images.

    Args:
        table: of the calibration split.
        costs: of the parts of its network.
        objective: of a kind other than "risk", which `plan_with_guarantee` serves.
        planner: "search", "stopping", "uniform" or "hand-made".
        front: of the same table and costs, where it is there already; not used with `held_out`.
        held_out: find the front on one half of the images and choose from it by the other half,
            so that the accuracy of the plan is not that of the images which shaped it; "search"
            then chooses among the points of all planners.
        uniform: thresholds for all exits together, where there is no front yet.
        seed: of the split into halves.
        effort: of the search.

    Raises:
        UserInputError: nothing is as cheap as the budget, or arguments do not fit.
    """
    if objective.kind == "risk":
        raise UserInputError("a risk needs a guarantee; expected another objective")
    images = np.arange(len(table))
    if held_out:
        finding, images = halves(len(table), seed)
        front = plan_front(_part_of(table, finding), costs, uniform=uniform, effort=effort)
    front = front or plan_front(table, costs, uniform=uniform, effort=effort)
    if not front.points.get(planner):
        raise UserInputError(
            f"the planner {planner!r} has no points; expected one of "
            f"{', '.join(name for name, points in front.points.items() if points)}"
        )
    if held_out:
        settings, planner = _by_other_images(table, costs, front, planner, objective, images)
    elif planner == "search":
        settings = _from_front(front, objective)
    else:
        settings = _settings_of(table, _best(front.points[planner], front, objective))
    settings = without_unused(table, settings, images)
    return _plan(table, costs, settings, objective, planner, images, seed=seed, held_out=held_out)


def plan_with_guarantee(
    table: ReplayTable,
    costs: ExitCosts,
    risk: Risk,
    *,
    method: str = "pareto-testing",
    exits: Sequence[int] | None = None,
    uniform: Sequence[float] = UNIFORM,
    seed: int = 0,
    effort: float = 1.0,
) -> ExitPlan:
    """Return the cheapest plan that keeps a risk, as far as the calibration images can tell.

    Args:
        table: of the calibration split.
        costs: of the parts of its network.
        risk: what is to be guaranteed.
        method: "pareto-testing" for a threshold an exit, of any subset; "fixed-sequence" for one
            threshold for all of `exits`, which needs no half of the images for a search.
        exits: numbers of the exits, for "fixed-sequence"; all by default.
        uniform: thresholds to test in a fixed sequence.
        seed: of the split into halves.
        effort: of the search.

    Raises:
        AccuracyError: nothing can be certified; it says how many images would be needed.
        UserInputError: arguments do not fit.
    """
    check_costs(table, costs)
    if method == "pareto-testing":
        tested = pareto_testing(table, costs, risk, seed=seed, uniform=uniform, effort=effort)
    elif method == "fixed-sequence":
        chosen = range(table.exits) if exits is None else exits
        tested = uniform_testing(table, risk, exits=chosen, values=uniform)
    else:
        raise UserInputError(f"the method is {method!r}; expected pareto-testing or fixed-sequence")
    if tested.certified is None:
        raise AccuracyError(_nothing_certified(tested, method))
    settings, lost = tested.certified, tested.violations[tested.passed - 1]
    if method == "fixed-sequence":  # whose test covers every subset of the exits
        settings = without_unused(table, settings, tested.images)
    guarantee = Guarantee(
        loss=risk.loss,
        risk=risk.risk,
        confidence=risk.confidence,
        method=method,
        images=len(tested.images),
        violations=lost,
        p_value=p_value(lost, len(tested.images), risk.risk),
    )
    return _plan(
        table, costs, settings, Objective(kind="risk", value=risk.risk),
        "search" if method == "pareto-testing" else "uniform", tested.images, seed=seed,
        guarantee=guarantee, held_out=method == "pareto-testing",
    )  # fmt: skip


def measure_plan(plan: ExitPlan, table: ReplayTable, costs: ExitCosts) -> PlanPoint:
    """Return what a plan does on other images, such as the test split.

    Raises:
        UserInputError: the network has no such exits.
    """
    check_costs(table, costs)
    settings = Settings(exits=(), thresholds=())
    if plan.exits:
        settings = hand_made_settings(table, plan.exits, plan.thresholds)
    return point_of(table, right(table), costs, settings)


def _from_front(front: PlanFront, objective: Objective) -> Settings:
    if objective.kind == "max-drop":
        point = front.search.cheapest(_fewest_correct(front, objective))
    else:
        point = front.search.best(_largest_cost(front, objective) * front.images)
    if point is None:
        raise _too_dear(front, objective, float(front.search.cost[0]) / front.images)
    return front.search.settings(point)


def _by_other_images(
    table: ReplayTable,
    costs: ExitCosts,
    front: PlanFront,
    planner: str,
    objective: Objective,
    images: NDArray[np.int64],
) -> tuple[Settings, str]:
    """Return the best settings of a front as counted on other images, and whose they are."""
    good = right(table)
    names = [name for name in front.points if planner in ("search", name)]
    found = {
        point_of(table, good, costs, _settings_of(table, point), images): name
        for name in reversed(names)
        for point in front.points[name]
    }
    here = replace(front, images=len(images), full_correct=int(good[images, -1].sum()), points={})
    best = _best(tuple(found), here, objective)
    return _settings_of(table, best), planner if best is None else found[best]


def _best(points: Sequence[PlanPoint], front: PlanFront, objective: Objective) -> PlanPoint | None:
    """Return the best of some points; None, the whole network, where none keeps the accuracy."""
    if objective.kind == "max-drop":
        fit = [one for one in points if one.correct >= _fewest_correct(front, objective)]
        return min(fit, key=lambda one: (one.cost, -one.correct), default=None)
    largest = _largest_cost(front, objective) * (1 + 1e-12)
    fit = [one for one in points if one.cost <= largest]
    if not fit:
        raise _too_dear(front, objective, min(one.cost for one in points))
    return max(fit, key=lambda one: (one.correct, -one.cost))


def _settings_of(table: ReplayTable, point: PlanPoint | None) -> Settings:
    if point is None:
        return Settings(exits=(), thresholds=())
    numbers = tuple(table.positions.index(position) for position in point.exits)
    return Settings(exits=numbers, thresholds=point.thresholds)


def _part_of(table: ReplayTable, images: NDArray[np.int64]) -> ReplayTable:
    return replace(
        table,
        logits=table.logits[images],
        scores=table.scores[images],
        labels=table.labels[images],
    )


def _fewest_correct(front: PlanFront, objective: Objective) -> float:
    return front.full_correct - objective.value / 100 * front.images - 1e-9


def _largest_cost(front: PlanFront, objective: Objective) -> float:
    return objective.value * (front.full_cost if objective.kind == "budget" else 1.0)


def _too_dear(front: PlanFront, objective: Objective, least: float) -> UserInputError:
    share = (
        "" if objective.kind == "budget-cost" else f", {least / front.full_cost:.4f} of the whole"
    )
    return UserInputError(
        f"the {objective.kind} is {objective.value:g}; expected at least what the cheapest plan "
        f"costs, {least:.6g} {front.unit} an image{share}"
    )


def _nothing_certified(tested: Tested, method: str) -> str:
    risk, images = tested.risk, len(tested.images)
    lost = tested.violations[0] if tested.violations else 0
    needed = tested.needed()
    parts = 2 if method == "pareto-testing" else 1
    advice = (
        f"about {parts * needed} calibration images are needed"
        if needed is not None
        else "no number of images would do, so allow a larger risk or train the exits further"
    )
    return (
        f"no exit can be certified to lose at most {risk.risk:g} of {risk.loss} with confidence "
        f"{risk.confidence:g}: even the most careful thresholds lose {lost} of {images} images; "
        f"{advice}"
    )


def _plan(
    table: ReplayTable,
    costs: ExitCosts,
    settings: Settings,
    objective: Objective,
    planner: str,
    images: NDArray[np.int64],
    *,
    seed: int,
    guarantee: Guarantee | None = None,
    held_out: bool = False,
) -> ExitPlan:
    """Return the plan of these settings, its figures counted on `images`.

    Where they cost no less than the whole network, the plan is that. It loses nothing against
    itself, so a guarantee holds for it all the more.
    """
    good = right(table)
    point, refused = point_of(table, good, costs, settings, images), None
    if point.exits and point.cost >= costs.full:
        refused = RefusedExits(exits=point.exits, thresholds=point.thresholds, expected=point.cost)
        point = point_of(table, good, costs, Settings(exits=(), thresholds=()), images)
    return ExitPlan(
        exits=point.exits,
        thresholds=point.thresholds,
        depth=table.depth,
        objective=objective,
        planner=planner,
        cost=PlanCost(expected=point.cost, full=costs.full, unit=costs.unit, source=costs.source),
        accuracy=PlanAccuracy(
            images=len(images),
            correct=point.correct,
            full_correct=int(good[images, -1].sum()),
            interval=clopper_pearson(point.correct, len(images), CONFIDENCE),
            confidence=CONFIDENCE,
            held_out=held_out,
        ),
        exit_rates=point.exit_rates,
        guarantee=guarantee,
        source=table.source,
        seed=seed,
        refused=refused,
    )
