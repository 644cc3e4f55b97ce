"""The options of `python -m compress.finetune`, and what they come to.

An option that is not given is not there at all, so that a preset can tell what it may set.
"""

import argparse
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

from compress.errors import UserInputError
from compress.training.config import OPTIMIZERS, PRECISIONS, SCHEDULES, TrainingConfig
from compress.training.distillation_config import DISTILLATIONS, DistillationConfig
from compress.training.exit_config import CLASSIFIER_LOSSES, ExitTrainingConfig
from compress.training.presets import AUGMENTATIONS, TRAINING_PRESETS, preset_config

__all__ = [
    "add_distillation",
    "add_exit_settings",
    "add_settings",
    "distillation_config",
    "exit_config",
    "names",
    "training_config",
]


def names(text: str) -> tuple[str, ...]:
    """Return the words between commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def epochs(text: str) -> tuple[int, ...]:
    """Return the numbers between commas."""
    return tuple(int(epoch) for epoch in names(text))


COUNT: dict[str, Any] = {"type": int, "metavar": "N"}
NUMBER: dict[str, Any] = {"type": float, "metavar": "X"}

# By the name of the setting: how its option is read, and what it means.
SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "epochs": (COUNT, "passes over the training images"),
    "batch_size": (COUNT, "images per step, over all processes"),
    "optimizer": ({"choices": OPTIMIZERS}, "0.01 suits sgd as --lr, 0.001 adamw"),
    "lr": (NUMBER, "learning rate after the warm-up"),
    "momentum": (NUMBER, "of sgd"),
    "weight_decay": (NUMBER, "not on norms, biases and other vectors"),
    "schedule": ({"choices": SCHEDULES}, "of the learning rate"),
    "lr_decay": (NUMBER, "factor at every milestone of 'steps'"),
    "milestones": (
        {"type": epochs, "metavar": "EPOCHS"},
        "epochs at which 'steps' lowers the learning rate, such as 20,30",
    ),
    "warmup_epochs": (NUMBER, "epochs of linear growth to --lr"),
    "min_lr": (NUMBER, "where 'cosine' ends"),
    "label_smoothing": (NUMBER, "share of the target spread over all classes"),
    "sparsity_lambda": (NUMBER, "weight of the L1 penalty on γ, such as 1e-4"),
    "clip_grad_norm": (NUMBER, "largest norm of the gradient"),
    "gradient_accumulation": (COUNT, "micro-batches per step and process"),
    "mixed_precision": ({"choices": PRECISIONS}, "fp16 needs a GPU"),
    "early_stopping": (
        {**COUNT, "dest": "early_stopping_patience"},
        "stop after N evaluations without a gain",
    ),
    "evaluate_every": (COUNT, "epochs between evaluations"),
    "seed": (COUNT, "of the split, the order, augmentation and dropout"),
    "save_every_steps": (COUNT, "steps between resume points (a few minutes)"),
    "tensorboard": ({"action": "store_true"}, "write TensorBoard events too"),
    "workers": (COUNT, "threads that load ahead"),
}

# The same of the distillation; the names of its settings stand under "dest".
DISTILLATION: dict[str, tuple[dict[str, Any], str]] = {
    "distillation": (
        {"choices": DISTILLATIONS, "dest": "kind"},
        "learn the teacher's probabilities, or the class that it finds likeliest",
    ),
    "distillation_alpha": (
        {**NUMBER, "dest": "alpha"},
        "weight of the teacher; the labels weigh the rest",
    ),
    "temperature": (NUMBER, "what both networks' logits are divided by, of 'soft'"),
}


# The same of early exits.
EXITS: dict[str, tuple[dict[str, Any], str]] = {
    "cost_lambda": (NUMBER, "what the whole network's cost weighs against one nat; more, earlier"),
    "classifier_loss": ({"choices": CLASSIFIER_LOSSES}, "how the heads' losses are weighed"),
    "head_warmup_epochs": (COUNT, "longest training of the heads alone, before the gates'"),
    "head_warmup_patience": (COUNT, "epochs without a gain after which a head rests"),
    "phase_steps": (COUNT, "steps from gates to heads and back (an epoch each)"),
    "gate_lr_scale": (NUMBER, "factor on the learning rate of the gates"),
    "backbone_lr_scale": (NUMBER, "factor on that of the backbone, with --joint"),
    "distillation_alpha": (NUMBER, "share that the heads learn from the final head, 0 to 1"),
    "distillation_temperature": (NUMBER, "what logits are divided by in that"),
    "threshold": (NUMBER, "at which the dynamic network is measured after every epoch"),
}
NOT_OF_EXITS = ("sparsity_lambda",)


def add_settings(parser: argparse.ArgumentParser, *, presets: bool = True) -> None:
    """Add what `training_config` reads, and the choice of the augmentation.

    Args:
        parser: of a door that trains.
        presets: published recipes are offered; without them the settings are those of exits.
    """
    group = parser.add_argument_group("training")
    if presets:
        words = "published recipe; the options below that are given win over its settings"
        group.add_argument("--preset", choices=TRAINING_PRESETS, default=None, help=words)
    left_out = "those of the preset, or none" if presets else "none, so that features are cached"
    words = f"comma-separated: {', '.join(AUGMENTATIONS)} ({left_out})"
    group.add_argument("--augment", type=names, metavar="NAMES", default=None, help=words)
    config = TrainingConfig if presets else ExitTrainingConfig
    table = {n: how for n, how in SETTINGS.items() if presets or n not in NOT_OF_EXITS}
    _add(group, table, _defaults(config))


def add_distillation(parser: argparse.ArgumentParser) -> None:
    """Add what `distillation_config` reads, and the teacher."""
    group = parser.add_argument_group("distillation")
    words = "checkpoint to learn from; it sees the images at its own size and normalisation"
    group.add_argument("--teacher", type=Path, metavar="FILE", default=None, help=words)
    words = "function that builds a teacher of your own"
    group.add_argument("--teacher-model", metavar="MODULE:FACTORY", default=None, help=words)
    _add(group, DISTILLATION, _defaults(DistillationConfig))


def add_exit_settings(parser: argparse.ArgumentParser) -> None:
    """Add what `exit_config` reads besides the settings of every training."""
    _add(parser.add_argument_group("early exits"), EXITS, _defaults(ExitTrainingConfig))


def exit_config(options: argparse.Namespace, *, joint: bool) -> ExitTrainingConfig:
    """Return the settings of the training of exits, those that were given and the defaults.

    Args:
        options: as parsed.
        joint: the backbone is trained along.

    Raises:
        UserInputError: a setting is out of range.
    """
    regime = "mixed" if joint else "frozen"
    return ExitTrainingConfig(regime=regime, **_given(options, _defaults(ExitTrainingConfig)))


def training_config(options: argparse.Namespace) -> TrainingConfig:
    """Return the settings of the preset with the options that were given.

    Raises:
        UserInputError: a setting is out of range.
    """
    return preset_config(options.preset, **_given(options, _defaults(TrainingConfig)))


def distillation_config(options: argparse.Namespace) -> DistillationConfig:
    """Return the settings of the distillation.

    Raises:
        UserInputError: a setting is out of range, or was given without a teacher.
    """
    given = _given(options, _defaults(DistillationConfig))
    if given and options.teacher is None:
        raise UserInputError(
            f"{', '.join(given)} of a distillation was given without a teacher; expected --teacher"
        )
    return DistillationConfig(**given)


def _add(
    group: Any, table: dict[str, tuple[dict[str, Any], str]], defaults: dict[str, Any]
) -> None:
    for name, (how, words) in table.items():
        default = defaults[how.get("dest", name)]
        is_off = default is None or default is False or default == ()
        told = words if is_off else f"{words} (default: {default})"
        flag = "--" + name.replace("_", "-")
        group.add_argument(flag, default=argparse.SUPPRESS, help=told, **how)


def _defaults(config: type) -> dict[str, Any]:
    return {setting.name: setting.default for setting in fields(config)}


def _given(options: argparse.Namespace, known: Iterable[str]) -> dict[str, Any]:
    return {name: getattr(options, name) for name in known if hasattr(options, name)}
