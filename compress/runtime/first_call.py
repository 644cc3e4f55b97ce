"""Work that may never end, such as the first call of a stranger's network, with a time limit.

Whether an ONNX file holds an endless loop cannot be known; how long its first call takes can. The
work runs in a thread of its own. Where it does not end in time it is asked to stop, and left behind
where it does not obey: such a thread does not keep the process from ending.
"""

import math
import threading
from typing import Any, Callable, List, Optional, TypeVar

from compress.errors import ToolchainError, UserInputError

__all__ = ["FIRST_CALL_SECONDS", "check_seconds", "within"]

FIRST_CALL_SECONDS = 60.0
MAX_SECONDS = 1e6
GRACE_SECONDS = 2.0

Result = TypeVar("Result")


def check_seconds(seconds: float, name: str) -> float:
    """Return a time limit.

    Raises:
        UserInputError: it is not above 0, or more than a million.
    """
    if not (math.isfinite(seconds) and 0 < seconds <= MAX_SECONDS):
        raise UserInputError(
            f"{name} is {seconds:g}; expected seconds above 0, at most {MAX_SECONDS:g}"
        )
    return seconds


def within(
    seconds: float, work: Callable[[], Result], what: str, stop: Optional[Callable[[], None]] = None
) -> Result:
    """Return what `work` returns, or raise what it raises.

    Args:
        seconds: that it may take.
        work: to do, in another thread.
        what: is done, as the start of a sentence.
        stop: asks the work to end, where there is a way.

    Raises:
        ToolchainError: it did not end in time.
    """
    done: List[Any] = []
    failed: List[BaseException] = []

    def run() -> None:
        try:
            done.append(work())
        except BaseException as err:  # raised again below, in the caller's thread
            failed.append(err)

    thread = threading.Thread(target=run, name="compress-first-call", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        if stop is not None:
            stop()
            thread.join(GRACE_SECONDS)
        raise ToolchainError(
            f"{what} did not end within {seconds:g} seconds; it may hold an endless loop, or this "
            "machine is slow: allow more with --first-call-seconds"
        )
    if failed:
        raise failed[0]
    result: Result = done[0]
    return result
