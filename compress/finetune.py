"""Train or fine-tune a checkpoint: with an L1 penalty on γ before slimming, without it after."""

import argparse
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from compress.cli import HelpFormatter, add_common_options, print_json, run_door
from compress.training.config import OPTIMIZERS, PRECISIONS, SCHEDULES, TrainingConfig

__all__ = ["main"]

EPILOG = """examples:
  python -m compress.finetune --data digits vgg16.slim-0.4.pth
  python -m compress.finetune --data cifar10:data/cifar10 --sparsity-lambda 1e-4 vgg16.pth
  accelerate launch --num_processes 4 -m compress.finetune --data folder:NWPU-RESISC45 vgg16.pth

writes into vgg16.finetuned/: best.pth and last.pth (compress.load opens them), metrics.jsonl,
report.json. A run that was interrupted goes on when the same command is given again.
"""

# Options of the training, by the name of the setting; defaults are the settings' own.
SETTINGS: dict[str, dict[str, Any]] = {
    "epochs": {"type": int, "help": "passes over the training images"},
    "batch_size": {"type": int, "help": "images per step, over all processes"},
    "optimizer": {"choices": OPTIMIZERS, "help": "0.01 suits sgd as --lr, 0.001 adamw"},
    "lr": {"type": float, "help": "learning rate after the warm-up"},
    "momentum": {"type": float, "help": "of sgd"},
    "weight_decay": {"type": float, "help": "not on norms, biases and other vectors"},
    "schedule": {"choices": SCHEDULES, "help": "of the learning rate"},
    "lr_decay": {"type": float, "help": "factor at every milestone of 'steps'"},
    "warmup_epochs": {"type": float, "help": "epochs of linear growth to --lr"},
    "min_lr": {"type": float, "help": "where 'cosine' ends"},
    "label_smoothing": {"type": float, "help": "share of the target spread over all classes"},
    "sparsity_lambda": {"type": float, "help": "weight of the L1 penalty on γ, such as 1e-4"},
    "clip_grad_norm": {"type": float, "help": "largest norm of the gradient"},
    "gradient_accumulation": {"type": int, "help": "micro-batches per step and process"},
    "mixed_precision": {"choices": PRECISIONS, "help": "fp16 needs a GPU"},
    "evaluate_every": {"type": int, "help": "epochs between evaluations"},
    "seed": {"type": int, "help": "of the split, the order, augmentation and dropout"},
    "save_every_steps": {"type": int, "help": "steps between resume points (a few minutes)"},
    "workers": {"type": int, "help": "threads that load ahead"},
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m compress.finetune",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=HelpFormatter,
    )
    add = parser.add_argument
    add("checkpoint", type=Path, help=".pth, .pt or .safetensors file")
    add("--data", required=True, metavar="SPEC", help="digits, cifar10:DIR or folder:DIR")
    add("-o", "--output", type=Path, metavar="DIR", help="folder of the run (NAME.finetuned)")
    words = "comma-separated: flip, crop, mixup, cutmix, rand-augment, color-jitter"
    add("--augment", type=_names, default=(), metavar="NAMES", help=words)
    words = "side in pixels (the one that the checkpoint records, or the data's)"
    add("--image-size", type=int, metavar="PIXELS", help=words)
    add("--device", help="such as cpu or cuda:1 (the best there is)")
    add("--model", metavar="MODULE:FACTORY", help="function that builds a network of your own")
    add("--unsafe-pickle", action="store_true", help="read pickled modules; runs the file's code")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="only go on with a run, begin none")
    words = "discard the run that is in the folder"
    again.add_argument("--fresh", "--force", action="store_true", help=words)
    _add_settings(parser.add_argument_group("training"))
    add_common_options(parser)
    return parser


def _add_settings(group: Any) -> None:
    defaults = {setting.name: setting.default for setting in fields(TrainingConfig)}
    for name, how in SETTINGS.items():
        named = {} if "choices" in how else {"metavar": "N" if how["type"] is int else "X"}
        group.add_argument(_flag(name), default=defaults[name], **named, **how)
    words = "epochs at which 'steps' lowers the learning rate, such as 20,30"
    group.add_argument("--milestones", type=_epochs, default=(), metavar="EPOCHS", help=words)
    words = "stop after N evaluations without a gain"
    group.add_argument("--early-stopping", type=int, metavar="N", help=words)
    group.add_argument("--tensorboard", action="store_true", help="write TensorBoard events too")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _epochs(text: str) -> tuple[int, ...]:
    return tuple(int(epoch) for epoch in _names(text))


def _work(options: argparse.Namespace) -> int:
    config = TrainingConfig(
        **{name: getattr(options, name) for name in SETTINGS},
        milestones=options.milestones,
        early_stopping_patience=options.early_stopping,
        tensorboard=options.tensorboard,
    )
    from compress.training.job import FinetuneJob, finetune_checkpoint

    report = finetune_checkpoint(
        FinetuneJob(
            checkpoint=options.checkpoint,
            data=options.data,
            config=config,
            augment=options.augment,
            output=options.output,
            image_size=options.image_size,
            device=options.device,
            resume=options.resume,
            fresh=options.fresh,
            factory=options.model,
            unsafe_pickle=options.unsafe_pickle,
        )
    )
    if report is None:  # not the main process
        return 0
    if options.json:
        print_json(report.to_dict())
    else:
        print(report.to_text())
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run the door; return its exit code."""
    return run_door(_parser(), _work, argv)


if __name__ == "__main__":
    sys.exit(main())
