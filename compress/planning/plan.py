"""The plan: which exits a network leaves at, from which score on, and what was found about it.

A plan names blocks or modules, not numbers of exits, so that it can be laid on a checkpoint whose
other exits are left out of the export. A plan without exits is the whole network.

A file with a plan may come from a stranger: every field has its type and its range, and fields
that say the same in two ways must agree, before anything is built from it.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from compress.errors import UserInputError
from compress.exits.replay import Source
from compress.files import check_readable, write_json
from compress.planning.json_values import (
    count_of,
    items_of,
    number_of,
    object_of,
    one_of,
    share_of,
    text_of,
)
from compress.runtime.exit_spelling import Position, check_order, joined, position_of
from compress.runtime.thresholds import check_thresholds

__all__ = [
    "OBJECTIVES",
    "UNITS",
    "ExitPlan",
    "Guarantee",
    "Objective",
    "PlanAccuracy",
    "PlanCost",
    "RefusedExits",
    "read_plan",
    "write_plan",
]

FORMAT = "compress.plan/2"
FORMATS = ("compress.plan/1", FORMAT)  # the first knew numbers of blocks alone
UNITS = ("macs", "ms", "mj")
OBJECTIVES = {"max-drop": 100.0, "budget": 1.0, "budget-cost": 1e18, "risk": 1.0}  # largest values
LOSSES = ("consistency", "accuracy")
METHODS = ("fixed-sequence", "pareto-testing")
MAX_BYTES = 1 << 20
MAX_COST = 2.0**60  # of an image
ROUNDING = 1e-9  # of shares that were summed in another order


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What was asked for.

    Attributes:
        kind: "max-drop" (least cost, at most so many points of accuracy below the whole network),
            "budget" (best accuracy, at most this share of the cost of the whole network),
            "budget-cost" (the same in the unit of the costs), or "risk" (least cost under a
            guarantee).
        value: points, share, cost, or risk in (0, 1).
    """

    kind: str
    value: float

    def __post_init__(self) -> None:
        """Raise UserInputError unless the kind is known and the value in its range."""
        if self.kind not in OBJECTIVES:
            raise UserInputError(
                f"the objective is {self.kind!r}; expected one of {', '.join(OBJECTIVES)}"
            )
        smallest_too = self.kind == "max-drop"  # no drop at all can be asked for, no cost cannot
        low_enough = self.value < 1 if self.kind == "risk" else self.value <= OBJECTIVES[self.kind]
        if not (low_enough and (self.value > 0 or (smallest_too and self.value == 0))):
            raise UserInputError(
                f"--{self.kind} is {self.value}; expected it above 0"
                f"{' or 0' if smallest_too else ''} and "
                f"{'below' if self.kind == 'risk' else 'at most'} {OBJECTIVES[self.kind]:g}"
            )


@dataclass(frozen=True, kw_only=True)
class PlanCost:
    """What an image costs on average.

    Attributes:
        expected: with the exits of the plan, their own checks included.
        full: of the whole network without exits.
        unit: "macs", "ms" or "mj" (millijoules).
        source: where the costs of the parts come from, in words.
    """

    expected: float
    full: float
    unit: str
    source: str

    @property
    def share(self) -> float:
        """Expected cost over that of the whole network."""
        return self.expected / self.full


@dataclass(frozen=True, kw_only=True)
class PlanAccuracy:
    """How often the network is right, with the exits of the plan and without exits.

    Attributes:
        images: on which it was counted.
        correct: right with the plan.
        full_correct: right without exits.
        interval: of the accuracy of the plan, in [0, 1]: Clopper and Pearson's exact interval.
        confidence: of the interval.
        held_out: whether the thresholds were found on other images than these; if not, the
            accuracy and its interval flatter the plan a little, as any choice by the same data.
    """

    images: int
    correct: int
    full_correct: int
    interval: tuple[float, float]
    confidence: float
    held_out: bool

    @property
    def acc1(self) -> float:
        """Accuracy with the plan, in per cent."""
        return 100.0 * self.correct / self.images

    @property
    def full_acc1(self) -> float:
        """Accuracy of the whole network, in per cent."""
        return 100.0 * self.full_correct / self.images

    @property
    def drop(self) -> float:
        """Points of accuracy below the whole network; negative where the exits are better."""
        return 100.0 * (self.full_correct - self.correct) / self.images


