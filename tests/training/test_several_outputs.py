"""Networks that return more than logits are measured, slimmed and trained by their logits."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import compress
from compress.data.image_data import Preprocessing
from compress.evaluate import main as evaluate
from compress.finetune import main as finetune
from compress.models.factory import call_factory
from compress.slim import main as slim

PIXELS = Preprocessing(16, "pillow-bicubic", 16, mean=(0.5,) * 3, std=(0.5,) * 3)


class Several(nn.Module):
    """Logits among other outputs, as VGGNet and networks with auxiliary heads have."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.body = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
            nn.MaxPool2d(2), nn.Conv2d(16, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24),
            nn.ReLU(),
        )  # fmt: skip
        self.head, self.auxiliary = nn.Linear(24, 10), nn.Conv2d(24, 4, 1)

    def forward(self, image: Tensor) -> dict[str, Tensor] | tuple[Tensor, ...]:
        maps = self.body(image)
        logits = self.head(maps.mean((2, 3)))
        if self.form == "dict":
            return {"probs": logits}
        return logits, self.auxiliary(maps)


def dictionary() -> nn.Module:
    return Several("dict")


def pair() -> nn.Module:
    return Several("tuple")


@pytest.mark.parametrize("factory", ["dictionary", "pair"])
def test_from_the_file_to_a_finetuned_slim_network(tmp_path: Path, capsys, factory) -> None:
    torch.manual_seed(0)
    name = f"tests.training.test_several_outputs:{factory}"
    model = call_factory(name)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.2, 1.5)
    file = compress.save(model, tmp_path / "s.pth", meta={"preprocessing": PIXELS.to_dict()})
    common = ["--model", name, "-q"]
    assert evaluate([str(file), "--data", "digits", *common]) == 0
    assert slim([str(file), "--ratio", "0.4", "--no-latency", *common]) == 0
    slimmed = str(tmp_path / "s.slim-0.4.pth")
    short = ["--epochs", "2", "--batch-size", "128", "--lr", "0.05", "-o", str(tmp_path / "run")]
    assert finetune([slimmed, "--data", "digits", *short, *common]) == 0
    tuned = compress.load(tmp_path / "run" / "best.pth", factory=name)
    assert sum(p.numel() for p in tuned.parameters()) < sum(p.numel() for p in model.parameters())
