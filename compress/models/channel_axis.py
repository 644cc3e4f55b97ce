"""Which axis of a map holds the channels, told by the layers that made it.

A map (B, H, W, C), as Swin transformers pass on between their blocks, has as many dimensions as
(B, C, H, W), and its shape does not say which it is. The layer that ran last before it does: linear
layers and LayerNorm work on the last axis, convolutions and BatchNorm on the first behind the
batch.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

__all__ = ["ChannelAxis"]

MAP = 4


class ChannelAxis:
    """Watches a network while it runs.

    >>> import torch
    >>> network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU())
    >>> with ChannelAxis().watching(network) as axis:
    ...     map = network(torch.zeros(2, 3, 4, 4))
    >>> axis.is_last(map)
    False
    """

    def __init__(self) -> None:
        self._width = 0  # of the last layer on the last axis; 0 behind one on another

    @contextmanager
    def watching(self, network: nn.Module) -> Iterator["ChannelAxis"]:
        """Watch what runs inside the block."""
        hooks = [
            layer.register_forward_hook(self._see)
            for layer in network.modules()
            if _width(layer) is not None
        ]
        try:
            yield self
        finally:
            for hook in hooks:
                hook.remove()

    def is_last(self, tap: Tensor) -> bool:
        """Whether a tensor that was just computed is (B, H, W, C).

        Where height, width and channels are the same number it is taken for (B, C, H, W).
        """
        return tap.dim() == MAP and tap.shape[3] == self._width != tap.shape[1]

    def _see(self, layer: nn.Module, _inputs: Any, _output: Any) -> None:
        self._width = _width(layer) or 0


def _width(layer: nn.Module) -> int | None:
    """Return channels on the last axis, 0 of a layer with channels elsewhere, None of any other."""
    if isinstance(layer, nn.Linear):
        return layer.out_features
    if isinstance(layer, nn.LayerNorm):
        return layer.normalized_shape[-1]
    elsewhere = (nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm, nn.GroupNorm)
    return 0 if isinstance(layer, elsewhere) else None
