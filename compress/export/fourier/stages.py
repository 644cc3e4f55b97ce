"""Writes a long transform as a few products, each with a small matrix for every settled part of k.

Between stages the axis is stored as (κ, part and n of the next stage, n of the later ones), so that
no transpose stands between two products. The last stage sums over what is innermost: along the last
axis of a tensor all signals are the rows of one product for every κ.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from compress.export.fourier.stage_weights import StageWeights
from compress.export.fourier.writer import Shape, Writer

__all__ = ["Stages"]

Parts = tuple[str | None, str | None]  # real and imaginary; None is zero


@dataclass(frozen=True, kw_only=True)
class Stages:
    """The transform of one axis; what stands behind the axis has a known size.

    Attributes:
        writer: of the nodes.
        weights: of the stages.
        lead: shape before the axis.
        behind: sizes behind the axis.
    """

    writer: Writer
    weights: StageWeights
    lead: Shape
    behind: tuple[int, ...]

    @property
    def factors(self) -> tuple[int, ...]:
        """N1 … Nm."""
        return self.weights.factors

    def spectrum(self, parts: Sequence[str], given: int) -> Parts:
        """Write bins 0 … given - 1 of parts, as long as a multiple of N2…Nm."""
        packed = self._packs(given)
        bins = -(-(given - packed) // self.weights.settled)
        x = self._inner(self.joined(parts))
        places, mirrored = self.weights.places()
        if places != list(range(len(places))) or any(mirrored):
            x = self._shaped(x, len(set(places)), 2 * self.factors[-1])
            index = self.writer.constant(np.array(places, np.int64), "places")
            shape = (*self.lead, len(places), *self.writer.shape(x)[len(self.lead) + 1 :])
            x = self.writer.emit("Gather", [x, index], shape, "settled", axis=len(self.lead))
        x = self._by_last(x, self.weights.last(bins, packed=packed), swapped=True)
        return self.unpacked(x) if packed else self.separated(x, bins * self.weights.settled, given)

    def signal(self, parts: Parts) -> str:
        """Write the real signal whose first bins the parts are."""
        first = parts[0] or parts[1] or ""
        p, kept = self.weights.settled, _known(self.writer.shape(first)[len(self.lead)])
        both = [part or self.writer.scaled(first, np.array(0.0), "zeros") for part in parts]
        packed = self._packs(kept)
        rank, bins = len(self.lead), -(-(kept - packed) // p)
        if packed:
            both[1] = self.writer.sliced(both[1], 1, kept - 1, rank, "packed")
        else:
            both = [self.writer.padded(part, 0, bins * p - kept, rank, "filled") for part in both]
        x = self._exchanged(self.joined(both), 2 * bins, p)
        carried = np.array(self.weights.carried(len(self.factors) - 1))
        index = self.writer.constant(np.stack([carried, (p - carried) % p], 1).reshape(-1), "bins")
        shape = (*self.lead, 2 * len(carried), *self.writer.shape(x)[len(self.lead) + 1 :])
        x = self.writer.emit("Gather", [x, index], shape, "sides", axis=len(self.lead))
        x = self._by_last(x, self.weights.first_back(bins, packed=packed), swapped=False)
        x = self._inner_back(x, self.weights, self.factors[0])
        return self.writer.reshape(x, (*self.lead, self.weights.length, *self.behind), "signal")

    def circulant(
        self, x: str, taken: int, given: int, spectrum: NDArray[np.complex128]
    ) -> tuple[str, int]:
        """Write a circular convolution, given by its spectrum, of a joined tensor.

        Args:
            x: of `joined` shape, as long as a multiple of N2…Nm.
            taken: that length.
            given: values that are read.
            spectrum: N values.

        Returns:
            both parts, joined again, and how many values of each there are.
        """
        later = self.weights.length // self.factors[0]
        x = self._inner(x, taken // later)
        x = self._by_last(x, self.weights.middle(spectrum), swapped=False)
        back = StageWeights(factors=self.factors, sign=-self.weights.sign)
        rows = -(-given // later)
        return self._inner_back(x, back, rows), rows * later

    def joined(self, parts: Sequence[str]) -> str:
        """Write parts one behind the other along the axis, what is behind it flattened."""
        rank = len(self.lead)
        flat = [
            self.writer.reshape(
                part, (*self.lead, prod(map(_known, self.writer.shape(part)[rank:]))), "flat"
            )
            for part in parts
        ]
        return flat[0] if len(flat) == 1 else self.writer.concatenated(flat, rank, "joined")

    def separated(self, x: str, size: int, given: int) -> Parts:
        """Write the two parts of a joined tensor, the first `given` of `size` values of each."""
        x = self.writer.reshape(x, (*self.lead, 2 * size, *self.behind), "parts")
        rank = len(self.lead)
        return (
            self.writer.sliced(x, 0, given, rank, "real"),
            self.writer.sliced(x, size, size + given, rank, "imaginary"),
        )

    def unpacked(self, x: str) -> Parts:
        """Write the two parts of N values: bins 0 … N / 2, and the imaginary parts between them."""
        rank, n = len(self.lead), self.weights.length
        x = self.writer.reshape(x, (*self.lead, n, *self.behind), "parts")
        between = self.writer.sliced(x, n // 2 + 1, n, rank, "between")
        return (
            self.writer.sliced(x, 0, n // 2 + 1, rank, "real"),
            self.writer.padded(between, 1, 1, rank, "imaginary"),
        )

    def _packs(self, bins: int) -> bool:
        """Whether so many bins are half a spectrum that N real values hold."""
        n = self.weights.length
        return self.weights.half and self.factors[-1] % 2 == 0 and bins == n // 2 + 1

    def _inner(self, x: str, rows: int | None = None) -> str:
        """Write all stages but the last on a joined tensor."""
        real = self.weights.half
        if rows is None:
            later = self.weights.length // self.factors[0] * prod(self.behind)
            rows = _known(self.writer.shape(x)[-1]) // (later * (1 if real else 2))
        for stage, factor in enumerate(self.factors[:-1]):
            matrices = self.weights.inner(stage, factor if stage else rows)
            x = self._left(x, matrices, stage)
        return x

    def _inner_back(self, x: str, weights: StageWeights, rows: int) -> str:
        for stage in range(len(self.factors) - 2, -1, -1):
            matrices = weights.inner_back(stage, self.factors[stage] if stage else rows)
            x = self._left(x, matrices, stage)
        return x

    def _left(self, x: str, matrices: NDArray[np.float64], stage: int) -> str:
        """Write a product with matrices (κ, new, old) on what is stored as (κ, old, later)."""
        later = prod(self.factors[stage + 1 :]) * prod(self.behind)
        groups, _, old = matrices.shape
        sizes = (old, later) if groups == 1 else (groups, old, later)
        x = self.writer.reshape(x, (*self.lead, *sizes), "stage")
        weight = self._constant(matrices[0] if groups == 1 else matrices, x)
        return self.writer.matmul(weight, x, "product")

    def _by_last(self, x: str, matrices: NDArray[np.float64], *, swapped: bool) -> str:
        """Write the product of the last stage, κ behind what it gives where `swapped`."""
        groups, new, old = matrices.shape
        if not self._signals_are_rows:
            x = self._shaped(x, groups, old)
            y = self.writer.matmul(self._constant(matrices, x), x, "product")
            return self._exchanged(y, groups, new) if swapped else y
        signals = None if None in self.lead else prod(map(_known, self.lead))
        x = self.writer.reshape(x, (signals, groups, old), "rows")
        x = self.writer.transpose(x, [1, 0, 2], "turned")
        y = self.writer.matmul(x, self._constant(matrices.transpose(0, 2, 1), x), "product")
        y = self.writer.transpose(y, [1, 2, 0] if swapped else [1, 0, 2], "back")
        sizes = (new, groups) if swapped else (groups, new)
        return self.writer.reshape(y, (*self.lead, *sizes), "stage")

    @property
    def _signals_are_rows(self) -> bool:
        return prod(self.behind) == 1 and len(self.lead) > 0 and self.lead.count(None) <= 1

    def _shaped(self, x: str, *sizes: int) -> str:
        behind = prod(self.behind)
        if self._signals_are_rows:
            return self.writer.reshape(x, (*self.lead, *sizes), "stage")
        return self.writer.reshape(x, (*self.lead, *sizes, behind), "stage")

    def _exchanged(self, x: str, first: int, second: int) -> str:
        """Write what is stored as (first, second) the other way round."""
        x, rank = self._shaped(x, first, second), len(self.lead)
        order = list(range(len(self.writer.shape(x))))
        order[rank : rank + 2] = rank + 1, rank
        return self.writer.transpose(x, order, "exchanged")

    def _constant(self, matrices: NDArray[np.float64], x: str) -> str:
        return self.writer.constant(matrices.astype(self.writer.dtype(x)), "matrices")


def _known(size: int | None) -> int:
    assert size is not None
    return size
