"""MobileNetV2 (Sandler et al., arXiv 1801.04381), widths as data.

Names and shapes are those of torchvision's `mobilenet_v2`, so its checkpoints load strictly. A
network that was slimmed is the same class with other widths.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from compress.errors import UnsupportedModelError, UserInputError
from compress.models.state_names import WAY_OUT, confirmed, shape_of

__all__ = ["MobileNetV2", "mobilenet_v2_config"]

FAMILY = "MobileNetV2"
MAX_WIDTH = 1 << 16
# Table 2 of the paper: expansion, channels, blocks, stride of the first block.
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2),
          (6, 320, 1, 1))  # fmt: skip
BLOCKS = sum(blocks for _, _, blocks, _ in STAGES)
STRIDES = [s for _, _, blocks, stride in STAGES for s in (stride, *[1] * (blocks - 1))]
# A block adds what came in to what it gives, but for the first of a stage.
RESIDUAL = [i > 0 for _, _, blocks, _ in STAGES for i in range(blocks)]


class InvertedResidual(nn.Module):
    """Widen by a 1x1 convolution, filter each channel, narrow by a 1x1 convolution without ReLU."""

    def __init__(
        self, width_in: int, hidden: int, width: int, *, stride: int, expand: bool, residual: bool
    ) -> None:
        super().__init__()
        self.residual = residual
        widening = [_conv_norm_relu(width_in, hidden, kernel=1)] if expand else []
        self.conv = nn.Sequential(
            *widening,
            _conv_norm_relu(hidden, hidden, stride=stride, groups=hidden),
            nn.Conv2d(hidden, width, 1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, width, H / stride, W / stride) of (N, width_in, H, W)."""
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(nn.Module):
    """A stem, inverted residual blocks, a 1x1 convolution, the mean over the map, a linear layer.

    Args:
        widths: channels behind each block.
        hidden: channels inside each block; as many as came in where it does not expand.
        num_classes: length of the logits.
        expand: per block, whether it begins with a 1x1 convolution.
        residual: per block, whether what came in is added; its widths and stride must allow it.
        strides: per block.
        stem_width: channels of the first convolution.
        stem_stride: its stride.
        last_width: channels that the linear layer reads.
        in_channels: channels of the image.
        dropout: rate before the linear layer, in [0, 1).

    Shapes: image (N, in_channels, H, W); logits (N, num_classes).

    Raises:
        UserInputError: the widths do not fit one another.
    """

    arch = "mobilenet_v2"
    # What shapes do not tell: `infer_config` takes it from the published network.
    told_by_convention = ("strides", "stem_stride", "residual", "dropout")
    default_input_size = 224

    def __init__(
        self,
        *,
        widths: Sequence[int],
        hidden: Sequence[int],
        num_classes: int,
        expand: Sequence[bool],
        residual: Sequence[bool],
        strides: Sequence[int],
        stem_width: int = 32,
        stem_stride: int = 2,
        last_width: int = 1280,
        in_channels: int = 3,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "widths": list(widths),
            "hidden": list(hidden),
            "num_classes": num_classes,
            "expand": list(expand),
            "residual": list(residual),
            "strides": list(strides),
            "stem_width": stem_width,
            "stem_stride": stem_stride,
            "last_width": last_width,
            "in_channels": in_channels,
            "dropout": dropout,
        }
        _check_config(self.config)
        self.features = nn.Sequential(
            _conv_norm_relu(in_channels, stem_width, stride=stem_stride),
            *_blocks(self.config),
            _conv_norm_relu(widths[-1], last_width, kernel=1),
        )
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(last_width, num_classes))
        self._initialise()

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (N, num_classes) of images (N, in_channels, H, W)."""
        x = nn.functional.adaptive_avg_pool2d(self.features(image), 1)  # (N, last_width, 1, 1)
        logits: Tensor = self.classifier(x.flatten(1))
        return logits

    @classmethod
    def infer_config(cls, state: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """Read the configuration from the names and shapes of a state_dict.

        Shapes tell neither strides nor, at slimmed widths, which blocks add what came in. Both are
        taken from the published network of 17 blocks, strides as for images of 224 pixels.

        Returns:
            None where the names are not those of a MobileNetV2.

        Raises:
            UnsupportedModelError: the names of a MobileNetV2, but tensors that fit none.
        """
        if not {"features.0.0.weight", "features.1.conv.0.0.weight"} <= set(state):
            return None
        config = _read_config(state)
        return confirmed(cls, config, state, family=FAMILY)

    def _initialise(self) -> None:
        head: nn.Linear = self.classifier[1]  # type: ignore[assignment]
        if head.weight.is_meta:
            return
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out")
        nn.init.normal_(head.weight, 0, 0.01)
        nn.init.zeros_(head.bias)


def mobilenet_v2_config(num_classes: int = 1000) -> dict[str, Any]:
    """Return the configuration of the published network."""
    expansions = [e for e, _, blocks, _ in STAGES for _ in range(blocks)]
    widths = [width for _, width, blocks, _ in STAGES for _ in range(blocks)]
    hidden = [e * width for e, width in zip(expansions, [32, *widths[:-1]], strict=True)]
    return {
        "widths": widths,
        "hidden": hidden,
        "num_classes": num_classes,
        "expand": [e > 1 for e in expansions],
        "residual": RESIDUAL,
        "strides": STRIDES,
    }


def _conv_norm_relu(
    width_in: int, width: int, *, kernel: int = 3, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    conv = nn.Conv2d(width_in, width, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU6(inplace=True))


def _blocks(config: Mapping[str, Any]) -> list[InvertedResidual]:
    blocks = []
    width_in = config["stem_width"]
    for i, width in enumerate(config["widths"]):
        block = InvertedResidual(
            width_in,
            config["hidden"][i],
            width,
            stride=config["strides"][i],
            expand=config["expand"][i],
            residual=config["residual"][i],
        )
        blocks.append(block)
        width_in = width
    return blocks


def _read_config(state: Mapping[str, Tensor]) -> dict[str, Any]:
    blocks = 0
    while f"features.{blocks + 1}.conv.0.0.weight" in state:
        blocks += 1
    if blocks != BLOCKS:
        raise UnsupportedModelError(
            f"the names are those of a MobileNetV2, but it has {blocks} blocks; expected the "
            f"published {BLOCKS}, because shapes do not tell strides; {WAY_OUT}"
        )
    expand = [f"features.{i}.conv.1.0.weight" in state for i in range(1, blocks + 1)]
    stem_width, in_channels, *_ = _convolution(state, "features.0.0")
    return {
        "widths": [
            _convolution(state, f"features.{i}.conv.{2 if wide else 1}")[0]
            for i, wide in enumerate(expand, 1)
        ],
        "hidden": [_convolution(state, f"features.{i}.conv.0.0")[0] for i in range(1, blocks + 1)],
        "num_classes": shape_of(state, "classifier.1.weight", dims=2, family=FAMILY)[0],
        "expand": expand,
        "residual": RESIDUAL,
        "strides": STRIDES,
        "stem_width": stem_width,
        "last_width": _convolution(state, f"features.{blocks + 1}.0")[0],
        "in_channels": in_channels,
    }


def _convolution(state: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    return shape_of(state, f"{name}.weight", dims=4, family=FAMILY)


def _check_config(config: Mapping[str, Any]) -> None:
    widths, hidden = config["widths"], config["hidden"]
    per_block = {len(config[key]) for key in ("hidden", "expand", "residual", "strides")}
    if not widths or per_block != {len(widths)}:
        raise UserInputError(
            f"a MobileNetV2 has {len(widths)} widths, and hidden, expand, residual or strides for "
            "another number of blocks; expected one of each a block"
        )
    names = ("num_classes", "stem_width", "stem_stride", "last_width", "in_channels")
    for count in [*widths, *hidden, *config["strides"], *(config[name] for name in names)]:
        if not isinstance(count, int) or not 1 <= count <= MAX_WIDTH:
            raise UserInputError(
                f"a size of the MobileNetV2 is {count!r}; expected 1 to {MAX_WIDTH}"
            )
    arriving = [config["stem_width"], *widths[:-1]]
    for i, (width_in, width) in enumerate(zip(arriving, widths, strict=True)):
        if config["residual"][i] and (width_in != width or config["strides"][i] != 1):
            raise UserInputError(
                f"block {i} of the MobileNetV2 adds {width_in} channels to {width} at stride "
                f"{config['strides'][i]}; expected equal widths and stride 1"
            )
        if not config["expand"][i] and hidden[i] != width_in:
            raise UserInputError(
                f"block {i} of the MobileNetV2 does not expand, but has {hidden[i]} hidden "
                f"channels of {width_in}; expected equal numbers"
            )
