"""A data set and networks small enough that a whole training takes a fraction of a second."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from compress.training.batches import Batch
from compress.training.config import TrainingConfig
from compress.training.objectives import cross_entropy

SIDE = 4
CLASSES = 3


class FakeSplit:
    def __init__(self, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.arange(count) % CLASSES
        noise = torch.randint(0, 120, (count, 3, SIDE, SIDE), generator=generator)
        noise[torch.arange(count), self.labels] += 100  # the class is the brightest channel
        self.pixels = noise.to(torch.uint8)

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, indices: Tensor) -> Tensor:
        return self.pixels[indices]


@dataclass
class FakeData:
    splits: dict[str, Any]
    name: str = "fake"
    classes: tuple[str, ...] = ("red", "green", "blue")
    sha256: str = "0" * 64
    preprocessing: Any = field(
        default_factory=lambda: SimpleNamespace(to_dict=lambda: {"image_size": SIDE})
    )

    def normalize(self, images: Tensor) -> Tensor:
        return images.float() / 127.5 - 1


def fake_data(train: int = 48, validation: int = 30) -> FakeData:
    return FakeData(splits={"train": FakeSplit(train, 1), "validation": FakeSplit(validation, 2)})


class FakeAugment:
    """Noise and soft targets, drawn from the seed alone."""

    config = None

    def __init__(self, data: FakeData) -> None:
        self.data = data

    def __call__(self, images: Tensor, labels: Tensor, *, seed: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        inputs = self.data.normalize(images)
        inputs = inputs + 0.1 * torch.randn(inputs.shape, generator=generator)
        targets = nn.functional.one_hot(labels, CLASSES).float()
        return inputs, 0.9 * targets + 0.1 / CLASSES


class Net(nn.Module):
    """Conv, BatchNorm or not, dropout or not, linear."""

    arch = "fake"

    def __init__(self, *, norm: bool = True, dropout: float = 0.0, seed: int = 0) -> None:
        super().__init__()
        self.config: dict[str, Any] = {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.conv = nn.Conv2d(3, 6, 3, padding=1)
            self.norm = nn.BatchNorm2d(6) if norm else nn.Identity()
            self.drop = nn.Dropout(dropout)
            self.head = nn.Linear(6, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(image))).mean(dim=(2, 3))
        return self.head(self.drop(x))


def config(**settings: Any) -> TrainingConfig:
    base: dict[str, Any] = {"epochs": 3, "batch_size": 12, "lr": 0.1, "workers": 0}
    return TrainingConfig(**{**base, **settings})


def plain(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    return cross_entropy()(model, batch)


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)
