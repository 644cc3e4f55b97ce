"""What each operation of a network takes: the profile of the published logs, by torch's profiler.

Named ranges are laid around the operations of a copy of the network, and images are run through it
one at a time, early exits taken. The breakdown of a GFNet is that of the logs: patch embedding,
position, blocks, norm and pool, head, gate, final head; any other network is broken down by its
layers, and its exits by head and gate. What lies between the ranges is a line of its own, so that
the lines add up to the total.

Times are those of the host. On a CUDA device every range waits for its work, so that work counts
where it belongs; this, and the profiler itself, make the sum longer than an undisturbed forward.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.profiler import profile as torch_profile

from compress.errors import UserInputError
from compress.measure.op_ranges import (
    BLOCKS,
    DECISION,
    DECISIONS,
    EMBED,
    FINAL,
    FORWARD,
    GATE,
    HEAD,
    PATCH,
    POOL,
    POSITION,
    PREFIX,
    REST,
    Ranges,
    lay_ranges_,
)
from compress.models.with_exits import WithExits
from compress.runtime.device_profile import DeviceProfile, OperationTime
from compress.runtime.exit_spelling import Position, last_position
from compress.runtime.thresholds import check_thresholds

__all__ = ["OpProfile", "Operation", "device_profile_of", "profile_operations"]

SCHEMA = "compress.op_profile/1"
CHUNK = 32  # images at a time: the profiler keeps hundreds of events for each

# When each operation runs, in the words of compress.measure.prediction.
RUNS_PER = {
    PATCH: ("image",),
    POSITION: ("image",),
    BLOCKS: ("block",),
    POOL: ("exit", "final"),
    HEAD: ("exit",),
    GATE: ("exit",),
    FINAL: ("final",),
    DECISION: ("exit",),
}

Totals = dict[str, tuple[int, float]]  # by range: hits, microseconds


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One line of a profile.

    Attributes:
        name: such as "blocks".
        hits: how often it ran.
        total_ms: all runs together.
    """

    name: str
    hits: int
    total_ms: float

    @property
    def per_hit_ms(self) -> float:
        """Milliseconds of one run; 0 where there was none."""
        return self.total_ms / self.hits if self.hits else 0.0


@dataclass(frozen=True, kw_only=True)
class OpProfile:
    """What the operations of a network took.

    Attributes:
        network: its name.
        device: torch's name of the device.
        threads: that torch was allowed inside one operation.
        images: that were run, one at a time.
        operations: in the order of the network; together they are the whole forward.
        leaving: images that left at each exit, the final head last; None without exits.
        positions: where they leave, the final head last; None without exits.
    """

    network: str
    device: str
    threads: int
    images: int
    operations: tuple[Operation, ...]
    leaving: tuple[int, ...] | None = None
    positions: tuple[Position, ...] | None = None

    @property
    def total_ms(self) -> float:
        """Milliseconds of all forwards."""
        return sum(operation.total_ms for operation in self.operations)

    @property
    def forward_ms(self) -> float:
        """Milliseconds of one forward on average, profiler included."""
        return self.total_ms / self.images

    def share(self, operation: Operation) -> float:
        """Return the share of the forward that an operation takes, in [0, 1]."""
        return operation.total_ms / self.total_ms if self.total_ms else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        return {
            "schema": SCHEMA,
            "network": self.network,
            "device": self.device,
            "threads": self.threads,
            "images": self.images,
            "total_ms": self.total_ms,
            "forward_ms": self.forward_ms,
            "leaving": None if self.leaving is None else list(self.leaving),
            "positions": None if self.positions is None else list(self.positions),
            "operations": [
                {
                    "name": operation.name,
                    "hits": operation.hits,
                    "total_ms": operation.total_ms,
                    "per_hit_ms": operation.per_hit_ms,
                    "share": self.share(operation),
                }
                for operation in self.operations
            ],
        }

    def to_text(self) -> str:
        """Return the table in the wording of the logs, with operations in place of lines."""
        head = f"{'Hits':>9} {'Time':>12} {'Per Hit':>8} {'% Time':>8}  Operation"
        lines = [
            "Timer unit: 1e-06 s",
            "",
            f"Total time: {self.total_ms / 1000:g} s",
            f"Function: forward of {self.network}, {self.images} images, one at a time",
            "",
            head,
            "=" * 62,
        ]
        lines += [
            f"{each.hits:>9} {1000 * each.total_ms:>12.1f} {1000 * each.per_hit_ms:>8.1f} "
            f"{100 * self.share(each):>8.1f}  {each.name}"
            for each in self.operations
        ]
        return "\n".join(lines)


