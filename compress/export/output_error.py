"""How far the outputs of an exported file are from torch's, tensor by tensor."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Outputs", "output_error", "output_errors", "worst_output"]

Outputs = Mapping[str, NDArray[Any]]


def output_errors(found: Outputs, wanted: Outputs) -> dict[str, float]:
    """Return the error of each output that torch gives."""
    return {name: output_error(found[name], each) for name, each in wanted.items()}


def output_error(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    """Return the error of one output; infinity where the shapes differ.

    Of float numbers it is |found - wanted| / |wanted| of the worst image, in the 2-norm, so that an
    entry near zero does not count for much; infinity that both give is no difference, NaN is never
    right. Of whole numbers it is the share that differs.

    Args:
        found: (N, …), of the file.
        wanted: (N, …), of torch.
    """
    if found.shape != wanted.shape:
        return float("inf")
    if wanted.dtype.kind != "f":
        return float((found != wanted).mean())
    is_same = found == wanted
    with np.errstate(invalid="ignore"):  # infinity less another, which `is_same` decides
        difference = _norms(np.where(is_same, 0, found - wanted))
    size = _norms(np.where(np.isinf(wanted) & is_same, 0, wanted))
    with np.errstate(divide="ignore", invalid="ignore"):
        errors = np.where(difference == 0, 0, difference / size)  # all of them may be zero
    return float(errors.max())


def worst_output(errors: Mapping[str, float]) -> str:
    """Return the name of the output with the largest error, NaN above all."""
    return max(errors, key=lambda name: np.inf if np.isnan(errors[name]) else errors[name])


def _norms(values: NDArray[Any]) -> NDArray[Any]:
    rows = values.reshape(len(values), -1)
    norms: NDArray[Any] = np.linalg.norm(rows, axis=1)
    return norms
