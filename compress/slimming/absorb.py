"""What a removed channel still contributed, folded into the bias of the layer that read it.

BatchNorm turns a channel into β + γz with z close to a standard normal variable, so behind a ReLU
a channel is worth E[relu(β + γz)] on average, and relu(β) exactly when γ is 0. Cutting the channel
takes that constant away from the next layer; adding (sum of its kernel) * constant to the next
layer's bias gives it back. It is exact for linear layers and inside the map; at the border, where a
padded convolution saw zeros instead of the constant, an error remains.
"""

import math

import torch
from torch import Tensor

from compress.models.channels import TensorSlice

__all__ = ["expected_relu", "folded_bias"]


def expected_relu(gamma: Tensor, beta: Tensor) -> Tensor:
    """Return E[relu(beta + gamma * z)] for z ~ N(0, 1), elementwise.

    With g = |gamma|, Φ and φ the normal distribution and density: β·Φ(β/g) + g·φ(β/g); relu(β)
    where g is 0.
    """
    g = gamma.abs().clamp_min(1e-12)  # the limit for g -> 0 is relu(beta), and is reached here
    ratio = beta / g
    density = torch.exp(-0.5 * ratio**2) / math.sqrt(2 * math.pi)
    return beta * torch.special.ndtr(ratio) + g * density


def folded_bias(
    bias: Tensor, weight: Tensor, removed: Tensor, constants: Tensor, reader: TensorSlice
) -> Tensor:
    """Return the bias of a layer that no longer reads the removed channels.

    Args:
        bias: (out,).
        weight: (out, in, …) of a linear layer or a convolution without groups.
        removed: (R,) indices of the channels that go.
        constants: (R,) what each of them is worth on average.
        reader: how channels lie in dimension 1 of `weight`.
    """
    per_channel = weight.flatten(2).sum(2) if weight.dim() > 2 else weight  # (out, in)
    per_channel = per_channel.unflatten(1, (-1, reader.repeat)).sum(2)  # (out, channels)
    return bias + per_channel[:, removed] @ constants
