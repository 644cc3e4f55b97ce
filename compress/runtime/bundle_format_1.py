"""Manifests of format 1, as values of format 2: what reads bundles knows of one format alone.

Format 1 had one tensor from each segment to the next, `hidden_in` and `hidden` in the files,
whichever tensor that was: the names in the files become aliases. Segments had the numbers of
their blocks, the first and the one after the last, so an exit stood behind a module `blocks.7`.
"""

from typing import Any, Dict, List, Mapping, Tuple

from compress.runtime.json_values import items, object_, pair

__all__ = ["FORMAT", "upgraded"]

FORMAT = "compress.bundle/1"


def upgraded(value: Mapping[str, Any]) -> Dict[str, Any]:
    """Return the JSON value of a manifest of format 1 as one of format 2 has it.

    Raises:
        ValueError, KeyError: the segments do not run on from one another; that the rest is of its
            kind and in its range is left to who reads the result.
    """
    parts = items(value["segments"], object_)
    blocks = _checked_blocks(parts)
    segments = [_segment(i, part, blocks[i], len(parts) - 1) for i, part in enumerate(parts)]
    return {**value, "segments": segments}


def _checked_blocks(parts: Tuple[Dict[str, Any], ...]) -> List[Tuple[int, int]]:
    """Return the blocks of each segment, once they run on from the first block.

    Segments of one network often have the same shapes, and in this format the same names, so only
    their blocks tell when one of them was left out or stands in another's place.
    """
    found: List[Tuple[int, int]] = []
    done = 0
    for place, part in enumerate(parts):
        first, stop = pair(part["blocks"], smallest=0)
        if first != done:
            raise ValueError(f"segment {place} begins at block {first}, expected {done}")
        if first == stop and len(parts) > 1:
            raise ValueError(f"segment {place} holds no block")
        found.append((first, stop))
        done = stop
    return found


def _segment(place: int, part: Mapping[str, Any], blocks: Tuple[int, int], last: int) -> Any:
    inputs, outputs = (items(part[side], object_) for side in ("inputs", "outputs"))
    if len(inputs) > 1:
        raise ValueError(f"segment {place} takes more than one tensor")
    if place > 0:
        inputs = tuple(_renamed(spec, f"hidden_{place - 1}") for spec in inputs)
    if place < last:
        outputs = tuple(
            _renamed(spec, f"hidden_{place}") if spec["name"] == "hidden" else spec
            for spec in outputs
        )
    rest = {key: content for key, content in part.items() if key != "blocks"}
    at = f"blocks.{blocks[1] - 1}" if place < last else None
    return {**rest, "at": at, "inputs": list(inputs), "outputs": list(outputs)}


def _renamed(spec: Mapping[str, Any], name: str) -> Dict[str, Any]:
    return {**spec, "name": name, "alias": spec["name"]}
