"""Matrices of the stages of a long transform.

N = N1 N2 … Nm. With n = n1 N2…Nm + … + nm and k = k1 + N1 k2 + N1 N2 k3 + … stage i sums over ni:
what it multiplies by, e^(∓2πi ni (κ + P ki) / (P Ni)), where P = N1…N(i-1) and κ = k1 + N1 k2 + …
is the part of k that is settled, holds the twiddle factors too. So a stage is one product with
a small matrix for every κ, on real and imaginary part at once.

A real signal settles κ and -κ together: only half of k1 is carried, and the last stage reads the
other half as conjugates. The way back to a real signal is the same, transposed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compress.export.fourier.axis_map import turned

__all__ = ["StageWeights"]

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class StageWeights:
    """The matrices for a length of these factors.

    Attributes:
        factors: N1 … Nm, two or more.
        sign: of the exponent, -1 forward.
        half: one side is a real signal; half of k1 is carried.
        gain: a factor of the whole transform, in the matrices for n1.
    """

    factors: tuple[int, ...]
    sign: int
    half: bool = False
    gain: float = 1.0

    @property
    def length(self) -> int:
        """N."""
        return int(np.prod(self.factors))

    @property
    def settled(self) -> int:
        """The P of the last stage."""
        return self.length // self.factors[-1]

    def bins(self, stage: int) -> int:
        """Return how many of ki a stage carries."""
        n = self.factors[stage]
        return n // 2 + 1 if self.half and stage == 0 else n

    def carried(self, stage: int) -> list[int]:
        """Return the κ that a stage works on, in the order in which they are stored."""
        order, before = [0], 1
        for i, n in enumerate(self.factors[:stage]):
            order = [kappa + before * k for kappa in order for k in range(self.bins(i))]
            before *= n
        return order

    def places(self, given: int, bins: int) -> NDArray[np.int64]:
        """Return where both parts of bins 0 … given - 1 are among (κ, part, km < bins)."""
        p = self.settled
        stored = {kappa: i for i, kappa in enumerate(self.carried(len(self.factors) - 1))}
        found = np.zeros((2, given), np.int64)
        for k in range(given):
            source = k if k % p in stored else self.length - k
            place = 2 * bins * stored[source % p] + source // p
            found[:, k] = place, place + bins
        return found

    def sources(self) -> NDArray[np.int64]:
        """Return which of N / 2 + 1 bins of both parts (κ, part, km) are, on the way back."""
        half = self.length // 2 + 1
        k = self._last_bins()
        kept = np.where(self._mirrored(), self.length - k, k)
        return np.stack([kept, kept + half], 1)

    def inner(self, stage: int, rows: int) -> Array:
        """Return (κ, ki and part, part and ni) of a stage but the last; ni below `rows`."""
        blocks = self._blocks(stage, self.carried(stage), np.arange(self.bins(stage)), rows)
        if self.half and stage == 0:
            blocks = blocks[:, :, :1]
        return _matrices(blocks, (0, 3, 1, 2, 4), 3)

    def last(self, bins: int) -> Array:
        """Return (κ, part and km, part and nm) for km below `bins`.

        Of a real signal the upper half is given as conjugates: bins that it is the mirror of.
        """
        stage = len(self.factors) - 1
        blocks = self._blocks(stage, self.carried(stage), np.arange(bins), self.factors[stage])
        if self.half:
            blocks[:, 1] *= self._signs()[:, None, :, None]
        return _matrices(blocks, (0, 1, 3, 2, 4), 3)

    def first_back(self) -> Array:
        """Return (κ, part and nm, part and km): the last stage transposed, of conjugates above."""
        stage = len(self.factors) - 1
        n = self.factors[stage]
        blocks = self._blocks(stage, self.carried(stage), np.arange(n), n)
        blocks[:, :, 1] *= self._signs()[:, None, :, None]
        return _matrices(blocks, (0, 1, 4, 2, 3), 3)

    def inner_back(self, stage: int, rows: int) -> Array:
        """Return (κ, part and ni, ki and part) of a stage but the last, transposed."""
        ks = np.arange(self.bins(stage))
        blocks = self._blocks(stage, self.carried(stage), ks, rows)
        if self.half and stage == 0:
            alone = (ks == 0) | (2 * ks == self.factors[0])
            blocks = blocks[:, :1] * np.where(alone, 1.0, 2.0)[:, None]
        return _matrices(blocks, (0, 1, 4, 3, 2), 3)

    def middle(self, spectrum: NDArray[np.complex128]) -> Array:
        """Return (κ, part and nm, part and nm): the last stage, times a spectrum, and back again.

        Args:
            spectrum: N values, which the transform is multiplied by.
        """
        n = self.factors[-1]
        bins = self._last_bins()
        waves = turned(self.sign * bins[:, :, None] * np.arange(n), self.length)
        whole = np.einsum("pkm,pk,pkn->pnm", waves, spectrum[bins], waves.conj())
        return _matrices(_real_blocks(whole), (0, 1, 3, 2, 4), 3)

    def _last_bins(self) -> NDArray[np.int64]:
        """Return the bins (κ, km) of the last stage."""
        carried = np.array(self.carried(len(self.factors) - 1))
        return carried[:, None] + self.settled * np.arange(self.factors[-1])

    def _mirrored(self) -> NDArray[np.bool_]:
        return 2 * self._last_bins() > self.length

    def _signs(self) -> Array:
        return np.where(self._mirrored(), -1.0, 1.0)

    def _blocks(self, stage: int, kappas: Sequence[int], ks: NDArray[np.int64], rows: int) -> Array:
        before = int(np.prod(self.factors[:stage]))
        bins = np.array(kappas)[:, None] + before * ks
        products = bins[:, :, None] * np.arange(rows)
        waves = turned(self.sign * products, before * self.factors[stage])
        return _real_blocks(waves if stage else waves * self.gain)


def _real_blocks(values: NDArray[np.complex128]) -> Array:
    """Return complex matrices (κ, k, n) as (κ, part given, part taken, k, n)."""
    return np.stack(
        [np.stack([values.real, -values.imag], 1), np.stack([values.imag, values.real], 1)], 1
    )


def _matrices(blocks: Array, order: tuple[int, ...], rows_to: int) -> Array:
    """Return blocks in an order of axes, those behind the first as rows and columns."""
    turned_blocks = blocks.transpose(order)
    shape = turned_blocks.shape
    return turned_blocks.reshape(
        shape[0], int(np.prod(shape[1:rows_to])), int(np.prod(shape[rows_to:]))
    )
