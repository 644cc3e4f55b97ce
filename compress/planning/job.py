"""Plan the exits of a checkpoint or of a replay table: what is asked for, what is found."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compress.cli import printable
from compress.data.image_data import ImageData
from compress.errors import UnsupportedModelError, UserInputError
from compress.exits.replay import ReplayTable, Source, fill_replay, load_replay
from compress.files import check_readable
from compress.measure.versions import hardware, versions
from compress.models.with_exits import WithExits
from compress.opened import Opening, open_checkpoint
from compress.planning.costs import ExitCosts, costs_from_table, read_costs
from compress.planning.guarantee import Risk, check_fresh
from compress.planning.plan import ExitPlan, Objective, PlanCost, RefusedExits, write_plan
from compress.planning.planner import measure_plan, plan_exits, plan_with_guarantee
from compress.planning.points import PlanFront, PlanPoint, hand_made_settings, plan_front
from compress.runtime.exit_spelling import FINAL_HEAD, Position, joined

__all__ = ["PlanJob", "PlanReport", "front_rows", "plan_network", "replay_of"]

CALIBRATION, TEST = "calibration", "test"
TABLE = ".npz"
NAMES = {
    "search": "search over exits and thresholds",
    "stopping": "optimal stopping",
    "uniform": "one threshold for all exits",
    "hand-made": "by hand",
}


@dataclass(frozen=True, kw_only=True)
class PlanJob:
    """What to plan, and how. Exactly one of the objective and the risk is given.

    Attributes:
        source: a checkpoint with early exits, or the replay table of a calibration split (.npz).
        output: where the plan goes, or None.
        data: "digits", "cifar10:DIR", "folder:DIR", or the images; needed for a checkpoint.
        objective: what to reach.
        risk: what to guarantee in its place; from images of the calibration split alone.
        split_is_fresh: of a replay table whose split has a name of its own: nothing was fitted or
            chosen by its images.
        method: of the guarantee, "pareto-testing" or "fixed-sequence".
        planner: whose point is taken: "search", "stopping" or "uniform".
        held_out: choose by other images than those that found the front.
        costs: file of measured costs, a device profile, or the name of a shipped one; None takes
            true multiply-adds.
        hand_made: exits and thresholds that somebody chose, to lay beside.
        test: also measure the plan on the test split of `data`.
        opening: how a checkpoint is opened.
        device: where to run it.
        seed: of the split of the data, and of the halves.
        cache: folder of decoded images, or "off"; None takes the usual folder.
        progress: show bars on stderr.
    """

    source: Path
    output: Path | None = None
    data: str | ImageData | None = None
    objective: Objective | None = None
    risk: Risk | None = None
    split_is_fresh: bool = False
    method: str = "pareto-testing"
    planner: str = "search"
    held_out: bool = True
    costs: Path | None = None
    hand_made: tuple[tuple[Position, ...], float | tuple[float, ...]] | None = None
    test: bool = True
    opening: Opening = field(default_factory=Opening)
    device: str = "cpu"
    seed: int = 0
    cache: Path | str | None = None
    progress: bool = True


@dataclass(frozen=True, kw_only=True)
class PlanReport:
    """What was found.

    Attributes:
        plan: exits and thresholds.
        front: what every planner can reach on the calibration images.
        test: the plan on the test split, or None.
        test_images: of that split.
        output: where the plan lies, or None.
    """

    plan: ExitPlan
    front: PlanFront
    test: PlanPoint | None
    test_images: int
    output: Path | None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {
            "schema": "compress.plan-report/1",
            "plan": self.plan.to_dict(),
            "front": self.front.to_dict(),
            "test": None if self.test is None else {**vars(self.test), "images": self.test_images},
            "output": None if self.output is None else str(self.output),
            "versions": versions(),
            "hardware": hardware(),
        }

    def to_text(self) -> str:
        """Return the figures for a console."""
        plan = self.plan
        low, high = (100 * bound for bound in plan.accuracy.interval)
        split, costs = printable(plan.source.split), printable(plan.cost.source)
        head = "exit behind block" if plan.depth else "exit behind"
        names = [head, *map(str, plan.exits), FINAL_HEAD]
        bars = ["threshold", *(f"{bar:.4f}" for bar in plan.thresholds), "-"]
        rates = ["share of images", *(f"{100 * rate:.1f} %" for rate in plan.exit_rates)]
        width = max(map(len, names))
        lines = [
            f"{name:>{width}}  {bar:>9}  {rate:>15}"
            for name, bar, rate in zip(names, bars, rates, strict=True)
        ]
        if plan.refused is not None:
            lines.append(_refusal(plan.refused, plan.cost))
        chosen = "other images than the thresholds" if plan.accuracy.held_out else "the same images"
        lines.append(f"expected cost {plan.cost.share:.1%} of the whole network ({costs})")
        lines.append(
            f"accuracy {plan.accuracy.acc1:.2f} % ({low:.2f} to {high:.2f} % at "
            f"{plan.accuracy.confidence:.0%} confidence), whole network "
            f"{plan.accuracy.full_acc1:.2f} %, on {plan.accuracy.images} {split} "
            "images: "
            f"{chosen}"
        )
        if plan.guarantee is not None:
            sure = plan.guarantee
            lines.append(
                f"guarantee: {sure.loss} loss at most {sure.risk:g} with {sure.confidence:.0%} "
                f"confidence, for images drawn as the {split} images were"
            )
        if self.test is not None:
            lines.append(
                f"on {self.test_images} test images: accuracy {self.test.acc1:.2f} %, cost "
                f"{self.test.share:.1%}"
            )
        if self.output is not None:
            lines.append(f"written: {self.output}")
        return "\n".join(lines)

    def front_text(self) -> str:
        """Return the whole front for a console, by rising cost, the best planner's points alone."""
        lines = ["cost of whole  accuracy  exits: thresholds"]
        for point in self.front.points["search"]:
            pairs = zip(point.exits, point.thresholds, strict=True)
            where = ", ".join(f"{place}: {bar:.3f}" for place, bar in pairs) or "whole network"
            lines.append(f"{point.share:13.1%}  {point.acc1:7.2f} %  {where}")
        return "\n".join(lines)


