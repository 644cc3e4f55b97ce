"""Slim a network in memory: score, choose, cut."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from compress.errors import UnsupportedModelError, UserInputError
from compress.models.channel_kinds import resolve_kinds
from compress.models.channels import Slimmable
from compress.slimming.selection import Selection, check_ratio, select_channels
from compress.slimming.surgery import DeclaredChannels

__all__ = [
    "LayerWidth",
    "SlimOptions",
    "SlimResult",
    "open_channels",
    "select",
    "slim_model",
]

FAR = 0.05  # a gap between asked and true ratio that a user should hear of


@dataclass(frozen=True, kw_only=True)
class SlimOptions:
    """How to slim, apart from how much.

    Attributes:
        round_to: widths become multiples of this (8 suits the tensor cores of every Jetson).
        min_channels: no layer gets narrower.
        ignore: patterns of layers that keep all their channels; each must match one.
        absorb: fold what removed channels were worth into the next layer's bias.
        groups: kinds of channels to remove, such as "hidden" and "frequency" of a GFNet; empty for
            what the network has by default.
    """

    round_to: int = 8
    min_channels: int = 8
    ignore: tuple[str, ...] = ()
    absorb: bool = True
    groups: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LayerWidth:
    """What became of one layer.

    Attributes:
        name: as in the state_dict.
        before: channels it had.
        after: channels it has.
        smallest_kept: smallest score |γ| that stayed; None where nothing was to choose.
        kind: what the channels are.
        unrounded: why its width is no multiple of what was asked for; None where it is.
    """

    name: str
    before: int
    after: int
    smallest_kept: float | None
    kind: str = "channels"
    unrounded: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        return {**asdict(self), "share_kept": self.share_kept}

    @property
    def share_kept(self) -> float:
        """The share of channels that stayed, in (0, 1]."""
        return self.after / self.before


@dataclass(frozen=True, kw_only=True)
class SlimResult:
    """A slim network and how it came to be.

    Attributes:
        model: the slim network.
        selection: what stayed, and why, of all kinds together.
        by_kind: the same for every kind of channels.
        layers: what became of each.
        absorbable: whether any layer can take up what removed channels were worth.
        not_absorbed: layers that could not take up what their removed inputs were worth, or groups
            that no layer can take up anything of.
        kept_whole: layers that could not lose channels, and why.
        notes: what a user should hear of, each a line.
        kept_outputs: by layer that lost outputs, the indices of those that stayed.
    """

    model: nn.Module
    selection: Selection
    layers: tuple[LayerWidth, ...]
    by_kind: Mapping[str, Selection]
    absorbable: bool = True
    not_absorbed: tuple[str, ...] = ()
    kept_whole: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    kept_outputs: Mapping[str, Tensor] = field(default_factory=dict)


class _Channels(Protocol):
    """What slimming needs of a network, ours or not."""

    not_absorbed: tuple[str, ...]
    kept_whole: dict[str, str]

    def scores(self) -> dict[str, Tensor]: ...
    def widths(self) -> dict[str, int]: ...
    def channels_per_decision(self) -> dict[str, int]: ...
    def kept_outputs(self, selection: Selection) -> dict[str, Tensor]: ...
    def skeleton(self, selection: Selection) -> nn.Module: ...
    def slim(self, selection: Selection, *, absorb: bool) -> nn.Module: ...


def slim_model(
    model: nn.Module,
    pruning_ratio: float,
    options: SlimOptions | None = None,
    *,
    example: Tensor | None = None,
) -> SlimResult:
    """Return a copy of `model` without the channels that one global threshold on |γ| rejects.

    Args:
        model: one of `compress.models`, or any network with BatchNorm; left as it is.
        pruning_ratio: share of the prunable channels to remove, in [0, 1).
        options: rounding, floors, exceptions.
        example: images (1, C, H, W); needed for a network that is not of `compress.models`, whose
            layers are traced with it.

    Raises:
        UserInputError: an option is out of range, no layer has a width that satisfies the rounding,
            or the network has no channels of a kind that is asked for.
        UnsupportedModelError: the network has no channels that can be ranked or removed.
    """
    options = options or SlimOptions()
    check_ratio(pruning_ratio)
    channels = open_channels(model, options, example)
    by_kind = select_by_kind(channels, pruning_ratio, options)
    selection = _together(by_kind)
    _check_something_goes(selection)
    before, scores = channels.widths(), channels.scores()
    slim = channels.slim(selection, absorb=options.absorb)
    return SlimResult(
        model=slim,
        selection=selection,
        by_kind=by_kind,
        layers=tuple(
            _layer(name, before[name], selection, scores, _kind(channels, name)) for name in before
        ),
        absorbable=getattr(channels, "absorbable", True),
        not_absorbed=channels.not_absorbed,
        kept_whole=channels.kept_whole,
        notes=tuple(_notes(channels, selection)),
        kept_outputs=channels.kept_outputs(selection),
    )


def open_channels(model: nn.Module, options: SlimOptions, example: Tensor | None) -> _Channels:
    """Find the channels of a network: told by the model itself, or traced."""
    if isinstance(model, Slimmable):
        return DeclaredChannels(model, options.ignore, kinds=options.groups)
    resolve_kinds(model, options.groups)
    from compress.slimming.traced import TracedNetwork

    if example is None:
        raise TypeError("a network that is not of compress.models is traced with an example image")
    return TracedNetwork(model, example, ignore=options.ignore)


def select(channels: _Channels, pruning_ratio: float, options: SlimOptions) -> Selection:
    """Choose the channels that stay."""
    return _together(select_by_kind(channels, pruning_ratio, options))


def select_by_kind(
    channels: _Channels, pruning_ratio: float, options: SlimOptions
) -> dict[str, Selection]:
    """Choose the channels that stay, those of every kind by a threshold of their own.

    Scores of different kinds cannot be compared: a hidden unit's is a factor of an activation, a
    frequency's is a factor of a spectrum.
    """
    scores: dict[str, dict[str, Tensor]] = {}
    for name, score in channels.scores().items():
        scores.setdefault(_kind(channels, name), {})[name] = score
    if not scores:
        raise UnsupportedModelError(_why_nothing_goes(channels.kept_whole))
    return {
        kind: select_channels(
            ranked_together,
            pruning_ratio,
            round_to=options.round_to,
            min_channels=options.min_channels,
            channels_per_decision=channels.channels_per_decision(),
        )
        for kind, ranked_together in scores.items()
    }


def _together(by_kind: Mapping[str, Selection]) -> Selection:
    """Return one selection for all; its threshold is NaN where no one threshold made it."""
    selections = list(by_kind.values())
    if len(selections) == 1:
        return selections[0]
    return Selection(
        pruning_ratio=selections[0].pruning_ratio,
        threshold=math.nan,
        kept={name: kept for one in selections for name, kept in one.kept.items()},
        totals={name: total for one in selections for name, total in one.totals.items()},
        unrounded={name: why for one in selections for name, why in one.unrounded.items()},
    )


def _kind(channels: _Channels, name: str) -> str:
    kinds: Mapping[str, str] = getattr(channels, "kinds", {})
    return kinds.get(name, "channels")


def _check_something_goes(selection: Selection) -> None:
    if selection.unrounded and selection.true_pruned_ratio == 0:
        name, why = next(iter(selection.unrounded.items()))
        raise UserInputError(
            f"nothing would go: {len(selection.unrounded)} of {len(selection.kept)} layers keep "
            f"all their channels for rounding, such as {name} ({why}), and no other loses any; "
            "lower --round-to or --min-channels"
        )


def _why_nothing_goes(kept_whole: Mapping[str, str]) -> str:
    if not kept_whole:
        return (
            "no channel can be removed: the network has no BatchNorm with γ; expected one behind "
            "the convolutions that are to lose channels"
        )
    if set(kept_whole.values()) == {"--ignore says so"}:
        return "no channel can be removed: --ignore matches all layers that could lose some"
    counts = Counter(kept_whole.values()).most_common(4)
    reasons = "; ".join(f"{count} because {why}" for why, count in counts)
    return (
        f"no channel can be removed: all {len(kept_whole)} groups of channels with γ stay whole, "
        f"{reasons}"
    )


def _notes(channels: _Channels, selection: Selection) -> Iterator[str]:
    asked, true = selection.pruning_ratio, selection.true_pruned_ratio
    if asked - true > FAR:
        yield (
            f"asked to remove {asked:.3g} of the channels, removed {true:.3g}: widths are rounded "
            f"and have a floor, and {len(selection.unrounded)} of {len(selection.kept)} layers do "
            "not fit; lower --round-to or --min-channels to come closer"
        )
    unseen: tuple[str, ...] = getattr(channels, "unseen", ())
    if unseen:
        more = f" and {len(unseen) - 3} more" if len(unseen) > 3 else ""
        yield f"did not run on the image, so their widths stay: {', '.join(unseen[:3])}{more}"


def _layer(
    name: str, before: int, selection: Selection, scores: Mapping[str, Tensor], kind: str
) -> LayerWidth:
    if name not in selection.kept:
        return LayerWidth(name=name, before=before, after=before, smallest_kept=None, kind=kind)
    kept = selection.kept[name]
    smallest = scores[name].abs()[kept].min().item()
    return LayerWidth(
        name=name,
        before=before,
        after=len(kept),
        smallest_kept=smallest,
        kind=kind,
        unrounded=selection.unrounded.get(name),
    )
