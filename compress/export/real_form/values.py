"""Complex tensors as pairs of real ones, while a network is traced.

`Pair` is a complex tensor, `Stacked` its view as real numbers, and `Placed` one that is zero but
for some blocks: neural operators fill an empty spectrum with the low frequencies that they keep.
Blocks are not copied into zeros until they must be, so that a transform behind them can leave the
zeros out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Block", "Pair", "Placed", "Stacked", "dense"]

Size = int | torch.SymInt


@dataclass(frozen=True)
class Pair:
    """A complex tensor; no imaginary part means that it is zero."""

    real: Tensor
    imaginary: Tensor | None = None

    @property
    def shape(self) -> torch.Size:
        """Its shape."""
        return self.real.shape

    @property
    def whole_imaginary(self) -> Tensor:
        """The imaginary part, zeros where there is none."""
        return torch.zeros_like(self.real) if self.imaginary is None else self.imaginary


@dataclass(frozen=True)
class Stacked:
    """What `torch.view_as_real` gives: the parts along a new last axis."""

    pair: Pair

    def tensor(self) -> Tensor:
        """Return it as a tensor (…, 2)."""
        return torch.stack((self.pair.real, self.pair.whole_imaginary), dim=-1)


@dataclass(frozen=True)
class Block:
    """A part of a tensor that is not zero, and where it starts along each axis."""

    starts: tuple[int, ...]
    pair: Pair

    def stop(self, axis: int) -> Size:
        """Return where it ends along an axis."""
        return self.starts[axis] + self.pair.shape[axis]


@dataclass(frozen=True)
class Placed:
    """A complex tensor of zeros with blocks in it, which do not overlap."""

    shape: tuple[Size, ...]
    dtype: torch.dtype
    blocks: tuple[Block, ...] = ()

    def sliced(self, axis: int, start: int, stop: Size) -> "Placed | None":
        """Return it from start to stop along an axis; None where a block would be cut."""
        shape = (*self.shape[:axis], stop - start, *self.shape[axis + 1 :])
        kept = []
        for block in self.blocks:
            if block.starts[axis] >= start and block.stop(axis) <= stop:
                moved = list(block.starts)
                moved[axis] -= start
                kept.append(Block(tuple(moved), block.pair))
            elif block.starts[axis] < stop and block.stop(axis) > start:
                return None
        return Placed(shape, self.dtype, tuple(kept))

    def filled(self, axis: int, start: int, stop: Size, source: "Placed") -> "Placed | None":
        """Return it with `source` from start to stop along an axis; None where a block is cut."""
        kept = []
        for block in self.blocks:
            inside = block.starts[axis] >= start and block.stop(axis) <= stop
            outside = block.starts[axis] >= stop or block.stop(axis) <= start
            if not inside and not outside:
                return None
            if outside:
                kept.append(block)
        for block in source.blocks:
            moved = list(block.starts)
            moved[axis] += start
            kept.append(Block(tuple(moved), block.pair))
        return Placed(self.shape, self.dtype, tuple(kept))


def dense(value: Pair | Placed) -> Pair:
    """Return a complex tensor with its zeros written."""
    if isinstance(value, Pair):
        return value
    if not value.blocks:
        return Pair(torch.zeros(value.shape, dtype=value.dtype))
    axis = _row_axis(value)
    if axis is not None:
        return _row(value, axis)
    wholes = [_padded(block.pair, block.starts, value.shape) for block in value.blocks]
    total = wholes[0]
    for whole in wholes[1:]:
        imaginary = total.whole_imaginary + whole.whole_imaginary
        total = Pair(total.real + whole.real, imaginary)
    return total


def _row_axis(value: Placed) -> int | None:
    """Return the axis along which the blocks stand in a row, with nothing else between them."""
    first, *others = value.blocks
    if not others:
        return None
    differing = {
        axis
        for block in others
        for axis, (a, b) in enumerate(zip(block.starts, first.starts, strict=True))
        if a != b
    }
    if len(differing) != 1:
        return None
    (axis,) = differing
    sizes = [(*b.pair.shape[:axis], *b.pair.shape[axis + 1 :]) for b in value.blocks]
    return axis if all(size == sizes[0] for size in sizes) else None


def _row(value: Placed, axis: int) -> Pair:
    """Join the blocks, then put them to their places, so that one move holds all zeros."""
    blocks = sorted(value.blocks, key=lambda block: block.starts[axis])
    joined = Pair(
        torch.cat([block.pair.real for block in blocks], dim=axis),
        torch.cat([block.pair.whole_imaginary for block in blocks], dim=axis),
    )
    places = [-1] * int(value.shape[axis])
    filled = 0
    for block in blocks:
        for i in range(int(block.pair.shape[axis])):
            places[block.starts[axis] + i] = filled
            filled += 1
    index = torch.tensor([filled if place < 0 else place for place in places])
    behind = [0] * (2 * (joined.real.dim() - axis - 1))

    def spread(part: Tensor) -> Tensor:
        return F.pad(part, [*behind, 0, 1]).index_select(axis, index)

    spread_out = Pair(spread(joined.real), spread(joined.whole_imaginary))
    starts = tuple(0 if i == axis else start for i, start in enumerate(blocks[0].starts))
    return _padded(spread_out, starts, value.shape)


def _padded(pair: Pair, starts: Sequence[int], shape: Sequence[Size]) -> Pair:
    pads: list[Size] = []
    for start, size, whole in zip(starts, pair.shape, shape, strict=True):
        behind = 0 if start == 0 and size is whole else whole - start - size
        pads = [start, behind, *pads]
    while pads and isinstance(pads[-1], int) and pads[-1] == 0 and pads[-2] == 0:
        pads = pads[:-2]
    if not pads:
        return pair
    real = F.pad(pair.real, pads)  # type: ignore[arg-type]
    return Pair(real, F.pad(pair.whole_imaginary, pads))  # type: ignore[arg-type]
