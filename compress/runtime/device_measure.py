"""Measure a bundle on the device that it is for: latency, exit rates, energy, a device profile.

Times are of the host, one image at a time, from the prepared image to its logits. Energy of an
image is net power (load less idle) times its mean latency, as the published logs define it. numpy
alone.
"""

import time
from dataclasses import dataclass
from math import fsum
from statistics import median
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np

from compress.runtime.device_profile import DeviceProfile
from compress.runtime.dispatcher import Dispatcher
from compress.runtime.exit_spelling import spelled
from compress.runtime.power.energy import EnergyReading, energy_cell, energy_per_image_mj
from compress.runtime.power.meter import EnergyMeter
from compress.runtime.power.sampling import PowerSource

__all__ = ["DeviceMeasurement", "measure_device", "segment_profile", "segments_ms"]

SCHEMA = "compress.measure_device/1"
PASSES = 3  # over the images: a segment that few of them reach is still seen a few times
WARM_UP = 20  # images that are not counted: they record CUDA graphs and fill caches
IDLE_SHARE = 0.5  # of the seconds under load, to measure idle power


@dataclass(frozen=True)
class DeviceMeasurement:
    """What a bundle takes on a device.

    Attributes:
        network: its name.
        device: what was measured.
        backend: what ran it.
        images: that were timed, every image as often as it ran.
        latency_ms: "mean", "median" and "p99" of an image.
        exits: where the exits stand, "" for the final head.
        exit_rates: share of the images that left there.
        energy_mj: of an image, idle power subtracted; None where it was not measured.
        reading: of the sensor under load, or None.
        no_energy: why there is none, or "".
        profile: by segments, for the planner.
    """

    network: str
    device: str
    backend: str
    images: int
    latency_ms: Dict[str, float]
    exits: Tuple[str, ...]
    exit_rates: Tuple[float, ...]
    energy_mj: Optional[float]
    reading: Optional[EnergyReading]
    no_energy: str
    profile: DeviceProfile

    def to_dict(self) -> Dict[str, Any]:
        """Return the fields as JSON values."""
        return {
            "schema": SCHEMA,
            **vars(self),
            "exits": list(self.exits),
            "exit_rates": list(self.exit_rates),
            "reading": self.reading.to_dict() if self.reading else None,
            "profile": self.profile.to_dict(),
        }

    def to_text(self) -> str:
        """Return the figures for a console, in the wording of the published logs."""
        lines = [
            f"{self.network} on {self.device} ({self.backend}), {self.images} images one by one"
        ]
        for at, rate in zip(self.exits, self.exit_rates):
            lines.append(f"Exiting {at or 'final head'}:[{100 * rate:.2f}]")
        told = self.latency_ms
        lines += [
            f"Avg Forward Time per Image: {told['mean']:.4f} ms",
            f"median {told['median']:.4f} ms, 99th percentile {told['p99']:.4f} ms",
            "segments " + ", ".join(f"{ms:.4f}" for ms in self.profile.segments_ms) + " ms",
        ]
        if self.energy_mj is None or self.reading is None:
            return "\n".join([*lines, f"energy consumption: not measured ({self.no_energy})"])
        cell = energy_cell(self.energy_mj).partition("/")[0]
        return "\n".join([*lines, f"energy consumption: {cell}", self.reading.to_text()])


