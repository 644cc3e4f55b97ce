"""The one rule of early exit: an image leaves at the first exit whose score reaches its bar.

Score and bar are compared in float64, as torch's `.item() >= bar` compares: 0.8 is another number
in float32. A score that is not a number reaches no bar. What no exit takes leaves at the final
head, number E. Of the scores (0.2, 0.9, 0.95) an image leaves at exit 1 where all bars are 0.9.
"""

from typing import Optional, Sequence

import numpy as np

__all__ = ["fires", "first_exit", "leaves"]


def leaves(score: float, bar: float) -> bool:
    """Return whether one image leaves: for a device that has one, where microseconds count.

    Args:
        score: as `.item()` gives it, a float of 64 bits.
        bar: of the exit.
    """
    return score >= bar  # False for NaN


def fires(scores: np.ndarray, bars: object) -> np.ndarray:
    """Return which scores reach their bars, in the shape of the scores.

    Args:
        scores: (N,) of one exit, or (N, E).
        bars: one number, or one of each exit (E,).
    """
    reached: np.ndarray = scores.astype(np.float64) >= np.asarray(bars, dtype=np.float64)
    return reached


def first_exit(
    scores: np.ndarray, bars: Sequence[float], exits: Optional[np.ndarray] = None
) -> np.ndarray:
    """Return the exit (N,) int64 where each image leaves, E for the final head.

    Args:
        scores: (N, E).
        bars: one for each of `exits`.
        exits: numbers of the exits that are checked; all by default.
    """
    images, last = scores.shape
    checked = np.arange(last) if exits is None else exits
    reached = np.zeros((images, last + 1), dtype=bool)
    reached[:, checked] = fires(scores[:, checked], bars)
    reached[:, last] = True
    return reached.argmax(axis=1)
