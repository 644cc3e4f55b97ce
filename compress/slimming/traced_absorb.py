"""What removed channels were worth to the layers that read them, in a network that is not ours.

`compress.slimming.absorb` tells why: a channel behind a BatchNorm is worth E[f(β + γz)] for
z ~ N(0, 1) to the layer that reads it through the activation f. In a traced network there may be
any activation between, and residual sums. So mean and variance of every channel are followed from
the BatchNorms onwards: an activation is applied to a normal variable of that mean and variance, a
sum adds them as if its terms were independent. Where γ is 0 the variance is too, and all is exact.
What passes anything else, such as a product, has no known mean, and its reader is left as it is.

A reader with a bias takes the constant up there. One without, followed directly by BatchNorm, takes
it up in that layer's running mean: exact in eval mode, and the network keeps its parameters and
their names.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from compress.slimming.traced_layers import Reader

__all__ = ["absorb_"]


@torch.no_grad()
def absorb_(
    network: nn.Module,
    readers: Mapping[str, Reader],
    removed: Mapping[tuple[str, str], Tensor],
) -> list[str]:
    """Let every reader take up what the channels that will be removed are worth.

    Args:
        network: not yet cut.
        readers: what layers read on average, by name.
        removed: (layer, side) to the channels that go.

    Returns:
        The layers that could not, or not for all removed channels.
    """
    layers = dict(network.named_modules())
    left = []
    for (name, side), gone in removed.items():
        if side != "in":
            continue
        reader = readers.get(name)
        if reader is None or not _take_up_(layers, name, reader, gone):
            left.append(name)
    return left


def _take_up_(layers: Mapping[str, nn.Module], name: str, reader: Reader, gone: Tensor) -> bool:
    """Add what the inputs that go are worth to a bias or a mean; False where some is left out."""
    layer = layers[name]
    bias = layer.bias
    mean = layers[reader.following].running_mean if reader.following else None
    if bias is None and mean is None:
        return False
    constants = torch.zeros_like(reader.means)
    constants[gone] = reader.means[gone].nan_to_num(0)
    response = _response(layer, constants)
    if bias is not None:
        bias += response  # type: ignore[operator]
    else:
        mean -= response
    return not reader.means[gone].isnan().any()


def _response(layer: nn.Module, constants: Tensor) -> Tensor:
    """Return what a layer with weight (out, in/groups, …) makes of constant inputs, (out,)."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    summed = (weight.flatten(2).sum(2) if weight.dim() > 2 else weight).double()
    groups: int = getattr(layer, "groups", 1)
    blocks = summed.view(groups, -1, summed.shape[1])  # (groups, out/groups, in/groups)
    response = torch.einsum("goi,gi->go", blocks, constants.view(groups, -1))
    return response.flatten().to(weight.dtype)
