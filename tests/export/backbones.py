"""Networks of the kinds that people bring by a factory, whose cuts several tensors cross."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 10


def conv(taken: int, given: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(taken, given, 3, stride, padding=1, bias=False), nn.BatchNorm2d(given), nn.ReLU()
    )


class DenseClassifier(nn.Module):
    """Layers that read everything before them in their block; two blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.first = nn.ModuleList(conv(8 + 4 * i, 4) for i in range(3))
        self.between = nn.Sequential(conv(20, 12), nn.AvgPool2d(2))
        self.second = nn.ModuleList(conv(12 + 4 * i, 4) for i in range(3))
        self.fc = nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.between(dense(self.stem(x), self.first))
        return self.fc(dense(x, self.second).mean((2, 3)))


def dense(x: Tensor, layers: nn.ModuleList) -> Tensor:
    found = [x]
    for layer in layers:
        found.append(layer(torch.cat(found, 1)))
    return torch.cat(found, 1)


class UNetClassifier(nn.Module):
    """What the encoder saw is read again by the decoder, so it skips the segments between."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.middle, self.deep = conv(3, 8), conv(8, 12, 2), conv(12, 16, 2)
        self.bottom = conv(16, 16)
        self.up, self.top = conv(28, 12), conv(20, 8)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        wide = self.wide(x)
        middle = self.middle(wide)
        x = self.bottom(self.deep(middle))
        x = self.up(torch.cat([F.interpolate(x, scale_factor=2.0), middle], 1))
        x = self.top(torch.cat([F.interpolate(x, scale_factor=2.0), wide], 1))
        return self.fc(x.mean((2, 3)))


class Attention(nn.Module):
    """Attention and a feed-forward part, each behind a norm, on tokens (B, N, D)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """Patches, a class token, and blocks of attention."""

    def __init__(self, width: int = 16, size: int = 16) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.place = nn.Parameter(torch.randn(1, (size // 4) ** 2 + 1, width) * 0.1)
        self.layers = nn.ModuleList(Attention(width) for _ in range(3))
        self.norm, self.fc = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.place
        for layer in self.layers:
            x = layer(x)
        return self.fc(self.norm(x)[:, 0])


def dense_classifier() -> nn.Module:
    torch.manual_seed(0)
    return DenseClassifier()


def unet_classifier() -> nn.Module:
    torch.manual_seed(0)
    return UNetClassifier()


def vision_transformer() -> nn.Module:
    torch.manual_seed(0)
    return VisionTransformer()
