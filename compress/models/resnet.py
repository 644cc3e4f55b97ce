"""Residual networks (He et al., arXiv 1512.03385), widths as data, under the names people use.

One class for torchvision's ResNet-18 to 152, ResNeXt (arXiv 1611.05431) and Wide ResNet (arXiv
1605.07146), and for the small ones of CIFAR code, so that checkpoints of all of them load strictly.
A network that was slimmed is the same class with other widths.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from compress.errors import UserInputError
from compress.models.resnet_layout import infer_resnet_config
from compress.models.state_names import confirmed

__all__ = ["HEADS", "SHORTCUTS", "ResNet"]

HEADS = ("fc", "linear")
SHORTCUTS = ("downsample", "shortcut")
MAX_WIDTH = 1 << 16


class ResidualBlock(nn.Module):
    """Two convolutions (3x3, 3x3) or three (1x1, 3x3, 1x1), and what came in added to them.

    The stride is at the first 3x3 convolution, as in torchvision. What came in passes a 1x1
    convolution with BatchNorm where the block is projected. Where it is not and the shapes differ,
    every `stride`-th row and column is taken and zero channels stand before and behind, half each:
    "option A" of the paper.

    Args:
        width_in: channels of the input.
        inner: channels of the convolutions before the last: one, or two for a bottleneck.
        width: channels of the output.
        stride: 1 or 2.
        groups: of the middle convolution of a bottleneck.
        projection: name of the shortcut's layers, or None where it has none.
    """

    def __init__(
        self,
        width_in: int,
        inner: Sequence[int],
        width: int,
        *,
        stride: int,
        groups: int,
        projection: str | None,
    ) -> None:
        super().__init__()
        self.stride, self.projection = stride, projection
        self.missing = width - width_in  # zero channels of option A
        if len(inner) == 1:
            self.conv1 = _conv(width_in, inner[0], 3, stride)
        else:
            self.conv1 = _conv(width_in, inner[0], 1)
        self.bn1 = nn.BatchNorm2d(inner[0])
        if len(inner) == 1:
            self.conv2, self.bn2 = _conv(inner[0], width, 3), nn.BatchNorm2d(width)
        else:
            self.conv2 = _conv(inner[0], inner[1], 3, stride, groups)
            self.bn2 = nn.BatchNorm2d(inner[1])
            self.conv3, self.bn3 = _conv(inner[1], width, 1), nn.BatchNorm2d(width)
        self.is_bottleneck = len(inner) == 2
        self.relu = nn.ReLU(inplace=True)
        if projection is not None:
            layers = (_conv(width_in, width, 1, stride), nn.BatchNorm2d(width))
            self.add_module(projection, nn.Sequential(*layers))

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, width, H / stride, W / stride) of (N, width_in, H, W)."""
        shortcut = self._shortcut(x)
        x = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        if self.is_bottleneck:
            x = self.bn3(self.conv3(self.relu(x)))
        return self.relu(x + shortcut)

    def _shortcut(self, x: Tensor) -> Tensor:
        if self.projection is not None:
            projected: Tensor = self.get_submodule(self.projection)(x)
            return projected
        if self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
        if self.missing:
            before = self.missing // 2
            x = F.pad(x, (0, 0, 0, 0, before, self.missing - before))
        return x


