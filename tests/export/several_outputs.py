"""Small networks that return something else than logits, as people write them.

Images are (N, 3, 16, 16), logits (N, 5).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


class Trunk(nn.Module):
    """The layers that all of them have."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.fc, self.aux = nn.Linear(6, 5), nn.Linear(6, 5)

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the map and its mean."""
        hidden = torch.relu(self.norm(self.conv(x)))
        return hidden, hidden.mean((2, 3))


class ProbsDict(Trunk):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"probs": self.fc(self.parts(x)[1])}


class LogitsAndAux(Trunk):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        pooled = self.parts(x)[1]
        return self.fc(pooled), self.aux(pooled)


@dataclass
class Answer:
    maps: list[Tensor | None]
    logits: Tensor
    more: dict[str, Tensor]
    size: int


class Nested(Trunk):
    """Keys that are not plain, an integer, a truth value, and sizes."""

    def forward(self, x: Tensor) -> Answer:
        hidden, pooled = self.parts(x)
        logits = self.fc(pooled)
        more = {
            "a map/2": hidden,
            "a_map_2": -hidden,
            "class": logits.argmax(1),
            "on": pooled > 0.2,
        }
        return Answer([None, hidden * 2], logits, more, x.shape[0])


class Awkward(Trunk):
    """Names that the exporter gives to inner values and weights, and tensors given twice."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden, pooled = self.parts(x)
        logits = self.fc(pooled)
        given = {"conv2d": hidden, "relu": hidden, "fc.weight": pooled, "image": x, "gate": -pooled}
        return {**given, "mean": 3 * pooled, "out": logits, "hidden": logits}


class ThreeHeads(Trunk):
    """A detector's: three maps, no logits."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Conv2d(6, 7, 3, stride=s, padding=1) for s in (1, 2, 4))

    def forward(self, x: Tensor) -> list[Tensor]:
        hidden = self.parts(x)[0]
        return [head(hidden) for head in self.heads]


class WithAnchors(ThreeHeads):
    """One more tensor, which has no row for each image."""

    def forward(self, x: Tensor) -> list[Tensor]:
        return [*super().forward(x), torch.arange(12.0).reshape(1, 6, 2)]


def trained(network: nn.Module) -> nn.Module:
    """Return it with statistics and weights as training leaves them, the same each time."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in (*network.parameters(), *network.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.5)
        network.norm.running_var.abs_().add_(0.5)
    return network.eval()
