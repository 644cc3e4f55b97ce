"""Maps along an axis that need no matrix: picking, padding, weighting."""

import numpy as np
from numpy.typing import NDArray

from compress.export.fourier.axis_map import Dft, Part, Rows, Scale
from compress.export.fourier.waves import Step
from compress.export.fourier.writer import Writer

__all__ = ["applied_simply", "weighted"]


def applied_simply(writer: Writer, step: Step, x: str | None, component: int) -> str | None:
    """Write the factors of a step without a transform, on one part of a wave.

    Args:
        writer: of the nodes.
        step: a map without a transform in it.
        x: name of the part; None is zero.
        component: 0 for the real part, 1 for the imaginary one.
    """
    for factor in step.map.factors:
        if x is None or (component and isinstance(factor, Part)):
            return None
        if isinstance(factor, Dft):
            raise TypeError("a transform needs products")
        if isinstance(factor, Rows):
            x = _picked(writer, factor, x, step.axis, component)
        elif isinstance(factor, Scale):
            x = weighted(writer, np.array(factor.values), x, step.axis)
    return x


def weighted(writer: Writer, weights: NDArray[np.float64], x: str, axis: int) -> str:
    """Write x times a weight for every entry along an axis."""
    behind = len(writer.shape(x)) - 1 - axis
    return writer.scaled(x, weights.reshape(-1, *[1] * behind), "weighted")


def _picked(writer: Writer, rows: Rows, x: str, axis: int, component: int) -> str:
    if rows.bounds is not None:
        before, start, stop, behind = rows.bounds
        x = writer.sliced(x, start, stop, axis, "kept")
        x = writer.padded(x, before, behind, axis, "padded")
    else:
        shape = writer.shape(x)
        if -1 in rows.places:  # one zero behind all, which every -1 then picks
            x = writer.padded(x, 0, 1, axis, "padded")
        zero = shape[axis] or 0
        places = np.array([zero if p < 0 else p for p in rows.places], np.int64)
        new = (*shape[:axis], len(places), *shape[axis + 1 :])
        inputs = [x, writer.constant(places, "places")]
        x = writer.emit("Gather", inputs, new, "picked", axis=axis)
    if component and rows.conjugated:
        signs = [-1.0 if i in rows.conjugated else 1.0 for i in range(len(rows.places))]
        return weighted(writer, np.array(signs), x, axis)
    return x
