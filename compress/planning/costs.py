"""What the parts of a network cost: every segment, and the check at every exit.

A segment is what runs between two exits, heads and gates left out; segment 0 begins with the image,
the last one ends with the final head. A check is the head and the gate of one exit. An exit that is
not in a plan is not checked, so it costs nothing, and its two segments run as one.

Worked example, segments of 10, 10, 20 and checks of 1 and 2, both exits in the plan: an image that
leaves at exit 0 costs 10 + 1 = 11, one that leaves at exit 1 costs 11 + 10 + 2 = 23, one that stays
costs 23 + 20 = 43. With exit 1 alone these are 22 and 42; the whole network costs 40.

Measured segments add up to more than the whole network measured in one piece, which may stand
beside them (`whole`): what a plan has to be cheaper than is the network that would be deployed
without it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.errors import UserInputError
from compress.exits.replay import ReplayTable
from compress.files import check_readable
from compress.planning.json_values import items_of, number_of, object_of, one_of, text_of
from compress.planning.plan import UNITS
from compress.runtime.device_profile import FORMAT as PROFILE_FORMAT
from compress.runtime.device_profile import (
    PER,
    DeviceProfile,
    read_device_profile,
    shipped_profiles,
)
from compress.runtime.exit_spelling import Position, joined, position_of

__all__ = [
    "ExitCosts",
    "costs_from_file",
    "costs_from_profile",
    "costs_from_table",
    "expected_cost",
    "read_costs",
]

FORMAT = "compress.costs/1"
MAX_BYTES = 1 << 20
MAX_PART = 2.0**53  # of one part: a sum over a million images is still a sane float


@dataclass(frozen=True, kw_only=True)
class ExitCosts:
    """What an image pays on its way.

    Attributes:
        segments: (E+1,) float64, each above 0.
        checks: (E,) float64, each at least 0.
        unit: "macs", "ms" or "mj" (millijoules), per image.
        source: where the figures come from, in words.
        whole: of the network without exits in one piece, where it was measured; None takes the sum
            of the segments.
    """

    segments: NDArray[np.float64]
    checks: NDArray[np.float64]
    unit: str
    source: str
    whole: float | None = None

    def __post_init__(self) -> None:
        """Raise UserInputError unless there are sane costs for the parts of one network."""
        segments, checks = self.segments, self.checks
        if segments.ndim != 1 or checks.shape != (len(segments) - 1,):
            raise UserInputError(
                f"the costs are of {segments.size} segments and {checks.size} exit checks; "
                "expected one segment more than checks"
            )
        if not ((segments > 0) & (segments <= MAX_PART)).all():  # NaN fails this too
            raise UserInputError(f"the segments cost {segments.tolist()}; expected each above 0")
        if not ((checks >= 0) & (checks <= MAX_PART)).all():
            raise UserInputError(f"the exit checks cost {checks.tolist()}; expected at least 0")
        if self.whole is not None and not 0 < self.whole <= MAX_PART:
            raise UserInputError(f"the whole network costs {self.whole}; expected above 0")
        if self.unit not in UNITS:
            raise UserInputError(f"the unit is {self.unit!r}; expected one of {', '.join(UNITS)}")

    @property
    def exits(self) -> int:
        """E, the exits before the final head."""
        return len(self.checks)

    @property
    def full(self) -> float:
        """Cost of the whole network without exits."""
        return float(self.segments.sum()) if self.whole is None else self.whole

    def per_exit(self, exits: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return (E+1,) what an image costs that leaves at each exit when only `exits` are checked.

        What stands at an exit that is not checked means nothing.
        """
        checked = np.zeros(self.exits + 1)
        checked[exits] = self.checks[exits]
        costs: NDArray[np.float64] = np.cumsum(self.segments + checked)
        return costs


def expected_cost(costs: ExitCosts, taken: NDArray[np.int64], exits: NDArray[np.int64]) -> float:
    """Return what an image costs on average.

    Args:
        costs: of the parts.
        taken: the exit (N,) that each image takes, E for the final head.
        exits: numbers of the exits that are checked, ascending; without any it is the whole network
            in one piece.
    """
    if len(exits) == 0:
        return costs.full
    counts = np.bincount(taken, minlength=costs.exits + 1)
    return float(counts @ costs.per_exit(exits) / len(taken))


def costs_from_table(table: ReplayTable) -> ExitCosts:
    """Return true multiply-adds per image, as the table has them."""
    without_checks = table.macs - np.cumsum([*table.check_macs, 0])
    return ExitCosts(
        segments=np.diff(without_checks, prepend=0).astype(np.float64),
        checks=table.check_macs.astype(np.float64),
        unit="macs",
        source="true multiply-adds",
    )


