"""Values out of JSON that may be damaged, foreign or hostile: the right type, or nothing.

A report is read by a person, so a bad value costs its cell and a bad file one sentence, never the
page. Text is cleaned of what no page can show: control characters and halves of characters.
"""

import json
from pathlib import Path
from typing import Any

__all__ = [
    "count_in",
    "list_in",
    "number_in",
    "object_in",
    "plain",
    "read_lines",
    "read_object",
    "text_in",
    "value_in",
]

MAX_BYTES = 32 << 20
MAX_ITEMS = 20_000  # of a list, and lines of a file
MAX_TEXT = 400
MIN_NUMBER, MAX_NUMBER = 1e-30, 1e18


def read_object(path: Path, place: str, notes: list[str]) -> dict[str, Any]:
    """Return the JSON object of a file; {} where it is not there, and a note where it is damaged.

    Args:
        path: of the file.
        place: what the note calls it.
        notes: one sentence is added here for a file that cannot be read.
    """
    if not path.exists():
        return {}
    try:
        content = json.loads(_text_of(path))
    except (OSError, ValueError, RecursionError) as err:
        notes.append(f"{plain(place)} is damaged and left out ({plain(str(err))}).")
        return {}
    if not isinstance(content, dict):
        kind = type(content).__name__
        notes.append(f"{plain(place)} is left out: it holds {kind}, expected an object.")
        return {}
    return content


def read_lines(path: Path, place: str, notes: list[str]) -> list[dict[str, Any]]:
    """Return the objects of a file with one JSON object a line, without the damaged lines."""
    try:
        lines = [line for line in _text_of(path).splitlines() if line.strip()][:MAX_ITEMS]
    except (OSError, ValueError) as err:
        notes.append(f"{plain(place)} is damaged and left out ({plain(str(err))}).")
        return []
    parsed = [_line(line) for line in lines]
    whole = [each for each in parsed if each is not None]
    if len(whole) < len(lines):
        notes.append(f"{plain(place)}: {len(lines) - len(whole)} damaged lines are left out.")
    return whole


def value_in(value: Any, *keys: str) -> Any:
    """Return what stands under nested keys; None where a key, or an object, is missing."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def number_in(value: Any, *keys: str) -> float | None:
    """Return a number; None where there is none, or one of more than 10^18, as no figure is.

    What is below 10^-30 is 0, so that shares of two numbers are numbers too.
    """
    found = value_in(value, *keys)
    if isinstance(found, bool) or not isinstance(found, int | float):
        return None
    try:
        number = float(found)
    except OverflowError:
        return None
    if not abs(number) <= MAX_NUMBER:  # NaN neither
        return None
    return number if abs(number) >= MIN_NUMBER else 0.0


def count_in(value: Any, *keys: str) -> int | None:
    """Return a whole number of at least 0; None where there is none."""
    number = number_in(value, *keys)
    return int(number) if number is not None and number >= 0 and number.is_integer() else None


def text_in(value: Any, *keys: str) -> str:
    """Return text that can be shown; numbers as they are written; "" where there is neither."""
    found = value_in(value, *keys)
    if isinstance(found, str):
        return plain(found)
    number = number_in(found)
    return "" if number is None else f"{number:g}"


def object_in(value: Any, *keys: str) -> dict[str, Any]:
    """Return an object; {} where there is none."""
    found = value_in(value, *keys)
    return found if isinstance(found, dict) else {}


def list_in(value: Any, *keys: str) -> list[Any]:
    """Return a list, shortened to what a page can hold; [] where there is none."""
    found = value_in(value, *keys)
    return found[:MAX_ITEMS] if isinstance(found, list) else []


def plain(text: str) -> str:
    """Return text without control characters, halves of characters and excess length."""
    whole = text.encode("utf-8", "replace").decode("utf-8")
    shown = "".join(each if each.isprintable() else " " for each in whole).strip()
    return shown if len(shown) <= MAX_TEXT else shown[: MAX_TEXT - 1] + "…"


def _text_of(path: Path) -> str:
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ValueError(f"{size} bytes, more than the {MAX_BYTES} of any file of a step")
    return path.read_text(encoding="utf-8")


def _line(line: str) -> dict[str, Any] | None:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None
