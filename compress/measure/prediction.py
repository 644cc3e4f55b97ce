"""What a network with exits will take on a device that is not here.

Expected latency is a sum over operations: how often one runs for an image on average, times what it
takes there. How often follows from where images leave. With c_k of n images leaving behind block
p_k, exit k of E, the final head last, an image runs

- "image": 1 of what every image does once, such as the patch embedding;
- "block": sum of c_k * (p_k + 1) / n blocks;
- "exit": sum of c_k * min(k + 1, E) / n exits, head and gate, whether it leaves there or not;
- "early": the share that leaves before the final head;
- "final": the share that reaches it.

A profile by segments is simpler: segment k runs for the share of images that leave at k or later.
Energy is net power times latency, as in `compress.runtime.power.energy`.

Worked example: blocks of 2 ms, exits of 1 ms, one of two images leaves behind block 3 of 12 at the
one exit, the other at the end: 8 blocks and 1 exit, 17 ms.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compress.errors import UserInputError
from compress.runtime.device_profile import DeviceProfile
from compress.runtime.exit_spelling import Position, joined
from compress.runtime.power.energy import energy_per_image_mj

__all__ = ["Prediction", "expected_hits", "predict"]

MAX_DEPTH = 10_000


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What an image is expected to take, on average.

    Attributes:
        device: it was predicted for.
        forward_ms: in the network.
        outside_ms: besides.
        whole_ms: in the whole network without exits; None where the profile cannot tell, as one by
            segments that was measured without it.
        net_energy_mj: of forward and what is besides, or None without a known power.
        parts: by name how often it runs for an image, and the milliseconds of that.
    """

    device: str
    forward_ms: float
    outside_ms: float
    whole_ms: float | None
    net_energy_mj: float | None
    parts: Mapping[str, tuple[float, float]]

    @property
    def latency_ms(self) -> float:
        """Forward and what is besides."""
        return self.forward_ms + self.outside_ms

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {
            "device": self.device,
            "forward_ms": self.forward_ms,
            "outside_ms": self.outside_ms,
            "latency_ms": self.latency_ms,
            "whole_ms": self.whole_ms,
            "net_energy_mj": self.net_energy_mj,
            "parts": {
                name: {"hits": hits, "ms": spent} for name, (hits, spent) in self.parts.items()
            },
        }

    def to_text(self) -> str:
        """Return a table of the parts, and the sums."""
        lines = [f"predicted for {self.device}, an image on average:"]
        lines += [f"{'hits':>8} {'ms':>9} {'share':>7}  operation"]
        for name, (hits, spent) in self.parts.items():
            share = spent / self.forward_ms if self.forward_ms else 0.0
            lines.append(f"{hits:8.3f} {spent:9.3f} {share:7.1%}  {name}")
        speed = f"{self.latency_ms:.2f} ms ({1000 / self.latency_ms:.2f} FPS)"
        lines.append(f"forward {self.forward_ms:.2f} ms, with what is besides it {speed}")
        if self.whole_ms is not None:
            lines.append(f"the whole network without exits: forward {self.whole_ms:.2f} ms")
        if self.net_energy_mj is None:
            lines.append("energy: not predicted, the profile holds no power")
        else:
            lines.append(f"net energy {self.net_energy_mj:.2f} mJ")
        return "\n".join(lines)


def predict(
    profile: DeviceProfile, leaving: Sequence[float], *, positions: Sequence[Position] | None = None
) -> Prediction:
    """Return what an image is expected to take.

    Args:
        profile: of the device, for this network.
        leaving: images that leave at each exit, the final head last; counts or rates.
        positions: where they leave. For a profile by operations these are blocks, the last block of
            the network last; one by segments is of one choice of exits, which they must be.

    Raises:
        UserInputError: these do not fit one another, or are no counts.
    """
    shares = _shares(leaving)
    if profile.segments_ms:
        _check_segments(profile, len(shares), positions)
        parts, whole_ms = _by_segment(profile, shares), profile.whole_ms
    else:
        blocks = _checked_blocks(positions, len(shares), profile)
        hits = expected_hits(leaving, blocks)
        parts, whole_ms = _by_operation(profile, hits), _whole_ms(profile, blocks)
    forward_ms = math.fsum(spent for _, spent in parts.values())
    latency_ms = forward_ms + profile.outside_ms
    if not latency_ms > 0:
        raise UserInputError(
            f"device profile {profile.name} makes a latency of {latency_ms} ms; expected more than "
            "0, so measure the device anew"
        )
    power_w = profile.net_power_w
    return Prediction(
        device=profile.device,
        forward_ms=forward_ms,
        outside_ms=profile.outside_ms,
        whole_ms=whole_ms,
        net_energy_mj=None if power_w is None else energy_per_image_mj(power_w, latency_ms),
        parts=parts,
    )


