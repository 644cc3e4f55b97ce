"""The optimizer, and which parameters it may shrink.

Weight decay pulls matrices and kernels towards zero. On the scales and shifts of a normalisation,
on biases and on other vectors it does harm, so they are left out; with an L1 penalty on γ it would
also mix two penalties on the same numbers.
"""

from typing import Any

from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from compress.errors import UserInputError
from compress.training.config import TrainingConfig

__all__ = ["make_optimizer", "parameter_groups", "set_training_mode"]

NORMS = (
    nn.modules.batchnorm._NormBase,  # BatchNorm and InstanceNorm of every dimension
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
)


def make_optimizer(model: nn.Module, config: TrainingConfig) -> Optimizer:
    """Build the optimizer over the parameters that are not frozen.

    Raises:
        UserInputError: all parameters are frozen.
    """
    groups = parameter_groups(model, config.weight_decay)
    if not groups:
        raise UserInputError(
            f"all parameters of {type(model).__name__} are frozen; expected at least one with "
            "requires_grad to train"
        )
    if config.optimizer == "adamw":
        return AdamW(groups, lr=config.lr)
    return SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Divide the parameters that are not frozen into those with weight decay and those without.

    Without: every parameter of a normalisation, every vector, and the names that the method
    `no_weight_decay()` of the model returns, where it has one.
    """
    listed = getattr(model, "no_weight_decay", None)
    spared = set(listed()) if callable(listed) else set()
    for prefix, layer in model.named_modules():
        if isinstance(layer, NORMS):
            spared |= {f"{prefix}.{name}".lstrip(".") for name, _ in layer.named_parameters()}
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (free if parameter.dim() <= 1 or name in spared else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


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
