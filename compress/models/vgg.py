"""VGG with BatchNorm (Simonyan & Zisserman, arXiv 1409.1556), widths as data.

Names, shapes and initialisation are those of torchvision's `vgg*_bn`, so its checkpoints load
strictly. A network that was slimmed is the same class with other widths.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compress.errors import UserInputError
from compress.models.channels import ChannelGroup, TensorSlice
from compress.models.vgg_layout import infer_vgg_config

__all__ = ["VGG", "VGG_DEPTHS", "vgg_bn"]

# Convolutions per stage; a stage ends with a 2x2 max pool.
VGG_DEPTHS: dict[int, tuple[int, ...]] = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
STAGE_WIDTHS = (64, 128, 256, 512, 512)
MAX_WIDTH = 1 << 16


class VGG(nn.Module):
    """Stages of Conv-BatchNorm-ReLU, each closed by a max pool, then linear layers.

    Args:
        widths: channels per convolution, one sequence a stage: ((64, 64), (128, 128), …).
        num_classes: length of the logits.
        hidden: widths of the linear layers before the last; may be empty.
        in_channels: channels of the image.
        pooled: side of the map that the linear layers read, made by adaptive average pooling.
        dropout: rate behind every hidden linear layer, in [0, 1).

    Shapes: image (N, in_channels, H, W), H and W at least 2 ** stages; logits
    (N, num_classes).
    """

    arch = "vgg"
    told_by_convention = ()  # shapes tell everything

    def __init__(
        self,
        *,
        widths: Sequence[Sequence[int]],
        num_classes: int,
        hidden: Sequence[int] = (4096, 4096),
        in_channels: int = 3,
        pooled: int = 7,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "widths": [list(stage) for stage in widths],
            "num_classes": num_classes,
            "hidden": list(hidden),
            "in_channels": in_channels,
            "pooled": pooled,
            "dropout": dropout,
        }
        _check_config(self.config)
        self.features = _features(widths, in_channels)
        self.avgpool = nn.AdaptiveAvgPool2d((pooled, pooled))
        self.classifier = _classifier(widths[-1][-1] * pooled**2, hidden, num_classes, dropout)
        self._initialise()

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (N, num_classes) of images (N, in_channels, H, W)."""
        x = self.avgpool(self.features(image))  # (N, C, pooled, pooled)
        return self.classifier(torch.flatten(x, 1))

    @property
    def display_name(self) -> str:
        """The name that people use, such as "vgg16_bn"; "vgg_bn" for other depths."""
        depths = tuple(len(stage) for stage in self.config["widths"])
        return next((f"vgg{n}_bn" for n, d in VGG_DEPTHS.items() if d == depths), "vgg_bn")

    @property
    def default_input_size(self) -> int | None:
        """Side of the images that this form is published for; None where unknown."""
        sides = {1: 32, 7: 224}  # by the side of the map that five pools leave
        return sides.get(self.config["pooled"]) if len(self.config["widths"]) == 5 else None

    def channel_groups(self) -> list[ChannelGroup]:
        """One group a convolution; its BatchNorm scores it, the next layer reads it."""
        convs = [i for i, layer in enumerate(self.features) if isinstance(layer, nn.Conv2d)]
        readers = [TensorSlice(tensor=f"features.{i}.weight", dim=1) for i in convs[1:]]
        readers.append(
            TensorSlice(tensor="classifier.0.weight", dim=1, repeat=self.config["pooled"] ** 2)
        )
        return [_group(conv, reader) for conv, reader in zip(convs, readers, strict=True)]

    def config_with(self, widths: Mapping[str, int]) -> dict[str, Any]:
        """Return the configuration with the widths of the named BatchNorm layers replaced."""
        flat = iter(widths[group.name] for group in self.channel_groups())
        stages = [[next(flat) for _ in stage] for stage in self.config["widths"]]
        return {**self.config, "widths": stages}

    @classmethod
    def infer_config(cls, state: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """Read the configuration from the names and shapes of a state_dict.

        Returns:
            None where the names are not those of torchvision's VGG with BatchNorm.

        Raises:
            UnsupportedModelError: a VGG, but without BatchNorm or with a layout of its own.
        """
        return infer_vgg_config(state)

    def _initialise(self) -> None:
        if self.features[0].weight.is_meta:
            return  # there is nothing to fill, and torch takes a second to find that out
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
            elif isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, 0, 0.01)
                nn.init.zeros_(layer.bias)


def vgg_bn(depth: int, *, num_classes: int = 1000, **config: Any) -> VGG:
    """Build VGG-11, 13, 16 or 19 with BatchNorm at its published widths.

    >>> vgg_bn(16, num_classes=100).config["widths"][0]
    [64, 64]
    """
    if depth not in VGG_DEPTHS:
        raise UserInputError(f"VGG depth is {depth}; expected one of {sorted(VGG_DEPTHS)}")
    widths = [[w] * n for w, n in zip(STAGE_WIDTHS, VGG_DEPTHS[depth], strict=True)]
    return VGG(widths=widths, num_classes=num_classes, **config)


def _features(widths: Sequence[Sequence[int]], in_channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for stage in widths:
        for width in stage:
            conv = nn.Conv2d(in_channels, width, kernel_size=3, padding=1)
            layers += [conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            in_channels = width
        layers.append(nn.MaxPool2d(kernel_size=2, stride=2))
    return nn.Sequential(*layers)


def _classifier(
    features: int, hidden: Sequence[int], num_classes: int, dropout: float
) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(features, width), nn.ReLU(inplace=True), nn.Dropout(dropout)]
        features = width
    return nn.Sequential(*layers, nn.Linear(features, num_classes))


def _group(conv: int, reader: TensorSlice) -> ChannelGroup:
    norm = f"features.{conv + 1}"
    own = [f"features.{conv}.{name}" for name in ("weight", "bias")]
    own += [f"{norm}.{name}" for name in ("weight", "bias", "running_mean", "running_var")]
    return ChannelGroup(
        name=norm,
        scale=f"{norm}.weight",
        shift=f"{norm}.bias",
        slices=(*(TensorSlice(tensor=name, dim=0) for name in own), reader),
        consumer=reader,
    )


def _check_config(config: Mapping[str, Any]) -> None:
    counts = [config["num_classes"], config["in_channels"], config["pooled"], *config["hidden"]]
    counts += [width for stage in config["widths"] for width in stage]
    if not config["widths"] or not all(config["widths"]):
        raise UserInputError("a VGG needs at least one stage, and a convolution in each")
    for count in counts:
        if not isinstance(count, int) or not 1 <= count <= MAX_WIDTH:
            raise UserInputError(f"a width of the VGG is {count!r}; expected 1 to {MAX_WIDTH}")
