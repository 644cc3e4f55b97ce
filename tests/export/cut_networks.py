"""Small networks with exits whose segments hand different things on, whole as they are exported."""

from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from compress.export.deployed_form import deployed_form
from compress.export.graph import graph_from_module
from compress.models.gfnet_dynn import GFNetDynn

SIZE, CLASSES = 16, 5


class ExitHead(nn.Module):
    """Logits and a gate's probability of a map or of tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear, self.gate = nn.Linear(width, CLASSES), nn.Linear(CLASSES, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.linear(x.mean((2, 3)))
        return logits, torch.sigmoid(self.gate(logits).squeeze(1))


def conv(taken: int, given: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(taken, given, 3, stride, padding=1), nn.BatchNorm2d(given), nn.ReLU()
    )


class Residual(nn.Module):
    """Blocks that add to what they were given; an exit behind each of the first two."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 16)
        self.inner = nn.ModuleList(nn.Sequential(conv(16, 16), conv(16, 16)) for _ in range(3))
        self.heads = nn.ModuleList(ExitHead(16) for _ in range(3))

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        x, found = self.stem(image), []
        for inner, head in zip(self.inner, self.heads, strict=True):
            x = torch.relu(x + inner(x))
            found += head(x)
        return tuple(found[:-1])


class Dense(nn.Module):
    """Layers that read everything before them; the exits stand inside the block."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.layers = nn.ModuleList(conv(8 + 4 * i, 4) for i in range(4))
        self.heads = nn.ModuleList(ExitHead(4) for _ in range(2))
        self.last = ExitHead(24)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        features, found = [self.stem(image)], []
        for i, layer in enumerate(self.layers):
            features.append(layer(torch.cat(features, 1)))
            if i in (1, 2):
                found += self.heads[i - 1](features[-1])
        return (*found, self.last(torch.cat(features, 1))[0])


class Skipping(nn.Module):
    """A U-Net whose decoder reads what the encoder made, and the image again."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.down, self.middle = conv(3, 8), conv(8, 12, 2), conv(12, 12)
        self.up = nn.ConvTranspose2d(12, 8, 2, stride=2)
        self.join, self.end = conv(16, 8), conv(11, 8)
        self.heads = nn.ModuleList([ExitHead(12), ExitHead(12), ExitHead(8)])

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        wide = self.first(image)
        down = self.down(wide)
        middle = self.middle(down)
        joined = self.join(torch.cat([self.up(middle), wide], 1))
        end = self.end(torch.cat([joined, image], 1))
        maps = zip(self.heads, (down, middle, end), strict=True)
        return tuple(each for head, x in maps for each in head(x))[:-1]


class AllExits(nn.Module):
    """A GFNet with all exits as outputs."""

    def __init__(self, **config: object) -> None:
        super().__init__()
        sizes = {"image_size": SIZE, "patch_size": 4, "width": 12, "depth": 4, "exits": [0, 2]}
        model = GFNetDynn(**{**sizes, "num_classes": CLASSES, **config}).eval()  # type: ignore[arg-type]
        self.network = deployed_form(model)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        network: GFNetDynn = self.network  # type: ignore[assignment]
        logits, gates = network.every_exit(image)
        pairs = zip(logits[:-1], gates, strict=True)
        found = [each for head, gate in pairs for each in (head, torch.sigmoid(gate))]
        return (*found, logits[-1])


NETWORKS = {
    "residual": Residual,
    "dense": Dense,
    "skipping": Skipping,
    "gfnet": AllExits,
    "gfnet distilled": lambda: AllExits(distilled=True),
}
RESULTS = (
    {"logits_0": "logits", "gate_0": "gate"},
    {"logits_1": "logits", "gate_1": "gate"},
    {"logits": "logits"},
)


def images(count: int) -> np.ndarray:
    """Some images (count, 3, 16, 16)."""
    return np.random.default_rng(0).normal(size=(count, 3, SIZE, SIZE)).astype(np.float32)


@cache
def exported(name: str, *, free_batch: bool = True):
    """The whole graph of a network. Shared: copy it before you change it."""
    torch.manual_seed(0)
    model = NETWORKS[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return graph_from_module(
        model,
        torch.from_numpy(images(2)),
        input_name="image",
        output_names=[output for each in RESULTS for output in each],
        free_batch=free_batch,
    )
