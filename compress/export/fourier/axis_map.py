"""Real-linear maps along one axis of a complex tensor, written down and not yet computed.

A discrete Fourier transform, the half of a spectrum, its mirror image, zeros behind a signal, a
window: all of them are linear along one axis, so a chain of them is one matrix. `AxisMap` is such a
chain; `Blocks` is its matrix on (real part, imaginary part), four real blocks of which many are
zero. Angles are reduced in whole numbers before a cosine is taken, so that a zero is a zero.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

__all__ = ["AxisMap", "Blocks", "Dft", "Factor", "Part", "Rows", "Scale", "kron", "turned"]

Matrix = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """A matrix on (re, im): new re = rr re + ri im, new im = ir re + ii im; None is zero."""

    rr: Matrix | None = None
    ri: Matrix | None = None
    ir: Matrix | None = None
    ii: Matrix | None = None

    @classmethod
    def of(cls, matrix: NDArray[np.complex128]) -> "Blocks":
        """Return the blocks of a complex matrix."""
        real, imaginary = _or_none(matrix.real), _or_none(matrix.imag)
        negative = None if imaginary is None else -imaginary
        return cls(rr=real, ri=negative, ir=imaginary, ii=real)

    def row(self, component: int) -> tuple[Matrix | None, Matrix | None]:
        """Return what new re (0) or new im (1) takes of re and of im."""
        return (self.ir, self.ii) if component else (self.rr, self.ri)

    def after(self, inner: "Blocks") -> "Blocks":
        """Return this matrix times another."""

        def entry(row: int, column: int) -> Matrix | None:
            terms = [
                left @ right
                for left, right in zip(self.row(row), inner.column(column), strict=True)
                if left is not None and right is not None
            ]
            return _or_none(np.asarray(sum(terms))) if terms else None

        return Blocks(rr=entry(0, 0), ri=entry(0, 1), ir=entry(1, 0), ii=entry(1, 1))

    def column(self, component: int) -> tuple[Matrix | None, Matrix | None]:
        """Return what re (0) or im (1) gives to new re and to new im."""
        return (self.ri, self.ii) if component else (self.rr, self.ir)


def kron(first: Blocks, second: Blocks, *, second_axis_is_inner: bool) -> Blocks:
    """Return `second` after `first` as one matrix over two neighbouring axes, flattened.

    Args:
        first: applied first, along its axis.
        second: applied then, along the other axis.
        second_axis_is_inner: the axis of `second` is the right one of the two.
    """

    def entry(row: int, column: int) -> Matrix | None:
        terms = [
            np.kron(a, b) if second_axis_is_inner else np.kron(b, a)
            for a, b in zip(first.column(column), second.row(row), strict=True)
            if a is not None and b is not None
        ]
        return _or_none(np.asarray(sum(terms))) if terms else None

    return Blocks(rr=entry(0, 0), ri=entry(0, 1), ir=entry(1, 0), ii=entry(1, 1))


@dataclass(frozen=True, kw_only=True)
class Dft:
    """The transform of `length` points, the inverse with its factor 1/length."""

    length: int
    inverse: bool
    read: tuple[int, ...] | None = None  # bins that are given, in place of all
    is_real = False
    is_complex_linear = True

    def size(self, n: int) -> int:
        """Return the length that it gives."""
        return self.length if self.read is None else len(self.read)

    def blocks(self, n: int) -> Blocks:
        """Return its matrix."""
        places = np.arange(self.length)
        bins = places if self.read is None else np.array(self.read)
        matrix = turned(np.outer(bins, places) * (1 if self.inverse else -1), self.length)
        return Blocks.of(matrix / self.length if self.inverse else matrix)


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Entries at `places`, in that order; -1 is a zero. Those in `conjugated` are conjugated."""

    places: tuple[int, ...]
    conjugated: frozenset[int] = frozenset()
    is_complex_linear = False

    @classmethod
    def first(cls, count: int, n: int) -> "Rows":
        """Return the first `count` of n entries, zeros behind them where there are fewer."""
        return cls(places=tuple(i if i < n else -1 for i in range(count)))

    @classmethod
    def mirrored(cls, half: int, length: int) -> "Rows":
        """Return the whole spectrum of a real signal of which `half` bins are there."""
        places = [k if k <= length // 2 else length - k for k in range(length)]
        turned_over = frozenset(k for k in range(length) if k > length // 2)
        return cls(places=tuple(p if p < half else -1 for p in places), conjugated=turned_over)

    @property
    def is_real(self) -> bool:
        """Whether it does the same to real and imaginary part."""
        return not self.conjugated

    @property
    def is_mirrored(self) -> bool:
        """Whether the second half is the conjugate mirror image of the first."""
        length = len(self.places)
        return all(
            self.places[k] == self.places[length - k]
            and (k in self.conjugated) != (length - k in self.conjugated)
            for k in range(length // 2 + 1, length)
        )

    @property
    def bounds(self) -> tuple[int, int, int, int] | None:
        """(zeros before, start, stop, zeros behind) where it is a slice between zeros, or None."""
        kept = [p for p in self.places if p >= 0]
        before = next((i for i, p in enumerate(self.places) if p >= 0), 0)
        behind = len(self.places) - before - len(kept)
        in_row = kept == list(range(kept[0], kept[0] + len(kept))) if kept else False
        if not in_row or self.places[before : before + len(kept)] != tuple(kept):
            return None
        return before, kept[0], kept[0] + len(kept), behind

    def size(self, n: int) -> int:
        """Return the length that it gives."""
        return len(self.places)

    def blocks(self, n: int) -> Blocks:
        """Return its matrix."""
        matrix = np.zeros((len(self.places), n))
        for row, place in enumerate(self.places):
            if place >= 0:
                matrix[row, place] = 1
        signs = np.array([-1.0 if i in self.conjugated else 1.0 for i in range(len(matrix))])
        return Blocks(rr=matrix, ii=matrix * signs[:, None])


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Every entry times a real number of its own, such as a window."""

    values: tuple[float, ...]
    is_real = True
    is_complex_linear = True

    def size(self, n: int) -> int:
        """Return the length that it gives."""
        return n

    def blocks(self, n: int) -> Blocks:
        """Return its matrix."""
        matrix = np.diag(np.array(self.values, np.float64))
        return Blocks(rr=matrix, ii=matrix)


@dataclass(frozen=True, kw_only=True)
class Part:
    """The real part, as a complex tensor without imaginary part."""

    is_real = False
    is_complex_linear = False

    def size(self, n: int) -> int:
        """Return the length that it gives."""
        return n

    def blocks(self, n: int) -> Blocks:
        """Return its matrix."""
        return Blocks(rr=np.eye(n))


Factor = Dft | Rows | Scale | Part


@dataclass(frozen=True)
class AxisMap:
    """Factors along one axis of length `n`, the first one first."""

    n: int
    factors: tuple[Factor, ...] = ()

    @property
    def size(self) -> int:
        """The length that it gives."""
        n = self.n
        for factor in self.factors:
            n = factor.size(n)
        return n

    @property
    def transforms(self) -> int:
        """How many Fourier transforms are among the factors."""
        return sum(isinstance(factor, Dft) for factor in self.factors)

    @property
    def is_real(self) -> bool:
        """Whether it does the same to real and imaginary part, and mixes neither."""
        return all(factor.is_real for factor in self.factors)

    @property
    def is_complex_linear(self) -> bool:
        """Whether it is a complex matrix, which a conjugation is not."""
        return all(factor.is_complex_linear or factor.is_real for factor in self.factors)

    @property
    def gives_real(self) -> bool:
        """Whether the imaginary part of what it gives is zero, whatever comes in."""
        real = False
        for factor in self.factors:
            real = isinstance(factor, Part) or (real and factor.is_real)
        return real

    def then(self, factor: Factor) -> "AxisMap":
        """Return the map with one factor more behind it."""
        last = self.factors[-1] if self.factors else None
        if isinstance(factor, Rows) and isinstance(last, Rows):
            factor = _picked(factor, last)
            return AxisMap(self.n, (*self.factors[:-1], factor))
        return AxisMap(self.n, (*self.factors, factor))

    def commutes_with(self, factor: Factor) -> bool:
        """Whether a factor along another axis may as well be applied before it."""
        if factor.is_real or self.is_real:
            return True
        return factor.is_complex_linear and self.is_complex_linear

    @cached_property
    def blocks(self) -> Blocks:
        """Its matrix."""
        result, n = None, self.n
        for factor in _with_read_rows(self.factors):
            own = factor.blocks(n)
            result = own if result is None else own.after(result)
            n = factor.size(n)
        return result or Blocks(rr=np.eye(self.n), ii=np.eye(self.n))


def turned(turns: NDArray[np.int64], length: int) -> NDArray[np.complex128]:
    """Return e^(2πi turns / length) with exact zeros and ones at quarter turns."""
    eighths = (turns % length) * 8
    # Reduce to the first eighth of the circle, where sine and cosine are most exact.
    octant, rest = np.divmod(eighths, length)
    odd = octant % 2 == 1
    angle = np.where(odd, length - rest, rest) * (2 * np.pi / (8 * length))
    cosine, sine = np.cos(angle), np.sin(angle)
    first = np.where(odd, sine, cosine) + 1j * np.where(odd, cosine, sine)
    quarter: NDArray[np.complex128] = np.array([1, 1j, -1, -1j])[octant // 2] * first
    return quarter


def _with_read_rows(factors: tuple[Factor, ...]) -> list[Factor]:
    """Return the same factors, a transform of which few bins are read giving these alone."""
    result: list[Factor] = []
    for factor in factors:
        last = result[-1] if result else None
        plain = isinstance(factor, Rows) and not factor.conjugated and -1 not in factor.places
        if isinstance(last, Dft) and last.read is None and isinstance(factor, Rows) and plain:
            result[-1] = replace(last, read=factor.places)
        else:
            result.append(factor)
    return result


def _picked(outer: Rows, inner: Rows) -> Rows:
    places: Sequence[int] = [inner.places[p] if p >= 0 else -1 for p in outer.places]
    conjugated = frozenset(
        i
        for i, p in enumerate(outer.places)
        if p >= 0 and ((p in inner.conjugated) != (i in outer.conjugated))
    )
    return Rows(places=tuple(places), conjugated=conjugated)


def _or_none(matrix: Matrix) -> Matrix | None:
    return matrix if matrix.any() else None
