"""One kind of file that the toolkit reads, as the fuzzer sees it."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Kind"]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of input.

    Attributes:
        name: such as "checkpoint".
        seeds: folders with good inputs; one is copied for each case.
        mutate: changes the files in the copy, drawing from the generator alone.
        read: reads the copy as the toolkit does; an exit code of a door may be returned.
        refusals: errors that even the seeds end with, where good ones would be too large.
    """

    name: str
    seeds: tuple[Path, ...]
    mutate: Callable[[random.Random, Path], None]
    read: Callable[[Path], int | None]
    refusals: tuple[type[Exception], ...] = ()