@dataclass(frozen=True, kw_only=True)
class Guarantee:
    """P(loss against the whole network > risk) <= 1 - confidence, over draws of the images.

    Attributes:
        loss: "consistency" (another class than the whole network says) or "accuracy" (points of
            accuracy below it).
        risk: largest loss, a share in (0, 1).
        confidence: in (0, 1).
        method: "fixed-sequence" or "pareto-testing".
        images: on which it was tested.
        violations: images among them that lose.
        p_value: of the hypothesis that the loss is above the risk; at most 1 - confidence.
    """

    loss: str
    risk: float
    confidence: float
    method: str
    images: int
    violations: int
    p_value: float


@dataclass(frozen=True, kw_only=True)
class RefusedExits:
    """Exits that met the objective and saved nothing, so that the plan is the whole network.

    Attributes:
        exits: where they stand.
        thresholds: one for each.
        expected: what an image would have cost on average, at least as much as the whole network.
    """

    exits: tuple[Position, ...]
    thresholds: tuple[float, ...]
    expected: float


@dataclass(frozen=True, kw_only=True)
class ExitPlan:
    """Exits and thresholds of a network, and what was found about them.

    Attributes:
        exits: where images can leave, by block (0-based) or module, in the order of the network;
            () is the whole network.
        thresholds: one for each, in [0, 1]: an image leaves at the first score >= threshold.
        depth: blocks of the network, 0 where it is not counted in blocks.
        objective: what was asked for.
        planner: "search", "stopping", "uniform" or "hand-made".
        cost: what an image costs.
        accuracy: how often it is right.
        exit_rates: share of the images that leave at each of `exits` and at the final head, in
            [0, 1].
        guarantee: None where none was asked for.
        source: data and checkpoint that the plan was computed from.
        seed: of the split of the images for a guarantee.
        refused: exits in whose place the plan is the whole network; None where it was not so.
    """

    exits: tuple[Position, ...]
    thresholds: tuple[float, ...]
    depth: int
    objective: Objective
    planner: str
    cost: PlanCost
    accuracy: PlanAccuracy
    exit_rates: tuple[float, ...]
    guarantee: Guarantee | None
    source: Source
    seed: int
    refused: RefusedExits | None = None

    @property
    def checkpoint_sha256(self) -> str:
        """Of the file of the network that the plan was computed for."""
        return self.source.checkpoint_sha256

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        value: dict[str, Any] = json.loads(json.dumps(asdict(self), allow_nan=False))
        return {"format": FORMAT, **value}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "ExitPlan":
        """Return the plan of these JSON values.

        Raises:
            UserInputError: a field is missing, of another type, out of range, or contradicts
                another.
        """
        try:
            return _checked(value)
        except ValueError as err:
            raise UserInputError(f"the plan cannot be used ({err}); make it again") from err


def write_plan(plan: ExitPlan, path: Path) -> None:
    """Write a plan as JSON, whole or not at all, checked as a reader will."""
    value = plan.to_dict()
    ExitPlan.from_dict(value)
    write_json(Path(path), value)


def read_plan(path: Path) -> ExitPlan:
    """Read and check a plan that `write_plan` wrote.

    Raises:
        UserInputError: the file is missing, damaged, inconsistent, or not a plan.
    """
    path = check_readable(Path(path), "plan")
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"{path.stat().st_size} bytes, more than a plan has")
        return _checked(object_of(json.loads(path.read_text(encoding="utf-8"))))
    except (ValueError, RecursionError) as err:
        raise UserInputError(
            f"plan {path} cannot be used ({' '.join(str(err).split())[:300]}); it is damaged or of "
            "another kind, so make it again with python -m compress.plan_exits"
        ) from err


def _checked(value: Mapping[str, Any]) -> ExitPlan:
    """Return the plan, or raise ValueError."""
    try:
        plan = _parse(value)
    except KeyError as err:
        raise ValueError(f"{err} is missing") from err
    except (TypeError, OverflowError, UserInputError) as err:
        raise ValueError(str(err)) from err
    _check_consistent(plan)
    return plan


