"""Slim a network that is not ours: any with BatchNorm that runs on an image.

A decision is one channel of a set of coupled layers (`traced_coupling`): the layers of a residual
stage, or a convolution, its depthwise successor and their BatchNorms. Coupled layers share the
decision, and its score is the largest |γ| among them. Channels that cannot go one by one (those of
the output, those behind an operation that mixes channels, those that a layer reads where no γ
scales them) do not enter the percentile, or they would swallow a quota that they cannot fill.

What can go is tried before anything is ranked: the network runs without some channels of every
group, and a group that it cannot run without, because its code has a width written down, stays.

Read on: `traced_graph` runs the network and finds what reads what, `traced_coupling` finds the
decisions, `traced_absorb` folds constants, `traced_surgery` cuts and proves the cut.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from compress.errors import UnsupportedModelError
from compress.models.rebuild import at_own_widths
from compress.slimming.patterns import matching
from compress.slimming.selection import Selection
from compress.slimming.traced_absorb import absorb_
from compress.slimming.traced_coupling import CoupledChannels, coupled_channels
from compress.slimming.traced_graph import trace
from compress.slimming.traced_surgery import InexactCutError, check_cut, cut_

__all__ = ["TracedNetwork"]


class TracedNetwork:
    """The coupled channels of any network: their scores, and the network without some of them.

    Args:
        model: left as it is, and expected to stay as it is while this object is used.
        example: image (1, C, H, W) of a size that the network accepts; its values do not matter.
        ignore: patterns of layers that keep all their channels, and with them the layers that are
            coupled to them.

    Attributes:
        groups: all coupled channels that a γ scores, by name, in the order of the network.
        kept_whole: why groups of channels stay as they are, by group.
        not_absorbed: layers that could not take up what their removed inputs were worth, after
            `slim(…, absorb=True)`.
        unseen: layers that did not run, neither as in use nor as in training; they keep their
            widths on both sides.

    Raises:
        UnsupportedModelError: the network does not run on the image, or its outputs are not finite.
        UserInputError: a pattern matches no layer.
    """

    def __init__(self, model: nn.Module, example: Tensor, ignore: Sequence[str] = ()) -> None:
        self._model = model
        graph = trace(model, example)
        left_out = matching(graph.layers, ignore)
        self._readers = graph.readers
        self._runs_in_training = graph.in_training
        self._images = _noise(example.shape)
        self.unseen = graph.unseen
        self.groups: dict[str, CoupledChannels] = {g.name: g for g in coupled_channels(graph)}
        self.kept_whole = {
            name: group.kept_whole or "--ignore says so"
            for name, group in self.groups.items()
            if group.kept_whole or group.owners & left_out
        }
        self.kept_whole |= self._written_down()
        self.not_absorbed: tuple[str, ...] = ()

    def scores(self) -> dict[str, Tensor]:
        """Return |γ| (C,) of every group that may shrink, in the order of the network.

        Where n channels go with one decision they are neighbours here and have its score.
        """
        layers = dict(self._model.named_modules())
        return {
            name: _scores(group, layers).repeat_interleave(group.channels_per_decision)
            for name, group in self.groups.items()
            if name not in self.kept_whole
        }

    def channels_per_decision(self) -> dict[str, int]:
        """Return how many channels of every group go with one decision."""
        return {name: group.channels_per_decision for name, group in self.groups.items()}

    def widths(self) -> dict[str, int]:
        """Return the channels of every group, those kept whole included."""
        return {
            name: group.decisions * group.channels_per_decision
            for name, group in self.groups.items()
        }

    def kept_outputs(self, selection: Selection) -> dict[str, Tensor]:
        """Return, by layer that loses outputs, the indices of those that stay, ascending."""
        layers = dict(self._model.named_modules())
        kept = {}
        for (name, side), channels in self._removed(selection).items():
            if side == "out" and isinstance(layers[name], nn.Linear | nn.modules.conv._ConvNd):
                # What a transposed convolution gives lies in dimension 1 of its weight.
                transposed = getattr(layers[name], "transposed", False)
                stays = torch.ones(layers[name].weight.shape[int(transposed)], dtype=torch.bool)
                stays[channels] = False
                kept[name] = stays.nonzero().flatten()
        return kept

    def skeleton(self, selection: Selection) -> nn.Module:
        """Return the slim network without its tensors, on the meta device: enough to count."""
        tensors = (*self._model.parameters(), *self._model.buffers())
        # deepcopy takes what the memo names instead of copying it.
        slim = copy.deepcopy(self._model, {id(tensor): _on_meta(tensor) for tensor in tensors})
        cut_(slim, self._removed(selection))
        return slim.eval()

    def slim(self, selection: Selection, *, absorb: bool = True) -> nn.Module:
        """Return a copy of the network without the removed channels, in eval mode.

        Args:
            selection: what stays, per group.
            absorb: fold what the removed channels were worth into the layers that read them.

        Raises:
            UnsupportedModelError: the surgery changed more than it should; the message names the
                channels and the way out.
        """
        removed = self._removed(selection)
        try:
            self._check(removed)
        except InexactCutError as err:
            raise UnsupportedModelError(
                f"removing the chosen channels does more than take them away: {err}; leave layers "
                "out with --ignore"
            ) from err
        slim = copy.deepcopy(self._model).eval()
        self.not_absorbed = tuple(absorb_(slim, self._readers, removed)) if absorb else ()
        cut_(slim, removed)
        return at_own_widths(slim)

    def _removed(self, selection: Selection) -> dict[tuple[str, str], Tensor]:
        """Return the channels that go for each (layer, side)."""
        decisions = {}
        for name in selection.kept:
            group = self.groups[name]
            decisions[name], channels = (
                selection.removed(name)
                .div(group.channels_per_decision, rounding_mode="floor")
                .unique(return_counts=True)
            )
            if (channels != group.channels_per_decision).any():
                raise ValueError(f"{name}: the selection was made without channels_per_decision")
        return _places([(self.groups[name], going) for name, going in decisions.items()])

    def _check(self, removed: Mapping[tuple[str, str], Tensor]) -> None:
        if removed:
            check_cut(self._model, removed, self._images, in_training=self._runs_in_training)

    def _written_down(self) -> dict[str, str]:
        """Return the groups that the network does not run without, and why."""
        free = [name for name in self.groups if name not in self.kept_whole]
        if self._what_breaks(free) is None:
            return {}
        by_suspect: dict[str | None, list[str]] = {}
        for name in free:
            by_suspect.setdefault(self.groups[name].suspect, []).append(name)
        whole = self._that_break(by_suspect.pop(None, []))
        for suspect, names in by_suspect.items():
            # Modules of one class have the same code, so one trial speaks for all of them.
            if self._what_breaks(names) is not None:
                why = f"{suspect} has their number written down, or reads them by it"
                whole |= dict.fromkeys(names, why)
        return whole

    def _that_break(self, names: Sequence[str]) -> dict[str, str]:
        what = self._what_breaks(names)
        if what is None:
            return {}
        if len(names) == 1:
            return {names[0]: f"the network depends on their number: {what}"}
        half = len(names) // 2
        return {**self._that_break(names[:half]), **self._that_break(names[half:])}

    def _what_breaks(self, names: Sequence[str]) -> str | None:
        """Say what goes wrong where some channels of all these groups go; None where nothing."""
        try:
            self._check(_places((self.groups[name], _some(self.groups[name])) for name in names))
        except InexactCutError as err:
            return str(err)
        return None


def _noise(shape: torch.Size) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for _ in range(2)]


def _some(group: CoupledChannels) -> Tensor:
    """Return about a third of the decisions of a group, spread over it; at least one stays."""
    generator = torch.Generator().manual_seed(0)
    count = max(1, group.decisions // 3)
    return torch.randperm(group.decisions, generator=generator)[:count].sort().values


def _places(
    decided: Iterable[tuple[CoupledChannels, Tensor]],
) -> dict[tuple[str, str], Tensor]:
    """Return the channels that go for each (layer, side), given the decisions of each group."""
    removed: dict[tuple[str, str], list[Tensor]] = {}
    for group, decisions in decided:
        for cut in group.cuts:
            removed.setdefault((cut.layer, cut.side), []).append(cut.indices[decisions].flatten())
    joined = {place: torch.cat(parts).sort().values for place, parts in removed.items()}
    return {place: channels for place, channels in joined.items() if len(channels)}


def _on_meta(tensor: Tensor) -> Tensor:
    like = torch.empty_like(tensor, device="meta", requires_grad=False)
    is_parameter = isinstance(tensor, nn.Parameter)
    return nn.Parameter(like, requires_grad=tensor.requires_grad) if is_parameter else like


def _scores(group: CoupledChannels, layers: Mapping[str, nn.Module]) -> Tensor:
    """Return one score per decision, (decisions,)."""
    each = []
    for cut in group.cuts:
        layer = layers[cut.layer]
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.weight is not None:
            each.append(layer.weight.detach().abs()[cut.indices].amax(1))
    # A shared channel is as important as its most important user: where one BatchNorm of a residual
    # stage has γ near zero, another may still write the channel that all of them share.
    return torch.stack(each).amax(0)
