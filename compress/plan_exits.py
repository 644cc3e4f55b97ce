"""Choose exits and thresholds by measurement, from one pass over calibration data."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from compress.cli import (
    HelpFormatter,
    add_common_options,
    one_or_each,
    parse_numbers,
    print_json,
    run_door,
)
from compress.door_options import add_data, add_opening, cache_of, opening_of, parse_positions
from compress.errors import UserInputError
from compress.files import check_output, check_readable

if TYPE_CHECKING:
    from compress.planning.job import PlanJob

__all__ = ["main"]

EPILOG = """examples:
  python -m compress.plan_exits --data digits --max-drop 0.5 gfnet_dynn.pth
  python -m compress.plan_exits --data cifar10:data --budget 0.6 gfnet_dynn.pth -o plan.json
  python -m compress.plan_exits --risk 0.01 --confidence 0.95 calibration.npz
  python -m compress.plan_exits --data digits --bundle gfnet_dynn.bundle gfnet_dynn.pth

the plan goes to python -m compress.export_trt --split-exits --plan FILE. With --bundle nothing is
planned: the thresholds of an exported bundle are set so that as many images leave as in torch.
A guarantee (--risk) is given from images of the calibration split alone; evaluate --replay t.npz
keeps their table as t.calibration.npz
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m compress.plan_exits",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=HelpFormatter,
    )
    add = parser.add_argument
    words = "checkpoint with early exits, or replay table of a calibration split (.npz)"
    add("source", type=Path, metavar="CHECKPOINT|REPLAY", help=words)
    add_data(parser, required=False, purpose="images for a checkpoint:")
    goal = parser.add_argument_group("objective, one of").add_mutually_exclusive_group()
    words = "least cost, at most so many points of accuracy below the whole network (0.5)"
    goal.add_argument("--max-drop", type=float, metavar="POINTS", help=words)
    words = "best accuracy, at most this share of the cost of the whole network"
    goal.add_argument("--budget", type=float, metavar="SHARE", help=words)
    words = "the same in the unit of --costs, such as milliseconds"
    goal.add_argument("--budget-ms", "--budget-cost", type=float, metavar="COST", help=words)
    words = "least cost with a guarantee: P(loss > RISK) <= 1 - confidence"
    goal.add_argument("--risk", type=float, metavar="RISK", help=words)
    words = "set the thresholds of this bundle anew, from its own files"
    goal.add_argument("--bundle", type=Path, metavar="BUNDLE", help=words)
    words = "of a table of your own: nothing was fitted or chosen by its images"
    add("--split-is-fresh", action="store_true", help=words)
    add("--confidence", type=float, default=0.95, help="of the guarantee")
    words = "what a guarantee is about: another class than the whole network, or accuracy"
    add("--loss", choices=("consistency", "accuracy"), default="consistency", help=words)
    words = "a threshold for each exit, or one for all, which needs fewer images"
    methods = ("pareto-testing", "fixed-sequence")
    add("--method", choices=methods, default=methods[0], help=words)
    words = "whose point is taken"
    add("--planner", choices=("search", "stopping", "uniform"), default="search", help=words)
    words = "choose by the images that found the front, too: cheaper, and flattered"
    add("--in-sample", action="store_true", help=words)
    words = "costs or profile measured on a device, such as jetson_log_ucm (multiply-adds)"
    add("--costs", type=Path, metavar="FILE", help=words)
    words = (
        "exits and threshold that somebody chose, such as 7,8:0.8 or layer2.4:0.9, to lay beside"
    )
    add("--hand-made", metavar="WHERE:T", help=words)
    add("--front", action="store_true", help="print the whole front")
    add("--device", default="cpu", help="such as cpu or cuda")
    add("--seed", type=int, default=0, help="of the split of the data, and of its halves")
    add("-o", "--output", type=Path, metavar="FILE", help="the plan (CHECKPOINT's name.plan.json)")
    add("--force", action="store_true", help="replace a plan that is there")
    add_opening(parser)
    add_common_options(parser)
    return parser


def _work(options: argparse.Namespace) -> int:
    check_readable(options.source, "checkpoint or replay table")
    if options.bundle is not None:
        return _recalibrate(options)
    if options.budget_ms is not None and options.costs is None:
        raise UserInputError(
            "--budget-ms was given without --costs; expected measured milliseconds, such as a "
            "profile of python -m compress.benchmark --save-profile"
        )
    output = options.output or options.source.with_suffix(".plan.json")
    check_output(output, force=options.force)
    from compress.planning.job import plan_network

    report = plan_network(_job(options, output))
    if options.json:
        print_json(report.to_dict())
        return 0
    if options.front:
        print(report.front_text(), end="\n\n")
    print(report.to_text())
    return 0


def _job(options: argparse.Namespace, output: Path) -> "PlanJob":
    from compress.planning.guarantee import Risk
    from compress.planning.job import PlanJob
    from compress.planning.plan import Objective
    from compress.training.processes import resolve_device

    risk = None
    if options.risk is not None:
        risk = Risk(loss=options.loss, risk=options.risk, confidence=options.confidence)
    goals = (
        ("budget", options.budget),
        ("budget-cost", options.budget_ms),
        ("max-drop", 0.5 if options.max_drop is None else options.max_drop),
    )
    kind, value = next((kind, value) for kind, value in goals if value is not None)
    return PlanJob(
        source=options.source,
        output=output,
        data=options.data,
        objective=None if risk else Objective(kind=kind, value=value),
        risk=risk,
        split_is_fresh=options.split_is_fresh,
        method=options.method,
        planner=options.planner,
        held_out=not options.in_sample,
        costs=options.costs,
        hand_made=_hand_made(options.hand_made),
        opening=opening_of(options),
        device=str(resolve_device(options.device)),
        seed=options.seed,
        cache=cache_of(options),
        progress=not options.quiet,
    )


def _recalibrate(options: argparse.Namespace) -> int:
    if options.data is None:
        raise UserInputError("--bundle was given without images; expected --data SPEC")
    from compress.export.recalibrate_bundle import recalibrate_bundle

    found = recalibrate_bundle(
        options.bundle,
        options.source,
        options.data,
        opening=opening_of(options),
        seed=options.seed,
        cache=cache_of(options),
        progress=not options.quiet,
    )
    if options.json:
        print_json({"schema": "compress.recalibration/1", **found.to_dict()})
    else:
        print(found.to_text())
    return 0


def _hand_made(text: str | None) -> tuple[tuple[int | str, ...], float | tuple[float, ...]] | None:
    if text is None:
        return None
    where, _, bars = text.partition(":")
    exits = parse_positions(where, "--hand-made")
    thresholds = parse_numbers(bars or "x", "--hand-made", float)
    if exits is None or thresholds is None:
        raise UserInputError(f"--hand-made is {text!r}; expected WHERE:T, such as 7,8,9:0.8")
    return exits, one_or_each(thresholds)


def main(argv: list[str] | None = None) -> int:
    """Run the door; return its exit code."""
    return run_door(_parser(), _work, argv)


if __name__ == "__main__":
    sys.exit(main())