def _parse(value: Mapping[str, Any]) -> ExitPlan:
    if value["format"] not in FORMATS:
        raise ValueError(f"format {value['format']!r:.60}, this version reads {FORMAT}")
    guarantee = value["guarantee"]
    refused = value["refused"] if value["format"] == FORMAT else None
    exits, bars = _exits(value)
    return ExitPlan(
        exits=exits,
        thresholds=bars,
        depth=count_of(value["depth"]),
        objective=_objective(object_of(value["objective"])),
        planner=text_of(value["planner"]),
        cost=_cost(object_of(value["cost"])),
        accuracy=_accuracy(object_of(value["accuracy"])),
        exit_rates=items_of(value["exit_rates"], share_of),
        guarantee=None if guarantee is None else _guarantee(object_of(guarantee)),
        source=_source(object_of(value["source"])),
        seed=count_of(value["seed"]),
        refused=None if refused is None else _refused(object_of(refused)),
    )


def _exits(value: Mapping[str, Any]) -> tuple[tuple[Position, ...], tuple[float, ...]]:
    exits = items_of(value["exits"], position_of)
    bars = check_thresholds(list(items_of(value["thresholds"], number_of)), len(exits))
    return exits, tuple(bars)


def _refused(value: Mapping[str, Any]) -> RefusedExits:
    exits, bars = _exits(value)
    return RefusedExits(exits=exits, thresholds=bars, expected=number_of(value["expected"]))


def _check_consistent(plan: ExitPlan) -> None:
    """Raise ValueError where fields contradict each other."""
    check_order(plan.exits, plan.depth)
    if plan.refused is not None:
        _check_refused(plan, plan.refused)
    if len(plan.exit_rates) != len(plan.exits) + 1 or abs(sum(plan.exit_rates) - 1) > ROUNDING:
        raise ValueError(f"exit rates {list(plan.exit_rates)[:20]} of {len(plan.exits)} exits")
    if (plan.objective.kind == "risk") != (plan.guarantee is not None):
        raise ValueError(f"objective {plan.objective.kind}, guarantee {plan.guarantee}")
    found = plan.accuracy
    low, high = found.interval
    share = found.correct / found.images
    if max(found.correct, found.full_correct) > found.images or not low <= share <= high:
        raise ValueError(
            f"{found.correct} of {found.images} images right, with the interval {found.interval}"
        )


def _check_refused(plan: ExitPlan, refused: RefusedExits) -> None:
    check_order(refused.exits, plan.depth)
    if plan.exits or not refused.exits or not plan.cost.full <= refused.expected <= MAX_COST:
        raise ValueError(
            f"exits behind {joined(refused.exits)} refused for {refused.expected}, and exits "
            f"behind {joined(plan.exits)} planned, where the whole network costs {plan.cost.full}"
        )


def _objective(value: Mapping[str, Any]) -> Objective:
    return Objective(kind=text_of(value["kind"]), value=number_of(value["value"]))


def _cost(value: Mapping[str, Any]) -> PlanCost:
    cost = PlanCost(
        expected=number_of(value["expected"]),
        full=number_of(value["full"]),
        unit=one_of(value["unit"], UNITS),
        source=text_of(value["source"]),
    )
    if not (0 < cost.expected <= MAX_COST and 0 < cost.full <= MAX_COST):
        raise ValueError(f"costs {cost.expected} and {cost.full}")
    return cost


def _accuracy(value: Mapping[str, Any]) -> PlanAccuracy:
    low, high = items_of(value["interval"], share_of)
    if not isinstance(value["held_out"], bool):
        raise ValueError(f"held_out {value['held_out']!r:.60}")
    return PlanAccuracy(
        images=count_of(value["images"], smallest=1),
        correct=count_of(value["correct"]),
        full_correct=count_of(value["full_correct"]),
        interval=(low, high),
        confidence=share_of(value["confidence"]),
        held_out=value["held_out"],
    )


def _guarantee(value: Mapping[str, Any]) -> Guarantee:
    found = Guarantee(
        loss=one_of(value["loss"], LOSSES),
        risk=share_of(value["risk"]),
        confidence=share_of(value["confidence"]),
        method=one_of(value["method"], METHODS),
        images=count_of(value["images"], smallest=1),
        violations=count_of(value["violations"]),
        p_value=share_of(value["p_value"]),
    )
    if found.violations > found.images or found.p_value > 1 - found.confidence + ROUNDING:
        raise ValueError(f"a guarantee that its own figures refuse: {found}")
    return found


def _source(value: Mapping[str, Any]) -> Source:
    names = ("data", "split", "data_sha256", "checkpoint_sha256")
    return Source(**{name: text_of(value[name]) for name in names})
