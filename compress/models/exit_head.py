"""Heads of early exits behind any module: what they read of it, and how they classify.

Kinds, by the names that options and checkpoints use:

- "linear": mean and maximum over the map side by side (over tokens the mean), one linear layer;
- "hidden:N": the same, with a hidden layer of N units and ReLU before the linear one;
- "conv" or "conv:N": two depthwise-separable 3x3 convolutions of stride 2 to N channels over the
  map, each with BatchNorm and ReLU, then mean and maximum and a linear layer. A head on pooled
  features of an early stage of a residual network sees too little: on a ResNet-56 for CIFAR-10 it
  reaches 48 to 61 % where the network has 85.

A head is divided in two: `read` has no parameters, so that what it gives can be cached, `classify`
has them all.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from compress.errors import UnsupportedModelError, UserInputError
from compress.head_kinds import check_head_kind
from compress.models.gfnet_block import MeanTokens

__all__ = ["ExitHead", "tap_channels"]

MAP, TOKENS, VECTOR = 4, 3, 2  # dimensions of what a module gives, batch included


class ExitHead(nn.Module):
    """From what a module gives to logits.

    Args:
        kind: as above, with its number.
        channels: C of the map (B, C, H, W), of each token (B, N, C), or of a vector (B, C).
        dims: of what the module gives, batch included: 4, 3 or 2.
        num_classes: K.
        inner: channels between the two convolutions of "conv"; None is the number of its kind.
        channels_last: the map is (B, H, W, C).

    Raises:
        UserInputError: the kind is not known, or wants a map and there is none.
    """

    def __init__(
        self,
        kind: str,
        *,
        channels: int,
        dims: int,
        num_classes: int,
        inner: int | None = None,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        check_head_kind(kind)
        self.kind, self.dims, self.channels_last = kind, dims, channels_last
        name, _, number = kind.partition(":")
        if name == "conv" and dims != MAP:
            raise UserInputError(
                f"the head {kind!r} reads a map of channels, rows and columns, and there is none "
                "behind this module; expected linear or hidden:N there"
            )
        self.average = MeanTokens() if dims == TOKENS else nn.Identity()
        layers: list[nn.Module] = []
        if name == "conv":
            width = int(number)
            between = width if inner is None else inner
            self.see = nn.Sequential(*_separable(channels, between), *_separable(between, width))
            channels = width
        pooled = 2 * channels if dims == MAP else channels
        if name == "hidden":
            layers += [nn.Linear(pooled, int(number)), nn.ReLU()]
            pooled = int(number)
        self.classifier = nn.Sequential(*layers, nn.Linear(pooled, num_classes))

    def forward(self, tap: Tensor) -> Tensor:
        """Return logits (B, K) of what the module gives."""
        return self.classify(self.read(tap))

    def read(self, tap: Tensor) -> Tensor:
        """Return what is kept: of a "conv" head the map (B, C, H, W), else features (B, F).

        It may share the memory of the tap.
        """
        if self.channels_last:
            tap = tap.movedim(3, 1)
        return tap if self.reads_map else self._pooled(tap)

    def classify(self, kept: Tensor) -> Tensor:
        """Return logits (B, K) of what `read` gave."""
        if self.reads_map:
            kept = self._pooled(self.see(kept))
        return self.classifier(kept)

    def _pooled(self, tap: Tensor) -> Tensor:
        if self.dims == MAP:
            return torch.cat([tap.mean(dim=(2, 3)), tap.amax(dim=(2, 3))], dim=1)
        return self.average(tap)

    @property
    def reads_map(self) -> bool:
        """Whether it sees the whole map, not features pooled over it."""
        return self.kind.startswith("conv")

    def to_config(self) -> dict[str, str | int]:
        """Return the keywords that build it, at the widths that its layers have by now."""
        config: dict[str, str | int] = self._widths()
        if self.channels_last:
            config["channels_last"] = True
        return config

    def _widths(self) -> dict[str, str | int]:
        if self.reads_map:
            first, inner, _, last = (e for e in self.see if isinstance(e, nn.Conv2d))
            widths: dict[str, str | int] = {
                "head": f"conv:{last.out_channels}", "channels": first.in_channels,
                "dims": self.dims,
            }  # fmt: skip
            apart = inner.out_channels != last.out_channels  # slimming cut them apart
            return {**widths, "inner": inner.out_channels} if apart else widths
        linear = [layer for layer in self.classifier if isinstance(layer, nn.Linear)]
        kind = f"hidden:{linear[0].out_features}" if len(linear) > 1 else self.kind
        pooled = linear[0].in_features
        channels = pooled // 2 if self.dims == MAP else pooled
        return {"head": kind, "channels": channels, "dims": self.dims}


def tap_channels(shape: Sequence[int], path: str, *, channels_last: bool = False) -> int:
    """Return the channels of what a module gives, (B, C, H, W), (B, N, C) or (B, C).

    Args:
        shape: of it.
        path: of the module.
        channels_last: a map is (B, H, W, C).

    Raises:
        UnsupportedModelError: it has another shape.
    """
    if len(shape) not in (MAP, TOKENS, VECTOR):
        raise UnsupportedModelError(
            f"module {path!r} gives a tensor of shape {tuple(shape)}; expected a map (B, C, H, W), "
            "tokens (B, N, D) or a vector (B, D) for an exit to read"
        )
    return shape[-1] if channels_last or len(shape) == TOKENS else shape[1]


def _separable(channels: int, width: int) -> list[nn.Module]:
    return [
        nn.Conv2d(channels, channels, 3, stride=2, padding=1, groups=channels, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, width, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    ]
