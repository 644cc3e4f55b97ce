"""One threshold per exit, and what it means: an image leaves where gate >= threshold."""

from typing import List, Sequence, Union

from compress.errors import UserInputError

__all__ = ["check_thresholds"]


def check_thresholds(thresholds: Union[float, Sequence[float]], exits: int) -> List[float]:
    """Return one threshold an exit.

    Raises:
        UserInputError: their number is neither 1 nor `exits`, or one lies outside [0, 1].
    """
    single = isinstance(thresholds, (int, float))
    bars = [float(thresholds)] * exits if single else list(thresholds)  # type: ignore
    if len(bars) != exits:
        raise UserInputError(f"{len(bars)} thresholds for {exits} exits; expected one each, or one")
    for bar in bars:
        if not 0 <= bar <= 1:  # NaN fails this too
            raise UserInputError(f"a threshold is {bar}; expected 0 <= threshold <= 1")
    return bars
