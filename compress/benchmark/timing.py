"""Time several lists of calls in turn, every call as often as any other."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

from compress.measure.latency import Clock, Latency, measure_latency

__all__ = ["interleaved", "spread"]

MAX_ROUNDS = 200_000  # turns of all networks: beyond, percentiles gain nothing


def interleaved(
    calls: Mapping[str, Sequence[Callable[[], Any]]],
    *,
    seconds: float,
    clock: Clock = time.perf_counter_ns,
    progress: bool = False,
) -> dict[str, Latency]:
    """Time several lists of calls: call 0 of each, then call 1 of each, round and round.

    A first pass over all calls warms up and tells how many passes fit; only whole passes are timed,
    so that every call counts as often as any other.

    Args:
        calls: by name, all of one length.
        seconds: that each list runs, about.
        clock: gives nanoseconds.
        progress: show a bar on stderr.
    """
    start = clock()
    for turn in zip(*calls.values(), strict=True):
        for call in turn:
            call()
    pass_s = max(1, clock() - start) / 1e9
    count = len(next(iter(calls.values())))
    whole_s = seconds * len(calls)
    passes = max(1, min(int(whole_s / pass_s), MAX_ROUNDS // count))
    return measure_latency(
        {name: _next_of(cycle(own)) for name, own in calls.items()},
        warmup=0,
        min_iterations=passes * count,
        max_iterations=passes * count,
        max_seconds=whole_s,
        progress=progress,
        clock=clock,
    )


def spread(count: int, wanted: int) -> Tensor:
    """Return `wanted` of the numbers 0 … count-1, evenly apart; all where there are fewer.

    >>> spread(10, 4).tolist()
    [0, 2, 5, 7]
    """
    chosen = min(count, wanted)
    return torch.arange(chosen) * count // max(1, chosen)


def _next_of(calls: Iterator[Callable[[], Any]]) -> Callable[[], Any]:
    return lambda: next(calls)()
