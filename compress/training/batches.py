"""Which images an optimizer step sees, and what becomes of them before the network.

Everything random is drawn from a seed that is computed from the position: (seed, epoch) for the
order of the images, (seed, step, micro-batch) for augmentation and dropout. A resumed run therefore
draws what the undisturbed one would have, and a step divided over two processes draws what one
process with two micro-batches draws.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from compress.errors import UserInputError

__all__ = [
    "Batch",
    "BatchPlan",
    "Prepare",
    "TrainingData",
    "derived_seed",
    "first_image",
    "plan_batches",
    "prepare_images",
]


class TrainingData(Protocol):
    """A data set with the splits "train" and "validation"."""

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def classes(self) -> Sequence[str]: ...  # noqa: D102

    @property
    def splits(self) -> Mapping[str, Any]: ...  # noqa: D102

    @property
    def preprocessing(self) -> Any: ...  # noqa: D102

    @property
    def sha256(self) -> str: ...  # noqa: D102

    def normalize(self, images: Tensor) -> Tensor:
        """Return what the network reads, in float32."""
        ...


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What an objective gets.

    Attributes:
        images: (B, 3, S, S) float32, normalised.
        labels: (B,) int64; of mixed images the class of the first.
        targets: (B, K) float32, rows that sum to 1.
    """

    images: Tensor
    labels: Tensor
    targets: Tensor


Prepare = Callable[[Tensor, Tensor, int], Batch]
"""From (images, labels, seed), on the device of training, to a batch."""


def first_image(data: TrainingData) -> Tensor:
    """Return the first training image as the network reads it, (1, C, H, W)."""
    return data.normalize(data.splits["train"].images(torch.zeros(1, dtype=torch.int64)))


def prepare_images(data: TrainingData, augment: Callable[..., Any] | None = None) -> Prepare:
    """Return the function that normalises images, after augmenting them where that is asked for.

    Args:
        data: gives the classes and the normalisation.
        augment: (images, labels, *, seed) to normalised images and soft targets.
    """

    def prepare(images: Tensor, labels: Tensor, seed: int) -> Batch:
        if augment is None:
            targets = F.one_hot(labels, len(data.classes)).float()
            return Batch(images=data.normalize(images), labels=labels, targets=targets)
        mixed, targets = augment(images, labels, seed=seed)
        return Batch(images=mixed, labels=labels, targets=targets)

    return prepare


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """How an epoch is cut into steps, and a step into micro-batches of equal size.

    Attributes:
        images: images of the training split.
        steps: optimizer steps per epoch.
        slices: micro-batches per step, over all processes.
        slice_size: images per micro-batch.
    """

    images: int
    steps: int
    slices: int
    slice_size: int

    @property
    def images_per_epoch(self) -> int:
        """Images that an epoch draws."""
        return self.steps * self.slices * self.slice_size

    def order(self, *, seed: int, epoch: int) -> Tensor:
        """Return the image indices (steps, slices, slice_size) of an epoch, none of them twice.

        The images that fill no whole step are left out: other ones in every epoch.
        """
        generator = torch.Generator().manual_seed(derived_seed(seed, "order", epoch))
        drawn = torch.randperm(self.images, generator=generator)[: self.images_per_epoch]
        return drawn.view(self.steps, self.slices, self.slice_size)


def plan_batches(images: int, *, batch_size: int, slices: int) -> BatchPlan:
    """Cut `images` into steps of `batch_size`; a set smaller than that makes one step.

    >>> plan_batches(100, batch_size=32, slices=2)
    BatchPlan(images=100, steps=3, slices=2, slice_size=16)

    Raises:
        UserInputError: the batch does not divide into `slices`, or there are fewer images.
    """
    if batch_size % slices:
        raise UserInputError(
            f"batch_size is {batch_size}; expected a multiple of {slices}, which is processes "
            "times gradient_accumulation, so that all micro-batches are of one size"
        )
    if images < slices:
        raise UserInputError(
            f"the training split has {images} images; expected at least {slices}, one for every "
            "micro-batch of a step"
        )
    steps = max(1, images // batch_size)
    slice_size = min(batch_size, images) // slices
    return BatchPlan(images=images, steps=steps, slices=slices, slice_size=slice_size)


def derived_seed(*parts: int | str) -> int:
    """Return a seed in [0, 2**63) that differs for every sequence of parts.

    Seeds that lie side by side, as seed + step would, give related streams in some generators.
    """
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
