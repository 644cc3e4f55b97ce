"""Add a learnable scale per MLP hidden unit to a GFNet or GFNet-H, and fold it away again.

The scale is to a hidden unit what BatchNorm's γ is to a channel (arXiv 1708.06519): an L1 penalty
drives it to zero where the unit is not needed, and slimming removes the unit. Both directions keep
the function of the network exactly (to float rounding).
"""

from typing import TypeVar

import torch
from torch import nn

from compress.models.gfnet import GFNet
from compress.models.gfnet_block import Mlp
from compress.models.gfnet_pyramid import GFNetPyramid
from compress.models.rebuild import rebuilt

__all__ = ["with_hidden_scale", "without_hidden_scale"]

Network = TypeVar("Network", bound=GFNet | GFNetPyramid)


@torch.no_grad()
def with_hidden_scale(model: Network, *, from_weights: bool = False) -> Network:
    """Return the network with a scale per hidden unit; a network that has them as it is.

    Args:
        model: left as it is; nothing is shared.
        from_weights: take the norm of a unit's column of fc2 out of fc2 as its scale, so that a
            network can be ranked that never was trained with scales. Otherwise all scales are 1.
    """
    if model.config["hidden_scale"]:
        return model
    state = dict(model.state_dict())
    for mlp in _mlps(model):
        fc2 = state[f"{mlp}.fc2.weight"]  # (D, hidden)
        norm = fc2.norm(dim=0)
        scale = norm if from_weights else torch.ones_like(norm)
        state[f"{mlp}.scale"] = scale
        # A unit that is never read has norm 0; its column stays the zeros that it is.
        state[f"{mlp}.fc2.weight"] = fc2 / scale.where(scale > 0, 1)
    return rebuilt(model, state, hidden_scale=True)


@torch.no_grad()
def without_hidden_scale(model: Network) -> Network:
    """Return the network in the published layout: scales are multiplied into fc2."""
    if not model.config["hidden_scale"]:
        return model
    state = dict(model.state_dict())
    for mlp in _mlps(model):
        state[f"{mlp}.fc2.weight"] = state[f"{mlp}.fc2.weight"] * state.pop(f"{mlp}.scale")
    return rebuilt(model, state, hidden_scale=False)


def _mlps(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, Mlp)]
