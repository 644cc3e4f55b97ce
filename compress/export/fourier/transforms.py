"""Long transforms in several products.

- `staged`: N = N1…Nm, a product for every factor (Cooley and Tukey, 1965).
- `convolution`: N has a large prime in it. With nk = (n² + k² - (k - n)²) / 2 the transform is a
  convolution with a chirp, of any length from which on what is read of it does not wrap around
  (Bluestein, 1970). The stages there, the product of the spectra, and the stages back share their
  middle: one product.
"""

from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from compress.export.fourier.axis_map import AxisMap, Dft, Factor, Rows, turned
from compress.export.fourier.plan import Demand, bins_read, chirp_factors, factors, to_real_signal
from compress.export.fourier.simple_maps import applied_simply
from compress.export.fourier.stage_weights import StageWeights
from compress.export.fourier.stages import Parts, Stages
from compress.export.fourier.waves import Step
from compress.export.fourier.writer import Shape, Writer

__all__ = ["transformed"]


@dataclass(frozen=True, kw_only=True)
class _Long:
    """A transform along an axis of tensors that are there."""

    writer: Writer
    axis: int
    dft: Dft
    given: int  # bins 0 … given - 1 are read

    @property
    def sign(self) -> int:
        return 1 if self.dft.inverse else -1

    @property
    def gain(self) -> float:
        return 1 / self.dft.length if self.dft.inverse else 1.0

    def demand(self, parts: Parts, *, to_real: bool = False) -> Demand:
        shape = self.writer.shape(_some(parts))
        others = (*shape[: self.axis], *shape[self.axis + 1 :])
        return Demand(
            length=self.dft.length,
            taken=shape[self.axis] or 0,
            given=self.given,
            signals=prod(n for n in others if n is not None),
            real_in=parts[1] is None,
            real_out=to_real,
        )

    def stages(self, weights: StageWeights, like: str) -> Stages:
        shape = self.writer.shape(like)
        return Stages(writer=self.writer, weights=weights, shape=shape, axis=self.axis)

    def simply(self, parts: Parts, *factors_: Factor) -> Parts:
        """Write factors that need no product."""
        step = Step(self.axis, AxisMap(0, factors_))
        real, imaginary = (
            applied_simply(self.writer, step, part, which) for which, part in enumerate(parts)
        )
        return real, imaginary

    def filled(self, parts: Parts, multiple: int) -> Parts:
        """Write zeros behind parts up to a multiple of a length."""
        taken = self.writer.shape(_some(parts))[self.axis] or 0
        return self.simply(parts, Rows.first(-(-taken // multiple) * multiple, taken))

    def times(
        self, parts: Parts, values: NDArray[np.complex128], *, only_real: bool = False
    ) -> Parts:
        """Write parts times complex constants along the axis."""
        behind = len(self.writer.shape(_some(parts))) - self.axis - 1
        values = values.reshape(-1, *[1] * behind)
        real = self._sum(parts, (values.real, -values.imag))
        return real, None if only_real else self._sum(parts, (values.imag, values.real))

    def _sum(self, parts: Parts, factors_: tuple[NDArray[np.float64], ...]) -> str | None:
        total: str | None = None
        for part, factor in zip(parts, factors_, strict=True):
            if part is None or not factor.any():
                continue
            term = self.writer.scaled(part, factor, "chirped")
            total = term if total is None else self.writer.add(total, term, "sum")
        return total


def transformed(writer: Writer, step: Step, parts: Parts, *, convolve: bool) -> Parts:
    """Write a step with one transform in it on the parts of a wave.

    Args:
        writer: of the nodes.
        step: whose map has one transform.
        parts: that it is applied to.
        convolve: by a chirp; else in stages.
    """
    rank = len(writer.shape(_some(parts)))
    last = step.axis == rank - 1 or None not in writer.shape(_some(parts))[step.axis + 1 :]
    order = [*(i for i in range(rank) if i != step.axis), step.axis]
    if last:
        return _transformed(writer, step, parts, convolve)
    there, back = (_turned(writer, parts, order), [order.index(i) for i in range(rank)])
    return _turned(writer, _transformed(writer, Step(rank - 1, step.map), there, convolve), back)


def _transformed(writer: Writer, step: Step, parts: Parts, convolve: bool) -> Parts:
    found = step.map.factors
    place = next(i for i, factor in enumerate(found) if isinstance(factor, Dft))
    before, dft, behind = found[:place], found[place], found[place + 1 :]
    assert isinstance(dft, Dft)
    long = _Long(writer=writer, axis=step.axis, dft=dft, given=bins_read(step.map))
    if to_real_signal(step.map):
        parts = _first_half(long, parts, before)
        parts = (_signal_by_chirp(long, parts) if convolve else _signal(long, parts), None)
    else:
        parts = _short_of_zeros(long, parts, before)
        parts = _convolved(long, parts) if convolve else _spectrum(long, parts)
    return long.simply(parts, *behind)


def _turned(writer: Writer, parts: Parts, order: list[int]) -> Parts:
    real, imaginary = (
        None if part is None else writer.transpose(part, order, "turned") for part in parts
    )
    return real, imaginary


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


def _spectrum(long: _Long, parts: Parts) -> Parts:
    sizes = factors(long.demand(parts))
    real = parts[1] is None
    parts = long.filled(parts, prod(sizes[1:]))
    weights = StageWeights(factors=sizes, sign=long.sign, half=real, gain=long.gain)
    stages = long.stages(weights, _some(parts))
    half = long.dft.length // 2 + 1
    if not real or long.given <= half:
        return stages.spectrum(_whole(long, parts, real=real), long.given)
    mirrored = Rows.mirrored(half, long.dft.length)
    kept = Rows(places=mirrored.places[: long.given], conjugated=mirrored.conjugated)
    return long.simply(stages.spectrum(_whole(long, parts, real=real), half), kept)


def _whole(long: _Long, parts: Parts, *, real: bool) -> list[str]:
    """Return the parts, zeros for one that is not there; the real one alone if `real`."""
    whole = [p or long.writer.scaled(_some(parts), np.array(0.0), "zeros") for p in parts]
    return whole[:1] if real else whole


def _signal(long: _Long, parts: Parts) -> str:
    """Write the real signal of a half spectrum."""
    sizes = factors(long.demand(parts, to_real=True))
    weights = StageWeights(factors=sizes, sign=long.sign, half=True, gain=long.gain)
    kept = long.writer.shape(_some(parts))[long.axis] or 0
    parts = long.simply(parts, Rows.first(long.dft.length // 2 + 1, kept))
    stages = long.stages(weights, _some(parts))
    return stages.signal(_whole(long, parts, real=False))


def _signal_by_chirp(long: _Long, parts: Parts) -> str | None:
    """Write the real signal of a half spectrum: bins that stand for two count twice."""
    kept = np.arange(long.writer.shape(_some(parts))[long.axis] or 0)
    alone = (kept == 0) | (2 * kept == long.dft.length)
    return _convolved(long, parts, np.where(alone, 1.0, 2.0), only_real=True)[0]


def _convolved(
    long: _Long,
    parts: Parts,
    shares: NDArray[np.float64] | float = 1.0,
    *,
    only_real: bool = False,
) -> Parts:
    n, given = long.dft.length, long.given
    demand = long.demand(parts)
    sizes = chirp_factors(demand)
    m, taken = prod(sizes), demand.taken
    chirp = turned(long.sign * np.arange(max(n, taken, given)) ** 2, 2 * n)
    kernel = np.zeros(m, complex)
    kernel[:given] = chirp[:given].conj()
    kernel[m - taken + 1 :] = chirp[1:taken].conj()[::-1]
    weights = StageWeights(factors=sizes, sign=-1)
    parts = long.filled(parts, prod(sizes[1:]))
    stages = long.stages(weights, _some(parts))
    length = long.writer.shape(_some(parts))[long.axis] or 0
    x = _chirped(long, stages, parts, np.pad(chirp[:taken] * shares, (0, length - taken)))
    y, size = stages.circulant(x, length, given, np.fft.fft(kernel) / m * long.gain)
    return long.times(stages.separated(y, size, given), chirp[:given], only_real=only_real)


def _chirped(long: _Long, stages: Stages, parts: Parts, chirp: NDArray[np.complex128]) -> str:
    """Write parts times the chirp, joined; a real part gives both in one product."""
    if parts[1] is not None or parts[0] is None:
        return stages.joined([part or "" for part in long.times(parts, chirp)])
    shape: Shape = long.writer.shape(parts[0])
    behind = len(shape) - long.axis - 1
    both = np.stack([chirp.real, chirp.imag]).reshape(2, -1, *[1] * behind)
    x = long.writer.unsqueezed(parts[0], long.axis, "parts")
    factor = long.writer.constant(both.astype(long.writer.dtype(x)), "chirp")
    new = (*shape[: long.axis], 2, *shape[long.axis :])
    return long.writer.emit("Mul", [x, factor], new, "chirped")


def _some(parts: Parts) -> str:
    return parts[0] or parts[1] or ""
