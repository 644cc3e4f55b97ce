"""Which power sensors this machine has, found by looking."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

from compress.errors import ToolchainError
from compress.runtime.power.jetson import find_jetson
from compress.runtime.power.nvml import find_nvml
from compress.runtime.power.rapl import find_rapl
from compress.runtime.power.sampling import PowerSource

__all__ = ["SOURCE_KINDS", "FoundSources", "find_source", "find_sources"]

# The sensor that sees most of what a device does comes first.
ORDER = {"cuda": ("jetson", "nvml", "rapl"), "cpu": ("jetson", "rapl", "nvml")}
SOURCE_KINDS = ORDER["cpu"]
ABSENT = {
    "jetson": "no INA3221 or INA238 power monitor of a Jetson",
    "rapl": "no energy counter of the processor in /sys/class/powercap",
    "nvml": "no NVIDIA driver with a graphics card",
}


@dataclass(frozen=True)
class FoundSources:
    """What was found.

    Attributes:
        sources: that can be read, under "jetson", "rapl" or "nvml".
        problems: why each of the others cannot, under the same names.
    """

    sources: Dict[str, PowerSource]
    problems: Dict[str, str]


def find_sources(root: Path = Path("/"), *, nvml: Optional[Any] = None) -> FoundSources:
    """Look for every kind of sensor.

    Args:
        root: of the file system; a copied tree serves as well, and then no driver is asked.
        nvml: NVIDIA's library or what stands for it; None looks for the driver's.
    """
    root = Path(root)
    finders: List[Tuple[str, Callable[[], Optional[PowerSource]]]] = [
        ("jetson", lambda: find_jetson(root)),
        ("rapl", lambda: find_rapl(root)),
        ("nvml", lambda: find_nvml(library=nvml) if nvml or root == Path("/") else None),
    ]
    sources: Dict[str, PowerSource] = {}
    problems: Dict[str, str] = {}
    for name, finder in finders:
        try:
            source = finder()
        except ToolchainError as err:
            problems[name] = str(err)
            continue
        if source is None:
            problems[name] = ABSENT[name]
        else:
            sources[name] = source
    return FoundSources(sources, problems)


def find_source(
    kind: Optional[str] = None,
    *,
    device: str = "cpu",
    root: Path = Path("/"),
    nvml: Optional[Any] = None,
) -> PowerSource:
    """Return the sensor to measure with.

    Args:
        kind: "jetson", "rapl" or "nvml"; None takes the one that sees most of the device.
        device: "cpu" or "cuda", where the work runs. A Jetson's sensor sees both.
        root: as in `find_sources`.
        nvml: as in `find_sources`.

    Raises:
        ToolchainError: there is none, or not of this kind; the message says what was looked for.
    """
    found = find_sources(root, nvml=nvml)
    wanted = (kind,) if kind else ORDER[device]
    for name in wanted:
        if name in found.sources:
            return found.sources[name]
    reasons = "; ".join(found.problems.get(name, f"{name} is no kind of sensor") for name in wanted)
    raise ToolchainError(
        f"energy cannot be measured on this machine ({reasons}); expected a power sensor, so "
        "measure on a device that has one, or replay a recorded trace"
    )
