"""Remove channels from a network that is not ours, and prove that nothing else changed.

The layers are cut by torch-pruning's layer pruners, each (layer, side) once with all its channels:
cutting group by group would renumber, under the next group, the layers that several groups share.

The proof: zeroing the weights that read the removed channels must give the same outputs as removing
them. Where it does not, some operation reads channels in a way that the graph does not show.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from compress.optional import require
from compress.slimming.traced_graph import output_tensors

__all__ = ["EXACT", "change_of_cut_", "cut_"]

# Relative change of the outputs that float32 rounding in another order may cause in a deep network.
EXACT = 1e-4


@torch.no_grad()
def cut_(network: nn.Module, removed: Mapping[tuple[str, str], Tensor]) -> None:
    """Remove channels from the layers of a network; (layer, side) to the channels that go."""
    pruning = require("torch_pruning", "removing channels from layers")
    trainable = {name: p.requires_grad for name, p in network.named_parameters()}
    layers = dict(network.named_modules())
    work = []
    for (name, side), gone in removed.items():
        # Chosen before anything is cut: a grouped convolution with one channel left in each group
        # would be taken for a depthwise one.
        pruner = pruning.pruner.function.PrunerBox[pruning.ops.module2type(layers[name])]
        prune = pruner.prune_in_channels if side == "in" else pruner.prune_out_channels
        work.append((prune, layers[name], gone.tolist()))
    for prune, layer, channels in work:
        prune(layer, channels)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(trainable[name])  # the pruners make new parameters


@torch.no_grad()
def change_of_cut_(
    network: nn.Module, removed: Mapping[tuple[str, str], Tensor], image: Tensor
) -> float:
    """Cut the network and return how much more its outputs changed than removal explains.

    Returns:
        Norm of the difference between the outputs with the readers' weights zeroed and with the
        channels removed, over the norm of the former. NaN where the outputs are not finite.

    Raises:
        RuntimeError: the cut network does not run (or whatever its forward raises), or gives
            outputs of other shapes.
    """
    layers = dict(network.named_modules())
    for (name, side), channels in removed.items():
        if side == "in":
            _silence_(layers[name], channels)
    wanted = output_tensors(network(image))
    cut_(network, removed)
    got = output_tensors(network(image))
    if [tensor.shape for tensor in wanted] != [tensor.shape for tensor in got]:
        raise RuntimeError("the outputs have other shapes")
    difference = torch.stack([(a - b).norm() for a, b in zip(wanted, got, strict=True)]).norm()
    size = torch.stack([tensor.norm() for tensor in wanted]).norm()
    return (difference / size.clamp_min(1e-12)).item()


def _silence_(layer: nn.Module, channels: Tensor) -> None:
    """Make a layer deaf for some of its input channels."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    if getattr(layer, "transposed", False):
        weight[channels] = 0
        return
    per_group = weight.shape[1]
    blocks = weight.view(getattr(layer, "groups", 1), -1, *weight.shape[1:])
    blocks[channels // per_group, :, channels % per_group] = 0
