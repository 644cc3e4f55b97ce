"""Augment a batch: random crops, flip, RandAugment, colour jitter by kornia; then mixup or CutMix.

A batch and a seed decide everything. The global random state is neither read nor moved, so a run
that was killed repeats, after its resume, the very augmentation that it would have seen.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from compress.data.image_data import Preprocessing
from compress.data.mixing import cutmix, mixup
from compress.errors import UserInputError
from compress.optional import require

__all__ = ["Augment", "AugmentConfig"]

# kornia draws the operations of RandAugment once a call; smaller calls give a batch more variety.
RAND_AUGMENT_GROUP = 16


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """What is done to training images; all off by default.

    Attributes:
        random_crop_padding: pixels of black added on each side before a crop of the old size.
        random_resized_crop: least share of the area, in [0, 1], of a crop of random size and shape
            that is resized to the old size; 0 is off.
        horizontal_flip: mirror every other image.
        mixup_alpha: of Beta(α, α); 0 is off. With CutMix on too, each batch takes one by even odds.
        cutmix_alpha: of Beta(α, α); 0 is off.
        rand_augment: apply RandAugment (Cubuk et al., arXiv 1909.13719).
        rand_augment_ops: how many operations, in 1 … 15.
        rand_augment_magnitude: in 1 … 29, of 30. timm's scale ends at 10: its m9 is 27 here.
        color_jitter: strength for brightness, contrast and saturation, in [0, 1].
    """

    random_crop_padding: int = 0
    random_resized_crop: float = 0.0
    horizontal_flip: bool = False
    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    rand_augment: bool = False
    rand_augment_ops: int = 2
    rand_augment_magnitude: int = 9
    color_jitter: float = 0.0

    def __post_init__(self) -> None:
        for name, low, high in (
            ("random_crop_padding", 0, float("inf")),
            ("random_resized_crop", 0, 1),
            ("mixup_alpha", 0, float("inf")),
            ("cutmix_alpha", 0, float("inf")),
            ("rand_augment_ops", 1, 15),
            ("rand_augment_magnitude", 1, 29),
            ("color_jitter", 0, 1),
        ):
            value = getattr(self, name)
            if not low <= value <= high:  # NaN fails this too
                raise UserInputError(f"{name} is {value}; expected {low} <= {name} <= {high}")


class Augment:
    """Turn uint8 images and labels into augmented, normalised inputs and soft targets."""

    def __init__(
        self, config: AugmentConfig, num_classes: int, preprocessing: Preprocessing
    ) -> None:
        self.config = config
        self.num_classes = num_classes
        self.preprocessing = preprocessing
        if preprocessing.channels != 3 and (config.color_jitter or config.rand_augment):
            raise UserInputError(
                f"color-jitter and rand-augment were asked for images of {preprocessing.channels} "
                "channels; expected RGB images, or other augmentations"
            )
        self._pixel_steps = _pixel_steps(config, preprocessing.size)

    def __call__(self, images: Tensor, labels: Tensor, *, seed: int) -> tuple[Tensor, Tensor]:
        """Augment one batch.

        Args:
            images: (B, C, H, W) uint8.
            labels: (B,) int64.
            seed: 0 <= seed < 2**63; the same seed and batch give the same result.

        Returns:
            Inputs (B, C, H, W) float32, and targets (B, num_classes) whose rows add up to 1. With
            everything off they are the normalised images and one-hot targets.
        """
        pixels = images.float() / 255
        if self._pixel_steps:
            with _seeded(seed, images.device):
                for step in self._pixel_steps:
                    pixels = step(pixels)
        inputs = self.preprocessing.standardize(pixels)
        targets = F.one_hot(labels, self.num_classes).float()
        return self._mix(inputs, targets, np.random.default_rng(seed))

    def _mix(
        self, inputs: Tensor, targets: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        choices = [
            (mix, alpha)
            for mix, alpha in ((mixup, self.config.mixup_alpha), (cutmix, self.config.cutmix_alpha))
            if alpha > 0
        ]
        if not choices:
            return inputs, targets
        mix, alpha = choices[rng.integers(len(choices))]
        return mix(inputs, targets, alpha=alpha, rng=rng)


def _pixel_steps(config: AugmentConfig, size: tuple[int, int]) -> list[Callable[[Tensor], Tensor]]:
    """Return the steps that work on single images in [0, 1]; kornia is imported for them alone."""
    steps: list[Callable[[Tensor], Tensor]] = []
    if config.random_crop_padding:
        steps.append(_kornia().RandomCrop(size, padding=config.random_crop_padding))
    if config.random_resized_crop:
        scale = (config.random_resized_crop, 1.0)
        steps.append(_kornia().RandomResizedCrop(size, scale=scale, ratio=(3 / 4, 4 / 3)))
    if config.horizontal_flip:
        steps.append(_kornia().RandomHorizontalFlip(p=0.5))
    if config.rand_augment:
        steps.append(_rand_augment(config))
    if config.color_jitter:
        strength = config.color_jitter
        steps.append(_kornia().ColorJitter(strength, strength, strength, 0.0, p=1.0))
    return steps


def _rand_augment(config: AugmentConfig) -> Callable[[Tensor], Tensor]:
    policy = _kornia().auto.RandAugment(
        config.rand_augment_ops,
        config.rand_augment_magnitude,
        transformation_matrix_mode="skip",  # nobody asks for the matrices
    )

    def apply(pixels: Tensor) -> Tensor:
        return torch.cat([policy(group) for group in pixels.split(RAND_AUGMENT_GROUP)])

    return apply


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Let the block draw from torch's generators as seeded, then put them back as they were."""
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        # torch.manual_seed would reach every other device too, and those are not put back.
        torch.default_generator.manual_seed(seed)
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def _kornia() -> ModuleType:
    return require("kornia.augmentation", "augmenting images")
