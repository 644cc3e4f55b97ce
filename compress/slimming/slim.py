"""Slim a network in memory: score, choose, cut."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from compress.models.channels import Slimmable
from compress.slimming.selection import Selection, check_ratio, select_channels
from compress.slimming.surgery import DeclaredChannels

__all__ = ["LayerWidth", "SlimOptions", "SlimResult", "relative_error", "slim_model"]


@dataclass(frozen=True, kw_only=True)
class SlimOptions:
    """How to slim, apart from how much.

    Attributes:
        round_to: widths become multiples of this (8 suits the tensor cores of every Jetson).
        min_channels: no layer gets narrower.
        ignore: patterns of layers that keep all their channels; each must match one.
        absorb: fold what removed channels were worth into the next layer's bias.
    """

    round_to: int = 8
    min_channels: int = 8
    ignore: tuple[str, ...] = ()
    absorb: bool = True


@dataclass(frozen=True, kw_only=True)
class LayerWidth:
    """What became of one layer.

    Attributes:
        name: as in the state_dict.
        before: channels it had.
        after: channels it has.
        smallest_kept: smallest score |γ| that stayed; None where nothing was to choose.
    """

    name: str
    before: int
    after: int
    smallest_kept: float | None

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
        selection: what stayed, and why.
        layers: what became of each.
        not_absorbed: layers that could not take up what their removed inputs were worth.
        kept_whole: layers that could not lose channels, and why.
    """

    model: nn.Module
    selection: Selection
    layers: tuple[LayerWidth, ...]
    not_absorbed: tuple[str, ...] = ()
    kept_whole: Mapping[str, str] = field(default_factory=dict)


class _Channels(Protocol):
    """What slimming needs of a network, ours or not."""

    not_absorbed: tuple[str, ...]
    kept_whole: dict[str, str]

    def scores(self) -> dict[str, Tensor]: ...
    def widths(self) -> dict[str, int]: ...
    def channels_per_decision(self) -> dict[str, int]: ...
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
        UserInputError: an option is out of range, or no width satisfies the rounding.
        UnsupportedModelError: the network has no channels that can be ranked or removed.
    """
    options = options or SlimOptions()
    check_ratio(pruning_ratio)
    channels = open_channels(model, options, example)
    selection = select(channels, pruning_ratio, options)
    before, scores = channels.widths(), channels.scores()
    slim = channels.slim(selection, absorb=options.absorb)
    return SlimResult(
        model=slim,
        selection=selection,
        layers=tuple(_layer(name, before[name], selection, scores) for name in before),
        not_absorbed=channels.not_absorbed,
        kept_whole=channels.kept_whole,
    )


def open_channels(model: nn.Module, options: SlimOptions, example: Tensor | None) -> _Channels:
    """Find the channels of a network: told by the model itself, or traced."""
    if isinstance(model, Slimmable):
        return DeclaredChannels(model, options.ignore)
    from compress.slimming.traced import TracedNetwork

    if example is None:
        raise TypeError("a network that is not of compress.models is traced with an example image")
    return TracedNetwork(model, example, ignore=options.ignore)


def select(channels: _Channels, pruning_ratio: float, options: SlimOptions) -> Selection:
    """Choose the channels that stay."""
    return select_channels(
        channels.scores(),
        pruning_ratio,
        round_to=options.round_to,
        min_channels=options.min_channels,
        channels_per_decision=channels.channels_per_decision(),
    )


@torch.inference_mode()
def relative_error(model: nn.Module, reference: nn.Module, images: Tensor) -> float:
    """Return the norm of the difference of two networks' outputs over that of the reference."""
    wanted = reference(images)
    return ((model(images) - wanted).norm() / wanted.norm().clamp_min(1e-30)).item()


def _layer(name: str, before: int, selection: Selection, scores: dict[str, Tensor]) -> LayerWidth:
    if name not in selection.kept:
        return LayerWidth(name=name, before=before, after=before, smallest_kept=None)
    kept = selection.kept[name]
    smallest = scores[name].abs()[kept].min().item()
    return LayerWidth(name=name, before=before, after=len(kept), smallest_kept=smallest)
