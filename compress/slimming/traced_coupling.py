"""Which channels of a network can only go together.

A residual sum, a depthwise convolution or a concatenation ties channels of several layers: removing
one means removing its counterparts. A decision is one such set of channels; decisions that concern
the same layers in the same way form a group.

In a grouped convolution the same places must go from every group: it reads and gives blocks of
equal length, and torch keeps them equal only if each loses the same number; the same places keep
the weights rectangular as well.
"""

import math
from collections import Counter, defaultdict
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from compress.slimming.traced_graph import ChannelGraph
from compress.slimming.traced_layers import has_gamma

__all__ = ["CoupledChannels", "Cut", "coupled_channels"]

_Place = tuple[str, str]  # (layer, side)
_Places = dict[_Place, list[int]]  # the channels of one decision


@dataclass(frozen=True, kw_only=True, eq=False)
class Cut:
    """The part of a layer that decisions take away.

    Attributes:
        layer: its name in the network.
        side: "out" for the channels that it gives (a BatchNorm's too), "in" for those it reads.
        indices: (decisions, n) channels of this layer, n for each decision.
    """

    layer: str
    side: str
    indices: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class CoupledChannels:
    """Decisions that concern the same layers in the same way.

    Attributes:
        name: of the first BatchNorm among the layers; "norm[8:16]" where it holds only a part of
            that one's channels and another group holds the rest.
        cuts: what goes with each decision.
        channels_per_decision: how many channels of a layer go with one decision: the number of
            groups where a grouped convolution is among the layers, mostly 1.
        kept_whole: why no channel can go, or None.
        suspect: the module that picks these channels by position, or None: it may have their number
            written down.
    """

    name: str
    cuts: tuple[Cut, ...]
    channels_per_decision: int
    kept_whole: str | None = None
    suspect: str | None = None

    @property
    def decisions(self) -> int:
        """How many decisions there are."""
        return len(self.cuts[0].indices)

    @property
    def start(self) -> int:
        """The first of these channels in the BatchNorm that names them."""
        return int(self._of_name.min())

    @property
    def stop(self) -> int:
        """One behind the last of these channels in the BatchNorm that names them."""
        return int(self._of_name.max()) + 1

    @property
    def _of_name(self) -> Tensor:
        name = self.name.partition("[")[0]
        return next(c.indices for c in self.cuts if (c.layer, c.side) == (name, "out"))

    @property
    def owners(self) -> set[str]:
        """The layers whose own channels these are, not those that only read them."""
        return {cut.layer for cut in self.cuts if cut.side == "out"}


def coupled_channels(graph: ChannelGraph) -> list[CoupledChannels]:
    """Return all channels of a network that a BatchNorm with γ scores, in the network's order."""
    order = {name: i for i, name in enumerate(graph.layers)}
    alike: dict[tuple[object, ...], list[_Places]] = defaultdict(list)
    suspects: dict[tuple[object, ...], str | None] = {}
    for root, places in _places(graph).items():
        scored = [p for p in places if p[1] == "out" and has_gamma(graph.layers[p[0]])]
        if scored:
            first = min(scored, key=lambda place: order[place[0]])
            counts = sorted((place, len(channels)) for place, channels in places.items())
            why = graph.reasons.get(root)
            key = (first, why) if why else (first, why, *counts)
            alike[key].append(places)
            suspects[key] = suspects.get(key) or graph.suspects.get(root)
    groups = [
        _whole(key[0], key[1], decisions)  # type: ignore[arg-type]
        if key[1]
        else replace(_group(key[0], decisions), suspect=suspects[key])  # type: ignore[arg-type]
        for key, decisions in alike.items()
    ]
    groups.sort(key=lambda group: (order[group.name], group.start))
    return _unique_names(groups)


def _places(graph: ChannelGraph) -> dict[int, _Places]:
    """Return, per set of channels, where it lies: channels by layer and side."""
    places: dict[int, _Places] = defaultdict(lambda: defaultdict(list))
    for name in graph.layers:
        for side in ("out", "in"):
            for channel, root in enumerate(graph.classes.get((name, side), ())):
                places[root][name, side].append(channel)
    return places


def _group(first: _Place, decisions: list[_Places]) -> CoupledChannels:
    if len(decisions) == 1:
        return _whole(first, "they can only go all together", decisions)
    decisions = sorted(decisions, key=lambda places: places[first])
    cuts = tuple(
        Cut(layer=layer, side=side, indices=torch.tensor([p[layer, side] for p in decisions]))
        for layer, side in decisions[0]
    )
    per_decision = math.gcd(*(cut.indices.shape[1] for cut in cuts if cut.side == "out"))
    return CoupledChannels(name=first[0], cuts=cuts, channels_per_decision=per_decision)


def _whole(first: _Place, why: str, decisions: list[_Places]) -> CoupledChannels:
    """Return channels that stay, told by the BatchNorm that names them."""
    channels = sorted(channel for places in decisions for channel in places[first])
    cut = Cut(layer=first[0], side="out", indices=torch.tensor(channels)[:, None])
    return CoupledChannels(name=first[0], cuts=(cut,), channels_per_decision=1, kept_whole=why)


def _unique_names(groups: list[CoupledChannels]) -> list[CoupledChannels]:
    shared = Counter(group.name for group in groups)
    return [
        replace(group, name=f"{group.name}[{group.start}:{group.stop}]")
        if shared[group.name] > 1
        else group
        for group in groups
    ]
