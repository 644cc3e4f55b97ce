"""How the host waits for the device: once per segment, so what a wake-up costs, every gate pays.

"spin" asks an event again and again, as does everything else that CUDA lets wait: nothing wakes
sooner, and one core is busy while an image is on its way. "yield" lets others have the core between
two questions. "block" sleeps until the driver wakes the thread, which saves power and costs tens of
microseconds a segment. Left to itself, CUDA blocks on some boards.

An event tells that all before it in the stream is done, logits in mapped memory too; that a gate is
visible there would not prove it.
"""

import logging
import time

from compress.errors import ToolchainError, UserInputError
from compress.runtime.cuda import CudaRuntime

__all__ = ["WAITS", "Waiting", "check_wait"]

SCHEDULES = {"spin": 1, "yield": 2, "block": 4}  # cudaDeviceSchedule…
WAITS = tuple(SCHEDULES)
BLOCKING, NO_TIMING = 1, 2  # of cudaEventCreateWithFlags

log = logging.getLogger(__name__)


def check_wait(how: str) -> str:
    """Return a way to wait.

    Raises:
        UserInputError: there is no such way.
    """
    if how not in WAITS:
        raise UserInputError(f"wait is {how!r}; expected one of {', '.join(WAITS)}")
    return how


class Waiting:
    """Waits for a stream.

    Args:
        cuda: the runtime; its schedule is set, for all of the process.
        how: one of `WAITS`.

    Raises:
        ToolchainError: CUDA gave no event.
    """

    def __init__(self, cuda: CudaRuntime, how: str) -> None:
        self._cuda, self._how = cuda, how
        try:
            cuda.set_schedule(SCHEDULES[how])
        except ToolchainError as err:  # a process that used CUDA before may have settled it
            log.info("CUDA waits as it did before (%s)", err)
        self._event = cuda.event_create(NO_TIMING | (BLOCKING if how == "block" else 0))

    def wait(self, stream: int) -> None:
        """Return once everything that was put into the stream is done."""
        cuda, event = self._cuda, self._event
        cuda.event_record(event, stream)
        if self._how == "block":
            cuda.event_synchronize(event)
            return
        pause = self._how == "yield"
        has_asked = False
        while not cuda.event_is_done(event):
            has_asked = True
            if pause:
                time.sleep(0)
        if has_asked:  # "not ready" stays CUDA's last error, which TensorRT would take for its own
            cuda.forget_error()

    def close(self) -> None:
        """Give the event back."""
        self._cuda.event_destroy(self._event)
