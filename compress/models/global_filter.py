"""The global filter of GFNet, as FFT and as real matrix products.

Global Filter Networks (Rao et al., arXiv 2107.00645) mix tokens by a learnable filter in the
frequency domain: y = irfft2(rfft2(x) * W) over the grid of tokens, per channel, both transforms
"ortho". Two forms give the same numbers to float rounding:

- `GlobalFilter`: by FFT, W stored as published, `complex_weight` (a, b // 2 + 1, D, 2).
- `MatrixFilter`: y = Gr @ (p*wr - q*wi) + Gi @ (q*wr + p*wi) with p = Fr @ x, q = Fi @ x, for
  runtimes without (fast) FFT: no complex numbers, slices, concatenations or transposes.

Multiply-adds per channel on N = a*b tokens and F = a*(b // 2 + 1) frequencies, as executed:

- FFT form: 2.5 * N * log2(N) for the two transforms (half the usual 5 N log2 N operations of a
  complex FFT, two transforms, two operations a multiply-add) + 4 * F for the complex product;
- matrix form: 4 * N * F + 4 * F.

The imaginary parts of W at self-conjugate frequencies have no effect on a real image.

Frequency slimming stores W by rows (`compress.models.frequencies`), K of them. Then the matrices
have K rows and columns and K takes the place of F above. By FFT nothing is saved: the transforms
stay as they are, and removed frequencies are multiplied by zero.
"""

import copy
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.models.frequencies import filter_of_rows, multiplicities

__all__ = [
    "GlobalFilter",
    "MatrixFilter",
    "dft_matrices",
    "filter_as_matrices",
    "resample_filter",
    "with_matrix_filters",
]

Grid = tuple[int, int]


