"""Find the pruning ratio for a wanted size or speed.

Widths never grow when the ratio does, so neither do MACs and parameters, and bisection finds the
smallest ratio that reaches the target. Ratios are searched on a grid, so that the one found can be
typed: `--ratio 0.413` gives the same network again.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from compress.errors import UserInputError
from compress.measure.macs import count_macs, count_params
from compress.models.channel_kinds import counted_form, resolve_kinds
from compress.slimming.slim import SlimOptions, open_channels, select

__all__ = ["TargetReached", "counted_share", "find_ratio", "image_shape"]


@dataclass(frozen=True, kw_only=True)
class TargetReached:
    """What a search found.

    Attributes:
        kind: "macs", "params" or "latency".
        wanted: share of the unpruned network's cost that was asked for, in (0, 1).
        reached: share that the found ratio gives, at most `wanted`.
        pruning_ratio: the smallest ratio of the grid that reaches it.
    """

    kind: str
    wanted: float
    reached: float
    pruning_ratio: float


def find_ratio(
    kind: str, wanted: float, share_at: Callable[[float], float], *, steps: int = 1000
) -> TargetReached:
    """Bisect the grid 0, 1/steps, … for the smallest ratio with share_at(ratio) <= wanted.

    Args:
        kind: what is measured, for the messages.
        wanted: in (0, 1).
        share_at: share of the unpruned cost that is left at a ratio; must not grow with it.
        steps: 1000 for counted costs; fewer for measured ones, whose noise makes more senseless.

    Raises:
        UserInputError: `wanted` is out of range, or not reached even at the last ratio.
    """
    if not 0 < wanted < 1:
        raise UserInputError(
            f"--target-{kind} is {wanted}; expected 0 < target < 1, the share that may be left"
        )
    low, high = 0, steps - 1  # share_at(high) reaches the target, share_at(low) may not
    reached = share_at(high / steps)
    if reached > wanted:
        raise UserInputError(
            f"--target-{kind} {wanted} is out of reach: the narrowest network still has "
            f"{reached:.3f} of the {kind}; ask for more, or lower --min-channels and --round-to"
        )
    while low < high:
        middle = (low + high) // 2
        share = share_at(middle / steps)
        if share <= wanted:
            high, reached = middle, share
        else:
            low = middle + 1
    return TargetReached(kind=kind, wanted=wanted, reached=reached, pruning_ratio=high / steps)


def counted_share(
    kind: str, model: nn.Module, options: SlimOptions, example: Tensor
) -> Callable[[float], float]:
    """Return a function of the ratio: share of the MACs or parameters that is left."""
    shape = image_shape(example)
    kinds = resolve_kinds(model, options.groups)

    def count(network: nn.Module) -> int:
        form = counted_form(network, kinds)
        return count_params(form) if kind == "params" else count_macs(form, shape)

    whole = count(model)
    channels = open_channels(model, options, example)
    return lambda ratio: count(channels.skeleton(select(channels, ratio, options))) / whole


def image_shape(images: Tensor) -> tuple[int, int, int]:
    """Return (C, H, W) of images (N, C, H, W)."""
    _, channels, height, width = images.shape
    return channels, height, width