def profile_operations(
    model: nn.Module,
    images: Iterable[Tensor],
    *,
    thresholds: float | Sequence[float] | None = None,
    warmup: int = 5,
) -> OpProfile:
    """Run images one at a time and return what each operation took.

    Args:
        model: left as it is; a copy of it is run, in eval mode, on the same device.
        images: normalised, (1, C, H, W) each. Bringing them to the device does not count.
        thresholds: one for all exits, or one for each, in [0, 1]; for networks with exits alone.
        warmup: how often the first image is run before, without being counted.

    Raises:
        UserInputError: there is no image, one of another shape, or the thresholds do not fit.
    """
    bars = _checked_thresholds(model, thresholds)
    rest = iter(images)
    first = next(rest, None)
    if first is None:
        raise UserInputError("the profile was given no image; expected at least one")
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    twin = copy.deepcopy(model).eval()
    run = _forward(twin, bars, len(bars) if bars is not None else 0)
    with torch.inference_mode():
        for _ in range(warmup):
            run(_checked(first, device))
        ranges = Ranges(device)
        labels = lay_ranges_(twin, ranges)
        run = ranges.around(FORWARD, run)
        totals: Totals = {}
        leaving: list[int] = []
        for chunk in _chunks(chain([first], rest)):
            leaving += _profile_chunk(run, [_checked(image, device) for image in chunk], totals)
    return OpProfile(
        network=str(getattr(model, "display_name", type(model).__name__)),
        device=str(device),
        threads=torch.get_num_threads(),
        images=len(leaving),
        operations=_operations(totals, labels),
        leaving=None if bars is None else tuple(map(leaving.count, range(len(bars) + 1))),
        positions=_positions(model),
    )


def device_profile_of(
    profile: OpProfile, *, name: str, device: str, net_power_w: float | None = None
) -> DeviceProfile:
    """Return what predicts this network on this device at other thresholds.

    Args:
        profile: of a network with exits whose blocks are alike, broken down by kind of operation.
        name: of the new profile.
        device: what was measured, in words.
        net_power_w: power under load less idle power, where it was measured.

    Raises:
        UserInputError: the network has no exits, is broken down by its layers, or no image reached
            the final head.
    """
    if profile.positions is None:
        raise UserInputError(
            f"{profile.network} has no exits, so its profile predicts nothing; expected a network "
            "with exits"
        )
    if not all(each.name in RUNS_PER for each in profile.operations):
        raise UserInputError(
            f"the profile of {profile.network} is by its layers, which do not tell what an exit "
            "elsewhere would cost; expected one by segments"
        )
    unseen = [each.name for each in profile.operations if each.hits == 0]
    if unseen:
        raise UserInputError(
            f"no image reached {', '.join(unseen)}; expected some, so profile with higher "
            "thresholds: times hold for all of them"
        )
    return DeviceProfile(
        name=name,
        device=device,
        network=profile.network,
        source=f"{profile.images} images by torch's profiler, {profile.threads} threads",
        operations=tuple(
            OperationTime(name=each.name, per=per, ms=each.per_hit_ms)
            for each in profile.operations
            for per in RUNS_PER[each.name]
        ),
        net_power_w=net_power_w,
    )


def _forward(twin: nn.Module, bars: list[float] | None, exits: int) -> Callable[[Tensor], int]:
    """Return what runs one image and says at which exit it left."""
    if bars is not None and isinstance(twin, WithExits):
        return lambda image: twin.forward_early(image, bars)[1]

    def whole(image: Tensor) -> int:
        twin(image)
        return exits

    return whole


def _profile_chunk(
    run: Callable[[Tensor], int], images: Sequence[Tensor], totals: Totals
) -> list[int]:
    """Run images under the profiler, add up their ranges, return where they left."""
    # Without kineto, which follows what runs on devices: our ranges are on the host alone.
    with torch_profile(use_kineto=False) as profiler:
        leaving = [run(image) for image in images]
    for event in profiler.key_averages():
        if event.key.startswith(PREFIX):
            label = event.key.removeprefix(PREFIX)
            hits, spent = totals.get(label, (0, 0.0))
            totals[label] = (hits + event.count, spent + event.cpu_time_total)
    return leaving


def _operations(totals: Totals, labels: Sequence[str]) -> tuple[Operation, ...]:
    """Turn ranges into lines: what a range holds besides others becomes a line of its own."""
    nothing = (0, 0.0)
    images, forward = totals[FORWARD]
    if EMBED in totals:
        hits, spent = totals[EMBED]
        totals[POSITION] = (hits, spent - totals[PATCH][1])
    inside = sum(totals.get(label, nothing)[1] for label in labels)
    between = {DECISION: totals.get(GATE, nothing)[0], DECISIONS: images, REST: images}
    for label in between.keys() & set(labels):
        totals[label] = (between[label], max(0.0, forward - inside))
    lines = ((label, *totals.get(label, nothing)) for label in labels)
    return tuple(Operation(name=n, hits=hits, total_ms=us / 1000) for n, hits, us in lines)


def _chunks(images: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    rest = iter(images)
    while chunk := list(islice(rest, CHUNK)):
        yield chunk


def _checked(image: Tensor, device: torch.device) -> Tensor:
    if image.dim() != 4 or len(image) != 1:
        raise UserInputError(
            f"the profile was given a tensor {tuple(image.shape)}; expected one image (1, C, H, W)"
        )
    return image.to(device)


def _checked_thresholds(
    model: nn.Module, thresholds: float | Sequence[float] | None
) -> list[float] | None:
    has_exits = isinstance(model, WithExits)
    if has_exits != (thresholds is not None):
        have, need = ("exits", "them") if has_exits else ("no exits", "none")
        raise UserInputError(
            f"{type(model).__name__} has {have} and the thresholds {thresholds}; expected {need}"
        )
    if thresholds is None or not isinstance(model, WithExits):
        return None
    return check_thresholds(thresholds, len(model.gates))


def _positions(model: nn.Module) -> tuple[Position, ...] | None:
    if not isinstance(model, WithExits):
        return None
    return (*model.positions, last_position(model.depth))
