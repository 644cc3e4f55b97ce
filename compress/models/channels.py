"""What a model tells about the channels that can be removed from it.

A `ChannelGroup` is one decision per channel: the tensor that scores it, and every slice of every
tensor that goes when the channel goes. It is plain data, so that choosing channels
(`compress.slimming.selection`) and removing them (`compress.slimming.surgery`) know no model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

__all__ = ["ChannelGroup", "KeepsPlaces", "Slimmable", "TensorSlice"]


@dataclass(frozen=True, kw_only=True)
class TensorSlice:
    """One dimension of one tensor of the state_dict that is indexed by the channels of a group.

    Attributes:
        tensor: its name in the state_dict.
        dim: the dimension that shrinks.
        repeat: how many neighbouring elements of that dimension belong to one channel: 49 for the
            first linear layer behind a flattened 7x7 map, 1 elsewhere.
    """

    tensor: str
    dim: int
    repeat: int = 1


@dataclass(frozen=True, kw_only=True)
class ChannelGroup:
    """The channels of one layer.

    Attributes:
        name: the layer as the state_dict calls it, such as "features.1"; patterns match it.
        kind: what its channels are; only channels of one kind are ranked together.
        scale: name of the tensor (C,) whose absolute values score the channels.
        shift: name of the tensor (C,) that is added after scaling (β of BatchNorm), or None where
            a removed channel leaves nothing behind.
        slices: everything that loses its part of a removed channel, `scale` included.
        consumer: the layer that reads the channels through a ReLU; its bias can take up what the
            removed ones added. None where that is not possible.
    """

    name: str
    scale: str
    slices: tuple[TensorSlice, ...]
    kind: str = "channels"
    shift: str | None = None
    consumer: TensorSlice | None = None


@runtime_checkable
class Slimmable(Protocol):
    """A model that can be rebuilt from `arch` and `config`, and tells its channels."""

    arch: str
    config: dict[str, Any]

    def channel_groups(self) -> list[ChannelGroup]:
        """Return the groups, in the order of the network."""
        ...

    def config_with(self, widths: Mapping[str, int]) -> dict[str, Any]:
        """Return the configuration in which the group `name` has `widths[name]` channels."""
        ...


@runtime_checkable
class KeepsPlaces(Protocol):
    """A slimmable model whose configuration also says which channels it still has."""

    def config_keeping(self, kept: Mapping[str, Sequence[int]]) -> dict[str, Any]:
        """Return the configuration in which the group `name` keeps the places `kept[name]`."""
        ...
