"""Tasks that choose and report where images leave."""

from typing import Any

from compress.data.image_data import ImageData
from compress.errors import UserInputError
from compress.exits.calibration import calibrate, oracle
from compress.exits.figures import save_exit_rates, save_tradeoff
from compress.exits.log_text import deployment_block, sweep_block
from compress.exits.replay import ReplayTable, Source, fill_replay, save_replay
from compress.exits.sweep import (
    ExitReport,
    choose_threshold,
    evaluate_at,
    parse_sweep,
    sweep,
)
from compress.files import sha256_of, write_text
from compress.models.with_exits import WithExits
from compress.planning.guarantee import Risk
from compress.planning.job import PlanJob, front_rows, plan_network
from compress.planning.plan import Objective, read_plan
from compress.recipe.engine import Context
from compress.recipe.networks import network_of, opening_of
from compress.recipe.schema import Recipe
from compress.runtime.exit_spelling import Position

__all__ = ["evaluate_exits", "plan_task"]


def evaluate_exits(
    context: Context, recipe: Recipe, data: ImageData, progress: bool
) -> dict[str, Any]:
    """Report on test data what the plan, or one threshold for all exits, does."""
    options = context.task.options
    tables = {split: _replay(context, data, split, progress) for split in ("calibration", "test")}
    values = parse_sweep(options["sweep"])
    planned = context.of("plan")
    thresholds: float | tuple[float, ...]
    if planned is not None:
        plan = read_plan(planned.path("plan"))
        thresholds, exits = plan.thresholds, plan.exits
    else:
        thresholds, exits = options["threshold"], None
        if thresholds is None:
            calibration = tables["calibration"]
            thresholds = choose_threshold(calibration, values, max_drop=options["max_drop"])
    reports = sweep(tables["test"], values)
    report = _report_at(tables["test"], thresholds, exits)
    save_exit_rates(report, context.folder / "exit_rates.svg")
    save_tradeoff(reports, context.folder / "tradeoff.svg", chosen=report)
    text = "\n".join([*map(sweep_block, reports), deployment_block(report)])
    write_text(context.folder / "sweep.txt", text + "\n")
    calibration = calibrate(tables["calibration"], tables["test"])
    return {
        "threshold": thresholds if isinstance(thresholds, float) else None,
        "test": report.to_dict(),
        "sweep": [each.to_dict() for each in reports],
        "calibration": [each.to_dict() for each in calibration],
        "oracle": oracle(tables["test"]).to_dict(),
    }


def plan_task(context: Context, recipe: Recipe, data: ImageData, progress: bool) -> dict[str, Any]:
    """Choose exits and thresholds on calibration data; the test split is left for `evaluate`."""
    options = context.task.options
    risk, objective = options["risk"], Objective(kind="max-drop", value=options["max_drop"])
    if options["budget"] is not None:
        objective = Objective(kind="budget", value=options["budget"])
    sure = Risk(loss="consistency", risk=risk or 0.5, confidence=options["confidence"])
    report = plan_network(
        PlanJob(
            source=context.network.path("checkpoint"),
            opening=opening_of(context),
            output=context.folder / "plan.json",
            data=data,
            objective=None if risk else objective,
            risk=sure if risk else None,
            method=options["method"],
            held_out=options["held_out"],
            test=False,
            seed=recipe.seed,
            progress=progress,
        )
    )
    return {"plan": "plan.json", **report.plan.to_dict(), **front_rows(report)}


def _report_at(
    table: ReplayTable, thresholds: float | tuple[float, ...], exits: tuple[Position, ...] | None
) -> ExitReport:
    """What the table says; a plan without exits is every exit at a bar that nothing passes."""
    if exits == ():
        return evaluate_at(table, (), positions=())
    return evaluate_at(table, thresholds, positions=exits)


def _replay(context: Context, data: ImageData, split: str, progress: bool) -> ReplayTable:
    checkpoint = context.network.path("checkpoint")
    model = network_of(context, checkpoint)
    if not isinstance(model, WithExits):
        raise UserInputError(f"{type(model).__name__} has no early exits to evaluate")
    source = Source(
        data=data.name,
        split=split,
        data_sha256=data.sha256,
        checkpoint_sha256=sha256_of(checkpoint),
    )
    table = fill_replay(model, data.splits[split], data.normalize, source, progress=progress)
    save_replay(table, context.folder / f"{split}.npz")
    return table
