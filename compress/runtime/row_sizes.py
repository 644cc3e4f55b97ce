"""With how many images at a time a segment is run: a few numbers, to which smaller ones are padded.

Behind an exit any number of images may be left. A CUDA graph, and a context of TensorRT's with it,
for each would be made in the middle of a stream and fill the device.
"""

from bisect import bisect_left
from typing import List, Sequence

__all__ = ["MAX_SIZES", "row_sizes", "size_for"]

MAX_SIZES = 8


def row_sizes(most: int) -> List[int]:
    """Return the numbers of images for batches of up to `most`: 1, 2, 4, 8, … and `most`.

    At most eight, so that of 1024 they are 1, 16, 32, 64, 128, 256, 512, 1024; of 6 they are 1, 2,
    4, 6.
    """
    sizes = [1 << power for power in range(most.bit_length()) if 1 << power < most] + [most]
    return sizes if len(sizes) <= MAX_SIZES else [1, *sizes[1 - MAX_SIZES :]]


def size_for(sizes: Sequence[int], rows: int) -> int:
    """Return the smallest of these numbers that takes so many images."""
    return sizes[bisect_left(sizes, rows)]
