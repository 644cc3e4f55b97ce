"""Writes a long transform as a few products, each with a small matrix for every settled part of k.

Between stages a tensor is stored as (κ, part and n of the next stage, later n, columns), so that no
transpose stands between two products. Columns are what stands behind the axis; along the last axis
of a tensor all signals become columns. Bins come out in the order of their digits, and one Gather
puts both parts of them into rows, those of a real signal from their mirror images too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from compress.export.fourier.stage_weights import StageWeights
from compress.export.fourier.writer import Shape, Writer

__all__ = ["Parts", "Stages"]

LATER_PER_SIGNAL = 64  # columns of the first product, from which on every signal has its own

Parts = tuple[str | None, str | None]  # real and imaginary; None is zero


@dataclass(frozen=True, kw_only=True)
class Stages:
    """The transform of one axis; what stands behind the axis has a known size.

    Attributes:
        writer: of the nodes.
        weights: of the stages.
        shape: of a part, whatever the length of its axis.
        axis: that is transformed.
    """

    writer: Writer
    weights: StageWeights
    shape: Shape
    axis: int

    @property
    def factors(self) -> tuple[int, ...]:
        """N1 … Nm."""
        return self.weights.factors

    def spectrum(self, parts: Sequence[str], given: int) -> Parts:
        """Write bins 0 … given - 1 of parts, as long as a multiple of N2…Nm."""
        last, half = self.factors[-1], self.weights.half
        bins = last if half else -(-given // self.weights.settled)
        later = self.weights.length // self.factors[0]
        rows = self._length_of(parts[0], self.axis) // later
        x = self._inner(self.joined(parts), rows)
        x = self._product(x, self.weights.last(bins), len(self.factors) - 1)
        x = self._picked(x, self.weights.places(given, bins), "bins")
        return self.separated(x, given, given)

    def signal(self, parts: Sequence[str]) -> str:
        """Write the real signal of N / 2 + 1 bins."""
        x = self._in_columns(self.joined(parts))
        x = self._picked(x, self.weights.sources(), "mirrored")
        x = self._product(x, self.weights.first_back(), len(self.factors) - 1)
        x = self._inner_back(x, self.weights, self.factors[0])
        return self._placed(self._stored(x, self.weights.length))

    def circulant(
        self, x: str, taken: int, given: int, spectrum: NDArray[np.complex128]
    ) -> tuple[str, int]:
        """Write a circular convolution, given by its spectrum, of a joined tensor.

        Args:
            x: a joined tensor, as long as a multiple of N2…Nm.
            taken: that length.
            given: values that are read.
            spectrum: N values.

        Returns:
            both parts, joined again, and how many values of each there are.
        """
        later = self.weights.length // self.factors[0]
        x = self._inner(x, taken // later)
        x = self._product(x, self.weights.middle(spectrum), len(self.factors) - 1)
        back = StageWeights(factors=self.factors, sign=-self.weights.sign)
        rows = -(-given // later)
        return self._inner_back(x, back, rows), rows * later

    def joined(self, parts: Sequence[str]) -> str:
        """Write parts one behind the other along the axis."""
        return parts[0] if len(parts) == 1 else self.writer.concatenated(parts, self.axis, "joined")

    def separated(self, x: str, size: int, given: int) -> Parts:
        """Write the two parts of a joined tensor, the first `given` of `size` values of each."""
        x = self._placed(self._stored(x, 2 * size))
        return (
            self.writer.sliced(x, 0, given, self.axis, "real"),
            self.writer.sliced(x, size, size + given, self.axis, "imaginary"),
        )

    def _inner(self, x: str, rows: int) -> str:
        """Write all stages but the last on a joined tensor."""
        first = self.weights.inner(0, rows)
        later = self.weights.length // self.factors[0]
        if self._signals_are_columns and later >= LATER_PER_SIGNAL:
            # Rows as long as a power of two are slow to transpose; those behind it seldom are.
            x = self.writer.reshape(x, (self._columns, first.shape[2], later), "signals")
            weight = self.writer.constant(first[0].astype(self.writer.dtype(x)), "matrices")
            x = self._turned(self.writer.matmul(weight, x, "product"), first.shape[1] * later)
        else:
            x = self._product(self._in_columns(x), first, 0)
        for stage in range(1, len(self.factors) - 1):
            x = self._product(x, self.weights.inner(stage, self.factors[stage]), stage)
        return x

    def _in_columns(self, x: str) -> str:
        """Write a tensor with columns behind what is along the axis."""
        shape, behind = self.writer.shape(x), len(self.shape) - self.axis - 1
        length = prod(map(_known, shape[self.axis : len(shape) - behind]))
        return self._turned(x, length) if self._signals_are_columns else self._stored(x, length)

    def _turned(self, x: str, length: int) -> str:
        x = self.writer.reshape(x, (self._columns, length), "signals")
        return self.writer.transpose(x, [1, 0], "columns")

    def _inner_back(self, x: str, weights: StageWeights, rows: int) -> str:
        for stage in range(len(self.factors) - 2, -1, -1):
            matrices = weights.inner_back(stage, self.factors[stage] if stage else rows)
            x = self._product(x, matrices, stage)
        return x

    def _product(self, x: str, matrices: NDArray[np.float64], stage: int) -> str:
        """Write a product with matrices (κ, new, old) on what is stored as (κ, old, later)."""
        later = prod(self.factors[stage + 1 :])
        groups, _, old = matrices.shape
        sizes = (old,) if groups == 1 else (groups, old)
        columns = None if self._columns is None else later * self._columns
        x = self.writer.reshape(x, (*self._lead, *sizes, columns), "stage")
        typed = matrices.astype(self.writer.dtype(x))
        weight = self.writer.constant(typed[0] if groups == 1 else typed, "matrices")
        return self.writer.matmul(weight, x, "product")

    def _picked(self, x: str, places: NDArray[np.int64], label: str) -> str:
        """Write rows of what is stored along the axis, in another order."""
        rank = len(self._lead)
        x = self._stored(x, prod(n or 1 for n in self.writer.shape(x)[rank:-1]))
        index = self.writer.constant(places.reshape(-1), "places")
        shape = (*self._lead, places.size, self._columns)
        return self.writer.emit("Gather", [x, index], shape, label, axis=rank)

    def _stored(self, x: str, length: int) -> str:
        return self.writer.reshape(x, (*self._lead, length, self._columns), "rows")

    def _placed(self, x: str) -> str:
        """Write what is stored along the axis as the tensor that it stands for."""
        length = self._length(x)
        if self._signals_are_columns:
            x = self.writer.transpose(x, [1, 0], "signals")
        shape = (*self.shape[: self.axis], length, *self.shape[self.axis + 1 :])
        return self.writer.reshape(x, shape, "parts")

    @property
    def _signals_are_columns(self) -> bool:
        lead = self.shape[: self.axis]
        return prod(map(_known, self.shape[self.axis + 1 :])) == 1 and lead.count(None) <= 1

    @property
    def _lead(self) -> Shape:
        return () if self._signals_are_columns else self.shape[: self.axis]

    @property
    def _columns(self) -> int | None:
        others = self.shape[: self.axis] if self._signals_are_columns else ()
        if None in others:
            return None
        return prod(map(_known, (*others, *self.shape[self.axis + 1 :])))

    def _length(self, x: str) -> int:
        return self._length_of(x, len(self._lead))

    def _length_of(self, x: str, axis: int) -> int:
        return _known(self.writer.shape(x)[axis])


def _known(size: int | None) -> int:
    assert size is not None
    return size
