"""Published training recipes by name, and single augmentations; what is given explicitly wins.

gfnet           Global Filter Networks on ImageNet (Rao et al., arXiv 2107.00645) and their code
gfnet-transfer  the same authors' fine-tuning on CIFAR, Flowers and Cars
slimming        network slimming on CIFAR (Liu et al., arXiv 1708.06519): SGD, and an L1 penalty

Deliberately different from the sources:

- Weight decay spares norms, biases and γ (`compress.training.optimizer`). The GFNet code does so
  too; network slimming decayed them.
- The crop of a random area is cut out of the image at training size, bilinearly, not out of the
  original file. RandAugment is kornia's, without the noise on the magnitude (mstd0.5), and draws
  for 16 images at a time. Mixup and CutMix draw once a batch, as there.
- The command line of GFNet says colour jitter 0.4, but its augmentation (timm) leaves that out
  where RandAugment is on; so it is left out here. `--augment` or a recipe can switch it on.
- The warm-up starts at 1/steps of the learning rate instead of at 1e-6, and takes at most a tenth
  of a short run. Drop path belongs to the network (`drop_path`), not to the recipe.
- Slimming starts from γ as the network has them, not from 0.5.

Imports nothing heavy: the door names the presets in its help.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from compress.errors import UserInputError
from compress.training.config import TrainingConfig

__all__ = [
    "AUGMENTATIONS",
    "TRAINING_PRESETS",
    "TrainingPreset",
    "preset_augmentation",
    "preset_config",
]

SHORTEST_RUN = 10  # in lengths of the warm-up

# What each single name of an augmentation switches on, for images of a side in pixels.
AUGMENTATIONS: dict[str, Callable[[int], dict[str, Any]]] = {
    "flip": lambda _: {"horizontal_flip": True},
    "crop": lambda side: {"random_crop_padding": max(1, side // 8)},
    "resized-crop": lambda _: {"random_resized_crop": 0.25},
    "mixup": lambda _: {"mixup_alpha": 0.2},
    "cutmix": lambda _: {"cutmix_alpha": 1.0},
    "rand-augment": lambda _: {"rand_augment": True},
    "color-jitter": lambda _: {"color_jitter": 0.4},
}


@dataclass(frozen=True, kw_only=True)
class TrainingPreset:
    """A recipe: what of it is fixed, and what follows from the size of batch, run and image.

    Attributes:
        training: arguments of `TrainingConfig`.
        reference_batch: batch size that `training["lr"]` is meant for; the learning rate grows with
            the batch. None keeps it.
        drops_at: shares of the run after which the learning rate drops.
        augment: from the side of the images in pixels to arguments of `AugmentConfig`.
    """

    training: Mapping[str, Any]
    reference_batch: int | None = None
    drops_at: tuple[float, ...] = ()
    augment: Callable[[int], dict[str, Any]]


def _gfnet_augmentation(_: int) -> dict[str, Any]:
    return {
        "random_resized_crop": 0.08,
        "horizontal_flip": True,
        "rand_augment": True,
        "rand_augment_ops": 2,
        "rand_augment_magnitude": 27,  # m9 of timm, whose scale ends at 10
        "mixup_alpha": 0.8,
        "cutmix_alpha": 1.0,
    }


_ADAMW = {
    "batch_size": 512,
    "optimizer": "adamw",
    "schedule": "cosine",
    "min_lr": 1e-5,
    "warmup_epochs": 5.0,
    "label_smoothing": 0.1,
    "clip_grad_norm": 1.0,
}

TRAINING_PRESETS: dict[str, TrainingPreset] = {
    "gfnet": TrainingPreset(
        training={**_ADAMW, "epochs": 300, "lr": 5e-4, "weight_decay": 0.05},
        reference_batch=512,
        augment=_gfnet_augmentation,
    ),
    "gfnet-transfer": TrainingPreset(
        training={**_ADAMW, "epochs": 1000, "lr": 1e-4, "weight_decay": 1e-4},
        reference_batch=512,
        augment=_gfnet_augmentation,
    ),
    "slimming": TrainingPreset(
        training={
            "epochs": 160,
            "batch_size": 64,
            "optimizer": "sgd",
            "lr": 0.1,
            "momentum": 0.9,
            "weight_decay": 1e-4,
            "schedule": "steps",
            "lr_decay": 0.1,
            "sparsity_lambda": 1e-4,
        },
        drops_at=(0.5, 0.75),
        # 4 pixels at the 32 of CIFAR
        augment=lambda side: {**AUGMENTATIONS["flip"](side), **AUGMENTATIONS["crop"](side)},
    ),
}


def preset_config(name: str | None, **given: Any) -> TrainingConfig:
    """Return the settings of a preset with those that are given in place of its own.

    The learning rate follows the batch size, the warm-up and the milestones the epochs, unless they
    are given themselves.

    >>> preset_config("gfnet", batch_size=1024).lr
    0.001
    >>> preset_config("gfnet", epochs=20).warmup_epochs
    2.0

    Args:
        name: of `TRAINING_PRESETS`; None takes the defaults of `TrainingConfig`.
        **given: arguments of `TrainingConfig`.

    Raises:
        UserInputError: the name is not known, or a setting is out of range.
    """
    if name is None:
        return TrainingConfig(**given)
    preset = _preset(name)
    settings = {**preset.training, **given}
    if preset.reference_batch is not None and "lr" not in given:
        settings["lr"] *= settings["batch_size"] / preset.reference_batch
    return TrainingConfig(**{**settings, **_following(preset, settings), **given})


def preset_augmentation(name: str, image_size: int) -> dict[str, Any]:
    """Return the arguments of `AugmentConfig` of a preset, for images of a side in pixels.

    Raises:
        UserInputError: the name is not known.
    """
    return _preset(name).augment(image_size)


def _following(preset: TrainingPreset, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What depends on the learning rate and the epochs: a preset must fit short runs too."""
    epochs = settings["epochs"]
    following: dict[str, Any] = {}
    if "min_lr" in settings:
        following["min_lr"] = min(settings["min_lr"], settings["lr"])
    if "warmup_epochs" in settings:
        following["warmup_epochs"] = min(settings["warmup_epochs"], epochs / SHORTEST_RUN)
    if preset.drops_at:
        drops = {max(1, round(epochs * share)) for share in preset.drops_at}
        following["milestones"] = tuple(sorted(drops))
    return following


def _preset(name: str) -> TrainingPreset:
    if name not in TRAINING_PRESETS:
        raise UserInputError(
            f"preset {name!r} is not known; expected one of {', '.join(TRAINING_PRESETS)}"
        )
    return TRAINING_PRESETS[name]