def costs_from_file(path: Path, table: ReplayTable) -> ExitCosts:
    """Read measured costs.

    The file is JSON: {"format": "compress.costs/1", "unit": "ms" | "mj" | "macs", "source": what
    was measured where, "exits": where they stand, by block or module, "segments": one figure more
    than exits, "checks": one figure an exit}; and, where it was measured beside, "whole": the
    network without exits in one piece.

    Args:
        path: of the file.
        table: of the network; the exits of the file must be its exits.

    Raises:
        UserInputError: the file is missing, damaged, of another kind, or of another network.
    """
    path = check_readable(Path(path), "file of costs")
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"{path.stat().st_size} bytes, more than such a file has")
        value = object_of(json.loads(path.read_text(encoding="utf-8")))
        exits, costs = _parse(value)
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError, UserInputError) as err:
        missing = f"{err} is missing" if isinstance(err, KeyError) else str(err)
        raise UserInputError(
            f"file of costs {path} cannot be used ({' '.join(missing.split())[:300]}); expected "
            f"JSON of the format {FORMAT} with unit, source, exits, segments and checks"
        ) from err
    if exits != table.positions:
        raise UserInputError(
            f"file of costs {path} is of a network with exits behind {joined(exits)}, this one has "
            f"them behind {joined(table.positions)}; measure this network"
        )
    return costs


def costs_from_profile(profile: DeviceProfile, table: ReplayTable) -> ExitCosts:
    """Return milliseconds of an image on a device; what `compress.measure.prediction` adds up.

    Args:
        profile: by operations, of a network whose blocks are those of the table's; or by segments
            with exit checks told apart, of this very network.
        table: of the network.

    Raises:
        UserInputError: the profile does not tell what a plan needs, is of another network, or
            gives costs that cannot be.
    """
    costs = _costs_of_operations if profile.operations else _costs_of_segments
    return costs(profile, table)


def _costs_of_segments(profile: DeviceProfile, table: ReplayTable) -> ExitCosts:
    """What an image takes besides is counted with the first segment, and with the whole network."""
    if not profile.checks_ms:
        raise UserInputError(
            f"device profile {profile.name} does not tell what exit checks take, and a plan needs "
            "them apart; expected one that the benchmark saved of a checkpoint"
        )
    if profile.exits != table.positions:
        raise UserInputError(
            f"device profile {profile.name} is of a network with exits behind "
            f"{joined(profile.exits)}, this one has them behind {joined(table.positions)}; measure "
            "this network"
        )
    checks = np.array(profile.checks_ms)
    segments = np.array(profile.segments_ms) - np.append(checks, 0.0)
    segments[0] += profile.outside_ms
    whole = profile.whole_ms
    return ExitCosts(
        segments=segments,
        checks=checks,
        unit="ms",
        source=f"{profile.name}: {profile.device}",
        whole=None if whole is None else whole + profile.outside_ms,
    )


def _costs_of_operations(profile: DeviceProfile, table: ReplayTable) -> ExitCosts:
    """Every block takes the same, every exit check too.

    What an image does once, and what leaving early takes, is counted with the first segment, and
    what the final head takes more, with the last.
    """
    if not table.depth:
        raise UserInputError(
            f"device profile {profile.name} is by blocks, and the exits stand behind "
            f"{joined(table.positions)}; expected one that the benchmark saved of this network"
        )
    ms = {per: sum(o.ms for o in profile.operations if o.per == per) for per in PER}
    ends = [position for position in table.positions if isinstance(position, int)]
    blocks = np.diff([-1, *ends, table.depth - 1]).astype(np.float64)
    segments = blocks * ms["block"]
    segments[0] += ms["image"] + profile.outside_ms + ms["early"]
    segments[-1] += ms["final"] - ms["early"]
    return ExitCosts(
        segments=segments,
        checks=np.full(table.exits, ms["exit"]),
        unit="ms",
        source=f"{profile.name}: {profile.device}",
    )


def read_costs(source: Path, table: ReplayTable) -> ExitCosts:
    """Read measured costs from a file of costs, a device profile, or a shipped profile's name.

    Raises:
        UserInputError: as `costs_from_file` and `costs_from_profile`.
    """
    if str(source) in shipped_profiles() or _is_profile(source):
        return costs_from_profile(read_device_profile(source), table)
    return costs_from_file(source, table)


def _is_profile(path: Path) -> bool:
    try:
        if path.stat().st_size > MAX_BYTES:
            return False
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # which the reader of costs tells about
        return False
    return isinstance(value, dict) and value.get("format") == PROFILE_FORMAT


def _parse(value: Mapping[str, Any]) -> tuple[tuple[Position, ...], ExitCosts]:
    if value["format"] != FORMAT:
        raise ValueError(f"format {value['format']!r:.60}")
    whole = value.get("whole")
    costs = ExitCosts(
        segments=np.array(items_of(value["segments"], number_of), dtype=np.float64),
        checks=np.array(items_of(value["checks"], number_of), dtype=np.float64),
        unit=one_of(value["unit"], UNITS),
        source=text_of(value["source"]),
        whole=None if whole is None else number_of(whole),
    )
    return items_of(value["exits"], position_of), costs
