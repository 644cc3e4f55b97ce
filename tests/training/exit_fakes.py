"""Networks with two exits for the images of `fakes`, and their training in a moment."""

from pathlib import Path
from typing import Any

import torch

from compress.models.early_exit import EarlyExitNetwork
from compress.models.gfnet_dynn import GFNetDynn
from compress.models.give_exits import with_exits
from compress.models.with_exits import WithExits
from compress.training.exit_config import ExitTrainingConfig
from compress.training.exit_training import ExitTrainingResult, train_exits
from tests.exit_networks import resnet
from tests.networks import trained_like
from tests.training.fakes import CLASSES, SIDE, FakeData, FakeSplit

SETTINGS: dict[str, Any] = {
    "epochs": 4,
    "batch_size": 12,
    "lr": 0.02,
    "head_warmup_epochs": 4,
    "head_warmup_patience": 2,
    "workers": 0,
}


def tiny_dynn(seed: int = 0, **more: Any) -> GFNetDynn:
    config: dict[str, Any] = {
        "exits": [0, 1], "image_size": SIDE, "patch_size": 2, "width": 8, "depth": 3,
        "num_classes": CLASSES,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GFNetDynn(**{**config, **more})
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)  # so that blocks and heads differ
    return model.eval()


def tiny_resnet(head: str = "linear", seed: int = 0) -> EarlyExitNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = trained_like(resnet(num_classes=CLASSES), seed)
        image = torch.zeros(1, 3, SIDE, SIDE)
        return with_exits(model, ["layer1.1", "layer2.0"], image, head=head)  # type: ignore[return-value]


def exit_data(train: int = 48, validation: int = 30) -> FakeData:
    return FakeData(
        splits={
            "train": FakeSplit(train, 1),
            "validation": FakeSplit(validation, 2),
            "calibration": FakeSplit(24, 3),
            "test": FakeSplit(24, 4),
        }
    )


def exit_config(**settings: Any) -> ExitTrainingConfig:
    return ExitTrainingConfig(**{**SETTINGS, **settings})


def train(model: WithExits, folder: Path, **given: Any) -> ExitTrainingResult:
    settings = given.pop("settings", {})
    data = given.pop("data", None) or exit_data()
    return train_exits(
        model, data, exit_config(**settings), folder, device="cpu", progress=False, **given
    )
