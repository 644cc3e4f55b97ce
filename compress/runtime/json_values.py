"""Values of a JSON file that may come from a stranger: each is of its kind and in its range.

All raise ValueError with a short sentence; who reads the file adds which file it was.
"""

from typing import Any, Callable, Dict, Tuple, TypeVar

__all__ = ["LARGEST", "count", "items", "name", "number", "object_", "pair", "text"]

LARGEST = 1 << 31  # elements of a tensor, and most other counts
MAX_TEXT = 1000  # characters of a name

Item = TypeVar("Item")


def items(
    value: Any, read: Callable[[Any], Item], *, empty: bool = False, most: int = LARGEST
) -> Tuple[Item, ...]:
    """Return what `read` makes of each item of a list; an empty one only where that is allowed."""
    if not isinstance(value, list) or not (value or empty) or len(value) > most:
        raise ValueError(f"{value!r:.60} in place of a list")
    return tuple(read(item) for item in value)


def pair(value: Any, *, smallest: int, largest: int = LARGEST) -> Tuple[int, int]:
    """Return two whole numbers, the first not above the second."""
    first, last = items(value, lambda n: count(n, smallest=smallest, largest=largest), most=2)
    if first > last:
        raise ValueError(f"{first} before {last}")
    return first, last


def count(value: Any, *, smallest: int = 0, largest: int = LARGEST) -> int:
    """Return a whole number of that range; true and false are none."""
    if not isinstance(value, int) or isinstance(value, bool) or not smallest <= value <= largest:
        raise ValueError(f"{value!r:.60} in place of a whole number")
    return value


def number(value: Any) -> float:
    """Return a number as a float."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise ValueError(f"{value!r:.60} in place of a number")
    try:
        return float(value)
    except OverflowError as err:  # JSON has whole numbers of any length
        raise ValueError("a number that is too large") from err


def text(value: Any) -> str:
    """Return a text that is not too long."""
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise ValueError(f"{value!r:.60} in place of text")
    return value


def name(value: Any) -> str:
    """Return a text that can be printed."""
    if not text(value).isprintable():
        raise ValueError(f"{value!r:.60} in place of a name")
    return str(value)


def object_(value: Any) -> Dict[str, Any]:
    """Return a JSON object."""
    if not isinstance(value, dict):
        raise ValueError(f"{value!r:.60} in place of an object")
    return value
