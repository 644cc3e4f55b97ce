"""Long transforms in several products.

- `split`: N = N1 N2. With n = N2 n1 + n2 and k = k1 + N1 k2 the transform is one of length N1 over
  n1, a product with the twiddle factors e^(∓2πi n2 k1 / N), and one of length N2 over n2 (Cooley
  and Tukey, 1965). Of a real signal only the half of the second is computed whose bins are read;
  towards a real signal the same is run backwards, bins that stand for their mirror image doubled.
- `convolve`: N has a large prime in it. With nk = (n² + k² - (k - n)²) / 2 the transform is a
  convolution with a chirp, of any length from 2N - 1 on (Bluestein, 1970).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from compress.export.fourier.axis_map import AxisMap, Dft, Factor, Part, Rows, turned
from compress.export.fourier.plan import bins_read, smooth_length, split, to_real_signal
from compress.export.fourier.simple_maps import applied_simply
from compress.export.fourier.waves import Step, Wave
from compress.export.fourier.writer import Writer

if TYPE_CHECKING:
    from compress.export.fourier.products import Products

__all__ = ["transformed"]

Parts = tuple[str | None, str | None]  # real and imaginary; None is zero


@dataclass(frozen=True, kw_only=True)
class _Long:
    """A transform along an axis of tensors that are there."""

    products: "Products"
    axis: int
    dft: Dft
    given: int  # bins 0 … given - 1 are read

    @property
    def writer(self) -> Writer:
        return self.products.writer

    @property
    def sign(self) -> int:
        return 1 if self.dft.inverse else -1

    def shape(self, parts: Parts, *sizes: int) -> tuple[int | None, ...]:
        """Return the shape of a part with other sizes in place of the axis."""
        old = self.writer.shape(_some(parts))
        return (*old[: self.axis], *sizes, *old[self.axis + 1 :])

    def reshaped(self, parts: Parts, *sizes: int, over: int = 1) -> Parts:
        """Write parts with other sizes in place of `over` axes."""
        shape = self.writer.shape(_some(parts))
        new = (*shape[: self.axis], *sizes, *shape[self.axis + over :])
        real, imaginary = (
            None if p is None else self.writer.reshape(p, new, "grid") for p in parts
        )
        return real, imaginary

    def exchanged(self, parts: Parts) -> Parts:
        """Write parts with the axis and the one behind it exchanged."""
        order = list(range(len(self.writer.shape(_some(parts)))))
        order[self.axis], order[self.axis + 1] = self.axis + 1, self.axis
        real, imaginary = (
            None if p is None else self.writer.transpose(p, order, "exchanged") for p in parts
        )
        return real, imaginary

    def simply(self, parts: Parts, *factors: Factor) -> Parts:
        """Write factors that need no product."""
        step = Step(self.axis, AxisMap(0, factors))
        real, imaginary = (
            applied_simply(self.writer, step, part, which) for which, part in enumerate(parts)
        )
        return real, imaginary

    def along(self, parts: Parts, offset: int, *factors: Factor) -> Parts:
        """Write both parts behind factors along the axis, or one behind it."""
        base = self.writer.shape(_some(parts))
        wave = Wave(real=parts[0], imaginary=parts[1], base=base)
        return self.products.parts(wave.after(self.axis + offset, *factors))

    def times(
        self, parts: Parts, values: NDArray[np.complex128], *, only_real: bool = False
    ) -> Parts:
        """Write parts times complex constants, which stand on the axes from the axis on."""
        behind = len(self.writer.shape(_some(parts))) - self.axis - values.ndim
        values = values.reshape(*values.shape, *[1] * behind)
        real = self._sum(parts, (values.real, -values.imag))
        return real, None if only_real else self._sum(parts, (values.imag, values.real))

    def _sum(self, parts: Parts, factors: tuple[NDArray[np.float64], ...]) -> str | None:
        total: str | None = None
        for part, factor in zip(parts, factors, strict=True):
            if part is None or not factor.any():
                continue
            term = self.writer.scaled(part, factor, "twiddled")
            total = term if total is None else self.writer.add(total, term, "sum")
        return total


def transformed(products: "Products", step: Step, parts: Parts, *, convolve: bool) -> Parts:
    """Write a step with one transform in it on the parts of a wave.

    Args:
        products: of shorter transforms.
        step: whose map has one transform.
        parts: that it is applied to.
        convolve: by a chirp; else in two products.
    """
    factors = step.map.factors
    place = next(i for i, factor in enumerate(factors) if isinstance(factor, Dft))
    before, dft, behind = factors[:place], factors[place], factors[place + 1 :]
    assert isinstance(dft, Dft)
    long = _Long(products=products, axis=step.axis, dft=dft, given=bins_read(step.map))
    if not convolve and to_real_signal(step.map):
        parts = (_split_to_real(long, _first_half(long, parts, before)), None)
    else:
        parts = _short_of_zeros(long, parts, before)
        parts = _convolved(long, parts) if convolve else _split(long, parts)
    return long.simply(parts, *behind)


def _short_of_zeros(long: _Long, parts: Parts, before: tuple[Factor, ...]) -> Parts:
    """Write what stands before a transform, but no zeros behind the signal."""
    last = before[-1] if before else None
    if isinstance(last, Rows) and last.bounds is not None and last.bounds[0] == 0:
        stop = len(last.places) - last.bounds[3]
        kept = Rows(places=last.places[:stop], conjugated=last.conjugated)
        return long.simply(parts, *before[:-1], kept)
    return long.simply(parts, *before)


def _first_half(long: _Long, parts: Parts, before: tuple[Factor, ...]) -> Parts:
    """Write the half spectrum that is mirrored before a transform, zeros behind it left out."""
    mirrored = before[-1]
    assert isinstance(mirrored, Rows)
    places = mirrored.places[: long.dft.length // 2 + 1]
    while places[-1] < 0 and len(places) > 1:
        places = places[:-1]
    half = Rows(places=places, conjugated=mirrored.conjugated & frozenset(range(len(places))))
    return long.simply(parts, *before[:-1], half)


def _split(long: _Long, parts: Parts) -> Parts:
    n1, n2 = split(long.dft.length) or (1, long.dft.length)
    taken = long.writer.shape(_some(parts))[long.axis] or 0
    rows = -(-taken // n2)  # of n2 values that are not all zeros
    parts = long.simply(parts, Rows.first(rows * n2, taken))
    parts = long.exchanged(long.reshaped(parts, rows, n2))  # (…, n2, n1, …)
    parts = long.along(parts, 1, Rows.first(n1, rows), Dft(length=n1, inverse=long.dft.inverse))
    parts = long.times(parts, _twiddles(long, n2, n1))
    bins = -(-long.given // n1)
    parts = long.along(
        parts, 0, Dft(length=n2, inverse=long.dft.inverse), Rows.first(bins, n2)
    )  # (…, k2, k1, …)
    return long.reshaped(parts, bins * n1, over=2)


def _split_to_real(long: _Long, parts: Parts) -> str | None:
    """Write the real signal of a half spectrum."""
    length = long.dft.length
    n1, n2 = split(length) or (1, length)
    kept = long.writer.shape(_some(parts))[long.axis] or 0
    bins = n2 // 2 + 1
    share = np.where((np.arange(kept) == 0) | (2 * np.arange(kept) == length), 1.0, 2.0)
    parts = long.times(parts, share.astype(complex))
    parts = long.simply(parts, Rows.first(bins * n1, kept))
    parts = long.reshaped(parts, bins, n1)  # (…, k2, k1, …)
    parts = long.along(parts, 0, Rows.first(n2, bins), Dft(length=n2, inverse=True))
    parts = long.times(parts, _twiddles(long, n2, n1))
    parts = long.along(parts, 1, Dft(length=n1, inverse=True), Part())  # (…, n2, n1, …)
    return long.reshaped(long.exchanged(parts), length, over=2)[0]


def _convolved(long: _Long, parts: Parts) -> Parts:
    n = long.dft.length
    m = smooth_length(2 * n - 1)
    places = np.arange(n)
    chirp = turned(long.sign * places**2, 2 * n)
    kernel = np.zeros(m, complex)
    kernel[:n] = chirp.conj()
    kernel[m - n + 1 :] = chirp.conj()[:0:-1]
    taken = long.writer.shape(_some(parts))[long.axis] or 0
    parts = long.times(parts, chirp[:taken])
    parts = long.along(parts, 0, Rows.first(m, taken), Dft(length=m, inverse=False))
    parts = long.times(parts, np.fft.fft(kernel) / (n if long.dft.inverse else 1))
    given = long.given
    parts = long.along(parts, 0, Dft(length=m, inverse=True), Rows.first(given, m))
    return long.times(parts, chirp[:given])


def _twiddles(long: _Long, n2: int, n1: int) -> NDArray[np.complex128]:
    return turned(long.sign * np.outer(np.arange(n2), np.arange(n1)), long.dft.length)


def _some(parts: Parts) -> str:
    return parts[0] or parts[1] or ""
