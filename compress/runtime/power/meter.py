"""Measure the energy of a run: idle power first, then the run, net energy as the difference.

    meter = EnergyMeter(find_source())
    meter.measure_idle(10)
    reading = meter.measure(lambda: run_images(images))

Measure for at least ten seconds: sensors average, and clocks take time to rise and fall.
"""

from typing import Any, Callable, Dict, List, Mapping, Optional

from compress.errors import UserInputError
from compress.runtime.power.energy import EnergyReading, rail_energy_mj
from compress.runtime.power.sampling import PowerSource, Recording, Sample
from compress.runtime.power.state import power_state
from compress.runtime.power.trace import Phase, Trace, TraceSource

__all__ = ["RATE_HZ", "EnergyMeter"]

RATE_HZ = 100.0


class EnergyMeter:
    """Measures with one sensor; runs follow one another, each with the idle power measured last.

    Args:
        source: the sensor, or a trace in its place.
        rate_hz: readings a second, as far as the sensor is that fast.
        state: gives board, power mode and clocks; called when a run has ended.
    """

    def __init__(
        self,
        source: PowerSource,
        *,
        rate_hz: float = RATE_HZ,
        state: Callable[[], Mapping[str, Any]] = power_state,
    ) -> None:
        self._source = source
        self._rate_hz = rate_hz
        # What was recorded elsewhere ran on the machine of the trace, not on this one.
        self._state = (lambda: source.state) if isinstance(source, TraceSource) else state
        self._idle_power_w: Optional[float] = None
        self._recording: Optional[Recording] = None
        self._phases: List[Phase] = []
        self._last_state: Mapping[str, Any] = {}

    def measure_idle(self, seconds: float = 10.0) -> float:
        """Wait, and return the mean power meanwhile, in watts; nothing else should run.

        Raises:
            UserInputError: `seconds` is not above 0, or a run is going on.
            ToolchainError: the sensor cannot be read.
        """
        if not seconds > 0:
            raise UserInputError(f"idle power is asked for over {seconds} s; expected more than 0")
        self._begin("idle").wait(seconds)
        samples = self._end("idle")
        energy_mj = self._total(rail_energy_mj(samples, self._source.kind))
        self._idle_power_w = energy_mj / _duration_ms(samples)
        return self._idle_power_w

    def start(self) -> None:
        """Begin to measure a run.

        Raises:
            UserInputError: one is going on already.
            ToolchainError: the sensor cannot be read.
        """
        self._begin("active")

    def stop(self) -> EnergyReading:
        """End the run and return what it took.

        Raises:
            UserInputError: none was started.
            ToolchainError: the sensor failed.
        """
        samples = self._end("active")
        self._last_state = dict(self._state())
        return self._reading(samples)

    def measure(self, work: Callable[[], Any]) -> EnergyReading:
        """Return what `work` took; an error of it passes through."""
        self.start()
        try:
            work()
        except BaseException:
            self._end("active")
            raise
        return self.stop()

    def trace(self) -> Trace:
        """Return everything that was read so far."""
        source = self._source
        return Trace(
            source.name,
            source.kind,
            source.rails,
            source.total_of,
            tuple(self._phases),
            self._last_state,
        )

    def _begin(self, label: str) -> Recording:
        if self._recording is not None:
            raise UserInputError("a run is being measured already; expected its end first")
        self._recording = self._source.record(label, self._rate_hz)
        return self._recording

    def _end(self, label: str) -> List[Sample]:
        recording, self._recording = self._recording, None
        if recording is None:
            raise UserInputError("no run is being measured; expected start before stop")
        samples = recording.stop()
        self._phases.append(Phase(label, tuple(samples)))
        return samples

    def _reading(self, samples: List[Sample]) -> EnergyReading:
        rails_mj = rail_energy_mj(samples, self._source.kind)
        duration_ms = _duration_ms(samples)
        energy_mj, idle_w = self._total(rails_mj), self._idle_power_w
        return EnergyReading(
            energy_mj=energy_mj,
            net_energy_mj=None if idle_w is None else energy_mj - idle_w * duration_ms,
            idle_power_w=idle_w,
            mean_power_w=energy_mj / duration_ms,
            rails={rail: energy / duration_ms for rail, energy in rails_mj.items()},
            total_of=self._source.total_of,
            seconds=duration_ms / 1000,
            samples=len(samples),
            source=self._source.name,
            state=self._last_state,
        )

    def _total(self, rails_mj: Dict[str, float]) -> float:
        return sum(rails_mj[rail] for rail in self._source.total_of)


def _duration_ms(samples: List[Sample]) -> float:
    return 1000 * (samples[-1].t_s - samples[0].t_s)