def expected_hits(leaving: Sequence[float], positions: Sequence[int]) -> dict[str, float]:
    """Return how often each thing happens for an image on average, by the names of the module.

    Args:
        leaving: images that leave at each exit, the final head last; counts or rates.
        positions: the blocks behind which they leave, the last block last.

    >>> expected_hits([1, 1], [3, 11])["block"]
    8.0
    """
    shares = _shares(leaving)
    exits = len(shares) - 1
    pairs = list(zip(shares, positions, strict=True))
    return {
        "image": 1.0,
        "block": math.fsum(share * (position + 1) for share, position in pairs),
        "exit": math.fsum(share * min(k + 1, exits) for k, share in enumerate(shares)),
        "early": math.fsum(shares[:-1]),
        "final": shares[-1],
    }


def _shares(leaving: Sequence[float]) -> list[float]:
    total = math.fsum(leaving)
    if not leaving or not all(0 <= c < math.inf for c in leaving) or not 0 < total < math.inf:
        raise UserInputError(
            f"the images that leave at each exit are {list(leaving)}; expected counts or rates of "
            "at least 0, one for each exit and the final head, not all 0"
        )
    return [count / total for count in leaving]


def _checked_blocks(
    positions: Sequence[Position] | None, exits: int, profile: DeviceProfile
) -> list[int]:
    blocks = [position for position in positions or () if isinstance(position, int)]
    if positions is None or len(positions) != exits or len(blocks) < len(positions):
        raise UserInputError(
            f"device profile {profile.name} is by operations and {exits} exits are given with the "
            f"positions {positions}; expected the block of each exit, the last block last"
        )
    if blocks != sorted(set(blocks)) or not 0 <= blocks[0] <= blocks[-1] < MAX_DEPTH:
        raise UserInputError(
            f"exit positions are {blocks}; expected block indices from 0, ascending"
        )
    return blocks


def _check_segments(
    profile: DeviceProfile, exits: int, positions: Sequence[Position] | None
) -> None:
    if len(profile.segments_ms) != exits:
        raise UserInputError(
            f"device profile {profile.name} has {len(profile.segments_ms)} segments and "
            f"{exits} exits are given; expected one for each segment"
        )
    if profile.exits and positions is not None and profile.exits != tuple(positions[:-1]):
        raise UserInputError(
            f"device profile {profile.name} is of exits behind {joined(profile.exits)}, these "
            f"stand behind {joined(positions[:-1])}; measure this network"
        )


def _by_segment(profile: DeviceProfile, shares: Sequence[float]) -> dict[str, tuple[float, float]]:
    reached = [math.fsum(shares[k:]) for k in range(len(shares))]
    times = zip(reached, profile.segments_ms, strict=True)
    return {f"segment {k}": (share, share * ms) for k, (share, ms) in enumerate(times)}


def _by_operation(
    profile: DeviceProfile, hits: Mapping[str, float]
) -> dict[str, tuple[float, float]]:
    """Times of one name are added; of its hits, those that happen together count once."""
    parts: dict[str, tuple[float, float]] = {}
    for name in dict.fromkeys(operation.name for operation in profile.operations):
        lines = [operation for operation in profile.operations if operation.name == name]
        per = {operation.per for operation in lines}
        spent = math.fsum(hits[line.per] * line.ms for line in lines)
        parts[name] = (math.fsum(hits[each] for each in per), spent)
    return parts


def _whole_ms(profile: DeviceProfile, blocks: Sequence[int]) -> float:
    whole = expected_hits([1], blocks[-1:])
    return math.fsum(whole[operation.per] * operation.ms for operation in profile.operations)
