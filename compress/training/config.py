"""Everything that can be set about a training run, checked when it is made.

Imports nothing heavy: the door reads its defaults from here to print its help.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from compress.errors import UserInputError

__all__ = ["OPTIMIZERS", "PRECISIONS", "SCHEDULES", "TrainingConfig"]

OPTIMIZERS = ("sgd", "adamw")
SCHEDULES = ("cosine", "steps", "constant")
PRECISIONS = ("no", "fp16", "bf16")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """The settings of a training run.

    Attributes:
        epochs: passes over the training images.
        batch_size: images per optimizer step, over all processes and accumulated micro-batches.
        optimizer: "sgd" (Nesterov where `momentum` > 0) or "adamw".
        lr: learning rate after the warm-up.
        momentum: of SGD, in [0, 1).
        weight_decay: on matrices and kernels only, see `compress.training.optimizer`.
        schedule: "cosine" down to `min_lr`, "steps" (times `lr_decay` at every milestone), or
            "constant".
        milestones: epochs, counted from 0 and in order, at which "steps" drops the learning rate.
        lr_decay: the factor of "steps", in (0, 1].
        warmup_epochs: epochs over which the learning rate grows linearly to `lr`; may be 0.5.
        min_lr: where "cosine" ends.
        label_smoothing: share of the target spread over all classes, in [0, 1).
        sparsity_lambda: weight of Σ|γ| in the loss (arXiv 1708.06519); 0 leaves it out.
        clip_grad_norm: largest norm of the gradient, or None.
        gradient_accumulation: micro-batches per optimizer step in each process.
        mixed_precision: "no", "fp16" (GPU only) or "bf16".
        early_stopping_patience: evaluations without a gain after which training stops, or None.
        evaluate_every: epochs from one evaluation to the next; the last epoch is always evaluated.
        seed: of the order of the images, the augmentation and dropout.
        save_every_steps: optimizer steps from one resume point to the next inside an epoch; None
            saves every few minutes. The end of an epoch is always one.
        tensorboard: write event files as well.
        workers: threads that load images ahead of their use; 0 loads them when they are needed.
    """

    epochs: int = 40
    batch_size: int = 128
    optimizer: str = "sgd"
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 1e-4
    schedule: str = "cosine"
    milestones: tuple[int, ...] = ()
    lr_decay: float = 0.1
    warmup_epochs: float = 0.0
    min_lr: float = 0.0
    label_smoothing: float = 0.0
    sparsity_lambda: float = 0.0
    clip_grad_norm: float | None = None
    gradient_accumulation: int = 1
    mixed_precision: str = "no"
    early_stopping_patience: int | None = None
    evaluate_every: int = 1
    seed: int = 0
    save_every_steps: int | None = None
    tensorboard: bool = False
    workers: int = 1

    def __post_init__(self) -> None:
        for name, (fits, expected) in _RULES.items():
            value = getattr(self, name)
            if not (value is None and name in _OPTIONAL):
                _check(name, value, fits, expected)
        self._check_together()

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON values."""
        return {**asdict(self), "milestones": list(self.milestones)}

    def _check_together(self) -> None:
        fewer = f"fewer than the {self.epochs} epochs of the run"
        _check("warmup_epochs", self.warmup_epochs, lambda v: v < self.epochs, fewer)
        _check("min_lr", self.min_lr, lambda v: v <= self.lr, f"at most lr, {self.lr}")
        _check("milestones", self.milestones, _in_order, "rising epochs, each an integer from 1")
        if self.schedule == "steps" and not self.milestones:
            raise UserInputError(
                "schedule is 'steps' without milestones; expected the epochs at which the learning "
                "rate drops, such as (20, 30)"
            )


Rule = tuple[Callable[[Any], bool], str]


def _one_of(allowed: tuple[str, ...]) -> Rule:
    return lambda value: value in allowed, f"one of {', '.join(allowed)}"


def _count_from(least: int) -> Rule:
    return lambda v: _is_number(v, int) and v >= least, f"an integer of at least {least}"


def _number(fits: Callable[[float], bool], expected: str) -> Rule:
    return lambda v: _is_number(v, int | float) and math.isfinite(v) and fits(v), expected


def _is_number(value: Any, kinds: Any) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)


def _check(name: str, value: Any, fits: Callable[[Any], bool], expected: str) -> None:
    if not fits(value):
        raise UserInputError(f"{name} is {value!r}; expected {expected}")


def _in_order(milestones: tuple[int, ...]) -> bool:
    fits, _ = _count_from(1)
    return all(map(fits, milestones)) and all(a < b for a, b in pairwise(milestones))


_OPTIONAL = ("early_stopping_patience", "save_every_steps", "clip_grad_norm")
_RULES: dict[str, Rule] = {
    "optimizer": _one_of(OPTIMIZERS),
    "schedule": _one_of(SCHEDULES),
    "mixed_precision": _one_of(PRECISIONS),
    "epochs": _count_from(1),
    "batch_size": _count_from(1),
    "gradient_accumulation": _count_from(1),
    "early_stopping_patience": _count_from(1),
    "evaluate_every": _count_from(1),
    "seed": _count_from(0),
    "save_every_steps": _count_from(1),
    "workers": _count_from(0),
    "lr": _number(lambda v: v > 0, "a number above 0"),
    "momentum": _number(lambda v: 0 <= v < 1, "0 <= momentum < 1"),
    "weight_decay": _number(lambda v: v >= 0, "a number of at least 0"),
    "lr_decay": _number(lambda v: 0 < v <= 1, "0 < lr_decay <= 1"),
    "warmup_epochs": _number(lambda v: v >= 0, "a number of at least 0"),
    "min_lr": _number(lambda v: v >= 0, "a number of at least 0"),
    "label_smoothing": _number(lambda v: 0 <= v < 1, "0 <= label_smoothing < 1"),
    "sparsity_lambda": _number(lambda v: v >= 0, "a number of at least 0"),
    "clip_grad_norm": _number(lambda v: v > 0, "a number above 0"),
}
