import pytest
import torch
from torch import nn

from compress.errors import UserInputError
from compress.training.optimizer import make_optimizer, parameter_groups, set_training_mode
from tests.training.fakes import Net, config


class Listed(nn.Module):
    """A matrix that its model spares, a norm over two dimensions, and an ordinary linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.ones(2, 3))
        self.norm = nn.LayerNorm((2, 3))
        self.linear = nn.Linear(3, 2)

    def no_weight_decay(self) -> set[str]:
        return {"position"}


def names(model: nn.Module, group: dict) -> set[str]:
    wanted = {id(parameter) for parameter in group["params"]}
    return {name for name, p in model.named_parameters() if id(p) in wanted}


def test_only_kernels_and_matrices_decay() -> None:
    model = Net()
    decayed, free = parameter_groups(model, 0.1)
    assert names(model, decayed) == {"conv.weight", "head.weight"}
    assert names(model, free) == {"conv.bias", "norm.weight", "norm.bias", "head.bias"}
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.1, 0.0)


def test_what_the_model_lists_and_norms_of_any_shape_do_not_decay() -> None:
    model = Listed()
    decayed, free = parameter_groups(model, 0.1)
    assert names(model, decayed) == {"linear.weight"}
    assert names(model, free) == {"position", "norm.weight", "norm.bias", "linear.bias"}


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_with_no_gradient_only_the_decayed_shrink(kind: str) -> None:
    model = Net()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = make_optimizer(model, config(optimizer=kind, lr=0.5, weight_decay=0.1))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        # SGD with Nesterov momentum adds the decay times (1 + momentum) in its first step.
        factor = 1 - 0.5 * 0.1 * (1.9 if kind == "sgd" else 1.0)
        shrinks = name in ("conv.weight", "head.weight")
        torch.testing.assert_close(parameter, before[name] * (factor if shrinks else 1.0))


def test_frozen_parameters_are_not_optimised() -> None:
    model = Net()
    model.conv.requires_grad_(False)
    held = [p for group in parameter_groups(model, 0.1) for p in group["params"]]
    assert not any(p is model.conv.weight for p in held)
    model.requires_grad_(False)
    with pytest.raises(UserInputError, match="all parameters of Net are frozen"):
        make_optimizer(model, config())


def test_what_is_wholly_frozen_stays_in_eval_mode() -> None:
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5)),
        nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5)),
    )
    model[0].requires_grad_(False)
    set_training_mode(model)
    assert not any(layer.training for layer in model[0].modules())
    assert all(layer.training for layer in model[1].modules())
