"""One threshold per exit, and what it means: an image leaves where gate >= threshold."""

from numbers import Real
from typing import Any, List, Sequence, Union

import numpy as np

from compress.errors import UserInputError

__all__ = ["check_thresholds"]


def check_thresholds(thresholds: Union[float, Sequence[float]], exits: int) -> List[float]:
    """Return one threshold an exit.

    Args:
        thresholds: one number for all exits, or one for each; numpy's numbers and arrays do too. A
            float32 is taken at its own value, which is seldom the decimal that it was made from.
        exits: how many there are.

    Raises:
        UserInputError: they are no numbers, their number is neither 1 nor `exits`, or one lies
            outside [0, 1].
    """
    found: Any = thresholds
    if isinstance(found, np.ndarray):
        found = found.tolist()  # a number where it has no dimensions
    if isinstance(found, Real):
        found = [found] * exits
    if not isinstance(found, (list, tuple)):
        raise UserInputError(
            f"thresholds are {thresholds!r:.60}; expected a number, or a list with one for each of "
            f"{exits} exits"
        )
    if len(found) != exits:
        raise UserInputError(
            f"{len(found)} thresholds for {exits} exits; expected one each, or one"
        )
    return [_checked(bar) for bar in found]


def _checked(bar: Any) -> float:
    is_number = isinstance(bar, Real) and not isinstance(bar, (bool, np.bool_))
    if not is_number or not 0 <= bar <= 1:  # NaN fails this too
        shown = bar if is_number else f"{bar!r:.60}"
        raise UserInputError(f"a threshold is {shown}; expected 0 <= threshold <= 1")
    return float(bar)
