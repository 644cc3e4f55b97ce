"""Latency of several subjects side by side, so that what drifts hits all of them alike.

One round times every subject once, in turn: a clock that warms down or a neighbour that wakes up
moves all medians together and leaves their ratio. Garbage collection is off while the clock runs,
modules run in eval mode under `torch.inference_mode`, CUDA is synchronised before each reading.
"""

import contextlib
import gc
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compress.errors import UserInputError
from compress.optional import require

__all__ = ["Latency", "Subject", "measure_latency", "pinned_threads"]

# A callable without arguments, or a module with its input (a tensor, or a tuple of arguments).
Subject = Callable[[], Any] | tuple[nn.Module, Any]
Clock = Callable[[], int]

PROGRESS_DELAY_S = 2.0


@dataclass(frozen=True, kw_only=True)
class Latency:
    """The distribution of one subject's latency.

    Attributes:
        median_ms: half of the runs took no longer, in milliseconds.
        p10_ms: 10th percentile, in milliseconds.
        p90_ms: 90th percentile, in milliseconds.
        p99_ms: 99th percentile, in milliseconds.
        mean_ms: of all runs, in milliseconds; what a network with early exits takes an image.
        iterations: runs that were timed.
        threads: threads that torch was allowed inside one operation.
    """

    median_ms: float
    p10_ms: float
    p90_ms: float
    p99_ms: float
    mean_ms: float
    iterations: int
    threads: int

    def to_dict(self) -> dict[str, float | int]:
        """Return {median, p10, p90, p99, mean, iterations, threads}; the first in milliseconds."""
        return {
            "median": self.median_ms,
            "p10": self.p10_ms,
            "p90": self.p90_ms,
            "p99": self.p99_ms,
            "mean": self.mean_ms,
            "iterations": self.iterations,
            "threads": self.threads,
        }


def measure_latency(
    subjects: Mapping[str, Subject],
    *,
    warmup: int = 5,
    min_iterations: int = 20,
    max_iterations: int = 1000,
    max_seconds: float = 5.0,
    progress: bool = True,
    clock: Clock = time.perf_counter_ns,
) -> dict[str, Latency]:
    """Time all subjects in turn, round by round.

    Args:
        subjects: by name, a callable without arguments (it waits for its own device), or a pair of
            a module and its input.
        warmup: rounds that are run first and not timed, at least 0.
        min_iterations: rounds that are timed in any case, at least 1.
        max_iterations: rounds after which measuring ends, at least `min_iterations`.
        max_seconds: once the timed rounds took this long, no further round starts beyond
            `min_iterations`.
        progress: show a bar on stderr when it takes more than 2 seconds.
        clock: gives nanoseconds.

    Returns:
        The latency of every subject, under its name, in the order given.

    Raises:
        UserInputError: there is no subject, or a count is out of range.
    """
    _check(subjects, warmup, min_iterations, max_iterations, max_seconds)
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        runs = {name: _runner(subject, stack) for name, subject in subjects.items()}
        advance = stack.enter_context(_bar(max_seconds, progress))
        for _ in range(warmup):
            _time_round(runs, clock)
        stack.enter_context(_no_garbage_collection())
        rounds: list[list[int]] = []
        start = clock()
        while len(rounds) < min_iterations or (
            len(rounds) < max_iterations and clock() - start < max_seconds * 1e9
        ):
            rounds.append(_time_round(runs, clock))
            advance((clock() - start) / 1e9)
    samples_ms = np.asarray(rounds, dtype=np.float64) / 1e6  # (rounds, subjects)
    return {name: _latency(samples_ms[:, i]) for i, name in enumerate(runs)}


@contextlib.contextmanager
def pinned_threads(threads: int | None) -> Iterator[None]:
    """Let torch use `threads` threads inside an operation; give back the former number at the end.

    Args:
        threads: at least 1, or None to leave the number as it is.

    Raises:
        UserInputError: `threads` is below 1.
    """
    if threads is not None and threads < 1:
        raise UserInputError(f"the number of threads is {threads}; expected at least 1")
    former = torch.get_num_threads()
    try:
        torch.set_num_threads(former if threads is None else threads)
        yield
    finally:
        torch.set_num_threads(former)


def _time_round(runs: Mapping[str, Callable[[], Any]], clock: Clock) -> list[int]:
    """Return the nanoseconds of one run of each subject."""
    spent = []
    for run in runs.values():
        start = clock()
        run()
        spent.append(clock() - start)
    return spent


def _runner(subject: Subject, stack: contextlib.ExitStack) -> Callable[[], Any]:
    if not isinstance(subject, tuple):
        return subject
    module, given = subject
    arguments = given if isinstance(given, tuple) else (given,)
    stack.enter_context(_eval_mode(module))
    if not any(isinstance(a, Tensor) and a.is_cuda for a in arguments):
        return lambda: module(*arguments)

    def run_and_wait() -> None:
        module(*arguments)
        torch.cuda.synchronize()

    run_and_wait()  # what earlier work left in the queue must not count for the first run
    return run_and_wait


@contextlib.contextmanager
def _eval_mode(module: nn.Module) -> Iterator[None]:
    """Training mode would move BatchNorm's running statistics."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextlib.contextmanager
def _bar(max_seconds: float, progress: bool) -> Iterator[Callable[[float], None]]:
    """Give a function that takes the seconds that measuring took so far."""
    if not progress:
        yield lambda seconds: None
        return
    tqdm = require("tqdm", "showing progress").tqdm
    layout = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}"
    with tqdm(
        total=max_seconds,
        desc="latency",
        delay=PROGRESS_DELAY_S,
        leave=False,
        bar_format=layout,
    ) as bar:
        yield lambda seconds: bar.update(max(0.0, min(seconds, max_seconds) - bar.n))


def _latency(samples_ms: np.ndarray) -> Latency:
    p10, median, p90, p99 = (float(p) for p in np.percentile(samples_ms, (10, 50, 90, 99)))
    return Latency(
        median_ms=median,
        p10_ms=p10,
        p90_ms=p90,
        p99_ms=p99,
        mean_ms=float(samples_ms.mean()),
        iterations=len(samples_ms),
        threads=torch.get_num_threads(),
    )


def _check(
    subjects: Mapping[str, Subject],
    warmup: int,
    min_iterations: int,
    max_iterations: int,
    max_seconds: float,
) -> None:
    if not subjects:
        raise UserInputError("latency was asked of no subject; expected at least one")
    if warmup < 0 or not 1 <= min_iterations <= max_iterations or not max_seconds >= 0:
        raise UserInputError(
            f"latency has warmup {warmup}, iterations {min_iterations} to {max_iterations} and "
            f"{max_seconds} seconds; expected warmup >= 0, 1 <= min <= max, seconds >= 0"
        )
