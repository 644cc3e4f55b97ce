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
    classes = _merge(graph)
    reasons = _why_whole(graph, classes)
    order = {name: i for i, name in enumerate(graph.layers)}
    alike: dict[tuple[object, ...], list[_Places]] = defaultdict(list)
    for root, places in _places(graph, classes).items():
        scored = [p for p in places if p[1] == "out" and _has_gamma(graph.layers[p[0]].module)]
        if scored:
            first = min(scored, key=lambda place: order[place[0]])
            counts = sorted((place, len(channels)) for place, channels in places.items())
            why = reasons.get(root)
            alike[(first, why) if why else (first, why, *counts)].append(places)
    groups = [
        _whole(key[0], key[1], decisions) if key[1] else _group(key[0], decisions)  # type: ignore[arg-type]
        for key, decisions in alike.items()
    ]
    groups.sort(key=lambda group: (order[group.name], group.start))
    return _unique_names(groups)


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
                if _side(edge.trigger) != here.side or not graph.carries_channels(edge.target):
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
    spaces = list(classes.spaces.items())
    for space, _ in spaces:
        why = graph.why_whole(space.node)
        if why is None:
            continue
        _stay(classes, space, why, reasons)
        if space.node not in graph.layers.values():
            # A slice hands on few channels, but counts positions among all that it is given.
            for giver in space.node.inputs:
                _stay(classes, Space(giver, "out"), why, reasons)
    for space, channels in spaces:
        width, last = graph.width(space), max(channels, default=0)
        if width is not None and last >= width:  # a broadcast, or a view that tracing misreads
            why = f"a layer of {width} channels is tied to channel {last} of another"
            _stay(classes, space, why, reasons)
    return reasons


def _stay(classes: _Classes, space: Space, why: str, reasons: dict[int, str]) -> None:
    for channel in classes.spaces.get(space, {}):
        reasons.setdefault(classes.root(space, channel), why)


def _places(graph: ChannelGraph, classes: _Classes) -> dict[int, _Places]:
    """Return, per set of channels, where it lies: channels by layer and side."""
    places: dict[int, _Places] = defaultdict(lambda: defaultdict(list))
    for name, node in graph.layers.items():
        for side in ("out", "in"):
            space = Space(node, side)
            width = graph.width(space) if space in classes.spaces else None
            for channel in range(width or 0):
                places[classes.root(space, channel)][name, side].append(channel)
    return places


def _has_gamma(layer: nn.Module) -> bool:
    return isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.weight is not None


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
