"""Energy from readings, and energy per image as the published logs define it.

Net power is power under load less idle power; energy per image is net power times latency:
13.2 W under load, 8.0 W idle and 26.75 ms make 5.2 W * 26.75 ms = 139.10 mJ. The percentage is what
is saved against the baseline, 1 - energy / energy of the baseline.
"""

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Dict, Mapping, Optional, Sequence, Tuple

from compress.errors import UserInputError
from compress.runtime.power.sampling import Sample

__all__ = [
    "EnergyReading",
    "energy_cell",
    "energy_per_image_mj",
    "energy_saving_percent",
    "rail_energy_mj",
]


@dataclass(frozen=True)
class EnergyReading:
    """What a run took.

    Attributes:
        energy_mj: of the rails that make up the total, millijoules.
        net_energy_mj: the same less idle power; None where idle power was not measured. Around or
            below 0 where the run takes no more than the drift of idle power.
        idle_power_w: measured before, watts, or None.
        mean_power_w: energy over time, watts.
        rails: mean power of every rail, watts.
        total_of: the rails that make up the total.
        seconds: from the first to the last reading.
        samples: readings.
        source: name of the sensor.
        state: power mode and clocks, see `compress.runtime.power.state`.
    """

    energy_mj: float
    net_energy_mj: Optional[float]
    idle_power_w: Optional[float]
    mean_power_w: float
    rails: Mapping[str, float]
    total_of: Tuple[str, ...]
    seconds: float
    samples: int
    source: str
    state: Mapping[str, Any] = field(default_factory=dict)

    @property
    def net_power_w(self) -> Optional[float]:
        """Mean power less idle power, watts."""
        return None if self.idle_power_w is None else self.mean_power_w - self.idle_power_w

    def to_dict(self) -> Dict[str, Any]:
        """Return the fields as JSON values."""
        value = {**asdict(self), "net_power_w": self.net_power_w}
        return {**value, "total_of": list(self.total_of)}

    def to_text(self) -> str:
        """Return power and energy, and which rails they are of."""
        rails = " + ".join(self.total_of)
        text = (
            f"{self.mean_power_w:.2f} W over {self.seconds:.1f} s, {self.energy_mj:.1f} mJ "
            f"({self.source}: {rails}, {self.samples} readings)"
        )
        if self.idle_power_w is None or self.net_energy_mj is None:
            return text + "; idle power was not measured, so there is no net energy"
        return (
            f"{text}; idle {self.idle_power_w:.2f} W, net {self.net_power_w:.2f} W, "
            f"{self.net_energy_mj:.1f} mJ"
        )


def rail_energy_mj(samples: Sequence[Sample], kind: str) -> Dict[str, float]:
    """Return the energy of every rail between the first and the last reading, in mJ.

    Power is integrated by the trapezoid rule over the times at which it was read; a counter is
    subtracted. Worked example: 1000 mW, 1000 mW at 0.5 s, 3000 mW at 1 s are
    500 + 1000 = 1500 mJ.

    Raises:
        UserInputError: there are fewer than two readings, or no time between them.
    """
    if len(samples) < 2 or not samples[-1].t_s > samples[0].t_s:
        raise UserInputError(
            f"energy is asked for of {len(samples)} readings at one moment; expected at least two "
            "at different times, so measure for longer"
        )
    first, last = samples[0].values, samples[-1].values
    if kind == "energy":
        return {rail: last[rail] - first[rail] for rail in first}
    steps = list(zip(samples, samples[1:]))
    return {
        rail: math.fsum((b.t_s - a.t_s) * (a.values[rail] + b.values[rail]) / 2 for a, b in steps)
        for rail in first
    }


def energy_per_image_mj(power_w: float, latency_ms: float, *, idle_power_w: float = 0.0) -> float:
    """Return (power - idle power) * latency, in mJ.

    Args:
        power_w: while images are run.
        latency_ms: of one image.
        idle_power_w: leave it out where `power_w` is net power already.

    Raises:
        UserInputError: a value is not a number, or the latency is not above 0.

    >>> round(energy_per_image_mj(13.2, 26.75, idle_power_w=8.0), 2)
    139.1
    """
    if not (math.isfinite(power_w) and math.isfinite(idle_power_w) and 0 < latency_ms < math.inf):
        raise UserInputError(
            f"energy per image is asked for with {power_w} W, idle {idle_power_w} W and "
            f"{latency_ms} ms; expected numbers, and a latency above 0"
        )
    return (power_w - idle_power_w) * latency_ms


def energy_saving_percent(energy_mj: float, baseline_mj: float) -> float:
    """Return how much less than the baseline this is, in per cent; below 0 where it is more.

    Raises:
        UserInputError: the baseline is not above 0.
    """
    if not 0 < baseline_mj < math.inf:
        raise UserInputError(
            f"the energy of the baseline is {baseline_mj} mJ; expected more than 0, so measure the "
            "baseline for longer"
        )
    return 100 * (1 - energy_mj / baseline_mj)


def energy_cell(energy_mj: float, baseline_mj: Optional[float] = None, *, digits: int = 2) -> str:
    """Return a cell of the comparison table, such as "90.00mJ/35.29%".

    Args:
        energy_mj: of one image.
        baseline_mj: of one image of the baseline; None is the baseline itself, "139.10mJ/0%".
        digits: of the percentage, behind the point.
    """
    if baseline_mj is None:
        return f"{energy_mj:.2f}mJ/0%"
    return f"{energy_mj:.2f}mJ/{energy_saving_percent(energy_mj, baseline_mj):.{digits}f}%"
