"""MobileNetV2 (Sandler et al., arXiv 1801.04381) as CIFAR code writes it, widths as data.

`compress.models.mobilenet` is torchvision's. This one has other names (`layers.0.conv1`, `linear`),
ReLU for ReLU6, fewer strides for images of 32 pixels, and at stride 1 a shortcut around every
block: a 1x1 convolution where the widths differ.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compress.errors import UnsupportedModelError, UserInputError
from compress.models.mobilenet import BLOCKS
from compress.models.state_names import WAY_OUT, confirmed, shape_of

__all__ = ["CifarMobileNetV2"]

FAMILY = "MobileNetV2 of CIFAR code"
MAX_WIDTH = 1 << 16
HALVING = (3, 6, 13)  # blocks with stride 2


class _Block(nn.Module):
    """Widen by a 1x1 convolution, filter each channel, narrow by a 1x1 convolution without ReLU."""

    def __init__(
        self, width_in: int, hidden: int, width: int, *, stride: int, projected: bool
    ) -> None:
        super().__init__()
        self.stride = stride
        self.conv1, self.bn1 = _conv(width_in, hidden), nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.conv3, self.bn3 = _conv(hidden, width), nn.BatchNorm2d(width)
        layers = (_conv(width_in, width), nn.BatchNorm2d(width)) if projected else ()
        self.shortcut = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, width, H / stride, W / stride) of (N, width_in, H, W)."""
        out: Tensor = torch.relu(self.bn1(self.conv1(x)))
        out = self.bn3(self.conv3(torch.relu(self.bn2(self.conv2(out)))))
        return out + self.shortcut(x) if self.stride == 1 else out


class CifarMobileNetV2(nn.Module):
    """A stem, inverted residual blocks, a 1x1 convolution, the mean over the map, a linear layer.

    Args:
        widths: channels behind each block.
        hidden: channels inside each block.
        num_classes: length of the logits.
        projections: per block, whether its shortcut has a convolution.
        strides: per block; with stride 1 there is a shortcut.
        stem_width: channels of the first convolution.
        last_width: channels that the linear layer reads.
        in_channels: channels of the image.

    Shapes: image (N, in_channels, H, W); logits (N, num_classes).

    Raises:
        UserInputError: the widths do not fit one another.
    """

    arch = "mobilenet_v2_cifar"
    told_by_convention = ("strides",)  # what shapes do not tell
    default_input_size = 32

    def __init__(
        self,
        *,
        widths: Sequence[int],
        hidden: Sequence[int],
        num_classes: int,
        projections: Sequence[bool],
        strides: Sequence[int],
        stem_width: int = 32,
        last_width: int = 1280,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "widths": list(widths),
            "hidden": list(hidden),
            "num_classes": num_classes,
            "projections": list(projections),
            "strides": list(strides),
            "stem_width": stem_width,
            "last_width": last_width,
            "in_channels": in_channels,
        }
        _check_config(self.config)
        self.conv1 = nn.Conv2d(in_channels, stem_width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem_width)
        arriving = [stem_width, *widths[:-1]]
        self.layers = nn.Sequential(
            *(
                _Block(arriving[i], hidden[i], width, stride=strides[i], projected=projections[i])
                for i, width in enumerate(widths)
            )
        )
        self.conv2, self.bn2 = _conv(widths[-1], last_width), nn.BatchNorm2d(last_width)
        self.linear = nn.Linear(last_width, num_classes)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (N, num_classes) of images (N, in_channels, H, W)."""
        x = self.layers(torch.relu(self.bn1(self.conv1(image))))
        x = nn.functional.adaptive_avg_pool2d(torch.relu(self.bn2(self.conv2(x))), 1)
        logits: Tensor = self.linear(x.flatten(1))
        return logits

    @classmethod
    def infer_config(cls, state: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """Read the configuration from the names and shapes of a state_dict.

        Shapes do not tell strides. They are those of the published code, of 17 blocks, in which
        three halve the map.

        Returns:
            None where the names are not those of such a network.

        Raises:
            UnsupportedModelError: the names of such a network, but tensors that fit none.
        """
        if not {"layers.0.conv1.weight", "layers.0.conv3.weight", "linear.weight"} <= set(state):
            return None
        return confirmed(cls, _read_config(state), state, family=FAMILY)


def _conv(width_in: int, width: int) -> nn.Conv2d:
    return nn.Conv2d(width_in, width, 1, bias=False)


def _read_config(state: Mapping[str, Tensor]) -> dict[str, Any]:
    blocks = 0
    while f"layers.{blocks}.conv1.weight" in state:
        blocks += 1
    if blocks != BLOCKS:
        raise UnsupportedModelError(
            f"the names are those of a {FAMILY}, but it has {blocks} blocks; expected the "
            f"published {BLOCKS}, because shapes do not tell strides; {WAY_OUT}"
        )
    stem_width, in_channels, *_ = _convolution(state, "conv1")
    return {
        "widths": [_convolution(state, f"layers.{i}.conv3")[0] for i in range(blocks)],
        "hidden": [_convolution(state, f"layers.{i}.conv1")[0] for i in range(blocks)],
        "num_classes": shape_of(state, "linear.weight", dims=2, family=FAMILY)[0],
        "projections": [f"layers.{i}.shortcut.0.weight" in state for i in range(blocks)],
        "strides": [2 if i in HALVING else 1 for i in range(blocks)],
        "stem_width": stem_width,
        "last_width": _convolution(state, "conv2")[0],
        "in_channels": in_channels,
    }


def _convolution(state: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    return shape_of(state, f"{name}.weight", dims=4, family=FAMILY)


def _check_config(config: Mapping[str, Any]) -> None:
    widths = config["widths"]
    per_block = {len(config[key]) for key in ("hidden", "projections", "strides")}
    if not widths or per_block != {len(widths)}:
        raise UserInputError(
            f"a MobileNetV2 has {len(widths)} widths, and hidden, projections or strides for "
            "another number of blocks; expected one of each a block"
        )
    names = ("num_classes", "stem_width", "last_width", "in_channels")
    for count in [*widths, *config["hidden"], *config["strides"], *(config[n] for n in names)]:
        if not isinstance(count, int) or not 1 <= count <= MAX_WIDTH:
            raise UserInputError(
                f"a size of the MobileNetV2 is {count!r}; expected 1 to {MAX_WIDTH}"
            )
    arriving = [config["stem_width"], *widths[:-1]]
    for i, (width_in, width) in enumerate(zip(arriving, widths, strict=True)):
        plain = config["strides"][i] == 1 and not config["projections"][i]
        if plain and width_in != width:
            raise UserInputError(
                f"block {i} of the MobileNetV2 adds {width_in} channels to {width}; expected equal "
                "widths, or a projection"
            )
