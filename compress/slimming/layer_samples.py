"""What a convolution or linear layer reads and gives at a few places of every image.

A map has far more places than a fit of the layer needs, and neighbours tell nearly the same, so a
few are drawn of every image: drawn once for a layer, by its name, so that two networks are looked
at in the same places.
"""

import math
import zlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["SampledLayer", "fan_in", "is_fittable", "places", "sampled_inputs", "sampled_outputs"]

SampledLayer = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear

PER_UNKNOWN = 50  # samples for every weight of an output
FEWEST = 16  # places of an image, where it has so many
MOST_BYTES = 64 * 2**20  # that the samples of a layer's outputs take


def is_fittable(layer: nn.Module) -> bool:
    """Whether the inputs of a layer can be laid out as samples."""
    return isinstance(layer, SampledLayer)


def fan_in(layer: SampledLayer) -> int:
    """Return the inputs that one output reads."""
    return layer.weight[0].numel()


def places(name: str, layer: SampledLayer, output: Tensor, images: int) -> Tensor:
    """Draw the places (images, K) where a layer is looked at, as indices into its flat map.

    Args:
        name: of the layer; gives the draw.
        layer: the layer.
        output: what it gives for any batch, (B, C, …) or, of a linear layer, (B, …, C).
        images: how many images will come.
    """
    whole = math.prod(_map_shape(layer, output))
    wanted = max(FEWEST, math.ceil(PER_UNKNOWN * fan_in(layer) / images))
    wanted = min(wanted, max(1, MOST_BYTES // (4 * len(layer.weight) * images)))
    if wanted >= whole:
        return torch.arange(whole).expand(images, whole)
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.randint(whole, (images, wanted), generator=generator)


def sampled_outputs(layer: SampledLayer, output: Tensor, where: Tensor) -> Tensor:
    """Return what a layer gave at places (B, K) of every image, (B * K, C)."""
    if not isinstance(layer, nn.Linear):
        output = output.movedim(1, -1)
    flat = output.reshape(len(output), -1, output.shape[-1])  # (B, places, C)
    rows = torch.arange(len(output))[:, None]
    return flat[rows, where].flatten(0, 1)


def sampled_inputs(layer: SampledLayer, inputs: Tensor, where: Tensor) -> Tensor:
    """Return what the outputs at places (B, K) of every image read, (B * K, groups * fan in).

    The order is that of the flattened weight: channel, then place in the kernel.
    """
    if isinstance(layer, nn.Linear):
        return sampled_outputs(layer, inputs, where)
    sizes = _output_sizes(layer, inputs)
    inputs = _padded(layer, inputs)
    index = torch.arange(len(inputs)).reshape(-1, 1, *[1] * len(sizes))
    for axis, (at, size) in enumerate(
        zip(_unravelled(where, sizes), inputs.shape[2:], strict=True)
    ):
        taps = torch.arange(layer.kernel_size[axis]) * layer.dilation[axis]
        shape = [1] * (2 + len(sizes))
        shape[2 + axis] = len(taps)
        along = at[(..., *[None] * len(sizes))] * layer.stride[axis] + taps.view(shape)
        index = index * size + along  # (B, K, *kernel)
    rows = inputs.movedim(1, -1).reshape(-1, inputs.shape[1])[index]  # (B, K, *kernel, C)
    return rows.movedim(-1, 2).flatten(2).flatten(0, 1)


def _map_shape(layer: SampledLayer, output: Tensor) -> tuple[int, ...]:
    return tuple(output.shape[1:-1] if isinstance(layer, nn.Linear) else output.shape[2:])


def _output_sizes(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, inputs: Tensor) -> list[int]:
    sides = layer._reversed_padding_repeated_twice[::-1]  # (after, before) of the first axis first
    return [
        (size + sides[2 * axis] + sides[2 * axis + 1] - dilation * (kernel - 1) - 1) // stride + 1
        for axis, (size, kernel, dilation, stride) in enumerate(
            zip(inputs.shape[2:], layer.kernel_size, layer.dilation, layer.stride, strict=True)
        )
    ]


def _padded(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, inputs: Tensor) -> Tensor:
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return F.pad(inputs, layer._reversed_padding_repeated_twice, mode=mode)


def _unravelled(where: Tensor, sizes: list[int]) -> list[Tensor]:
    """Return the coordinates of flat places, the first axis first."""
    found = []
    for size in reversed(sizes):
        found.append(where % size)
        where = where.div(size, rounding_mode="floor")
    return found[::-1]
