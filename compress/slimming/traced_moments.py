"""Mean and variance of a channel behind an activation."""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["Activation", "activated", "expected_activation"]

Activation = Callable[[Tensor], Tensor]


def expected_activation(activation: Activation, gamma: Tensor, beta: Tensor) -> Tensor:
    """Return E[activation(beta + gamma * z)] for z ~ N(0, 1), elementwise.

    A sum over 1001 places in [-8, 8]: for ReLU the error is below 1e-5 * |gamma|, and where gamma
    is 0 the result is activation(beta).

    Args:
        activation: elementwise function.
        gamma: (C,).
        beta: (C,).
    """
    return activated(activation, beta.double(), gamma.double() ** 2)[0].to(beta.dtype)


def activated(activation: Activation, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance of an activation of normal variables, each (C,) float64.

    Args:
        activation: elementwise function.
        mean: (C,) float64 of what it is applied to; NaN where unknown.
        variance: (C,) float64.
    """
    z = torch.linspace(-8, 8, 1001, dtype=torch.float64)
    weight = torch.exp(-0.5 * z**2)
    weight /= weight.sum()
    deviation = variance.clamp_min(0).sqrt()
    values = activation(mean[:, None] + deviation[:, None] * z)  # (C, 1001)
    expected = values @ weight
    return expected, (values - expected[:, None]) ** 2 @ weight