def plan_network(job: PlanJob) -> PlanReport:
    """Plan the exits of a network from one pass over calibration data.

    Raises:
        UserInputError: a file or an option cannot be used.
        UnsupportedModelError: the checkpoint has no early exits.
        AccuracyError: nothing can be guaranteed; it says how many images would be needed.
    """
    if (job.objective is None) == (job.risk is None):
        raise UserInputError("expected exactly one of a drop, a budget and a risk")
    if job.seed < 0:
        raise UserInputError(f"--seed is {job.seed}; expected at least 0")
    tables = _tables(job)
    table = tables[CALIBRATION]
    if job.risk is not None:
        check_fresh(table.source, split_is_fresh=job.split_is_fresh)
    costs = costs_from_table(table) if job.costs is None else read_costs(job.costs, table)
    hand_made = None if job.hand_made is None else hand_made_settings(table, *job.hand_made)
    front = plan_front(table, costs, hand_made=hand_made)
    plan = _plan(job, table, costs, front)
    test = tables.get(TEST)
    if job.output is not None:
        write_plan(plan, job.output)
    return PlanReport(
        plan=plan,
        front=front,
        test=None if test is None else measure_plan(plan, test, costs),
        test_images=0 if test is None else len(test),
        output=job.output,
    )


def front_rows(report: PlanReport) -> dict[str, Any]:
    """Return the fronts and the chosen point as a report draws them."""
    plan, front = report.plan, report.front
    curves = [
        {
            "method": NAMES[name],
            "points": [{"cost_share": point.share, "acc1": point.acc1} for point in points],
        }
        for name, points in front.points.items()
        if points
    ]
    chosen = {"cost_share": plan.cost.share, "acc1": plan.accuracy.acc1}
    return {"front": curves, "chosen": chosen}


def replay_of(
    checkpoint_file: Path,
    data: str | ImageData,
    splits: Sequence[str],
    *,
    opening: Opening | None = None,
    device: str = "cpu",
    seed: int = 0,
    cache: Path | str | None = None,
    progress: bool = True,
) -> dict[str, ReplayTable]:
    """Run a checkpoint with early exits over some splits.

    Raises:
        UserInputError: the file or the data cannot be used.
        UnsupportedModelError: the checkpoint has no early exits.
    """
    network = open_checkpoint(checkpoint_file, opening)
    model = network.model
    if not isinstance(model, WithExits):
        raise UnsupportedModelError(
            f"checkpoint {checkpoint_file} holds a {type(model).__name__} without early exits; "
            "expected one with heads and gates to plan for"
        )
    data = network.data(data, seed=seed, cache=cache)
    return {
        split: fill_replay(
            model,
            data.splits[split],
            data.normalize,
            Source(
                data=data.name,
                split=split,
                data_sha256=data.sha256,
                checkpoint_sha256=network.checkpoint.sha256,
            ),
            device=device,
            progress=progress,
        )
        for split in splits
    }


def _refusal(refused: RefusedExits, cost: PlanCost) -> str:
    return (
        f"no exits: with those behind {joined(refused.exits)} an image would cost "
        f"{refused.expected:.6g} {cost.unit}, and {cost.full:.6g} {cost.unit} without any, so the "
        "plan is the whole network"
    )


def _tables(job: PlanJob) -> dict[str, ReplayTable]:
    check_readable(job.source, "checkpoint or replay table")
    if job.source.suffix == TABLE:
        return {CALIBRATION: load_replay(job.source)}
    if job.data is None:
        raise UserInputError(
            f"{job.source} is no replay table ({TABLE}), so images are needed; give --data SPEC"
        )
    splits = (CALIBRATION, TEST) if job.test else (CALIBRATION,)
    return replay_of(
        job.source,
        job.data,
        splits,
        opening=job.opening,
        device=job.device,
        seed=job.seed,
        cache=job.cache,
        progress=job.progress,
    )


def _plan(job: PlanJob, table: ReplayTable, costs: ExitCosts, front: PlanFront) -> ExitPlan:
    if job.risk is not None:
        return plan_with_guarantee(table, costs, job.risk, method=job.method, seed=job.seed)
    if job.objective is None:
        raise UserInputError("expected an objective or a risk")
    return plan_exits(
        table,
        costs,
        job.objective,
        planner=job.planner,
        front=None if job.held_out else front,
        held_out=job.held_out,
        seed=job.seed,
    )
