"""How a channel is chosen: one global threshold on |γ|, then whole multiples per layer.

Network slimming (Liu et al., "Learning Efficient Convolutional Networks through Network Slimming",
arXiv 1708.06519) ranks the channels of all layers together by the BatchNorm scale γ:

1. threshold = sorted |γ| of all prunable channels, at index int(total * pruning_ratio);
2. channels with |γ| above the threshold survive;
3. each layer's count is rounded up to a multiple of `round_to`, at least `min_channels`, and the
   places that rounding opened go to the layer's next largest |γ|; a layer that no such multiple
   fits into keeps all its channels.

Worked example, two layers, pruning_ratio 0.5, round_to 2, min_channels 2:

    |γ| of a: 0.9 0.1 0.5 0.2     |γ| of b: 0.3 0.8 0.7 0.05
    sorted: 0.05 0.1 0.2 0.3 [0.5] 0.7 0.8 0.9     index int(8 * 0.5) = 4, threshold 0.5
    a: 0.9 survives (1), rounded up to 2: 0.5 joins     kept channels 0, 2
    b: 0.8 and 0.7 survive (2)                          kept channels 1, 2
    true pruned ratio 1 - 4/8 = 0.5

Equal values at the threshold go together: the rule keeps what is strictly above it. A ratio of 0
removes nothing.
int(total * pruning_ratio) is computed in floating point as written, so 0.29 of 100 is index 28.
Channels that can only go together (the same place in every group of a grouped convolution) are
neighbours with one score, and a layer's count is then a multiple of their number too; of their
number alone where both together leave no choice.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from compress.errors import UnsupportedModelError, UserInputError

__all__ = ["Selection", "check_finite", "check_ratio", "global_threshold", "select_channels"]


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which channels stay.

    Attributes:
        pruning_ratio: share of channels that was asked to go, in [0, 1).
        threshold: the global threshold on |γ|.
        kept: per group the indices of the channels that stay, ascending, int64.
        totals: per group the channels that it had.
        unrounded: per group that rounding does not fit, what was done instead.
    """

    pruning_ratio: float
    threshold: float
    kept: dict[str, Tensor]
    totals: dict[str, int]
    unrounded: Mapping[str, str] = field(default_factory=dict)

    @property
    def widths(self) -> dict[str, int]:
        """Channels that stay, per group."""
        return {name: len(indices) for name, indices in self.kept.items()}

    @property
    def true_pruned_ratio(self) -> float:
        """Share of all prunable channels that really go, after rounding."""
        return 1 - sum(self.widths.values()) / sum(self.totals.values())

    def removed(self, name: str) -> Tensor:
        """Indices of the channels of one group that go, ascending, int64."""
        goes = torch.ones(self.totals[name], dtype=torch.bool)
        goes[self.kept[name]] = False
        return goes.nonzero().flatten()


def select_channels(
    scores: Mapping[str, Tensor],
    pruning_ratio: float,
    *,
    round_to: int = 8,
    min_channels: int = 8,
    channels_per_decision: Mapping[str, int] | None = None,
) -> Selection:
    """Choose the channels that stay.

    Args:
        scores: per group one score a channel, (C,), as |γ|.
        pruning_ratio: share of all channels to remove, in [0, 1).
        round_to: every narrowed layer gets a multiple of this, at least 1.
        min_channels: no layer gets narrower than this, at least 1.
        channels_per_decision: how many neighbouring channels of a group, equal in score, only go
            together: of 2, channels 0 and 1, then 2 and 3, …; 1 where a group is not named.

    Raises:
        UserInputError: an argument is out of range.
        UnsupportedModelError: a score is not finite, or all scores are equal.
    """
    check_ratio(pruning_ratio)
    if round_to < 1 or min_channels < 1:
        raise UserInputError(
            f"--round-to is {round_to} and --min-channels is {min_channels}; expected at least 1"
        )
    scores = {name: score.detach().abs().float().cpu() for name, score in scores.items()}
    _check_scores(scores)
    threshold = global_threshold(scores, pruning_ratio)
    bar = threshold if pruning_ratio > 0 else -math.inf
    together = channels_per_decision or {}
    kept, unrounded = {}, {}
    for name, score in scores.items():
        survivors = int((score > bar).sum())
        step = together.get(name, 1)
        width, why = _width(survivors, len(score), step, round_to, min_channels)
        # A stable sort gives equal scores to the lower index, so the choice is the same everywhere.
        largest = score.sort(descending=True, stable=True).indices[:width]
        kept[name] = largest.sort().values
        if why:
            unrounded[name] = why
    return Selection(
        pruning_ratio=pruning_ratio,
        threshold=threshold,
        kept=kept,
        totals={name: len(score) for name, score in scores.items()},
        unrounded=unrounded,
    )


def global_threshold(scores: Mapping[str, Tensor], pruning_ratio: float) -> float:
    """Return the sorted scores of all groups together at index int(total * pruning_ratio)."""
    everything = torch.cat([score.flatten() for score in scores.values()]).sort().values
    return everything[int(len(everything) * pruning_ratio)].item()


def check_ratio(pruning_ratio: float) -> None:
    """Raise UserInputError unless 0 <= pruning_ratio < 1."""
    if not 0 <= pruning_ratio < 1:  # NaN fails this too
        meant = f"; did you mean {pruning_ratio / 100:g}?" if 1 < pruning_ratio < 100 else ""
        raise UserInputError(
            f"--ratio is {pruning_ratio}; expected 0 <= ratio < 1, the share of channels to "
            f"remove{meant}"
        )


def check_finite(scores: Mapping[str, Tensor]) -> None:
    """Raise UnsupportedModelError when a score is NaN or infinite, naming its layer."""
    for name, score in scores.items():
        bad = int((~torch.isfinite(score)).sum())
        if bad:
            raise UnsupportedModelError(
                f"{name}: {bad} of {len(score)} γ are NaN or infinite; the training diverged, so "
                "take an earlier checkpoint"
            )


def _width(
    survivors: int, total: int, step: int, round_to: int, min_channels: int
) -> tuple[int, str | None]:
    """Return how many channels of a group stay, and what stood against rounding, if anything.

    >>> _width(11, 12, 1, 8, 8)  # 16 would be asked for
    (12, 'no multiple of 8 from 11 to 12')
    >>> _width(30, 110, 55, 8, 8)  # 440 is the smallest multiple of both
    (55, 'in steps of 55, its groups; a multiple of 8 as well would be 440')
    """
    if survivors == total:
        return total, None  # nothing goes, so there is nothing to round
    wanted, both = max(survivors, min_channels), math.lcm(round_to, step)
    if step > 1 and both >= total > step:
        width = min(step * math.ceil(wanted / step), total)
        return (
            width,
            f"in steps of {step}, its groups; a multiple of {round_to} as well would be {both}",
        )
    width = both * math.ceil(wanted / both)
    if width > total:
        return total, f"no multiple of {both} from {wanted} to {total}"
    return width, None


def _check_scores(scores: Mapping[str, Tensor]) -> None:
    if not scores:
        raise UnsupportedModelError(
            "no channel can be removed: the network has no BatchNorm whose channels may go, or "
            "--ignore matches all of them"
        )
    check_finite(scores)
    low = min(score.min().item() for score in scores.values())
    high = max(score.max().item() for score in scores.values())
    if low == high:
        raise UnsupportedModelError(
            f"all |γ| are {high:.4g}, so channels cannot be ranked; expected a trained network, "
            "best with --sparsity-lambda (python -m compress.finetune)"
        )
