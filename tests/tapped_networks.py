"""Small networks to put exits behind, each written the way people write such a network.

They share nothing with `compress`, but for those of its own families in `NETWORKS`. Images are
(N, 3, 16, 16), logits (N, 10).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.models.mobilenet import MobileNetV2
from compress.models.resnet import ResNet
from compress.models.vgg import VGG
from tests.exit_networks import resnet
from tests.networks import CLASSES, DenseNet, conv_norm_relu, trained_like

SIZE = 16
IMAGE_SHAPE = (3, SIZE, SIZE)


class UNet(nn.Module):
    """Skips are concatenated on the way up; the logits are made of the last map."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = conv_norm_relu(3, 8, 3), conv_norm_relu(8, 12, 3)
        self.middle = conv_norm_relu(12, 16, 3)
        self.merge2, self.merge1 = conv_norm_relu(28, 12, 3), conv_norm_relu(20, 8, 3)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        one = self.down1(x)
        two = self.down2(F.max_pool2d(one, 2))
        x = self.middle(F.max_pool2d(two, 2))
        x = self.merge2(torch.cat([two, F.interpolate(x, scale_factor=2)], 1))
        x = self.merge1(torch.cat([one, F.interpolate(x, scale_factor=2)], 1))
        return self.fc(x.mean((2, 3)))


class Attention(nn.Module):
    """Self-attention, by the function of torch."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        qkv = self.qkv(x).view(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d))


class ViTBlock(nn.Module):
    def __init__(self, width: int, *, torch_module: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.torch_module = torch_module
        self.attention: nn.Module = (
            nn.MultiheadAttention(width, 2, batch_first=True)
            if torch_module
            else Attention(width, 2)
        )
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + (self.attention(y, y, y)[0] if self.torch_module else self.attention(y))
        return x + self.mlp(self.norm2(x))


class Encoder(nn.Module):
    """A wrapper around all that counts, which ends with a norm, as torchvision's has it."""

    def __init__(self, width: int, *, torch_module: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(ViTBlock(width, torch_module=torch_module) for _ in range(3)))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.layers(x))


class ViT(nn.Module):
    def __init__(self, *, torch_module: bool) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.cls = nn.Parameter(torch.zeros(1, 1, 16))
        self.place = nn.Parameter(torch.zeros(1, 17, 16))
        self.encoder = Encoder(16, torch_module=torch_module)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1) + self.place
        return self.head(self.encoder(x)[:, 0])


class Branching(nn.Module):
    """Branches of Python that shapes and settings decide, never data; returns a dict."""

    def __init__(self, *, wide: bool = True) -> None:
        super().__init__()
        self.wide = wide
        self.stem = conv_norm_relu(3, 8, 3)
        self.never = conv_norm_relu(8, 8, 1)
        self.blocks = nn.ModuleList(conv_norm_relu(8, 8, 3) for _ in range(3))
        self.auxiliary, self.fc = nn.Linear(8, CLASSES), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.stem(x)
        if not self.wide:
            x = self.never(x)
        for number, block in enumerate(self.blocks):
            x = block(x) + x if number % 2 else block(x)
            if x.shape[-1] > 8:
                x = F.max_pool2d(x, 2)
        pooled = x.mean((2, 3))
        return {"auxiliary": self.auxiliary(pooled), "logits": self.fc(pooled)}


class Told(nn.Module):
    """Gives its map and something besides."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = conv_norm_relu(width, width, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.body(x)
        return x, x.mean((1, 2, 3))


class Telling(nn.Module):
    """Its blocks give tuples, and so does it: logits first, then a map."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm_relu(3, 8, 3)
        self.one, self.two = Told(8), Told(8)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x, _ = self.one(self.stem(x))
        x, told = self.two(F.max_pool2d(x, 2))
        return self.fc(x.mean((2, 3))), told


class InPlace(nn.Module):
    """What its blocks give is changed in place behind them, through a view of it as well."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = (
            nn.Sequential(nn.Conv2d(a, 8, 3, padding=1), nn.BatchNorm2d(8)) for a in (3, 8, 8)
        )
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x).relu_()
        x = self.two(x)
        x[:, :4] *= 2
        x.relu_()
        x = self.three(x)
        x += 1
        return self.fc(x.mean((2, 3)))


class SwinBlock(nn.Module):
    """Works on maps (B, H, W, C)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.norm(x))


class Swin(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 12, 4, 4)
        self.stages = nn.Sequential(*(SwinBlock(12) for _ in range(3)))
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(self.patches(x).permute(0, 2, 3, 1)).mean((1, 2)))


