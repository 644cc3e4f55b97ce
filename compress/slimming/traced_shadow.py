"""Shadows: the cells of a tensor, element by element, as a tensor of the same shape.

What moves values around (a view, a slice, a concatenation, an assignment into a slice) does the
same to the shadow, so that channels are followed exactly and no such operation needs a rule of its
own. Most shadows are equal all over the map; there they have stride 0, and cost one number a
channel.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from compress.slimming.traced_cells import NOTHING

__all__ = ["compact", "compacted", "filled", "squashed", "varying", "widened"]


def widened(cells: Tensor, shape: Sequence[int], dim: int = 1) -> Tensor:
    """Return the shadow of a tensor whose channels (C,) lie along `dim`."""
    view = [1] * len(shape)
    view[dim] = len(cells)
    return cells.view(view).expand(*shape)


def filled(shape: Sequence[int], cell: int) -> Tensor:
    """Return a shadow of one cell that can be written to, element by element."""
    return torch.full(tuple(shape), cell)


def varying(shadow: Tensor) -> tuple[int, ...]:
    """Return the dimensions along which a shadow holds different cells, padding apart."""
    small = compact(shadow)
    return tuple(d for d in range(small.dim()) if not _is_equal_along(small, d))


def compact(shadow: Tensor) -> Tensor:
    """Return the part that says everything: length 1 in dimensions of stride 0."""
    for dim in range(shadow.dim()):
        if shadow.shape[dim] > 1 and shadow.stride(dim) == 0:
            shadow = shadow.narrow(dim, 0, 1)
    return shadow


def compacted(shadows: Sequence[Tensor]) -> list[Tensor]:
    """Return shadows of one shape, each of length 1 where all of them have stride 0."""
    result = list(shadows)
    for dim in range(shadows[0].dim()):
        if shadows[0].shape[dim] > 1 and all(s.stride(dim) == 0 for s in shadows):
            result = [s.narrow(dim, 0, 1) for s in result]
    return result


def squashed(shadow: Tensor) -> Tensor:
    """Return the same on memory of its own, as small as it goes."""
    small = compact(shadow)
    for dim in range(small.dim()):
        if small.shape[dim] > 1 and _is_constant_along(small, dim):
            small = small.narrow(dim, 0, 1)
    return small.clone(memory_format=torch.contiguous_format).expand(shadow.shape)


def _is_constant_along(shadow: Tensor, dim: int) -> bool:
    return bool((shadow == shadow.narrow(dim, 0, 1)).all())


def _is_equal_along(shadow: Tensor, dim: int) -> bool:
    if shadow.shape[dim] == 1:
        return True
    highest = shadow.amax(dim, keepdim=True)
    return bool(((shadow == highest) | (shadow == NOTHING)).all())
