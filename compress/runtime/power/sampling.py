"""What a power sensor is, and the thread that reads it while something runs.

Two kinds of sensors: "power" gives milliwatts of this moment, "energy" a counter of millijoules
that only grows. Rails are what a sensor tells apart; their total is the sum of `total_of`, not of
all rails, because some lie behind others and would count twice.

Reading costs power itself (an I2C read takes about half a millisecond of a core). It is read at the
same rate while idle power is measured, so that this share is subtracted with it.
"""

import threading
import time
from typing import Callable, Dict, List, NamedTuple, Optional, Tuple

from compress.errors import ToolchainError, UserInputError

__all__ = ["KINDS", "PowerSource", "Recording", "Sample"]

KINDS = ("power", "energy")
ATTEMPTS = 5  # of one reading: a busy I2C bus refuses now and then


class Sample(NamedTuple):
    """One reading: when, and per rail milliwatts (kind "power") or millijoules ("energy")."""

    t_s: float
    values: Dict[str, float]


class PowerSource:
    """A sensor. Subclasses fill the attributes and `read`.

    Attributes:
        name: such as "jetson-ina3221".
        kind: "power" or "energy".
        rails: their names.
        total_of: the rails whose sum is the total.
    """

    name = "none"
    kind = "power"
    rails: Tuple[str, ...] = ()
    total_of: Tuple[str, ...] = ()

    def read(self) -> Dict[str, float]:
        """Return the value of each rail: mW now, or mJ since a fixed moment.

        Raises:
            OSError, ValueError: it failed this time.
        """
        raise NotImplementedError

    def record(self, phase: str, rate_hz: float) -> "Recording":
        """Start to read in the background, now.

        Args:
            phase: "idle" or "active".
            rate_hz: readings a second, as far as the sensor is that fast.
        """
        return Recording(self, rate_hz)

    def describe(self) -> str:
        """Return its name and which rails make up the total."""
        return f"{self.name}: {' + '.join(self.total_of)}"


class Recording:
    """Readings from now on until `stop`, the first and the last at these very moments.

    Args:
        source: what is read.
        rate_hz: readings a second, above 0; a sensor that is slower is read as fast as it goes.
        clock: gives seconds.
    """

    def __init__(
        self,
        source: PowerSource,
        rate_hz: float,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if not rate_hz > 0:
            raise UserInputError(f"the sampling rate is {rate_hz} Hz; expected more than 0")
        self._source = source
        self._period_s = 1 / rate_hz
        self._clock = clock
        self._missed = 0
        self._failure: Optional[BaseException] = None
        self._ended = threading.Event()
        self._samples: List[Sample] = [self._insist()]
        self._thread = threading.Thread(target=self._run, name="power", daemon=True)
        self._thread.start()

    def wait(self, seconds: float) -> None:
        """Let time pass while readings are taken."""
        time.sleep(seconds)

    def stop(self) -> List[Sample]:
        """Take the last reading and return all of them, in order of time.

        Raises:
            ToolchainError: the sensor stopped working, or failed at most readings.
        """
        self._ended.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        self._samples.append(self._insist())
        if self._missed > len(self._samples):
            raise ToolchainError(
                f"{self._source.name} failed at {self._missed} of "
                f"{self._missed + len(self._samples)} readings; expected a sensor that can be "
                "read, so check that nothing else keeps it busy"
            )
        return self._samples

    def _run(self) -> None:
        try:
            due = self._clock() + self._period_s
            while not self._ended.wait(max(0.0, due - self._clock())):
                try:
                    self._samples.append(self._sample())
                except (OSError, ValueError):  # refused, or half a number
                    self._missed += 1
                # A slow sensor skips the moments it missed; it does not make up for them in haste.
                due = max(due + self._period_s, self._clock())
        except BaseException as err:  # told by `stop`, in the thread of the caller
            self._failure = err

    def _insist(self, attempts: int = ATTEMPTS) -> Sample:
        try:
            return self._sample()
        except (OSError, ValueError) as err:
            if attempts == 1:
                raise ToolchainError(
                    f"{self._source.name} cannot be read ({err}); expected a value of each rail "
                    f"{', '.join(self._source.rails)}, so check the sensor and its permissions"
                ) from err
        time.sleep(0.001)
        return self._insist(attempts - 1)

    def _sample(self) -> Sample:
        before = self._clock()
        values = self._source.read()
        return Sample((before + self._clock()) / 2, values)
