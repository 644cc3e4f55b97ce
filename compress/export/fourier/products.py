"""Computes waves: every map along an axis becomes products with constant real matrices.

Maps along neighbouring axes of small grids become one matrix where that costs little more: it saves
nodes, which on small images cost more than sums. Only the part that is asked for is computed, and
every product once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np
from numpy.typing import NDArray

from compress.export.fourier.axis_map import Blocks, kron
from compress.export.fourier.plan import form_of, merges
from compress.export.fourier.simple_maps import applied_simply
from compress.export.fourier.transforms import transformed
from compress.export.fourier.waves import Step, Wave
from compress.export.fourier.writer import Writer

__all__ = ["Products"]


@dataclass(frozen=True)
class _Stage:
    """Maps that are applied at once: one, or two along neighbouring axes as one matrix."""

    steps: tuple[Step, ...]
    form: str

    @property
    def axis(self) -> int:
        return min(step.axis for step in self.steps)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Lengths that they give, from the left axis on."""
        return tuple(s.map.size for s in sorted(self.steps, key=lambda step: step.axis))

    @property
    def blocks(self) -> Blocks:
        if len(self.steps) == 1:
            return self.steps[0].map.blocks
        first, second = self.steps
        inner = second.axis > first.axis
        return kron(first.map.blocks, second.map.blocks, second_axis_is_inner=inner)


class Products:
    """Writes the parts of waves; what is written already is not written again.

    Args:
        writer: of the nodes.
    """

    def __init__(self, writer: Writer) -> None:
        self.writer = writer
        self._done: dict[tuple[object, ...], str | None] = {}

    def part(self, wave: Wave, component: int) -> str | None:
        """Write the real part (0) or the imaginary part (1) of a wave; None where it is zero."""
        if component and wave.is_real:
            return None
        return self._behind(wave, _staged(wave), component)

    def parts(self, wave: Wave) -> tuple[str | None, str | None]:
        """Write both parts."""
        return self.part(wave, 0), self.part(wave, 1)

    def _behind(self, wave: Wave, stages: Sequence[_Stage], component: int) -> str | None:
        """Write a part behind some stages; the gain goes into the last matrix."""
        key = (wave.real, wave.imaginary, tuple(stages), wave.gain, component)
        if key not in self._done:
            self._done.update(
                ((*key[:-1], which), name)
                for which, name in self._computed(wave, stages, component).items()
            )
        return self._done[key]

    def _computed(
        self, wave: Wave, stages: Sequence[_Stage], component: int
    ) -> dict[int, str | None]:
        if not stages:
            return {component: self._gained(wave, (wave.real, wave.imaginary)[component])}
        stage, before = stages[-1], stages[:-1]
        inner = replace(wave, steps=tuple(step for s in before for step in s.steps))
        if stage.form == "direct":
            inner = replace(inner, gain=1.0)
            return {component: self._dense(stage, wave.gain, inner, before, component)}
        if stage.form == "simple":
            found = self._part_of(inner, before, component)
            (step,) = stage.steps
            return {component: applied_simply(self.writer, step, found, component)}
        parts = (self._part_of(inner, before, 0), self._part_of(inner, before, 1))
        (step,) = stage.steps
        return dict(
            enumerate(transformed(self.writer, step, parts, convolve=stage.form == "convolution"))
        )

    def _part_of(self, wave: Wave, stages: Sequence[_Stage], component: int) -> str | None:
        if component and wave.is_real:
            return None
        return self._behind(wave, stages, component)

    def _gained(self, wave: Wave, x: str | None) -> str | None:
        if x is None or wave.gain == 1.0:
            return x
        return self.writer.scaled(x, np.array(wave.gain), "scaled")

    def _dense(
        self,
        stage: _Stage,
        gain: float,
        inner: Wave,
        before: Sequence[_Stage],
        component: int,
    ) -> str | None:
        total: str | None = None
        for which, matrix in enumerate(stage.blocks.row(component)):
            source = None if matrix is None else self._part_of(inner, before, which)
            if matrix is None or source is None:
                continue
            term = self.product(matrix * gain, source, stage.axis, stage.sizes)
            total = term if total is None else self.writer.add(total, term, "sum")
        return total

    def product(
        self, matrix: NDArray[np.float64], x: str, axis: int, sizes: tuple[int, ...]
    ) -> str:
        """Write a matrix times x along one axis or two, from `axis` on, flattened in the matrix.

        Args:
            matrix: (product of `sizes`, product of the lengths in x).
            x: name of the tensor.
            axis: the first of the axes.
            sizes: lengths of the axes in the result.
        """
        writer, old = self.writer, self.writer.shape(x)
        lead, behind = old[:axis], old[axis + len(sizes) :]
        if None in behind:
            return self._turned_product(matrix, x, axis)
        typed = matrix.astype(writer.dtype(x))
        if not behind:
            x = writer.reshape(x, (*lead, matrix.shape[1]), "flat")
            y = writer.matmul(x, writer.constant(typed.T, "matrix"), "product")
        else:
            x = writer.reshape(x, (*lead, matrix.shape[1], prod(map(int, behind))), "flat")  # type: ignore[arg-type]
            y = writer.matmul(writer.constant(typed, "matrix"), x, "product")
        return writer.reshape(y, (*lead, *sizes, *behind), "grid")

    def _turned_product(self, matrix: NDArray[np.float64], x: str, axis: int) -> str:
        """Write it where sizes behind the axis are free: the axis last, and back."""
        rank = len(self.writer.shape(x))
        order = [*(i for i in range(rank) if i != axis), axis]
        typed = self.writer.constant(matrix.T.astype(self.writer.dtype(x)), "matrix")
        y = self.writer.matmul(self.writer.transpose(x, order, "turned"), typed, "product")
        return self.writer.transpose(y, [order.index(i) for i in range(rank)], "back")


def _staged(wave: Wave) -> list[_Stage]:
    """Return the stages in which the steps of a wave are applied."""
    stages: list[_Stage] = []
    shape, real = list(wave.base), wave.imaginary is None
    for step in wave.steps:
        signals = prod(n for i, n in enumerate(shape) if i != step.axis and n is not None)
        form = form_of(step.map, signals, real_in=real)
        last = stages[-1] if stages else None
        free = None in shape[step.axis :]
        if (
            last is not None
            and len(last.steps) == 1
            and form == last.form == "direct"
            and abs(step.axis - last.axis) == 1
            and not free
            and merges(last.steps[0].map, step.map, real_in=stages_take_real(wave, stages[:-1]))
        ):
            stages[-1] = _Stage((last.steps[0], step), "direct")
        else:
            stages.append(_Stage((step,), form))
        shape[step.axis] = step.map.size
        real = step.map.gives_real or (real and step.map.is_real)
    return stages


def stages_take_real(wave: Wave, stages: Sequence[_Stage]) -> bool:
    """Whether what stages give is real."""
    return replace(wave, steps=tuple(step for s in stages for step in s.steps)).is_real
