"""Energy of several networks with one sensor, as the published logs define it.

Idle power is measured once, then every network runs for a while in turn. Energy per image is net
power (load less idle) times the latency of an image; the percentage is what is saved against the
first network. Nothing is printed as zero: a machine without a sensor has no energy, and a reason.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.errors import ToolchainError, UserInputError
from compress.runtime.power.energy import (
    EnergyReading,
    energy_cell,
    energy_per_image_mj,
    energy_saving_percent,
)
from compress.runtime.power.meter import EnergyMeter
from compress.runtime.power.sampling import PowerSource
from compress.runtime.power.sources import SOURCE_KINDS, find_source
from compress.runtime.power.trace import TraceSource, read_trace, write_trace

__all__ = [
    "ENERGY_CHOICES",
    "ImageEnergy",
    "PowerChoice",
    "choose_power",
    "measure_energy",
]

ENERGY_CHOICES = ("auto", "none", *SOURCE_KINDS)
NOT_ASKED = "energy was not asked for"


@dataclass(frozen=True, kw_only=True)
class PowerChoice:
    """The sensor to measure with, or why there is none; one of the two is None."""

    source: PowerSource | None
    reason: str | None


@dataclass(frozen=True, kw_only=True)
class ImageEnergy:
    """Energy of one image on one network.

    Attributes:
        reading: of the run.
        per_image_mj: net power times latency; around or below 0 where the network takes no more
            than the drift of idle power.
        saving_percent: against the first network; None where that one's is not above 0.
        is_baseline: whether this is the first.
    """

    reading: EnergyReading
    per_image_mj: float
    saving_percent: float | None
    is_baseline: bool

    @property
    def cell(self) -> str | None:
        """Cell of the comparison table, such as "90.00mJ/35.29%"; None without a saving."""
        if self.saving_percent is None:
            return None
        if self.is_baseline:
            return energy_cell(self.per_image_mj)
        return f"{self.per_image_mj:.2f}mJ/{self.saving_percent:.2f}%"

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        return {
            "per_image_mj": self.per_image_mj,
            "saving_percent": self.saving_percent,
            "cell": self.cell,
            "reading": self.reading.to_dict(),
        }


def choose_power(
    kind: str, *, uses_gpu: bool, trace: Path | None = None, subjects: int = 1, must: bool = False
) -> PowerChoice:
    """Return what to measure with.

    Args:
        kind: "auto", "none", "jetson", "rapl" or "nvml".
        uses_gpu: whether the work runs on a graphics card.
        trace: file to replay in place of a sensor.
        subjects: networks to be measured, each of which needs a phase of the trace.
        must: raise where "auto" finds none.

    Raises:
        UserInputError: the trace cannot be used, or has too few phases.
        ToolchainError: a sensor that was asked for by name is not there.
    """
    if trace is not None:
        return PowerChoice(source=_replayed(trace, subjects), reason=None)
    if kind == "none":
        return PowerChoice(source=None, reason=NOT_ASKED)
    try:
        device = "cuda" if uses_gpu else "cpu"
        source = find_source(None if kind == "auto" else kind, device=device)
    except ToolchainError as err:
        if kind != "auto" or must:
            raise
        return PowerChoice(source=None, reason=str(err))
    return PowerChoice(source=source, reason=None)


def measure_energy(
    source: PowerSource,
    works: Mapping[str, Callable[[], Any]],
    latencies_ms: Mapping[str, float],
    *,
    idle_seconds: float,
    seconds: float,
    clock: Callable[[], int],
    save_trace: Path | None = None,
) -> dict[str, ImageEnergy]:
    """Measure idle power, then each network in turn.

    Args:
        source: a sensor, or a trace, of which no work is done.
        works: by name what runs all images once; the first is the baseline.
        latencies_ms: by name, of one image.
        idle_seconds: to wait for idle power, above 0.
        seconds: that each network runs at least, ten or more for figures to trust.
        clock: gives nanoseconds.
        save_trace: file for everything that was read.

    Raises:
        ToolchainError: the sensor fails.
        UserInputError: it read at one moment only, as `seconds` is too short for it.
    """
    meter = EnergyMeter(source)
    is_replay = isinstance(source, TraceSource)
    meter.measure_idle(idle_seconds)
    readings = {}
    for name, work in works.items():
        readings[name] = meter.measure(
            (lambda: None) if is_replay else _repeated(work, seconds, clock)
        )
    if save_trace is not None:
        write_trace(meter.trace(), save_trace)
    return _per_image(readings, latencies_ms)


def _per_image(
    readings: Mapping[str, EnergyReading], latencies_ms: Mapping[str, float]
) -> dict[str, ImageEnergy]:
    energies = {
        name: energy_per_image_mj(
            reading.mean_power_w, latencies_ms[name], idle_power_w=reading.idle_power_w or 0.0
        )
        for name, reading in readings.items()
    }
    baseline, baseline_mj = next(iter(energies.items()))
    return {
        name: ImageEnergy(
            reading=readings[name],
            per_image_mj=energy,
            saving_percent=energy_saving_percent(energy, baseline_mj) if baseline_mj > 0 else None,
            is_baseline=name == baseline,
        )
        for name, energy in energies.items()
    }


def _repeated(
    work: Callable[[], Any], seconds: float, clock: Callable[[], int]
) -> Callable[[], None]:
    def run() -> None:
        start = clock()
        work()
        while clock() - start < seconds * 1e9:
            work()

    return run


def _replayed(path: Path, subjects: int) -> TraceSource:
    trace = read_trace(path)
    labels = [phase.label for phase in trace.phases]
    after_idle = labels[labels.index("idle") + 1 :] if "idle" in labels else []
    if after_idle.count("active") < subjects:
        raise UserInputError(
            f"power trace {path} has the phases {', '.join(labels)}; expected idle, then one "
            f"active for each of the {subjects} networks, so record it anew with as many"
        )
    return TraceSource(trace)
