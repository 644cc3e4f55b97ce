"""How channels are removed from a model that tells its channel groups.

Nothing is cut in place: every tensor is copied, those that a group indexes without the removed
channels, and the model is built anew at its new widths around the copies. Nothing is shared with
the original either, so training the slim model leaves the original as it was.

Where a model has no scales of its own, such as a published GFNet, it gets them before and loses
them after (`compress.models.channel_kinds`).
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from compress.models import build
from compress.models.channel_kinds import resolve_kinds, with_scales, without_scales
from compress.models.channels import ChannelGroup, KeepsPlaces, Slimmable, TensorSlice
from compress.slimming.absorb import expected_relu, folded_bias
from compress.slimming.patterns import matching
from compress.slimming.selection import Selection

__all__ = ["DeclaredChannels"]


class DeclaredChannels:
    """The channels of a model of ours: their scores, and the model without some of them.

    Args:
        model: left as it is.
        ignore: patterns of layers that keep all their channels.
        kinds: kinds of channels that may go; the model's default where none is named.

    Attributes:
        kinds: the kind of every group that may shrink.
        absorbable: whether any layer can take up what removed channels were worth.
        not_absorbed: groups whose removed channels no layer took up, after `slim(…, absorb=True)`.
        kept_whole: why groups stay as they are.

    Raises:
        UserInputError: a pattern matches no layer, or the model has no channels of a kind.
    """

    def __init__(
        self, model: nn.Module, ignore: Sequence[str] = (), *, kinds: Sequence[str] = ()
    ) -> None:
        model = with_scales(model, resolve_kinds(model, kinds))
        if not isinstance(model, Slimmable):
            raise TypeError(f"{type(model).__name__} tells no channel groups")
        groups = model.channel_groups()
        left_out = matching([group.name for group in groups], ignore)
        self.groups = [group for group in groups if group.name not in left_out]
        self.kept_whole = {
            group.name: "--ignore says so" for group in groups if group.name in left_out
        }
        self.kinds = {group.name: group.kind for group in self.groups}
        self.absorbable = any(group.consumer is not None for group in self.groups)
        self.not_absorbed: tuple[str, ...] = ()
        self._all_groups = groups
        self._model: nn.Module = model
        self._state = model.state_dict()

    def scores(self) -> dict[str, Tensor]:
        """Return |scale| (C,) of every group that may shrink, in the order of the network."""
        return {group.name: self._state[group.scale].abs() for group in self.groups}

    def widths(self) -> dict[str, int]:
        """Return the channels of every group, those left out included."""
        return {group.name: len(self._state[group.scale]) for group in self._all_groups}

    def channels_per_decision(self) -> dict[str, int]:
        """Return an empty dict: every channel of ours goes by itself."""
        return {}

    def kept_outputs(self, selection: Selection) -> dict[str, Tensor]:
        """Return, by layer that loses outputs, the indices of those that stay, ascending."""
        return {
            piece.tensor.removesuffix(".weight"): _indices(selection.kept[group.name], piece)
            for group in self.groups
            for piece in group.slices
            if piece.dim == 0 and piece.tensor.endswith(".weight")
        }

    def skeleton(self, selection: Selection) -> nn.Module:
        """Return the slim model without its tensors, on the meta device: enough to count."""
        with torch.device("meta"):
            return without_scales(self._frame(selection))

    def slim(self, selection: Selection, *, absorb: bool = True) -> nn.Module:
        """Return the model without the removed channels, in eval mode.

        Args:
            selection: what stays, per group.
            absorb: fold what the removed channels were worth into the layers that read them.
        """
        state: dict[str, Tensor] = dict(self._state)
        if absorb:
            for group in self.groups:
                _absorb_(state, self._state, group, selection.removed(group.name))
            self.not_absorbed = tuple(
                group.name
                for group in self.groups
                if group.consumer is None and len(selection.removed(group.name))
            )
        for group in self.groups:
            _cut_(state, group.slices, selection.kept[group.name])
        for name, tensor in state.items():
            if tensor is self._state[name]:
                state[name] = tensor.clone()
        slim = self._frame(selection)
        slim.load_state_dict(state, strict=True, assign=True)
        return without_scales(slim).eval()

    def _frame(self, selection: Selection) -> nn.Module:
        """Return the slim model on the meta device, with all the scales that the model has."""
        if isinstance(self._model, KeepsPlaces):
            kept = {name: places.tolist() for name, places in selection.kept.items()}
            config = self._model.config_keeping(kept)
        else:
            config = self._model.config_with({**self.widths(), **selection.widths})  # type: ignore[operator]
        with torch.device("meta"):
            return build(self._model.arch, config)  # type: ignore[arg-type]


def _absorb_(
    state: dict[str, Tensor], original: Mapping[str, Tensor], group: ChannelGroup, removed: Tensor
) -> None:
    if group.consumer is None or group.shift is None or len(removed) == 0:
        return
    constants = expected_relu(original[group.scale][removed], original[group.shift][removed])
    bias = group.consumer.tensor.removesuffix("weight") + "bias"
    state[bias] = folded_bias(
        state[bias], original[group.consumer.tensor], removed, constants, group.consumer
    )


def _cut_(state: dict[str, Tensor], slices: Sequence[TensorSlice], kept: Tensor) -> None:
    for piece in slices:
        tensor = state[piece.tensor]
        if len(kept) * piece.repeat == tensor.shape[piece.dim]:
            continue
        indices = _indices(kept, piece).to(tensor.device)
        state[piece.tensor] = tensor.index_select(piece.dim, indices)


def _indices(kept: Tensor, piece: TensorSlice) -> Tensor:
    return (kept[:, None] * piece.repeat + torch.arange(piece.repeat)).flatten()