class ResNet(nn.Module):
    """A stem, stages of residual blocks, the mean over the map, a linear layer.

    Args:
        stage_widths: channels behind the blocks of each stage, such as (256, 512, 1024, 2048).
        block_widths: per stage and block, channels of the convolutions before the block's last: one
            for a basic block, two for a bottleneck.
        num_classes: length of the logits.
        projections: per stage, whether the shortcut of its first block has a convolution.
        strides: per stage, the stride of its first block; None is 1, then 2 for all others.
        groups: of the middle convolution of bottlenecks.
        stem_width: channels of the first convolution.
        stem_kernel: side of its kernel, odd.
        stem_stride: its stride.
        stem_pool: whether a 3x3 max pool with stride 2 follows it.
        in_channels: channels of the image.
        head: name of the linear layer, "fc" or "linear".
        shortcut: name of the shortcuts' convolutions, "downsample" or "shortcut".

    Shapes: image (N, in_channels, H, W); logits (N, num_classes).

    Raises:
        UserInputError: the widths do not fit one another, or a name is none of the above.
    """

    arch = "resnet"
    # What shapes do not tell: `infer_config` takes it from the published networks.
    told_by_convention = ("strides", "stem_stride", "stem_pool")

    def __init__(
        self,
        *,
        stage_widths: Sequence[int],
        block_widths: Sequence[Sequence[Sequence[int]]],
        num_classes: int,
        projections: Sequence[bool],
        strides: Sequence[int] | None = None,
        groups: int = 1,
        stem_width: int = 64,
        stem_kernel: int = 7,
        stem_stride: int = 2,
        stem_pool: bool = True,
        in_channels: int = 3,
        head: str = "fc",
        shortcut: str = "downsample",
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "stage_widths": list(stage_widths),
            "block_widths": [[list(inner) for inner in stage] for stage in block_widths],
            "num_classes": num_classes,
            "projections": list(projections),
            "strides": list(strides or [1, *[2] * (len(stage_widths) - 1)]),
            "groups": groups,
            "stem_width": stem_width,
            "stem_kernel": stem_kernel,
            "stem_stride": stem_stride,
            "stem_pool": stem_pool,
            "in_channels": in_channels,
            "head": head,
            "shortcut": shortcut,
        }
        _check_config(self.config)
        self.conv1 = _conv(in_channels, stem_width, stem_kernel, stem_stride)
        self.bn1 = nn.BatchNorm2d(stem_width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if stem_pool else nn.Identity()
        self._stages = tuple(f"layer{i + 1}" for i in range(len(stage_widths)))
        width_in = stem_width
        for i, name in enumerate(self._stages):
            self.add_module(name, _stage(self.config, i, width_in))
            width_in = stage_widths[i]
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.add_module(head, nn.Linear(width_in, num_classes))
        self._initialise()

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (N, num_classes) of images (N, in_channels, H, W)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(image))))
        for name in self._stages:
            x = self.get_submodule(name)(x)
        logits: Tensor = self.get_submodule(self.config["head"])(self.avgpool(x).flatten(1))
        return logits

    @property
    def display_name(self) -> str:
        """The name that people use, by the number of layers: "resnet50", "resnext50"."""
        blocks = [inner for stage in self.config["block_widths"] for inner in stage]
        depth = 2 + sum(len(inner) + 1 for inner in blocks)
        return f"{'resnet' if self.config['groups'] == 1 else 'resnext'}{depth}"

    @property
    def default_input_size(self) -> int | None:
        """Side of the images that networks of this form are published for; None where unknown."""
        if self.config["stem_kernel"] == 7:
            return 224
        is_cifar = self.config["head"] == "linear" or len(self._stages) == 3
        return 32 if is_cifar else None

    @classmethod
    def infer_config(cls, state: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """Read the configuration from the names and shapes of a state_dict.

        Shapes do not tell strides. They are taken as published: a 7x7 stem has stride 2 and a max
        pool behind it, any other stem neither; every stage but the first begins with stride 2.

        Returns:
            None where the names are not those of a ResNet.

        Raises:
            UnsupportedModelError: the names of a ResNet, but tensors that fit none.
        """
        config = infer_resnet_config(state)
        return config and confirmed(cls, config, state, family="ResNet")

    def _initialise(self) -> None:
        if self.conv1.weight.is_meta:
            return
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")


def _conv(width_in: int, width: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(width_in, width, kernel, stride, kernel // 2, groups=groups, bias=False)


def _stage(config: Mapping[str, Any], stage: int, width_in: int) -> nn.Sequential:
    width = config["stage_widths"][stage]
    blocks = []
    for i, inner in enumerate(config["block_widths"][stage]):
        projected = i == 0 and config["projections"][stage]
        block = ResidualBlock(
            width_in if i == 0 else width,
            inner,
            width,
            stride=config["strides"][stage] if i == 0 else 1,
            groups=config["groups"],
            projection=config["shortcut"] if projected else None,
        )
        blocks.append(block)
    return nn.Sequential(*blocks)


def _check_config(config: Mapping[str, Any]) -> None:
    widths, blocks = config["stage_widths"], config["block_widths"]
    per_stage = {len(config[key]) for key in ("block_widths", "projections", "strides")}
    if not widths or per_stage != {len(widths)} or not all(blocks):
        raise UserInputError(
            f"a ResNet has {len(widths)} stage widths, and block widths, projections or strides "
            "for another number of stages; expected one of each a stage, and a block in each"
        )
    inner = [block for stage in blocks for block in stage]
    if {len(block) for block in inner} not in ({1}, {2}):
        raise UserInputError(
            "the blocks of a ResNet have different kinds; expected one inner width in each, or two "
            "for bottlenecks"
        )
    _check_counts(config, [width for block in inner for width in block])
    if config["head"] not in HEADS or config["shortcut"] not in SHORTCUTS:
        raise UserInputError(
            f"head is {config['head']!r} and shortcut {config['shortcut']!r}; expected one of "
            f"{', '.join(HEADS)} and one of {', '.join(SHORTCUTS)}"
        )
    _check_shortcuts(config)


def _check_counts(config: Mapping[str, Any], inner: Sequence[int]) -> None:
    names = ("num_classes", "groups", "stem_width", "stem_kernel", "stem_stride", "in_channels")
    counts = [*config["stage_widths"], *config["strides"], *inner, *(config[n] for n in names)]
    for count in counts:
        if not isinstance(count, int) or not 1 <= count <= MAX_WIDTH:
            raise UserInputError(f"a size of the ResNet is {count!r}; expected 1 to {MAX_WIDTH}")
    if config["stem_kernel"] % 2 == 0:
        raise UserInputError(f"stem_kernel is {config['stem_kernel']}; expected an odd number")


def _check_shortcuts(config: Mapping[str, Any]) -> None:
    """Zero channels can be added to what came in, but none can be taken away."""
    widths = [config["stem_width"], *config["stage_widths"]]
    for i, projected in enumerate(config["projections"]):
        if not projected and widths[i + 1] < widths[i]:
            raise UserInputError(
                f"stage {i + 1} of the ResNet has {widths[i + 1]} channels after {widths[i]} and "
                "no projection; expected at least as many as before, or a projection"
            )
