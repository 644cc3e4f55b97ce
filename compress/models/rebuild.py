"""Build a network of ours anew around tensors that are there already."""

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from compress.models.gfnet import GFNet
from compress.models.gfnet_pyramid import GFNetPyramid

__all__ = ["rebuilt"]

Network = TypeVar("Network", bound=GFNet | GFNetPyramid)


def rebuilt(model: Network, state: Mapping[str, Tensor], **changes: Any) -> Network:
    """Return a network of the same class with another configuration, in the mode of the original.

    Args:
        model: left as it is; nothing is shared, and no random number is drawn.
        state: tensors of the new network, which are copied.
        **changes: entries of the configuration that differ.
    """
    with torch.device("meta"):
        twin = type(model)(**{**model.config, **changes})
    twin.load_state_dict({name: tensor.clone() for name, tensor in state.items()}, assign=True)
    return twin.train(model.training)  # type: ignore[return-value]
