"""Complex tensors that are not computed yet, and how a graph sees them.

A `Wave` is two real tensors of the graph, real and imaginary part, and maps along their axes that
are still to be applied. A `View` is a tensor of the original graph that is a wave: both parts side
by side along one axis, or one of them alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

from compress.export.fourier.axis_map import AxisMap, Dft, Factor
from compress.export.fourier.writer import Shape

__all__ = ["Form", "Step", "View", "Wave", "permuted"]

LONGEST_PRODUCT = 256  # of two transforms along one axis that become one matrix


@dataclass(frozen=True)
class Step:
    """A map along one axis."""

    axis: int
    map: AxisMap


@dataclass(frozen=True, kw_only=True)
class Wave:
    """A complex tensor: steps applied to base tensors, times a real number.

    Attributes:
        real: name of the real part of the base; None is zero.
        imaginary: name of its imaginary part; None is zero.
        base: shape of the base.
        steps: maps, the first one first; neighbours have different axes.
        gain: a real factor.
    """

    real: str | None
    imaginary: str | None
    base: Shape
    steps: tuple[Step, ...] = ()
    gain: float = 1.0

    @property
    def shape(self) -> Shape:
        """Its shape, the axis of the parts not counted."""
        sizes = list(self.base)
        for step in self.steps:
            sizes[step.axis] = step.map.size
        return tuple(sizes)

    @property
    def is_real(self) -> bool:
        """Whether its imaginary part is known to be zero."""
        real = self.imaginary is None
        for step in self.steps:
            real = step.map.gives_real or (real and step.map.is_real)
        return real

    def after(self, axis: int, *factors: Factor) -> "Wave":
        """Return the wave with factors applied along an axis, whose length must be known."""
        wave = self
        for factor in factors:
            wave = replace(wave, steps=_pushed(wave.steps, axis, factor, wave.shape[axis] or 0))
        return wave

    def times(self, gain: float) -> "Wave":
        """Return the wave times a real number."""
        return replace(self, gain=self.gain * gain)


class Form(Enum):
    """What of a wave a tensor shows."""

    PAIR = "pair"
    REAL = "real"
    IMAGINARY = "imaginary"


@dataclass(frozen=True, kw_only=True)
class View:
    """A tensor of the original graph.

    Attributes:
        wave: what it shows.
        form: how much of it.
        at: axis of the parts in the tensor, of length 2 for a pair, else 1; None where the tensor
            has no such axis.
    """

    wave: Wave
    form: Form
    at: int | None = field(default=None)

    @property
    def component(self) -> int:
        """0 where it shows the real part, 1 for the imaginary one."""
        return int(self.form is Form.IMAGINARY)

    def axis_of_wave(self, axis: int) -> int | None:
        """Return which axis of the wave an axis of the tensor is; None is that of the parts."""
        if self.at is None or axis < self.at:
            return axis
        return None if axis == self.at else axis - 1

    @property
    def rank(self) -> int:
        """Number of axes of the tensor."""
        return len(self.wave.base) + (self.at is not None)


def permuted(shape: Sequence[int | None], order: Sequence[int]) -> Shape:
    """Return a shape in another order of axes."""
    return tuple(shape[axis] for axis in order)


def _pushed(steps: tuple[Step, ...], axis: int, factor: Factor, n: int) -> tuple[Step, ...]:
    """Add a factor to the last map along its axis that nothing stands in the way of."""
    for i in range(len(steps) - 1, -1, -1):
        if steps[i].axis == axis:
            if isinstance(factor, Dft) and steps[i].map.transforms and n > LONGEST_PRODUCT:
                break
            grown = Step(axis, steps[i].map.then(factor))
            return (*steps[:i], grown, *steps[i + 1 :])
        if not steps[i].map.commutes_with(factor):
            break
    return (*steps, Step(axis, AxisMap(n).then(factor)))