def measure_device(
    dispatcher: Dispatcher,
    images: Sequence[np.ndarray],
    *,
    device: str,
    seconds: float,
    source: Optional[PowerSource] = None,
    no_energy: str = "it was not asked for",
) -> DeviceMeasurement:
    """Measure a bundle.

    Args:
        dispatcher: of the bundle.
        images: (C, H, W) each, at least one, as `Dispatcher.run` takes them.
        device: what is measured, in words.
        seconds: that images run at least, ten or more for figures to trust.
        source: the power sensor; None measures no energy.
        no_energy: why there is no sensor.

    Raises:
        ToolchainError: the backend or the sensor fails.
        UserInputError: an image is of another size, or `seconds` is too short for the sensor.
    """
    for place in range(WARM_UP):
        dispatcher.run(images[place % len(images)])
    times: List[float] = []
    exits: List[int] = []

    def work() -> None:
        end = time.perf_counter() + seconds
        while not times or time.perf_counter() < end:
            for image in images:
                start = time.perf_counter()
                found = dispatcher.run(image)
                times.append(1e3 * (time.perf_counter() - start))
                exits.append(int(found.exits[0]))

    reading = _with_power(source, work, seconds)
    mean_ms = fsum(times) / len(times)
    energy_mj = None
    if reading is not None and reading.net_power_w is not None:
        energy_mj = energy_per_image_mj(reading.net_power_w, mean_ms)
    counts = np.bincount(exits, minlength=len(dispatcher.manifest.segments))
    net_power_w = None if reading is None else reading.net_power_w
    return DeviceMeasurement(
        network=dispatcher.manifest.name,
        device=device,
        backend=dispatcher.backend.name,
        images=len(times),
        latency_ms={
            "mean": mean_ms,
            "median": median(times),
            "p99": float(np.percentile(times, 99)),
        },
        exits=tuple(segment.at or "" for segment in dispatcher.manifest.segments),
        exit_rates=tuple(float(count / len(exits)) for count in counts),
        energy_mj=energy_mj,
        reading=reading,
        no_energy="" if energy_mj is not None else no_energy,
        profile=segment_profile(
            dispatcher,
            images,
            name=dispatcher.manifest.name,
            device=device,
            net_power_w=None if net_power_w is None else max(0.0, net_power_w),
        ),
    )


def _with_power(
    source: Optional[PowerSource], work: Callable[[], None], seconds: float
) -> Optional[EnergyReading]:
    """Do the work; return what it took, None without a sensor."""
    if source is None:
        work()
        return None
    meter = EnergyMeter(source)
    meter.measure_idle(max(IDLE_SHARE * seconds, 0.1))
    return meter.measure(work)


def segments_ms(
    dispatcher: Dispatcher, images: Sequence[np.ndarray], *, passes: int = PASSES
) -> List[float]:
    """Return what each segment takes an image, the median over images that all run the whole way.

    Without exits: a segment that no image reaches at these thresholds is timed as well.
    """
    backend = dispatcher.backend
    seen: List[List[float]] = [[] for _ in dispatcher.manifest.segments]
    for image in [image for _ in range(passes) for image in images]:
        backend.load(np.ascontiguousarray(image[None]))
        for segment, times in enumerate(seen):
            start = time.perf_counter()
            backend.run(segment)
            times.append(1e3 * (time.perf_counter() - start))
    return [median(times) for times in seen]


def segment_profile(
    dispatcher: Dispatcher,
    images: Sequence[np.ndarray],
    *,
    name: str,
    device: str,
    net_power_w: Optional[float] = None,
) -> DeviceProfile:
    """Measure a profile by segments, to predict with on other machines.

    Args:
        dispatcher: of the bundle, on the device.
        images: (C, H, W) float32 each.
        name: of the profile.
        device: what it was measured on.
        net_power_w: under load, idle power subtracted.
    """
    besides = []
    for image in images:
        start = time.perf_counter()
        found = dispatcher.run(image, times=True)
        whole_ms = 1e3 * (time.perf_counter() - start)
        besides.append(whole_ms - fsum(ms for _, _, ms in found.segment_ms or ()))
    return DeviceProfile(
        name=name,
        device=device,
        network=dispatcher.manifest.name,
        source=f"{len(images)} images by the dispatcher on {dispatcher.backend.name}",
        segments_ms=tuple(segments_ms(dispatcher, images)),
        exits=tuple(spelled(s.at) for s in dispatcher.manifest.segments if s.at is not None),
        outside_ms=max(0.0, median(besides)),
        net_power_w=net_power_w,
    )
