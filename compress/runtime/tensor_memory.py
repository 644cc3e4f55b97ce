"""Which of the tensors that cross between segments can share memory: those that never live at once.

A tensor lives from the segment that makes it until the last that takes it has run. In a plain
chain two places take turns; a tensor that skips segments keeps its own meanwhile.
"""

from typing import Dict, List, NamedTuple

from compress.runtime.manifest import Manifest

__all__ = ["Places", "places_of"]


class Places(NamedTuple):
    """Where the crossing tensors of a bundle lie.

    Attributes:
        of: number of the place of each, by its name.
        image_bytes: of each place, for one image.
    """

    of: Dict[str, int]
    image_bytes: List[int]


def places_of(manifest: Manifest) -> Places:
    """Give every crossing tensor a place that no other has while it lives.

    Tensors of 10, 40, 20 bytes, each made by one segment and taken by the next, have the places 0,
    1, 0, of 20 and 40 bytes.
    """
    of: Dict[str, int] = {}
    sizes: List[int] = []
    free: List[int] = []
    for number, segment in enumerate(manifest.segments):
        ends = {spec.name for spec in segment.inputs} - {s.name for s in manifest.living(number)}
        for spec in segment.gives:
            place = _nearest(free, sizes, spec.image_bytes)
            sizes[place] = max(sizes[place], spec.image_bytes)
            of[spec.name] = place
        free += [of[name] for name in sorted(ends & of.keys())]  # once the segment has run
    return Places(of, sizes)


def _nearest(free: List[int], sizes: List[int], size: int) -> int:
    """Take the free place that is nearest in size, or a new one where none is free."""
    if not free:
        sizes.append(0)
        return len(sizes) - 1
    place = min(free, key=lambda each: abs(sizes[each] - size))
    free.remove(place)
    return place
