"""Early exits for a trained network: where they can stand, and their training."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from compress.cli import (
    HelpFormatter,
    add_common_options,
    print_json,
    print_report,
    run_door,
)
from compress.door_options import add_data, add_opening, cache_of, opening_of, parse_positions
from compress.errors import UserInputError
from compress.files import check_readable
from compress.finetune_options import add_exit_settings, add_settings, exit_config
from compress.head_kinds import HEAD_KINDS

if TYPE_CHECKING:
    from compress.measure.exit_positions import ExitPosition

__all__ = ["main"]

EPILOG = """examples:
  python -m compress.exits list resnet56.pth
  python -m compress.exits train resnet56.pth --at auto:4 --data folder:CIFAR10 -o exits.pth
  python -m compress.exits train resnet56.pth --at layer2.4,layer3.4 --data folder:CIFAR10 --joint
  python -m compress.exits train gfnet.pth --at 7,8,9 --data folder:RESISC45 --head linear

training leaves best.pth, metrics.jsonl and report.json in a folder; a run that was interrupted goes
on when the same command is given again. Then: python -m compress.plan_exits
"""
SCHEMA = "compress.exit-positions/1"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m compress.exits",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=HelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="list | train")
    words = "print where exits can stand, and what crosses there"
    listed = verbs.add_parser("list", help=words, description=words, formatter_class=HelpFormatter)
    listed.add_argument("checkpoint", type=Path, help="of a trained network")
    words = "list every module that an exit can read, those inside of blocks too"
    listed.add_argument("--all", action="store_true", help=words)
    add_opening(listed)
    add_common_options(listed)
    words = "train heads and gates"
    train = verbs.add_parser("train", help=words, description=words, formatter_class=HelpFormatter)
    _add_training(train)
    return parser


def _add_training(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("checkpoint", type=Path, help="of a trained network, or of one with exits")
    words = "modules behind which exits stand, numbers of blocks, or auto:K (those it has)"
    add("--at", metavar="POSITIONS", help=words)
    add_data(parser, required=True)
    words = f"kind of the heads: {HEAD_KINDS}; conv alone is as wide as the network's last stage"
    add("--head", metavar="KIND", help=words)
    words = "train the backbone along with them, by a smaller learning rate"
    add("--joint", action="store_true", help=words)
    words = "file for the trained network (best.pth in the folder alone)"
    add("-o", "--output", type=Path, metavar="FILE", help=words)
    add("--folder", type=Path, metavar="DIR", help="of the run (NAME.exits beside the output)")
    add("--device", help="such as cpu or cuda:1 (the best there is)")
    add("--fresh", "--force", action="store_true", help="discard the run that is in the folder")
    add_exit_settings(parser)
    add_settings(parser, presets=False)
    add_opening(parser)
    add_common_options(parser)


def _work(options: argparse.Namespace) -> int:
    check_readable(options.checkpoint, "checkpoint")
    return _list(options) if options.verb == "list" else _train(options)


def _list(options: argparse.Namespace) -> int:
    from compress.measure.exit_positions import exit_positions
    from compress.opened import open_checkpoint

    opened = open_checkpoint(options.checkpoint, opening_of(options))
    found = exit_positions(opened.model, opened.image_shape(), every=options.all)
    if options.json:
        rows = [each.to_dict() for each in found]
        print_json({"schema": SCHEMA, "network": opened.display_name, "positions": rows})
    else:
        print(_table(found))
    return 0


def _table(found: "list[ExitPosition]") -> str:
    rows = [("exit behind", "gives", "tensors", "KiB", "MACs before")]
    for each in found:
        shape = "x".join(map(str, each.shape))
        crossing = f"{each.tensors}" if each.tensors == 1 else f"{each.tensors} *"
        share = f"{each.macs_share:.1%}"
        rows.append((str(each.position), shape, crossing, f"{each.kib:.1f}", share))
    first, *rest = (max(map(len, column)) for column in zip(*rows, strict=True))
    lines = []
    for name, *cells in rows:
        padded = (cell.rjust(width) for cell, width in zip(cells, rest, strict=True))
        lines.append("  ".join([name.ljust(first), *padded]))
    if any(each.tensors > 1 for each in found):
        lines.append("* more than one tensor crosses here: it can be cut, and all of them travel")
    return "\n".join(lines)


def _train(options: argparse.Namespace) -> int:
    config = exit_config(options, joint=options.joint)
    output = _output(options)
    from compress.training.exit_job import ExitJob, train_exits_checkpoint

    at = options.at
    job = ExitJob(
        checkpoint=options.checkpoint,
        data=options.data,
        exits=at if at is None or at.startswith("auto") else parse_positions(at, "--at"),
        head=options.head,
        config=config,
        augment=options.augment,
        output=options.folder or (None if output is None else output.with_suffix(".exits")),
        file=output,
        opening=opening_of(options, resample=True, override=True),
        device=options.device,
        cache=cache_of(options),
        fresh=options.fresh,
        progress=not options.quiet,
    )
    report = train_exits_checkpoint(job)
    if report is not None:  # None in all processes but the main one
        print_report(report, as_json=options.json)
    return 0


def _output(options: argparse.Namespace) -> Path | None:
    output: Path | None = options.output
    if output is not None and output.suffix not in (".pth", ".pt", ".safetensors"):
        raise UserInputError(
            f"--output is {output}; expected a file that ends with .pth, .pt or .safetensors"
        )
    return output


def main(argv: list[str] | None = None) -> int:
    """Run the door; return its exit code."""
    return run_door(_parser(), _work, argv)


if __name__ == "__main__":
    sys.exit(main())