class Catching(nn.Module):
    """Goes on, whatever its blocks raise, as long as it is an Exception."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = conv_norm_relu(3, 8, 3), conv_norm_relu(8, 8, 3)
        self.fc = nn.Linear(8, CLASSES)
        self.caught = 0

    def forward(self, x: Tensor) -> Tensor:
        try:
            x = self.one(x)
        except Exception:
            self.caught += 1
            x = x.new_zeros(len(x), 8, *x.shape[2:])
        return self.fc(self.two(x).mean((2, 3)))


class Spoilt(nn.Module):
    """What no exit can stand behind, a kind a module."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm_relu(3, 8, 3)
        self.twice = nn.Conv2d(8, 8, 1)
        self.never = nn.Conv2d(8, 8, 1)
        self.numbers, self.first, self.whole, self.named = Argmax(), Turn(), Total(), Named()
        self.video = Video()
        self.body = nn.Conv2d(8, 8, 1)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(self.twice(self.stem(x)))
        self.numbers(x), self.first(x), self.whole(x), self.named(x), self.video(x)
        return self.fc(self.body(x).mean((2, 3)))


class Argmax(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.argmax(1)


class Turn(nn.Module):
    """Tokens with the sequence before the batch."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).permute(2, 0, 1)


class Total(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sum()


class Named(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"map": x}


class Video(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, None]


class Uncuttable(nn.Module):
    """Nothing but a last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3 * SIZE * SIZE, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(1))


def vgg() -> VGG:
    return VGG(widths=[[8, 8], [12, 12], [16]], num_classes=CLASSES, hidden=[12], pooled=1)


def torchvision_resnet() -> ResNet:
    """Bottlenecks behind a stem of stride 2 with a pool."""
    return ResNet(
        stage_widths=[16, 32], block_widths=[[[8, 8], [8, 8]], [[8, 8], [8, 8]]],
        num_classes=CLASSES, projections=[True, True], stem_width=8,
    )  # fmt: skip


def mobilenet() -> MobileNetV2:
    """The seventeen blocks of the paper, narrow."""
    stages = ((4, 1, 1), (5, 2, 1), (6, 3, 2), (8, 4, 2), (10, 3, 1), (12, 3, 1), (16, 1, 1))
    blocks = [(b, i, s if i == 0 else 1) for b, count, s in stages for i in range(count)]
    widths = [b for b, _, _ in blocks]
    return MobileNetV2(
        widths=widths, hidden=[8, *(2 * a + 2 for a in widths[:-1])], num_classes=CLASSES,
        expand=[False] + 16 * [True], residual=[i > 0 for _, i, _ in blocks],
        strides=[stride for _, _, stride in blocks], stem_width=8, last_width=24,
    )  # fmt: skip


def unet() -> nn.Module:
    return UNet()


def densenet() -> nn.Module:
    return DenseNet()


def vit() -> nn.Module:
    return ViT(torch_module=False)


def vit_of_torch() -> nn.Module:
    return ViT(torch_module=True)


def branching() -> nn.Module:
    return Branching()


def telling() -> nn.Module:
    return Telling()


def in_place() -> nn.Module:
    return InPlace()


def swin() -> nn.Module:
    return Swin()


@dataclass(frozen=True)
class Tapped:
    """A network, modules to put exits behind, and heads that can stand there."""

    build: Callable[[], nn.Module]
    at: tuple[str, ...]
    heads: tuple[str, ...] = ("linear", "hidden:6", "conv:8")

    @property
    def factory(self) -> str | None:
        """What --model is given; None for a family that checkpoints know."""
        ours = getattr(self.build(), "arch", None) is not None
        return None if ours else f"{__name__}:{self.build.__name__}"


TOKENS = ("linear", "hidden:6")
NETWORKS: dict[str, Tapped] = {
    "VGG": Tapped(vgg, ("features.4", "features.9", "avgpool")),
    "CIFAR ResNet": Tapped(resnet, ("layer1.0", "layer2.0")),
    "torchvision ResNet": Tapped(torchvision_resnet, ("maxpool", "layer1.1", "layer2.0")),
    "MobileNetV2": Tapped(mobilenet, ("features.3", "features.8.conv.0", "features.11")),
    "U-Net": Tapped(unet, ("down2", "middle", "merge2")),
    "DenseNet": Tapped(densenet, ("block1.0.conv1", "block1.1", "transition")),
    "ViT": Tapped(vit, ("encoder.layers.0", "encoder.layers.1.attention"), TOKENS),
    "ViT of torch": Tapped(vit_of_torch, ("encoder.layers.0.attention", "encoder.norm"), TOKENS),
    "branching": Tapped(branching, ("stem", "blocks.1")),
    "telling": Tapped(telling, ("one", "two")),
    "in place": Tapped(in_place, ("one", "two.1", "three")),
    "Swin": Tapped(swin, ("stages.0", "stages.1")),
}


def trained(build: Callable[[], nn.Module], seed: int = 0) -> Any:
    """Build a network, with weights and statistics as if it were trained."""
    return trained_like(build(), seed)
