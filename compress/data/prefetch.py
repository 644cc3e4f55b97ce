"""What a pass over labelled data needs: one part of a data set, loaded ahead in threads."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar

from torch import Tensor

__all__ = ["LabelledSplit", "prefetched"]

T = TypeVar("T")
R = TypeVar("R")


class LabelledSplit(Protocol):
    """One part of a data set: images, or cached features of them."""

    @property
    def labels(self) -> Tensor:
        """Class indices (N,) int64."""
        ...

    def __len__(self) -> int: ...

    def images(self, indices: Tensor) -> Tensor:
        """Return the images (B, C, H, W) uint8, or whatever else the network reads."""
        ...


def prefetched(
    load: Callable[[T], R], items: Iterable[T], *, workers: int
) -> Generator[R, None, None]:
    """Yield `load(item)` for every item in order, loading up to two per worker ahead in threads."""
    if workers == 0:
        yield from map(load, items)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="load")
    try:
        waiting: deque[Future[R]] = deque()
        for item in items:
            waiting.append(pool.submit(load, item))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
