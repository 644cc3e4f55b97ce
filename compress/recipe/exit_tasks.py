"""Tasks that choose and report where images leave."""

from typing import Any

from compress.checkpoint import load
from compress.data.image_data import ImageData
from compress.errors import UserInputError
from compress.exits.calibration import calibrate, oracle
from compress.exits.figures import save_exit_rates, save_tradeoff
from compress.exits.log_text import deployment_block, sweep_block
from compress.exits.replay import ReplayTable, Source, fill_replay, save_replay
from compress.exits.sweep import choose_threshold, evaluate_at, parse_sweep, sweep
from compress.files import sha256_of, write_text
from compress.models.early_exit import GFNetDynn
from compress.recipe.engine import Context
from compress.recipe.schema import Recipe

__all__ = ["evaluate_exits"]


def evaluate_exits(
    context: Context, recipe: Recipe, data: ImageData, progress: bool
) -> dict[str, Any]:
    """Choose one threshold on calibration data; report it, and all others, on test data."""
    options = context.task.options
    tables = {split: _replay(context, data, split, progress) for split in ("calibration", "test")}
    chosen = choose_threshold(
        tables["calibration"], parse_sweep(options["sweep"]), max_drop=options["max_drop"]
    )
    reports = sweep(tables["test"], parse_sweep(options["sweep"]))
    report = evaluate_at(tables["test"], chosen)
    save_exit_rates(report, context.folder / "exit_rates.svg")
    save_tradeoff(reports, context.folder / "tradeoff.svg", chosen=report)
    text = "\n".join([*map(sweep_block, reports), deployment_block(report)])
    write_text(context.folder / "sweep.txt", text + "\n")
    calibration = calibrate(tables["calibration"], tables["test"])
    return {
        "threshold": chosen,
        "test": report.to_dict(),
        "sweep": [each.to_dict() for each in reports],
        "calibration": [each.to_dict() for each in calibration],
        "oracle": oracle(tables["test"]).to_dict(),
    }


def _replay(context: Context, data: ImageData, split: str, progress: bool) -> ReplayTable:
    checkpoint = context.network.path("checkpoint")
    model = load(checkpoint)
    if not isinstance(model, GFNetDynn):
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
