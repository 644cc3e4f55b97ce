"""Which frequencies a real picture has, and filters stored one row a frequency.

The half spectrum of a grid (a, b) holds a * (b // 2 + 1) bins, numbered row by row. A real picture
says less: frequency k and its conjugate -k are one, so what can be kept or removed is the pair.
Most bins stand for a pair whose other half lies in the mirrored half of the spectrum. In column 0,
and in column b / 2 of an even b, both halves lie side by side, and a filter acts on a real picture
only by (W[k] + conj(W[-k])) / 2. Such a pair is numbered by the smaller of its bins. A frequency
that is its own conjugate counts once, and the imaginary part of a filter there does nothing.

Worked example, grid (4, 4): 12 bins, bin = 3 * row + column. In columns 0 and 2, rows 1 and 3 are
one pair, so bins 9 and 11 drop out and 10 frequencies are left; 0, 2, 6 and 8 are their own
conjugates. A grid of 14x14 has 112 bins and 100 frequencies.

A filter stored by rows is (K, D, 2), its real and imaginary parts at K of these frequencies.
"""

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["filter_of_rows", "multiplicities", "real_frequencies", "row_norms", "rows_of_filter"]

Grid = tuple[int, int]


def real_frequencies(grid: Grid) -> list[int]:
    """Return the bins that number the frequencies of a real picture, ascending.

    >>> real_frequencies((4, 4))
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 10]
    """
    return [number for number in range(_bins(grid)) if _conjugate(number, grid) >= number]


def multiplicities(frequencies: Sequence[int], grid: Grid) -> list[int]:
    """Return 1 for each frequency that is its own conjugate, 2 for each that is half of a pair."""
    half = grid[1] // 2 + 1
    return [1 if _on_edge(k % half, grid) and _conjugate(k, grid) == k else 2 for k in frequencies]


def rows_of_filter(weight: Tensor, grid: Grid) -> Tensor:
    """Return a filter (a, b // 2 + 1, D, 2) by rows, (K, D, 2) for all K real frequencies.

    What has no effect on a real picture is left out, so the filter does exactly the same.
    """
    half = grid[1] // 2 + 1
    frequencies = real_frequencies(grid)
    bins = weight.flatten(0, 1)
    own = bins[torch.tensor(frequencies, device=weight.device)]
    mates = bins[torch.tensor([_conjugate(k, grid) for k in frequencies], device=weight.device)]
    on_edge = torch.tensor([_on_edge(k % half, grid) for k in frequencies], device=weight.device)
    symmetric = (own + mates * mates.new_tensor([1.0, -1.0])) / 2
    return torch.where(on_edge[:, None, None], symmetric, own)


def filter_of_rows(rows: Tensor, frequencies: Sequence[int], grid: Grid) -> Tensor:
    """Return the published form (a, b // 2 + 1, D, 2) of a filter by rows.

    Args:
        rows: (K, D, 2).
        frequencies: the K numbers that the rows belong to; the filter is zero at all others.
        grid: (a, b).
    """
    places, signs = _rows_of_bins(tuple(frequencies), grid)
    rows = F.pad(rows, (0, 0, 0, 0, 0, 1))  # one row of zeros, for what is gone
    found = rows.index_select(0, torch.tensor(places, device=rows.device))
    parts = torch.tensor(signs, device=rows.device, dtype=rows.dtype)  # (F, 2)
    return (found * parts[:, None]).unflatten(0, (grid[0], grid[1] // 2 + 1))


def row_norms(rows: Tensor, frequencies: Sequence[int], grid: Grid) -> Tensor:
    """Return the L2 norm (K,) of what each row adds to the filter on real pictures, all channels.

    By Parseval that is the norm over the whole spectrum, in which a pair has its row twice.
    """
    times = torch.tensor(multiplicities(frequencies, grid), device=rows.device)
    energy = rows.square().sum(1)  # (K, 2)
    imaginary = torch.where(times == 2, energy[:, 1], 0)
    return ((energy[:, 0] + imaginary) * times).sqrt()


@functools.cache
def _rows_of_bins(
    frequencies: tuple[int, ...], grid: Grid
) -> tuple[tuple[int, ...], tuple[tuple[float, float], ...]]:
    """Return for every bin its row, the number of rows where it has none, and its two signs."""
    places, signs = [len(frequencies)] * _bins(grid), [(1.0, 1.0)] * _bins(grid)
    for place, k in enumerate(frequencies):
        places[_conjugate(k, grid)], signs[_conjugate(k, grid)] = place, (1.0, -1.0)
    for place, k in enumerate(frequencies):  # later, as a frequency may be its own conjugate
        places[k], signs[k] = place, (1.0, 1.0)
    return tuple(places), tuple(signs)


def _bins(grid: Grid) -> int:
    return grid[0] * (grid[1] // 2 + 1)


def _on_edge(column: int, grid: Grid) -> bool:
    """Whether a column of the half spectrum is its own mirror image."""
    return column == 0 or 2 * column == grid[1]


def _conjugate(number: int, grid: Grid) -> int:
    """Return the bin of the conjugate; the bin itself where that is not in the half spectrum."""
    row, column = divmod(number, grid[1] // 2 + 1)
    if not _on_edge(column, grid):
        return number
    return (-row % grid[0]) * (grid[1] // 2 + 1) + column
