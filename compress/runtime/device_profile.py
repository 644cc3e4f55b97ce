"""What a device takes for the parts of a network, as a file that can be carried to another machine.

By operations, such as the published logs have them, or by segments, as a dispatcher measures them.
The figures of the logs are shipped (`shipped_profiles`): a Jetson whose board they do not state.

A profile may come from a stranger: every number has its range.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple, Union

from compress.errors import UserInputError
from compress.files import check_readable, write_json
from compress.runtime.exit_spelling import Position, position_of

__all__ = [
    "PER",
    "DeviceProfile",
    "OperationTime",
    "read_device_profile",
    "shipped_profiles",
    "write_device_profile",
]

FORMAT = "compress.device_profile/1"
PER = ("image", "block", "exit", "early", "final")
SHIPPED = Path(__file__).parent / "device_profiles"

MAX_BYTES = 1 << 20
MAX_ITEMS = 1000  # operations or segments
MAX_MS = 1e7  # of one operation: hours
MAX_POWER_W = 1e5


@dataclass(frozen=True)
class OperationTime:
    """What an operation takes each time it runs.

    Attributes:
        name: such as "blocks"; several may share one and are shown together.
        per: when it runs, one of `PER`.
        ms: milliseconds each time.
    """

    name: str
    per: str
    ms: float


@dataclass(frozen=True)
class DeviceProfile:
    """What a device takes for the parts of one network; by operations or by segments.

    Attributes:
        name: of the profile.
        device: what was measured.
        network: such as "gfnet_dynn_12_384".
        source: where the figures come from.
        operations: what each takes; empty of a profile by segments.
        segments_ms: what each segment takes, its head and gate included; empty of one by
            operations.
        checks_ms: what the head and the gate of each exit take of that; empty where it is not told.
        exits: where the exits between the segments stand, by module or block; empty where it is not
            told.
        whole_ms: of the network without exits, measured beside; None where it was not.
        outside_ms: what an image takes besides the forward, such as its copy to the device.
        net_power_w: power under load less idle power, or None where it is not known.
    """

    name: str
    device: str
    network: str
    source: str
    operations: Tuple[OperationTime, ...] = ()
    segments_ms: Tuple[float, ...] = ()
    checks_ms: Tuple[float, ...] = ()
    exits: Tuple[Position, ...] = ()
    whole_ms: Optional[float] = None
    outside_ms: float = 0.0
    net_power_w: Optional[float] = None

    def to_dict(self) -> Dict[str, Any]:
        """Return the fields as JSON values."""
        return {
            "format": FORMAT,
            "name": self.name,
            "device": self.device,
            "network": self.network,
            "source": self.source,
            "outside_ms": self.outside_ms,
            "net_power_w": self.net_power_w,
            "operations": [{"name": o.name, "per": o.per, "ms": o.ms} for o in self.operations],
            "segments_ms": list(self.segments_ms),
            "checks_ms": list(self.checks_ms),
            "exits": list(self.exits),
            "whole_ms": self.whole_ms,
        }


def shipped_profiles() -> Dict[str, Path]:
    """Return the profiles that come with the toolkit, by name."""
    return {path.stem: path for path in sorted(SHIPPED.glob("*.json"))}


def read_device_profile(profile: Union[str, Path]) -> DeviceProfile:
    """Read a profile: a file, or the name of a shipped one.

    Raises:
        UserInputError: there is none, or it cannot be used.
    """
    known = shipped_profiles()
    path = Path(known.get(str(profile), Path(profile)))
    if not path.exists():
        raise UserInputError(
            f"device profile {profile} does not exist; expected a file, or one of {[*known]}"
        )
    check_readable(path, "device profile")
    try:
        return _parse(_read_json(path))
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as err:
        reason = f"{err} is missing" if isinstance(err, KeyError) else str(err)
        raise UserInputError(
            f"device profile {path} cannot be used ({reason}); expected the format {FORMAT} with "
            "operations or segments_ms, such as python -m compress.measure_device writes it"
        ) from err


def write_device_profile(profile: DeviceProfile, path: Path) -> None:
    """Write a profile as JSON, whole or not at all, checked as a reader will.

    Raises:
        UserInputError: a value is out of range.
    """
    try:
        _parse(profile.to_dict())
    except (TypeError, ValueError) as err:
        raise UserInputError(
            f"device profile {profile.name} cannot be written ({err}); measure the device anew"
        ) from err
    write_json(path, profile.to_dict())


def _read_json(path: Path) -> Any:
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path.stat().st_size} bytes, more than a profile has")
    return json.loads(path.read_text(encoding="utf-8"))


def _parse(value: Any) -> DeviceProfile:
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise ValueError("it is of another format")
    operations = _items(value["operations"])
    segments = _items(value["segments_ms"])
    if bool(operations) == bool(segments):
        raise ValueError("it needs operations or segments_ms, one of the two")
    checks, exits = _items(value.get("checks_ms", [])), _items(value.get("exits", []))
    if any(part and len(part) != len(segments) - 1 for part in (checks, exits)):
        raise ValueError(
            f"{len(segments)} segments with {len(checks)} checks_ms, {len(exits)} exits"
        )
    power_w, whole_ms = value["net_power_w"], value.get("whole_ms")
    return DeviceProfile(
        name=_text(value["name"]),
        device=_text(value["device"]),
        network=_text(value["network"]),
        source=_text(value["source"]),
        operations=tuple(_operation(each) for each in operations),
        segments_ms=tuple(_number(each, MAX_MS) for each in segments),
        checks_ms=tuple(_number(each, MAX_MS) for each in checks),
        exits=tuple(position_of(each) for each in exits),
        whole_ms=None if whole_ms is None else _number(whole_ms, MAX_MS),
        outside_ms=_number(value["outside_ms"], MAX_MS),
        net_power_w=None if power_w is None else _number(power_w, MAX_POWER_W),
    )


def _operation(value: Any) -> OperationTime:
    if value["per"] not in PER:
        raise ValueError(f"per is {value['per']!r:.60}, not one of {', '.join(PER)}")
    return OperationTime(
        name=_text(value["name"]), per=value["per"], ms=_number(value["ms"], MAX_MS)
    )


def _items(value: Any) -> List[Any]:
    if not isinstance(value, list) or len(value) > MAX_ITEMS:
        raise ValueError(f"{value!r:.60} in place of a list of at most {MAX_ITEMS}")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r:.60} in place of text")
    return value


def _number(value: Any, largest: float) -> float:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= largest:  # NaN fails this too
        raise ValueError(f"{value!r:.60} in place of a number from 0 to {largest:g}")
    return float(value)
