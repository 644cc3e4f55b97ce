"""Which channels of a network can only go together.

A residual sum, a depthwise convolution or a concatenation ties channels of several layers: removing
one means removing its counterparts. A decision is one such set of channels. It is found by walking
over torch-pruning's graph channel by channel and merging what an edge connects (union-find), so
that slices, concatenations and grouped convolutions need no rule of their own downstream.

In a grouped convolution the same places must go from every group: it reads and gives blocks of
equal length, and torch keeps them equal only if each loses the same number; the same places keep
the weights rectangular as well.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from compress.slimming.traced_graph import ChannelGraph, Space, mapped_channels

__all__ = ["CoupledChannels", "Cut", "coupled_channels"]

Place = tuple[str, str]  # (layer, side)


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
    """

    name: str
    cuts: tuple[Cut, ...]
    channels_per_decision: int
    kept_whole: str | None = None

    @property
    def decisions(self) -> int:
        """How many decisions there are."""
        return len(self.cuts[0].indices)

    @property
    def owners(self) -> set[str]:
        """The layers whose own channels these are, not those that only read them."""
        return {cut.layer for cut in self.cuts if cut.side == "out"}


def coupled_channels(graph: ChannelGraph) -> list[CoupledChannels]:
    """Return all channels of a network that a BatchNorm with γ scores, in the order of its layers."""
    classes = _merge(graph)
    reasons = _why_whole(graph, classes)
    order = {name: i for i, name in enumerate(graph.layers)}
    groups: dict[tuple[object, ...], list[tuple[Place, dict[Place, list[int]]]]] = defaultdict(list)
    for root, places in _places(graph, classes).items():
        scored = [p for p in places if p[1] == "out" and _has_gamma(graph.layers[p[0]].module)]
        if not scored:
            continue
        first = min(scored, key=lambda place: order[place[0]])
        counts = sorted((place, len(indices)) for place, indices in places.items())
        groups[first, reasons.get(root), *counts].append((first, places))
    found = [_group(decisions, key[1]) for key, decisions in groups.items()]  # type: ignore[arg-type]
    found.sort(key=lambda pair: (order[pair[1].name], pair[0]))
    return _unique_names(found)


class _Classes:
    """Sets of channels that go together: union-find over (space, channel)."""

    def __init__(self) -> None:
        self.spaces: dict[Space, dict[int, int]] = defaultdict(dict)
        self._parents: list[int] = []

    def add(self, space: Space, channels: Iterable[int]) -> list[int]:
        """Note channels; return those that were not known yet."""
        known = self.spaces[space]
        new = [channel for channel in channels if channel not in known]
        for channel in new:
            known[channel] = len(self._parents)
            self._parents.append(len(self._parents))
        return new

    def root(self, space: Space, channel: int) -> int:
        """Return what stands for the set of a channel."""
        element, parents = self.spaces[space][channel], self._parents
        while parents[element] != element:
            parents[element] = element = parents[parents[element]]
        return element

    def merge(self, one: tuple[Space, int], other: tuple[Space, int]) -> None:
        """Let two channels go together."""
        self._parents[self.root(*other)] = self.root(*one)


def _merge(graph: ChannelGraph) -> _Classes:
    classes = _Classes()
    pending: list[tuple[Space, list[int]]] = []
    for space in graph.layer_spaces():
        pending.append((space, classes.add(space, range(graph.width(space) or 0))))
        while pending:
            here, channels = pending.pop()
            for edge in here.node.dependencies:
                if _side(edge.trigger) != here.side:
                    continue
                there = Space(edge.target, _side(edge.handler))
                pairs = mapped_channels(edge, channels)
                new = classes.add(there, (channel for _, channel in pairs))
                for channel_here, channel_there in pairs:
                    classes.merge((here, channel_here), (there, channel_there))
                if new:
                    pending.append((there, new))
    for node in graph.layers.values():
        if graph.is_type(node, "CONV") and node.module.groups > 1:
            _tie_groups(graph, classes, node)
    return classes


def _side(prune: object) -> str:
    # torch-pruning gives layers with one space the same function under both names.
    return "in" if prune.__name__ == "prune_in_channels" else "out"  # type: ignore[attr-defined]


def _tie_groups(graph: ChannelGraph, classes: _Classes, node: object) -> None:
    for space in (Space(node, "in"), Space(node, "out")):
        places = (graph.width(space) or 0) // space.node.module.groups
        for channel in range(places, graph.width(space) or 0):
            classes.merge((space, channel % places), (space, channel))


def _why_whole(graph: ChannelGraph, classes: _Classes) -> dict[int, str]:
    """Say for sets of channels, by root, why they must stay."""
    reasons: dict[int, str] = {}
    for space, channels in list(classes.spaces.items()):
        why = graph.why_whole(space.node)
        width = graph.width(space)
        if why is None and width is not None and max(channels, default=0) >= width:
            # A broadcast or a reshape that the graph does not understand.
            why = f"a layer of {width} channels is tied to channel {max(channels)} of another"
        elif why is not None and space.node not in graph.layers.values():
            # A slice hands on few channels, but counts positions among all that it is given.
            for giver in space.node.inputs:
                _stay(classes, Space(giver, "out"), why, reasons)
        if why is not None:
            _stay(classes, space, why, reasons)
    return reasons


def _stay(classes: _Classes, space: Space, why: str, reasons: dict[int, str]) -> None:
    for channel in classes.spaces.get(space, {}):
        reasons.setdefault(classes.root(space, channel), why)


def _places(graph: ChannelGraph, classes: _Classes) -> dict[int, dict[Place, list[int]]]:
    """Return, per set of channels, where it lies: channels by layer and side."""
    places: dict[int, dict[Place, list[int]]] = defaultdict(lambda: defaultdict(list))
    for name, node in graph.layers.items():
        for side in ("out", "in"):
            space = Space(node, side)
            width = graph.width(space) if space in classes.spaces else None
            for channel in range(width or 0):
                places[classes.root(space, channel)][name, side].append(channel)
    return places


def _has_gamma(layer: nn.Module) -> bool:
    return isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.weight is not None


def _group(
    decisions: list[tuple[Place, dict[Place, list[int]]]], kept_whole: str | None
) -> tuple[int, CoupledChannels]:
    """Return the first channel of the group in the BatchNorm that names it, and the group."""
    first = decisions[0][0]
    ordered = sorted((places for _, places in decisions), key=lambda places: places[first])
    cuts = tuple(
        Cut(layer=layer, side=side, indices=torch.tensor([p[layer, side] for p in ordered]))
        for layer, side in ordered[0]
    )
    if kept_whole is None and len(ordered) == 1:
        kept_whole = "they can only go all together"
    per_decision = math.gcd(*(cut.indices.shape[1] for cut in cuts if cut.side == "out"))
    group = CoupledChannels(
        name=first[0], cuts=cuts, channels_per_decision=per_decision, kept_whole=kept_whole
    )
    return ordered[0][first][0], group


def _unique_names(found: list[tuple[int, CoupledChannels]]) -> list[CoupledChannels]:
    shared = Counter(group.name for _, group in found)
    return [
        group if shared[group.name] == 1 else replace(group, name=_part_name(group, start))
        for start, group in found
    ]


def _part_name(group: CoupledChannels, start: int) -> str:
    channels = next(cut for cut in group.cuts if (cut.layer, cut.side) == (group.name, "out"))
    return f"{group.name}[{start}:{int(channels.indices.max()) + 1}]"
