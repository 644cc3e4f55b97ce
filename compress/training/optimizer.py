"""The optimizer, and which parameters it may shrink.

Weight decay pulls matrices and kernels towards zero. On the scales and shifts of a normalisation,
on biases and on other vectors it does harm, so they are left out; with an L1 penalty on γ it would
also mix two penalties on the same numbers.
"""

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from compress.errors import UserInputError
from compress.training.config import TrainingConfig

__all__ = ["apply_lr_scales", "make_optimizer", "parameter_groups", "set_training_mode"]

LrScale = Callable[[str], float]

NORMS = (
    nn.modules.batchnorm._NormBase,  # BatchNorm and InstanceNorm of every dimension
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
)


def make_optimizer(
    model: nn.Module, config: TrainingConfig, lr_scale: LrScale | None = None
) -> Optimizer:
    """Build the optimizer over the parameters that are not frozen.

    Args:
        model: its names are given to `lr_scale`.
        config: names the optimizer and its settings.
        lr_scale: from the name of a parameter to the factor on its learning rate; None is 1.

    Raises:
        UserInputError: all parameters are frozen.
    """
    groups = parameter_groups(model, config.weight_decay, lr_scale)
    if not groups:
        raise UserInputError(
            f"all parameters of {type(model).__name__} are frozen; expected at least one with "
            "requires_grad to train"
        )
    if config.optimizer == "adamw":
        return AdamW(groups, lr=config.lr)
    return SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0)


def apply_lr_scales(optimizer: Optimizer) -> None:
    """Multiply the learning rate that all groups have by the factor of each."""
    for group in optimizer.param_groups:
        group["lr"] *= group["lr_scale"]


def parameter_groups(
    model: nn.Module, weight_decay: float, lr_scale: LrScale | None = None
) -> list[dict[str, Any]]:
    """Divide the parameters that are not frozen into those with weight decay and those without.

    Without: every parameter of a normalisation, every vector, and the names that the method
    `no_weight_decay()` of the model returns, where it has one. Each of the two is divided again by
    the factor on the learning rate, "lr_scale".
    """
    listed = getattr(model, "no_weight_decay", None)
    spared = set(listed()) if callable(listed) else set()
    for prefix, layer in model.named_modules():
        if isinstance(layer, NORMS):
            spared |= {f"{prefix}.{name}".lstrip(".") for name, _ in layer.named_parameters()}
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_free = parameter.dim() <= 1 or name in spared
            scale = lr_scale(name) if lr_scale else 1.0
            groups.setdefault((is_free, scale), []).append(parameter)
    return [
        {"params": members, "weight_decay": 0.0 if free else weight_decay, "lr_scale": scale}
        for (free, scale), members in sorted(groups.items(), key=lambda group: group[0])
    ]


def set_training_mode(model: nn.Module) -> None:
    """Put the model into training mode, but what is wholly frozen into eval mode.

    A frozen BatchNorm would otherwise still change its running statistics, and a frozen part its
    outputs by dropout.
    """
    model.train()
    for layer in model.modules():
        parameters = list(layer.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            layer.eval()
