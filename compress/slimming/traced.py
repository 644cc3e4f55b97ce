"""Slim a network that is not ours: any with BatchNorm that torch-pruning's graph can follow.

A decision is one channel of a set of coupled layers (`traced_coupling`): the layers of a residual
stage, or a convolution, its depthwise successor and their BatchNorms. Coupled layers share the
decision, and its score is the largest |γ| among them. Channels that cannot go one by one (those of
the output, those behind an operation that mixes channels, those without γ) do not enter the
percentile, or they would swallow a quota that they cannot fill.

Read on: `traced_graph` traces, `traced_coupling` finds the decisions, `traced_absorb` folds
constants, `traced_surgery` cuts and proves the cut.
"""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from compress.errors import UnsupportedModelError
from compress.models.rebuild import at_own_widths
from compress.slimming.patterns import matching
from compress.slimming.selection import Selection
from compress.slimming.traced_absorb import absorb_, find_readers
from compress.slimming.traced_coupling import CoupledChannels, coupled_channels
from compress.slimming.traced_graph import trace
from compress.slimming.traced_surgery import EXACT, change_of_cut_, cut_

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

    Raises:
        UnsupportedModelError: the network does not run on the image, or cannot be traced.
        UserInputError: a pattern matches no layer.
    """

    def __init__(self, model: nn.Module, example: Tensor, ignore: Sequence[str] = ()) -> None:
        self._model = model
        self._image_shape = example.shape
        graph = trace(model, example)
        left_out = matching(graph.layers, ignore)
        self._readers = find_readers(graph)
        self.groups: dict[str, CoupledChannels] = {g.name: g for g in coupled_channels(graph)}
        self.kept_whole = {
            name: group.kept_whole or "--ignore says so"
            for name, group in self.groups.items()
            if group.kept_whole or group.owners & left_out
        }
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
        slim = copy.deepcopy(self._model).eval()
        removed = self._removed(selection)
        self.not_absorbed = tuple(absorb_(slim, self._readers, removed)) if absorb else ()
        if removed and not self._cuts_exactly_(slim, removed):
            raise self._inexact(selection)
        return at_own_widths(slim)

    def _removed(
        self, selection: Selection, only: str | None = None
    ) -> dict[tuple[str, str], Tensor]:
        """Return the channels that go for each (layer, side), of one group or of all."""
        removed: dict[tuple[str, str], list[Tensor]] = {}
        for name in selection.kept if only is None else [only]:
            group = self.groups[name]
            decisions, channels = (
                selection.removed(name)
                .div(group.channels_per_decision, rounding_mode="floor")
                .unique(return_counts=True)
            )
            if (channels != group.channels_per_decision).any():
                raise ValueError(f"{name}: the selection was made without channels_per_decision")
            for cut in group.cuts:
                removed.setdefault((cut.layer, cut.side), []).append(
                    cut.indices[decisions].flatten()
                )
        joined = {place: torch.cat(parts).sort().values for place, parts in removed.items()}
        return {place: channels for place, channels in joined.items() if len(channels)}

    def _cuts_exactly_(self, network: nn.Module, removed: Mapping[tuple[str, str], Tensor]) -> bool:
        generator = torch.Generator().manual_seed(0)
        image = torch.randn(self._image_shape, generator=generator)
        try:
            return change_of_cut_(network, removed, image) <= EXACT  # False for NaN
        except Exception:  # whatever the forward of a wrongly cut network raises
            return False

    def _inexact(self, selection: Selection) -> UnsupportedModelError:
        for name, group in self.groups.items():
            if name not in selection.kept:
                continue
            removed = self._removed(selection, only=name)
            if removed and not self._cuts_exactly_(copy.deepcopy(self._model).eval(), removed):
                layers = sorted(group.owners)
                return UnsupportedModelError(
                    f"{name}: removing channels of {', '.join(layers[:4])} does more than take "
                    "them away, because the network reads them in a way that tracing does not show "
                    "(a view, a fixed width, a value taken off the graph, or outputs that are not "
                    f"finite); keep them whole with --ignore {layers[0]}"
                )
        return UnsupportedModelError(
            "removing the chosen channels does more than take them away, though none of the layers "
            "does alone; leave layers out with --ignore"
        )


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
