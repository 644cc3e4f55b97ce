"""A network as one module that takes the image and gives, as a tuple, all that a bundle gives.

With exits these are logits and the gate's probability of each exit, then the final logits, all
float32; without them whatever the network returns, by the names of
`compress.export.network_outputs`.
"""

import torch
from torch import Tensor, nn

from compress.export.network_outputs import as_returned
from compress.models.with_exits import WithExits

__all__ = ["WholeNetwork", "results_of_exits"]


class WholeNetwork(nn.Module):
    """What is exported.

    Args:
        network: in deployed form; shared, not copied.
        split: give what every exit says, too.
    """

    def __init__(self, network: nn.Module, *, split: bool) -> None:
        super().__init__()
        self.network = network
        self.split = split

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return (logits, gate) of each exit and the final logits, or what the network returns."""
        image = image.to(_float_type(self.network))
        if not (self.split and isinstance(self.network, WithExits)):
            return as_returned(self.network(image))
        logits, gates = self.network.every_exit(image)
        found: list[Tensor] = []
        for exit_logits, gate in zip(logits[:-1], gates, strict=True):
            found += [exit_logits.float(), torch.sigmoid(gate.float())]
        return (*found, logits[-1].float())


def results_of_exits(exits: int) -> list[dict[str, str]]:
    """Return what each segment gives, its names there by the names in the whole graph.

    >>> results_of_exits(1)
    [{'logits_0': 'logits', 'gate_0': 'gate'}, {'logits': 'logits'}]
    """
    gated = [{f"logits_{i}": "logits", f"gate_{i}": "gate"} for i in range(exits)]
    return [*gated, {"logits": "logits"}]


def _float_type(network: nn.Module) -> torch.dtype:
    """Return the type of the first layer's weights; float32 of a network without any."""
    return next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)
