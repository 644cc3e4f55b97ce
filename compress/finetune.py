"""Train, fine-tune or distil: with an L1 penalty on γ before slimming, without it after."""

import argparse
import sys
from pathlib import Path
from typing import Any

from compress.cli import HelpFormatter, add_common_options, print_report, run_door
from compress.door_options import add_data, add_opening, cache_of, opening_of
from compress.files import check_readable
from compress.finetune_options import (
    add_distillation,
    add_settings,
    distillation_config,
    training_config,
)

__all__ = ["main"]

EPILOG = """examples:
  python -m compress.finetune --data digits vgg16.slim-0.4.pth
  python -m compress.finetune --data cifar10:data/cifar10 --sparsity-lambda 1e-4 vgg16.pth
  accelerate launch --num_processes 4 -m compress.finetune --data folder:NWPU-RESISC45 vgg16.pth

to distil the published GFNet-XS (1000 classes) into GFNet 12-192, first teach the teacher your
classes, then let it teach a new network, plain or with a distillation token:
  python -m compress.finetune --data folder:NWPU-RESISC45 --preset gfnet-transfer --epochs 100 \\
      --new-head -o teacher gfnet-xs.pth
  python -m compress.finetune --data folder:NWPU-RESISC45 --preset gfnet \\
      --from-scratch gfnet_12_192 --teacher teacher/best.pth
  python -m compress.finetune --data folder:NWPU-RESISC45 --preset gfnet \\
      --from-scratch gfnet_distil_12_192 --teacher teacher/best.pth --distillation hard

to give a trained GFNet early exits behind the blocks 7, 8 and 9:

writes into vgg16.finetuned/, or gfnet_12_192.trained/ from scratch: best.pth and last.pth
(compress.load opens them), metrics.jsonl, report.json. A run that was interrupted goes on when the
same command is given again.
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m compress.finetune",
        usage="%(prog)s --data SPEC [options] (CHECKPOINT | --from-scratch NAME)",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=HelpFormatter,
    )
    add = parser.add_argument
    add("checkpoint", type=Path, nargs="?", help=".pth, .pt or .safetensors file")
    words = (
        "train a new network instead: gfnet_12_192, gfnet_distil_12_192, vgg16_bn, …; or with "
        "settings, such as 'gfnet_xs:{\"patch_size\": 8}'"
    )
    add("--from-scratch", metavar="NAME", help=words)
    add_data(parser, required=True)
    add("-o", "--output", type=Path, metavar="DIR", help="folder of the run (NAME.finetuned)")
    words = "replace the head of a network that was trained for another number of classes"
    add("--new-head", action="store_true", help=words)
    add("--device", help="such as cpu or cuda:1 (the best there is)")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="only go on with a run, begin none")
    words = "discard the run that is in the folder"
    again.add_argument("--fresh", "--force", action="store_true", help=words)
    add_distillation(parser)
    add_settings(parser)
    words = (
        "side, HxW or CxHxW to train for (that of the checkpoint, or the data's); a GFNet is "
        "resampled"
    )
    add_opening(parser, size=words)
    add_common_options(parser)
    return parser


def _work(options: argparse.Namespace) -> int:
    if options.checkpoint is not None:
        check_readable(options.checkpoint, "checkpoint")
    report = _trained(options)
    if report is None:  # not the main process
        return 0
    print_report(report, as_json=options.json)
    return 0


def _trained(options: argparse.Namespace) -> Any:
    config, distillation = training_config(options), distillation_config(options)
    from compress.training.job import FinetuneJob, finetune_checkpoint

    return finetune_checkpoint(
        FinetuneJob(
            checkpoint=options.checkpoint,
            from_scratch=options.from_scratch,
            data=options.data,
            config=config,
            preset=options.preset,
            augment=options.augment,
            output=options.output,
            opening=opening_of(options, resample=True, override=True),
            new_head=options.new_head,
            teacher=options.teacher,
            teacher_factory=options.teacher_model,
            distillation=distillation,
            device=options.device,
            resume=options.resume,
            fresh=options.fresh,
            cache=cache_of(options),
        )
    )


def main(argv: list[str] | None = None) -> int:
    """Run the door; return its exit code."""
    return run_door(_parser(), _work, argv)


if __name__ == "__main__":
    sys.exit(main())