class GlobalFilter(nn.Module):
    """Filter tokens that lie on a grid, by FFT.

    Args:
        width: channels D.
        grid: rows and columns (a, b) of the tokens.
        frequencies: the K real frequencies that the filter keeps, ascending; the weight is then
            stored by rows, (K, D, 2). None is the published form, (a, b // 2 + 1, D, 2).
        scale: a learnable scale per kept frequency, (K,), for network slimming.

    Shapes: (B, a*b, D) to the same. The transforms run in float32 whatever comes in: half-precision
    FFTs know only powers of two.
    """

    def __init__(
        self,
        width: int,
        grid: Grid,
        *,
        frequencies: Sequence[int] | None = None,
        scale: bool = False,
    ) -> None:
        super().__init__()
        self.grid = grid
        self.frequencies = None if frequencies is None else tuple(frequencies)
        stored = (
            (grid[0], grid[1] // 2 + 1) if self.frequencies is None else (len(self.frequencies),)
        )
        self.complex_weight = nn.Parameter(torch.randn(*stored, width, 2) * 0.02)
        self.scale = nn.Parameter(torch.ones(stored)) if scale else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the filtered tokens (B, a*b, D)."""
        rows, columns = self.grid
        image = x.float().unflatten(1, self.grid)  # (B, a, b, D)
        spectrum = torch.fft.rfft2(image, dim=(1, 2), norm="ortho")  # (B, a, b//2+1, D) complex
        spectrum = spectrum * torch.view_as_complex(self._published_weight())
        image = torch.fft.irfft2(spectrum, s=(rows, columns), dim=(1, 2), norm="ortho")
        return image.flatten(1, 2).to(x.dtype)

    def scaled_weight(self) -> Tensor:
        """Return the weight as it is stored, the scale multiplied in, in float32."""
        weight = self.complex_weight.float()
        return weight if self.scale is None else weight * self.scale.float()[:, None, None]

    def _published_weight(self) -> Tensor:
        weight = self.scaled_weight()
        if self.frequencies is None:
            return weight
        return filter_of_rows(weight, self.frequencies, self.grid)

    def own_macs(self, inputs: tuple[Tensor, ...], output: Tensor) -> int:
        """Return the multiply-adds of one call, by the formulas of this module's docstring.

        A filter stored by rows states its matrix form, in which it is deployed and which alone gets
        cheaper with every row; the FFT form, which `forward` runs, does not.
        """
        batch, tokens, width = output.shape
        if self.frequencies is not None:
            return batch * _matrix_macs(tokens, len(self.frequencies), width)
        frequencies = self.complex_weight.shape[0] * self.complex_weight.shape[1]
        transforms = round(2.5 * tokens * math.log2(tokens) * width)
        return batch * (transforms + 4 * frequencies * width)


class MatrixFilter(nn.Module):
    """The same filter as real matrix products.

    Args:
        forward_dft: Fr, Fi (F, N), real and imaginary part of the transform.
        inverse_dft: Gr, Gi (N, F), which also count the mirrored half of the spectrum.
        weight: (F, D, 2), real and imaginary part of the filter.

    Shapes: (B, N, D) to the same. Rows of F may be left out: frequencies that are zero.
    """

    fr: Tensor
    fi: Tensor
    gr: Tensor
    gi: Tensor

    def __init__(
        self, forward_dft: tuple[Tensor, Tensor], inverse_dft: tuple[Tensor, Tensor], weight: Tensor
    ) -> None:
        super().__init__()
        for name, matrix in zip(("fr", "fi"), forward_dft, strict=True):
            self.register_buffer(name, matrix)
        for name, matrix in zip(("gr", "gi"), inverse_dft, strict=True):
            self.register_buffer(name, matrix)
        self.wr = nn.Parameter(weight[..., 0].contiguous())
        self.wi = nn.Parameter(weight[..., 1].contiguous())

    def forward(self, x: Tensor) -> Tensor:
        """Return the filtered tokens (B, N, D)."""
        p, q = self.fr @ x, self.fi @ x  # (B, F, D) each
        real, imaginary = p * self.wr - q * self.wi, q * self.wr + p * self.wi
        return self.gr @ real + self.gi @ imaginary

    def own_macs(self, inputs: tuple[Tensor, ...], output: Tensor) -> int:
        """Return the multiply-adds of one call, by the formula of this module's docstring."""
        batch, tokens, width = output.shape
        return batch * _matrix_macs(tokens, self.fr.shape[0], width)


def dft_matrices(
    grid: Grid, frequencies: Sequence[int] | None = None
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return ((Fr, Fi), (Gr, Gi)) in float32 for the orthonormal transform on a grid (a, b).

    Tokens are numbered row by row, frequencies likewise over (a, b // 2 + 1).

    Args:
        grid: (a, b).
        frequencies: K real frequencies; F gets their rows alone, and G their columns, each of which
            stands for its conjugate too. None takes all bins.
    """
    rows, columns = grid
    half = columns // 2 + 1
    vertical = torch.outer(torch.arange(rows), torch.arange(rows)) % rows / rows
    horizontal = torch.outer(torch.arange(half), torch.arange(columns)) % columns / columns
    # (a, 1, a, 1) + (1, b//2+1, 1, b) -> (F, N), in turns
    turns = vertical.double()[:, None, :, None] + horizontal.double()[None, :, None, :]
    angle = 2 * math.pi * turns.reshape(rows * half, rows * columns)
    scale = 1 / math.sqrt(rows * columns)
    # Every column stands for its mirror image too, except those that are their own.
    mirrored = torch.full((half,), 2.0, dtype=torch.float64)
    mirrored[0] = 1
    if columns % 2 == 0:
        mirrored[-1] = 1
    share = mirrored.repeat(rows)
    if frequencies is not None:
        angle = angle[torch.tensor(frequencies, dtype=torch.long)]
        share = torch.tensor(multiplicities(frequencies, grid), dtype=torch.float64)
    cosine, sine = angle.cos() * scale, angle.sin() * scale
    return (
        (cosine.float(), (-sine).float()),
        ((cosine.T * share).float().contiguous(), (-sine.T * share).float().contiguous()),
    )


def filter_as_matrices(
    source: GlobalFilter,
    matrices: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
) -> MatrixFilter:
    """Return the matrix form of a filter.

    Args:
        source: left as it is.
        matrices: what `dft_matrices` gave for its grid and frequencies, so that several filters
            share them.
    """
    weight = source.scaled_weight().detach().flatten(0, -3).clone()  # (F, D, 2)
    forward_dft, inverse_dft = matrices or dft_matrices(source.grid, source.frequencies)
    return MatrixFilter(forward_dft, inverse_dft, weight).train(source.training)


def with_matrix_filters(model: nn.Module, *, largest: int | None = None) -> nn.Module:
    """Return a copy of a network whose global filters are matrix products.

    Filters with the same grid and frequencies share their matrices.

    Args:
        model: left as it is.
        largest: whole filters whose matrices have more entries each stay as they are; None is none.
    """
    chosen = [
        module
        for module in model.modules()
        if isinstance(module, GlobalFilter) and not _is_larger(module, largest)
    ]
    kinds = {_matrices_of(module) for module in chosen}
    shared = {kind: dft_matrices(*kind) for kind in kinds}
    twin = copy.deepcopy(model)
    for name, module in list(twin.named_modules()):
        if isinstance(module, GlobalFilter) and _matrices_of(module) in shared:
            parent, _, child = name.rpartition(".")
            lowered = filter_as_matrices(module, shared[_matrices_of(module)])
            setattr(twin.get_submodule(parent), child, lowered)
    return twin


def resample_filter(weight: Tensor, old: Grid, new: Grid, *, how: str = "bicubic") -> Tensor:
    """Carry a filter (a, b // 2 + 1, D, 2) over to another grid.

    Args:
        weight: the published layout.
        old: grid (a, b) that it belongs to.
        new: grid (a', b') of the result.
        how: "bicubic" interpolates the half spectrum as the authors of GFNet do (align_corners);
            "spatial" keeps the same kernel in units of tokens: transform back, pad with zeros or
            crop around the centre, transform again.

    Returns:
        (a', b' // 2 + 1, D, 2).
    """
    if old == new:
        return weight
    return _bicubic(weight, new) if how == "bicubic" else _spatial(weight, old, new)


def _matrices_of(module: GlobalFilter) -> tuple[Grid, tuple[int, ...] | None]:
    return module.grid, module.frequencies


def _is_larger(module: GlobalFilter, largest: int | None) -> bool:
    rows, columns = module.grid
    entries = rows * columns * rows * (columns // 2 + 1)
    return largest is not None and module.frequencies is None and entries > largest


def _matrix_macs(tokens: int, frequencies: int, width: int) -> int:
    return (4 * tokens * frequencies + 4 * frequencies) * width


def _bicubic(weight: Tensor, new: Grid) -> Tensor:
    rows, columns, width, _ = weight.shape
    planes = weight.permute(2, 3, 0, 1).reshape(1, width * 2, rows, columns)
    size = (new[0], new[1] // 2 + 1)
    planes = F.interpolate(planes, size=size, mode="bicubic", align_corners=True)
    return planes.reshape(width, 2, *size).permute(2, 3, 0, 1).contiguous()


def _spatial(weight: Tensor, old: Grid, new: Grid) -> Tensor:
    spectrum = torch.view_as_complex(weight.contiguous()).permute(2, 0, 1)  # (D, a, b//2+1)
    kernel = torch.fft.fftshift(torch.fft.irfft2(spectrum, s=old), dim=(-2, -1))  # (D, a, b)
    top, left = (n // 2 - o // 2 for n, o in zip(new, old, strict=True))
    bottom, right = new[0] - old[0] - top, new[1] - old[1] - left
    kernel = F.pad(kernel, (left, right, top, bottom))  # a negative pad crops
    spectrum = torch.fft.rfft2(torch.fft.ifftshift(kernel, dim=(-2, -1)))
    return torch.view_as_real(spectrum.permute(1, 2, 0).contiguous())
