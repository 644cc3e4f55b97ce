"""Networks as other people write them, to hold ours against; nothing here is of `compress.models`.

Every function takes widths, so that slimmed forms can be built too. The names of the layers are
those of torchvision, of the CIFAR code with shortcuts of option A, and of the CIFAR code whose
shortcuts are convolutions.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv(a: int, b: int, k: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(a, b, k, stride=stride, padding=k // 2, groups=groups, bias=False)


class Basic(nn.Module):
    """`shortcut` is "downsample", "shortcut" or "A"."""

    def __init__(self, a: int, inner: int, b: int, stride: int, shortcut: str, projected: bool):
        super().__init__()
        self.conv1, self.bn1 = conv(a, inner, 3, stride), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = conv(inner, b, 3), nn.BatchNorm2d(b)
        self.kind, self.stride, self.pad = shortcut, stride, b - a
        layers = [conv(a, b, 1, stride), nn.BatchNorm2d(b)] if projected else []
        if shortcut != "A":
            setattr(self, shortcut, nn.Sequential(*layers))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.kind != "A":
            return F.relu(out + getattr(self, self.kind)(x))
        if self.stride != 1 or self.pad:
            kept = x[:, :, ::2, ::2]
            zeros = torch.zeros(len(x), self.pad // 2, *kept.shape[2:])
            x = torch.cat([zeros, kept, zeros], 1)
        return F.relu(out + x)


class Bottle(nn.Module):
    def __init__(self, a: int, inner, b: int, stride: int, shortcut: str, projected: bool, groups):
        super().__init__()
        self.conv1, self.bn1 = conv(a, inner[0], 1), nn.BatchNorm2d(inner[0])
        self.conv2 = conv(inner[0], inner[1], 3, stride, groups)
        self.bn2 = nn.BatchNorm2d(inner[1])
        self.conv3, self.bn3 = conv(inner[1], b, 1), nn.BatchNorm2d(b)
        self.kind = shortcut
        layers = [conv(a, b, 1, stride), nn.BatchNorm2d(b)] if projected else []
        setattr(self, shortcut, nn.Sequential(*layers))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(out)))))
        return F.relu(out + getattr(self, self.kind)(x))


class TorchvisionBottlenecks(nn.Module):
    """Stem 7x7 with max pool, two stages of grouped bottlenecks, `fc`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 10, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(10)
        self.layer1 = nn.Sequential(
            Bottle(10, (8, 4), 20, 1, "downsample", True, 4),
            Bottle(20, (12, 8), 20, 1, "downsample", False, 4),
        )
        self.layer2 = nn.Sequential(Bottle(20, (16, 20), 24, 2, "downsample", True, 4))
        self.fc = nn.Linear(24, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        return self.fc(self.layer2(self.layer1(x)).mean((2, 3)))


class TorchvisionBasics(nn.Module):
    """Grey images, stem 7x7 with max pool, four stages of basic blocks, `fc`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.layer1 = nn.Sequential(*[Basic(8, w, 8, 1, "downsample", False) for w in (5, 6)])
        self.layer2 = nn.Sequential(Basic(8, 9, 12, 2, "downsample", True))
        self.layer3 = nn.Sequential(Basic(12, 16, 11, 2, "downsample", True))
        self.layer4 = nn.Sequential(
            Basic(11, 8, 30, 2, "downsample", True), Basic(30, 7, 30, 1, "downsample", False)
        )
        self.fc = nn.Linear(30, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class CifarOptionA(nn.Module):
    """Three stages of basic blocks, shortcuts of option A, `linear`."""

    def __init__(self, blocks: int = 2, widths=(8, 16, 32), inner=None, classes: int = 10) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(3, widths[0], 3), nn.BatchNorm2d(widths[0])
        a = widths[0]
        for stage, b in enumerate(widths, 1):
            layers = []
            for i in range(blocks):
                width = b if inner is None else inner[stage - 1][i]
                stride = 2 if stage > 1 and i == 0 else 1
                layers.append(Basic(a, width, b, stride, "A", False))
                a = b
            setattr(self, f"layer{stage}", nn.Sequential(*layers))
        self.linear = nn.Linear(a, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(F.avg_pool2d(x, x.shape[-1]).flatten(1))


class CifarShortcuts(nn.Module):
    """Four stages of basic blocks, shortcuts of convolutions, `linear`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(3, 6, 3), nn.BatchNorm2d(6)
        self.layer1 = nn.Sequential(*[Basic(6, w, 6, 1, "shortcut", False) for w in (4, 9)])
        self.layer2 = nn.Sequential(Basic(6, 12, 10, 2, "shortcut", True))
        self.layer3 = nn.Sequential(Basic(10, 12, 10, 2, "shortcut", True))
        self.layer4 = nn.Sequential(Basic(10, 12, 14, 2, "shortcut", True))
        self.linear = nn.Linear(14, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.linear(F.avg_pool2d(x, 4).flatten(1))


class CifarBottlenecks(nn.Module):
    """A 1x1 stem and grouped bottlenecks with `shortcut`, as ResNeXt of CIFAR code has them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(3, 8, 1), nn.BatchNorm2d(8)
        self.layer1 = nn.Sequential(
            Bottle(8, (6, 6), 12, 1, "shortcut", True, 2),
            Bottle(12, (4, 8), 12, 1, "shortcut", False, 2),
        )
        self.layer2 = nn.Sequential(Bottle(12, (8, 8), 24, 2, "shortcut", True, 2))
        self.layer3 = nn.Sequential(Bottle(24, (10, 12), 32, 2, "shortcut", True, 2))
        self.linear = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(F.avg_pool2d(x, 8).flatten(1))


class TorchvisionInverted(nn.Module):
    """One block of torchvision's MobileNetV2."""

    def __init__(self, a: int, hidden: int, b: int, stride: int, expand: bool, residual: bool):
        super().__init__()
        wide = [conv(a, hidden, 1), nn.BatchNorm2d(hidden), nn.ReLU6()]
        deep = [conv(hidden, hidden, 3, stride, hidden), nn.BatchNorm2d(hidden), nn.ReLU6()]
        parts = [nn.Sequential(*wide)] if expand else []
        parts += [nn.Sequential(*deep), conv(hidden, b, 1), nn.BatchNorm2d(b)]
        self.conv, self.residual = nn.Sequential(*parts), residual

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class TorchvisionMobileNetV2(nn.Module):
    """The seventeen blocks of the paper at narrow widths; 10 and 11 have those of the stage before.

    That is what slimming can leave: equal widths without a sum.
    """

    def __init__(self) -> None:
        super().__init__()
        stem = nn.Sequential(conv(3, 6, 3, 2), nn.BatchNorm2d(6), nn.ReLU6())
        parts: list[nn.Module] = [stem]
        a = 6
        # channels, blocks, stride of the first
        for b, blocks, stride in (
            (4, 1, 1), (5, 2, 2), (6, 3, 2), (8, 4, 2), (8, 3, 1), (9, 3, 2), (12, 1, 1),
        ):  # fmt: skip
            for i in range(blocks):
                hidden = a if len(parts) == 1 else 2 * a + i
                step = stride if i == 0 else 1
                parts.append(TorchvisionInverted(a, hidden, b, step, len(parts) > 1, i > 0))
                a = b
        parts.append(nn.Sequential(conv(a, 20, 1), nn.BatchNorm2d(20), nn.ReLU6()))
        self.features = nn.Sequential(*parts)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(20, 7))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


class CifarInverted(nn.Module):
    def __init__(self, a: int, hidden: int, b: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv1, self.bn1 = conv(a, hidden, 1), nn.BatchNorm2d(hidden)
        self.conv2 = conv(hidden, hidden, 3, stride, hidden)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.conv3, self.bn3 = conv(hidden, b, 1), nn.BatchNorm2d(b)
        self.shortcut = nn.Sequential()
        if stride == 1 and a != b:
            self.shortcut = nn.Sequential(conv(a, b, 1), nn.BatchNorm2d(b))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(out)))))
        return out + self.shortcut(x) if self.stride == 1 else out


class CifarMobileNetV2(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(3, 6, 3), nn.BatchNorm2d(6)
        blocks: list[nn.Module] = []
        a = 6
        for b, count, stride in (
            (4, 1, 1), (5, 2, 1), (6, 3, 2), (8, 4, 2), (9, 3, 1), (10, 3, 2), (12, 1, 1),
        ):  # fmt: skip
            for i in range(count):
                blocks.append(CifarInverted(a, 2 * a + i, b, stride if i == 0 else 1))
                a = b
        self.layers = nn.Sequential(*blocks)
        self.conv2, self.bn2 = conv(a, 20, 1), nn.BatchNorm2d(20)
        self.linear = nn.Linear(20, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(F.relu(self.bn1(self.conv1(x))))
        x = F.avg_pool2d(F.relu(self.bn2(self.conv2(x))), 4)
        return self.linear(x.view(x.size(0), -1))
