"""The telling blocks of well-known networks, small, written the way their authors write them.

Each stands for a kind of topology. Images are (N, 3, 16, 16) as in `tests.networks`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 10


def conv_norm(width_in: int, width: int, kernel: int = 3, stride: int = 1, groups: int = 1):
    conv = nn.Conv2d(width_in, width, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width))


def conv_act(width_in: int, width: int, kernel: int = 3, stride: int = 1, groups: int = 1):
    return nn.Sequential(*conv_norm(width_in, width, kernel, stride, groups), nn.ReLU())


class Classifier(nn.Module):
    def __init__(self, body: nn.Module, width: int) -> None:
        super().__init__()
        self.body = body
        self.fc = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(x).mean((2, 3)))


class PreActBlock(nn.Module):
    def __init__(self, width_in: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(width_in), nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        same = stride == 1 and width_in == width
        self.shortcut = None if same else nn.Conv2d(width_in, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(out)
        return self.conv2(F.relu(self.bn2(self.conv1(out)))) + shortcut


def preact_resnet(*, final_norm: bool) -> nn.Module:
    layers = [nn.Conv2d(3, 16, 3, padding=1), PreActBlock(16, 16), PreActBlock(16, 24, 2)]
    layers += [PreActBlock(24, 24)]
    layers += [nn.BatchNorm2d(24), nn.ReLU()] if final_norm else [nn.ReLU()]
    return Classifier(nn.Sequential(*layers), 24)


class BareShortcut(nn.Module):
    """A residual block whose shortcut convolution has no BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_act(3, 16)
        self.conv = conv_norm(16, 24)
        self.shortcut = nn.Conv2d(16, 24, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return F.relu(self.conv(x) + self.shortcut(x))


class DenseLayer(nn.Module):
    def __init__(self, width_in: int, growth: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(width_in), nn.Conv2d(width_in, growth, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(F.relu(self.norm(x)))], 1)


def densenet_growth_12() -> nn.Module:
    layers = [nn.Conv2d(3, 24, 3, padding=1), DenseLayer(24, 12), DenseLayer(36, 12)]
    layers += [nn.BatchNorm2d(48), nn.ReLU(), nn.Conv2d(48, 24, 1), nn.AvgPool2d(2)]
    layers += [DenseLayer(24, 12), nn.BatchNorm2d(36), nn.ReLU()]
    return Classifier(nn.Sequential(*layers), 36)


class Bottleneck(nn.Module):
    def __init__(self, width: int, *, shortcut: bool) -> None:
        super().__init__()
        self.cv1, self.cv2, self.add = conv_act(width, width), conv_act(width, width), shortcut

    def forward(self, x: Tensor) -> Tensor:
        return x + self.cv2(self.cv1(x)) if self.add else self.cv2(self.cv1(x))


class C2f(nn.Module):
    def __init__(self, width_in: int, width: int, *, shortcut: bool = True) -> None:
        super().__init__()
        self.c = width // 2
        self.cv1 = conv_act(width_in, 2 * self.c, 1)
        self.cv2 = conv_act(4 * self.c, width, 1)
        self.m = nn.ModuleList(Bottleneck(self.c, shortcut=shortcut) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        y = list(self.cv1(x).chunk(2, 1))
        y.extend(m(y[-1]) for m in self.m)
        return self.cv2(torch.cat(y, 1))


class Detector(nn.Module):
    """YOLO's: three heads at three strides, returned as a list."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_act(3, 16)
        self.stages = nn.ModuleList(
            nn.Sequential(conv_act(16, 16, stride=2), C2f(16, 16, shortcut=i < 2)) for i in range(3)
        )
        self.heads = nn.ModuleList(
            nn.Sequential(conv_act(16, 16), nn.Conv2d(16, 7, 1)) for _ in range(3)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        x, outputs = self.stem(x), []
        for stage, head in zip(self.stages, self.heads, strict=True):
            x = stage(x)
            outputs.append(head(x))
        return outputs


class Res2Block(nn.Module):
    def __init__(self, width_in: int, width: int, *, by_number: bool) -> None:
        super().__init__()
        self.by_number, self.width = by_number, width
        self.conv1, self.conv3 = conv_act(width_in, 4 * width, 1), conv_norm(4 * width, width_in, 1)
        self.convs = nn.ModuleList(conv_act(width, width) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(x)
        pieces = torch.split(out, self.width, 1) if self.by_number else torch.chunk(out, 4, 1)
        done, piece = [], pieces[0]
        for i, conv in enumerate(self.convs):
            piece = conv(pieces[i] if i == 0 else piece + pieces[i])
            done.append(piece)
        return F.relu(x + self.conv3(torch.cat([*done, pieces[3]], 1)))


def res2net(*, by_number: bool) -> nn.Module:
    blocks = (Res2Block(16, 8, by_number=by_number) for _ in range(2))
    return Classifier(nn.Sequential(conv_act(3, 16), *blocks), 16)


class ShuffleUnit(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.branch = nn.Sequential(
            conv_act(half, half, 1), conv_norm(half, half, 3, groups=half), conv_act(half, half, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        one, two = x.chunk(2, dim=1)
        x = torch.cat((one, self.branch(two)), dim=1)
        n, c, h, w = x.size()
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)


def shufflenet_v2() -> nn.Module:
    units = [conv_act(3, 16), ShuffleUnit(16), ShuffleUnit(16), conv_act(16, 24, 1)]
    return Classifier(nn.Sequential(*units), 24)


class Ghost(nn.Module):
    """Half of the channels are made of the other half; assigned into slices, or concatenated."""

    def __init__(self, width_in: int, width: int, *, assign: bool) -> None:
        super().__init__()
        self.assign, self.width = assign, width
        self.primary = conv_act(width_in, width // 2, 1)
        self.cheap = conv_act(width // 2, width // 2, 3, groups=width // 2)

    def forward(self, x: Tensor) -> Tensor:
        one = self.primary(x)
        two = self.cheap(one)
        if not self.assign:
            return torch.cat([one, two], 1)[:, : self.width]
        n, c, h, w = one.shape
        out = one.new_zeros(n, 2 * c, h, w)
        out[:, :c] = one
        out[:, c:] = two
        return out


def ghostnet(*, assign: bool) -> nn.Module:
    ghosts = (Ghost(16, 24, assign=assign), Ghost(24, 16, assign=assign))
    return Classifier(nn.Sequential(conv_act(3, 16), *ghosts), 16)


class BatchNormAct2d(nn.BatchNorm2d):
    """timm's: the activation is inside the BatchNorm."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.drop, self.act = nn.Identity(), nn.SiLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, 0.1, 1e-5
        )
        return self.act(self.drop(x))


class SqueezeExcite(nn.Module):
    def __init__(self, width: int, gate: nn.Module) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(width, 8, 1), nn.Conv2d(8, width, 1)
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        squeezed = x.mean((2, 3), keepdim=True)
        return x * self.gate(self.expand(F.relu(self.reduce(squeezed))))


class MBConv(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.conv_pw, self.bn1 = nn.Conv2d(width, hidden, 1, bias=False), BatchNormAct2d(hidden)
        self.conv_dw = nn.Conv2d(hidden, hidden, 3, padding=0, groups=hidden, bias=False)
        self.bn2, self.se = BatchNormAct2d(hidden), SqueezeExcite(hidden, nn.Sigmoid())
        self.project = conv_norm(hidden, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = F.pad(self.bn1(self.conv_pw(x)), (1, 1, 1, 1))  # "same", as TensorFlow pads
        return x + self.project(self.se(self.bn2(self.conv_dw(out))))


def efficientnet() -> nn.Module:
    return Classifier(nn.Sequential(conv_norm(3, 16), MBConv(16, 32), MBConv(16, 24)), 16)


def mobilenet_v3() -> nn.Module:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.expand = nn.Sequential(*conv_norm(16, 32, 1), nn.Hardswish())
            self.depth = nn.Sequential(*conv_norm(32, 32, 3, groups=32), nn.Hardswish())
            self.se, self.project = SqueezeExcite(32, nn.Hardsigmoid()), conv_norm(32, 16, 1)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.project(self.se(self.depth(self.expand(x))))

    return Classifier(nn.Sequential(conv_act(3, 16), Block(), Block()), 16)


class UNet(nn.Module):
    """Skips are cropped to the map and concatenated; the result is a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = conv_act(3, 16), conv_act(16, 24)
        self.middle = conv_act(24, 32)
        self.up2, self.up1 = nn.ConvTranspose2d(32, 16, 2, 2), nn.ConvTranspose2d(24, 8, 2, 2)
        self.merge2, self.merge1 = conv_act(40, 24), conv_act(24, 16)
        self.head = nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        one = self.down1(x)
        two = self.down2(F.max_pool2d(one, 2))
        x = self.middle(F.max_pool2d(two, 2))
        x = self.merge2(torch.cat([two, self.up2(x)], 1))
        x = self.merge1(torch.cat([one, self.up1(x)], 1))
        return {"probs": torch.sigmoid(self.head(x))}


class Inception(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.three = (
            conv_act(16, 8, 1),
            nn.Sequential(conv_act(16, 8, 1), conv_act(8, 16)),
        )
        self.pool = nn.Sequential(nn.AvgPool2d(3, 1, 1), conv_act(16, 8, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(x), self.three(x), self.pool(x)], 1)


def inception() -> nn.Module:
    return Classifier(nn.Sequential(conv_act(3, 16), Inception(), conv_act(32, 16)), 16)


class RegNetBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv_act(16, 24, 1), conv_act(24, 24, 3, groups=3)
        self.se, self.c = SqueezeExcite(24, nn.Sigmoid()), conv_norm(24, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.c(self.se(self.b(self.a(x)))))


def regnet() -> nn.Module:
    return Classifier(nn.Sequential(conv_act(3, 16), RegNetBlock(), RegNetBlock()), 16)


class RepGhost(nn.Module):
    """Adds a BatchNorm of the identity to a depthwise convolution, as RepVGG does to any."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.primary = conv_act(width_in, width, 1)
        self.cheap, self.fusion = conv_norm(width, width, 3, groups=width), nn.BatchNorm2d(width)
        self.nothing = nn.Sequential()

    def forward(self, x: Tensor) -> Tensor:
        x = self.nothing(self.primary(x))
        return F.relu(self.cheap(x) + self.fusion(x))


def repghost() -> nn.Module:
    return Classifier(nn.Sequential(conv_act(3, 16), RepGhost(16, 9), RepGhost(9, 13)), 13)


class DeepSupervision(nn.Module):
    """One head runs in training only; another runs always and is returned by nobody."""

    def __init__(self) -> None:
        super().__init__()
        self.stage1, self.stage2 = conv_act(3, 16), conv_act(16, 24)
        self.auxiliary = nn.Sequential(conv_act(16, 16), nn.Conv2d(16, CLASSES, 1))
        self.unused = nn.Conv2d(24, CLASSES, 1)
        self.fc = nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.stage1(x)
        auxiliary = self.auxiliary(x) if self.training else None
        x = self.stage2(x)
        self.unused(x)
        logits = self.fc(x.mean((2, 3)))
        return logits if auxiliary is None else (logits, auxiliary.mean((2, 3)))


class Attention(nn.Module):
    """SKNet's: branches are stacked, weighed by a softmax across them, and summed."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_act(3, 16)
        self.paths = nn.ModuleList([conv_act(16, 16, 3), conv_act(16, 16, 5)])
        self.reduce, self.select = conv_act(16, 8, 1), nn.Conv2d(8, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.stack([path(x) for path in self.paths], dim=1)
        weight = self.select(self.reduce(x.sum(1).mean((2, 3), keepdim=True)))
        n, c = x.shape[0], x.shape[2]
        return (x * weight.view(n, 2, c, 1, 1).softmax(1)).sum(1)


@dataclass(frozen=True)
class Known:
    """A network, and which of its groups stay whole: name to words of the reason."""

    build: Callable[[], nn.Module]
    whole: dict[str, str]


NO_GAMMA = "no γ scales all of what"
WRITTEN = "has their number written down"
NETWORKS = {
    "pre-activation ResNet": Known(lambda: preact_resnet(final_norm=True), {}),
    "pre-activation ResNet without a last BatchNorm": Known(
        lambda: preact_resnet(final_norm=False), {"body.3.bn1": NO_GAMMA}
    ),
    "bare shortcut convolution": Known(
        lambda: Classifier(BareShortcut(), 24), {"body.conv.1": NO_GAMMA}
    ),
    "DenseNet, growth 12": Known(densenet_growth_12, {}),
    "C2f (YOLOv8)": Known(lambda: Classifier(nn.Sequential(conv_act(3, 16), C2f(16, 16)), 16), {}),
    "detector with three heads": Known(Detector, {}),
    "Res2Net by chunk": Known(lambda: res2net(by_number=False), {}),
    "Res2Net by a width of its own": Known(
        lambda: res2net(by_number=True),
        {"body.1.conv1.1": WRITTEN, "body.2.conv1.1": WRITTEN},
    ),
    "ShuffleNetV2": Known(shufflenet_v2, {}),
    "GhostNet by concatenation": Known(lambda: ghostnet(assign=False), {}),
    "GhostNet by assignment": Known(lambda: ghostnet(assign=True), {}),
    "EfficientNet with BatchNormAct2d": Known(efficientnet, {}),
    "MobileNetV3 with squeeze-excite": Known(mobilenet_v3, {}),
    "U-Net": Known(UNet, {}),
    "Inception": Known(inception, {}),
    "RegNet": Known(regnet, {}),
    "RepGhost, widths 9 and 13": Known(repghost, {}),
    "deep supervision": Known(DeepSupervision, {}),
    "selective kernels (SKNet)": Known(lambda: Classifier(Attention(), 16), {}),
}
