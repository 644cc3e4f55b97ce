import dataclasses

import pytest
import torch

from compress.data.augment import Augment, AugmentConfig
from compress.data.image_data import Preprocessing
from compress.errors import UserInputError
from compress.training.config import TrainingConfig
from compress.training.presets import (
    AUGMENTATIONS,
    TRAINING_PRESETS,
    preset_augmentation,
    preset_config,
)


@pytest.mark.parametrize("name", TRAINING_PRESETS)
@pytest.mark.parametrize("epochs", [1, 2, 3, 20, 300])
@pytest.mark.parametrize("batch_size", [1, 16, 1024])
def test_every_preset_fits_runs_of_any_length(name: str, epochs: int, batch_size: int) -> None:
    config = preset_config(name, epochs=epochs, batch_size=batch_size)
    assert (config.epochs, config.batch_size) == (epochs, batch_size)
    assert config.warmup_epochs <= epochs / 10


@pytest.mark.parametrize("name", TRAINING_PRESETS)
def test_their_augmentation_is_one(name: str) -> None:
    assert AugmentConfig(**preset_augmentation(name, 32)) != AugmentConfig()


def test_the_published_gfnet_recipe() -> None:
    config = preset_config("gfnet", batch_size=1024)  # 8 GPUs of 128 images
    expected = TrainingConfig(
        epochs=300, batch_size=1024, optimizer="adamw", lr=1e-3, weight_decay=0.05,
        schedule="cosine", min_lr=1e-5, warmup_epochs=5.0, label_smoothing=0.1, clip_grad_norm=1.0,
    )  # fmt: skip
    assert config == expected
    augment = AugmentConfig(**preset_augmentation("gfnet", 224))
    assert (augment.mixup_alpha, augment.cutmix_alpha) == (0.8, 1.0)
    assert augment.rand_augment_magnitude == 27  # timm's 9 of 10, on kornia's scale of 30
    transfer = preset_config("gfnet-transfer")
    assert (transfer.lr, transfer.weight_decay, transfer.batch_size) == (1e-4, 1e-4, 512)


def test_the_published_slimming_recipe() -> None:
    config = preset_config("slimming")
    assert (config.epochs, config.milestones) == (160, (80, 120))
    assert (config.lr, config.momentum, config.sparsity_lambda) == (0.1, 0.9, 1e-4)
    assert preset_augmentation("slimming", 32)["random_crop_padding"] == 4


def test_what_is_given_wins() -> None:
    given = {
        "lr": 0.2, "min_lr": 0.1, "warmup_epochs": 2.5, "weight_decay": 0.0, "batch_size": 8,
        "epochs": 3, "label_smoothing": 0.0, "optimizer": "sgd",
    }  # fmt: skip
    config = dataclasses.asdict(preset_config("gfnet", **given))
    assert {name: config[name] for name in given} == given
    assert preset_config("slimming", epochs=8).milestones == (4, 6)
    assert preset_config("slimming", epochs=8, milestones=(2,)).milestones == (2,)


def test_what_follows_from_what_is_given() -> None:
    assert preset_config("gfnet", lr=1e-6).min_lr == 1e-6  # the end may not lie above the start
    assert preset_config("gfnet", batch_size=256).lr == pytest.approx(2.5e-4)
    assert preset_config("slimming", batch_size=256).lr == 0.1


def test_without_a_preset_the_defaults_stand() -> None:
    assert preset_config(None, epochs=3) == TrainingConfig(epochs=3)


def test_names_and_numbers_that_are_wrong() -> None:
    with pytest.raises(UserInputError, match="'gfnets' is not known; expected one of gfnet"):
        preset_config("gfnets")
    with pytest.raises(UserInputError, match="epochs is 0"):
        preset_config("gfnet", epochs=0)
    with pytest.raises(UserInputError, match="batch_size is 0"):
        preset_config("gfnet", batch_size=0)


def test_a_resized_crop_is_a_part_of_the_picture() -> None:
    """Of a horizontal ramp a crop is a ramp: rising, and less steep than the whole."""
    plain = Preprocessing(
        image_size=16, resize="pillow-bicubic", resize_size=16, mean=(0, 0, 0), std=(1, 1, 1)
    )
    config = AugmentConfig(**AUGMENTATIONS["resized-crop"](16))
    ramp = (torch.arange(16) * 16).to(torch.uint8).expand(8, 3, 16, 16)
    inputs, _ = Augment(config, 2, plain)(ramp, torch.zeros(8, dtype=torch.int64), seed=0)
    assert inputs.shape == (8, 3, 16, 16)
    spans = inputs[:, 0, 0, -1] - inputs[:, 0, 0, 0]
    assert (inputs.diff(dim=3) >= -1e-6).all()
    assert (spans <= 240 / 255 + 1e-6).all()
    assert spans.min() < 0.8  # at a quarter of the area the side is half or so
    assert spans.unique().numel() > 1
