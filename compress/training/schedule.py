"""The learning rate as a function of the step, so that resuming needs no state of a scheduler."""

import math

from torch.optim import Optimizer

from compress.training.config import TrainingConfig

__all__ = ["learning_rate", "set_learning_rate"]


def learning_rate(config: TrainingConfig, *, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of one optimizer step.

    Args:
        config: names the schedule, its warm-up and its end.
        step: optimizer steps done before this one, over all epochs.
        steps_per_epoch: optimizer steps in an epoch.

    >>> config = TrainingConfig(lr=0.4, epochs=3, warmup_epochs=1, schedule="constant")
    >>> [learning_rate(config, step=s, steps_per_epoch=4) for s in range(5)]
    [0.1, 0.2, 0.30000000000000004, 0.4, 0.4]
    """
    warm_up = round(config.warmup_epochs * steps_per_epoch)
    if step < warm_up:
        return config.lr * (step + 1) / warm_up
    if config.schedule == "cosine":
        done = (step - warm_up) / (config.epochs * steps_per_epoch - warm_up)
        return config.min_lr + (config.lr - config.min_lr) * (1 + math.cos(math.pi * done)) / 2
    if config.schedule == "steps":
        passed = sum(step >= epoch * steps_per_epoch for epoch in config.milestones)
        return config.lr * config.lr_decay**passed
    return config.lr


def set_learning_rate(optimizer: Optimizer, lr: float) -> None:
    """Set the learning rate of every group of parameters."""
    for group in optimizer.param_groups:
        group["lr"] = lr
