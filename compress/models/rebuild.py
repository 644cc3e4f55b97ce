"""Build a network of ours anew around tensors that are there already."""

from collections.abc import Mapping
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from compress.models.gfnet import GFNet
from compress.models.gfnet_pyramid import GFNetPyramid

__all__ = ["at_own_widths", "rebuilt"]

Network = TypeVar("Network", bound=GFNet | GFNetPyramid)


@runtime_checkable
class ReadsWidths(Protocol):
    """A network whose configuration can be read from its tensors, but for a few entries."""

    config: dict[str, Any]
    told_by_convention: tuple[str, ...]

    def infer_config(self, state: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """Read the configuration from the names and shapes of a state_dict."""
        ...


@runtime_checkable
class KnowsItsWidths(Protocol):
    """A network that holds another, and rebuilds that one itself."""

    def at_own_widths(self) -> nn.Module:
        """Return the network with configurations that say how wide it is by now."""
        ...


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


def at_own_widths(network: nn.Module) -> nn.Module:
    """Return a network whose layers were cut from outside, with a configuration that says so.

    A network of `compress.models` is built anew at the widths that its tensors have, around those
    tensors; what shapes do not tell stays as it was configured. Any other is returned itself.

    Raises:
        UnsupportedModelError: the tensors are not those of its class any more.
    """
    if isinstance(network, KnowsItsWidths):
        return network.at_own_widths()
    if not isinstance(network, ReadsWidths):
        return network
    state = network.state_dict()
    kept = {name: network.config[name] for name in network.told_by_convention}
    with torch.device("meta"):
        twin: nn.Module = type(network)(**{**(network.infer_config(state) or {}), **kept})
    twin.load_state_dict(state, assign=True)
    for name, parameter in network.named_parameters():
        twin.get_parameter(name).requires_grad_(parameter.requires_grad)
    return twin.train(network.training)
