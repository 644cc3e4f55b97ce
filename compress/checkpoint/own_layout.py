"""Our own checkpoints: what stands in them, and the checks when they are read.

`format`, `arch`, `config`, `meta`, `state_dict` as `compress.checkpoint` describes, and `sha256`,
the sha256 of the tensors (`tensors.sha256_of_tensors`), which files of before it lack.
"""

import math
from collections.abc import Mapping
from typing import Any, TypeGuard

from compress.errors import UserInputError

__all__ = ["FORMAT", "check_meta", "check_size", "plain_json"]

FORMAT = "compress.checkpoint/1"
MAX_VALUES = 1_000_000  # of config and meta
MAX_DEPTH = 32
SMALL = 1 << 16  # image sizes and the like may be as large whatever the tensors are
COUNTED_BY_TENSORS = ("depth", "depths", "blocks", "layers")


def plain_json(value: Any, what: str) -> Any:
    """Return a copy of JSON values.

    Raises:
        UserInputError: it holds something else, is nested deeper than 32, or has a million values.
    """
    left = [MAX_VALUES]

    def copied(value: Any, depth: int) -> Any:
        left[0] -= 1
        if depth > MAX_DEPTH or left[0] < 0:
            raise UserInputError(
                f"{what} is nested deeper than {MAX_DEPTH} or has more than {MAX_VALUES:,} "
                "values; expected what compress.save writes, so the file is damaged"
            )
        if value is None or isinstance(value, bool | int | str):
            return value
        if isinstance(value, float) and math.isfinite(value):
            return value
        if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
            return {key: copied(entry, depth + 1) for key, entry in value.items()}
        if isinstance(value, list | tuple):
            return [copied(entry, depth + 1) for entry in value]
        raise UserInputError(
            f"{what} holds a {type(value).__name__}; expected JSON values, so the file is damaged "
            "or not written by compress.save"
        )

    return copied(value, 0)


def check_meta(meta: Mapping[str, Any], what: str) -> None:
    """Raise UserInputError unless the entries that commands read have the types that we write."""
    for name in ("preprocessing", "data", "metrics", "slimming", "source", "distillation"):
        if not isinstance(meta.get(name, {}), Mapping):
            raise _wrong(what, name, meta[name], "a mapping")
    classes = meta.get("classes")
    if classes is not None and not _is_list(classes, str):
        raise _wrong(what, "classes", classes, "a list of names")
    name = meta.get("data", {}).get("name")
    if not isinstance(name, str | None):
        raise _wrong(what, "data.name", name, "a name")
    pixels = meta.get("preprocessing", {})
    for key in ("image_size", "resize_size"):
        size = pixels.get(key)
        sides = size if isinstance(size, list) else [size]
        if size is not None and not all(type(s) is int and 0 < s <= SMALL for s in sides):
            raise _wrong(what, f"preprocessing.{key}", size, "a number of pixels")
    for key in ("mean", "std"):
        values = pixels.get(key)
        if values is not None and not _is_list(values, int | float):
            raise _wrong(what, f"preprocessing.{key}", values, "a list of numbers")
    if not all(value > 0 for value in pixels.get("std") or ()):
        raise _wrong(what, "preprocessing.std", pixels["std"], "numbers above 0")


def check_size(config: Mapping[str, Any], state: Mapping[str, Any], what: str) -> None:
    """Raise UserInputError where a configuration claims more than its tensors can hold.

    Lists of layers are no longer than there are tensors, and no number is larger than the number
    of values, so that nothing of the claimed size is made.
    """
    tensors = len(state)
    values = max(SMALL, sum(math.prod(tensor.shape) for tensor in state.values()))

    def check(key: str, value: Any, nested: bool) -> None:
        claims = isinstance(value, int) and abs(value) > (
            tensors if key in COUNTED_BY_TENSORS else values
        )
        long = isinstance(value, list) and len(value) > (values if nested else max(tensors, 16))
        if claims or long:
            shown = f"{len(value)} entries" if isinstance(value, list) else value
            raise UserInputError(
                f"the configuration of {what} has {shown} for {key}, but the file has {tensors} "
                "tensors; expected a configuration of these tensors, so the file is damaged"
            )
        if isinstance(value, list):
            for entry in value:
                check(key, entry, True)
        if isinstance(value, Mapping):
            for name, entry in value.items():
                check(name, entry, False)

    check("config", config, False)
    for rows, columns in _grids(config):
        if rows * columns > values:
            raise UserInputError(
                f"the configuration of {what} has a grid of {rows}x{columns}, but the file has "
                f"{values:,} values; expected a configuration of these tensors"
            )


def _grids(config: Mapping[str, Any]) -> list[tuple[int, int]]:
    grid, size, patch = (config.get(key) for key in ("grid", "image_size", "patch_size"))
    found = [(grid[0], grid[1])] if _is_pair(grid) else []
    sides = [size, size] if isinstance(size, int) else size
    if _is_pair(sides) and isinstance(patch, int) and patch > 0:
        found.append((sides[0] // patch, sides[1] // patch))
    return found


def _is_pair(value: Any) -> TypeGuard[list[int]]:
    return _is_list(value, int) and len(value) == 2


def _is_list(value: Any, kind: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(entry, kind) and not isinstance(entry, bool) for entry in value
    )


def _wrong(what: str, name: str, value: Any, expected: str) -> UserInputError:
    shown = repr(value) if len(repr(value)) < 60 else f"{repr(value)[:60]}…"
    return UserInputError(
        f"meta.{name} of {what} is {shown}; expected {expected}, so the file is damaged or was not "
        "written by compress"
    )
