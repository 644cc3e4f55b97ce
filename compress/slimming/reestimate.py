"""BatchNorm statistics of a slimmed network, taken anew from a few images.

BatchNorm normalises with the mean and variance that its inputs had in training. Where a layer lost
inputs, they are others. They are taken anew by looking at images, layer after layer: while the
images pass, every layer normalises with the statistics of the batch that it reads, as in training,
and what is kept in the end is the mean and the variance over all images together.

Nothing is random and nothing is trained: the same images give the same numbers.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from compress.models.with_exits import everything

__all__ = ["Moments", "Statistics", "blend_", "norms", "reestimate_", "statistics"]

Norm = nn.modules.batchnorm._BatchNorm


class Statistics(NamedTuple):
    """What a BatchNorm normalises with: (C,) each."""

    mean: Tensor
    variance: Tensor


class Moments:
    """Mean and variance over batches, summed in float64 about the first batch's mean."""

    def __init__(self) -> None:
        self.count = 0
        self._mean: Tensor | None = None
        self._squares: Tensor | None = None

    def add(self, inputs: Tensor) -> Statistics:
        """Take in inputs (B, C, …); return their own statistics, with the biased variance."""
        values = inputs.double().movedim(1, 0).flatten(1)  # (C, values)
        count = values.shape[1]
        variance, mean = torch.var_mean(values, 1, correction=0)
        if self._mean is None or self._squares is None:
            self.count, self._mean, self._squares = count, mean, variance * count
        else:
            total = self.count + count
            shift = mean - self._mean
            self._squares += variance * count + shift.square() * (self.count * count / total)
            self._mean += shift * (count / total)
            self.count = total
        return Statistics(mean, variance)

    def result(self) -> Statistics:
        """Return mean and unbiased variance of all that was taken in.

        Raises:
            ValueError: nothing was.
        """
        if self._mean is None or self._squares is None:
            raise ValueError("no inputs were added")
        return Statistics(self._mean, self._squares / max(self.count - 1, 1))


def norms(network: nn.Module) -> dict[str, Norm]:
    """Return the BatchNorms of a network that keep statistics, by name."""
    return {
        name: layer
        for name, layer in network.named_modules()
        if isinstance(layer, Norm) and layer.running_mean is not None
    }


def statistics(network: nn.Module) -> dict[str, Statistics]:
    """Return a copy of what every BatchNorm normalises with."""
    return {
        name: Statistics(layer.running_mean.clone(), layer.running_var.clone())  # type: ignore[union-attr]
        for name, layer in norms(network).items()
    }


@torch.no_grad()
def reestimate_(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Take the statistics of every BatchNorm anew from batches of inputs (B, C, H, W).

    Everything else runs as in use: no dropout, no gradient. A BatchNorm that no input reaches
    keeps its statistics.
    """
    network.eval()
    seen: dict[str, Moments] = {}

    def looking(name: str) -> Callable[[Norm, Any], None]:
        def look(layer: Norm, inputs: Any) -> None:
            _set_(layer, seen.setdefault(name, Moments()).add(inputs[0]))

        return look

    hooks = [
        layer.register_forward_pre_hook(looking(name)) for name, layer in norms(network).items()
    ]
    try:
        for batch in batches:
            everything(network, batch)
    finally:
        for hook in hooks:
            hook.remove()
    layers = norms(network)
    for name, moments in seen.items():
        _set_(layers[name], moments.result())


@torch.no_grad()
def blend_(network: nn.Module, old: Mapping[str, Statistics], share: float) -> None:
    """Mix the statistics of a network with others: new * share + old * (1 - share).

    Args:
        network: its own are the new ones.
        old: of every BatchNorm.
        share: of the new ones, in [0, 1].
    """
    for name, layer in norms(network).items():
        for now, before in zip((layer.running_mean, layer.running_var), old[name], strict=True):
            now.copy_(torch.lerp(before, now, share))  # type: ignore[union-attr, arg-type]


def _set_(layer: Norm, found: Statistics) -> None:
    layer.running_mean.copy_(found.mean)  # type: ignore[union-attr]
    layer.running_var.copy_(found.variance)  # type: ignore[union-attr]
