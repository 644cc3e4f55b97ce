"""Values of a JSON file that may come from a stranger: each has its type and its range.

All raise ValueError, with the start of what stood there.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

__all__ = ["count_of", "items_of", "number_of", "object_of", "one_of", "share_of", "text_of"]

MAX_COUNT = 1 << 53
MAX_TEXT = 1000

Item = TypeVar("Item")


def items_of(value: Any, read: Callable[[Any], Item]) -> tuple[Item, ...]:
    """Return the items of a list, each read by `read`."""
    if not isinstance(value, list):
        raise ValueError(f"{value!r:.60} in place of a list")
    return tuple(read(item) for item in value)


def count_of(value: Any, *, smallest: int = 0) -> int:
    """Return a whole number from `smallest` to 2^53."""
    if not isinstance(value, int) or isinstance(value, bool) or not smallest <= value <= MAX_COUNT:
        raise ValueError(f"{value!r:.60} in place of a whole number")
    return value


def number_of(value: Any) -> float:
    """Return a finite number."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"{value!r:.60} in place of a number")
    return float(value)


def share_of(value: Any) -> float:
    """Return a number in [0, 1]."""
    if not 0 <= number_of(value) <= 1:
        raise ValueError(f"{value!r:.60} in place of a share in [0, 1]")
    return float(value)


def one_of(value: Any, names: tuple[str, ...]) -> str:
    """Return one of these texts."""
    if value not in names:
        raise ValueError(f"{value!r:.60} in place of one of {', '.join(names)}")
    return str(value)


def text_of(value: Any) -> str:
    """Return text of at most 1000 characters."""
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise ValueError(f"{value!r:.60} in place of text")
    return value


def object_of(value: Any) -> Mapping[str, Any]:
    """Return an object with named values."""
    if not isinstance(value, dict):
        raise ValueError(f"{value!r:.60} in place of an object")
    return value
