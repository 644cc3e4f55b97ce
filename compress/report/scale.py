"""From values to places on a drawing: axes with round ticks."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Scale", "round_scale"]

ROUND = (1.0, 2.0, 2.5, 5.0, 10.0)
LEAST_SPAN = 1e-9


@dataclass(frozen=True, kw_only=True)
class Scale:
    """A straight axis.

    Attributes:
        low: value at `start`.
        high: value at `end`.
        start: place of the lowest value, in units of the drawing.
        end: place of the highest.
        step: between ticks.
    """

    low: float
    high: float
    start: float
    end: float
    step: float

    def at(self, value: float) -> float:
        """Return the place of a value; what is beyond the axis stands at its end."""
        share = (value - self.low) / (self.high - self.low)
        return self.start + min(max(share, 0.0), 1.0) * (self.end - self.start)

    def ticks(self) -> list[tuple[float, str]]:
        """Return the values of the ticks with what is written beside them."""
        digits = max(0, -math.floor(math.log10(self.step) + 1e-9))
        if not math.isclose(self.step, round(self.step, digits), rel_tol=1e-6):
            digits += 1  # 2.5 and its like
        first = math.ceil(self.low / self.step - 1e-6)
        last = math.floor(self.high / self.step + 1e-6)
        values = [number * self.step for number in range(first, last + 1)]
        return [(value, f"{value:.{digits}f}".replace("-", "\u2212")) for value in values]


def round_scale(
    values: Iterable[float],
    start: float,
    end: float,
    *,
    count: int = 4,
    most: float | None = None,
    room: bool = False,
    least_step: float = 0.0,
) -> Scale:
    """Return an axis that holds all values between round ends.

    Args:
        values: at least one.
        start: place of the lowest value.
        end: place of the highest.
        count: about so many gaps between ticks.
        most: the axis never goes above this, such as 100 of per cent.
        room: whether the lowest value stands above the end of the axis.
        least_step: between ticks, such as 1 of epochs.
    """
    shown = list(values)
    low, high = min(shown), max(shown)
    if high - low < max(LEAST_SPAN, 1e-6 * abs(high)):
        pad = max(0.05 * abs(high), LEAST_SPAN)
        low, high = low - pad, high + pad
    step = max(_round_step((high - low) / count), least_step)
    low = math.floor(low / step + (-0.25 if room else 1e-6)) * step
    high = math.ceil(high / step - 1e-6) * step
    if most is not None and max(shown) <= most:
        high = min(high, most)
    return Scale(low=low, high=high, start=start, end=end, step=step)


def _round_step(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return power * next(each for each in ROUND if each * power >= step * (1 - 1e-9))
