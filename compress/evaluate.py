"""Evaluate a checkpoint: accuracy; with early exits, thresholds, exit rates and calibration."""

import argparse
import sys
from pathlib import Path

from compress.cli import (
    HelpFormatter,
    add_common_options,
    parse_numbers,
    print_report,
    run_door,
)
from compress.door_options import add_data, add_opening, cache_of, opening_of, parse_positions
from compress.files import check_readable

__all__ = ["main"]

EPILOG = """examples:
  python -m compress.evaluate --data digits vgg.pth
  python -m compress.evaluate --data cifar10:data --sweep 0.2:0.95:0.05 gfnet_dynn.pth
  python -m compress.evaluate --data cifar10:data --exits 7,8,9 --threshold 0.8 -o figures dynn.pth

the network runs once over the data; thresholds and subsets of exits are computed from that pass,
which --replay t.npz keeps for the next time (and t.calibration.npz of the calibration split)
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m compress.evaluate",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=HelpFormatter,
    )
    add = parser.add_argument
    add("checkpoint", type=Path, help=".pth, .pt or .safetensors file")
    add_data(parser, required=True)
    add("--split", default="test", help="train, validation, calibration or test")
    add("--sweep", metavar="FIRST:LAST:STEP", help="thresholds to try, such as 0.2:0.95:0.05")
    words = "exits that are deployed, by block or module, such as 7,8,9 or layer2.4,layer3.1 (all)"
    add("--exits", metavar="WHERE", help=words)
    words = "deploy at this threshold, or at one for each exit, such as 0.8,0.7,0.9"
    add("--threshold", metavar="T", help=words)
    add("--replay", type=Path, metavar="FILE", help="keep the pass over the data in this .npz file")
    add("-o", "--output", type=Path, metavar="DIR", help="folder for figures and report.json")
    words = "images at a time; 1 takes the very decisions of the early return"
    add("--batch-size", type=int, default=128, metavar="N", help=words)
    add("--device", default="cpu", help="such as cpu or cuda")
    add("--seed", type=int, default=0, help="of the split of the data")
    words = "where the checkpoint does not record it; a GFNet is resampled to any other"
    add_opening(parser, size=words)
    add_common_options(parser)
    return parser


def _work(options: argparse.Namespace) -> int:
    check_readable(options.checkpoint, "checkpoint")
    exits = parse_positions(options.exits, "--exits")
    thresholds = parse_numbers(options.threshold, "--threshold", float)
    from compress.exits.evaluation import EvaluateJob, evaluate_checkpoint
    from compress.training.processes import resolve_device

    evaluation = evaluate_checkpoint(
        EvaluateJob(
            checkpoint=options.checkpoint,
            data=options.data,
            split=options.split,
            sweep=options.sweep,
            exits=exits,
            thresholds=thresholds,
            replay=options.replay,
            output=options.output,
            opening=opening_of(options, resample=True),
            batch_size=options.batch_size,
            device=str(resolve_device(options.device)),
            seed=options.seed,
            cache=cache_of(options),
            progress=not options.quiet,
        )
    )
    print_report(evaluation, as_json=options.json)
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run the door; return its exit code."""
    return run_door(_parser(), _work, argv)


if __name__ == "__main__":
    sys.exit(main())
