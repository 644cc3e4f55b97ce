"""Which images a slimmed network is mended and judged with, and how good it is.

Estimation looks at images of the training split, the choice between candidates at images of the
calibration split: what was fitted to an image says nothing of other images by being good on it.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from compress.data.image_data import ImageData, Split
from compress.errors import CompressError, UserInputError
from compress.models.outputs import logits_of
from compress.slimming.output_error import relative_error

__all__ = ["Evidence", "Score", "evidence_of"]

BATCH = 100
COMPARED = 200  # images whose outputs are compared
CHANCE = 4  # standard deviations above chance from which accuracy means something


@dataclass(frozen=True, kw_only=True)
class Score:
    """How good a network is.

    Attributes:
        error: distance of its outputs from those of the unslimmed network, relative.
        correct: images of which it says the class; None where accuracy means nothing.
        count: images that were looked at for `correct`.
    """

    error: float
    correct: int | None = None
    count: int = 0

    @property
    def acc1(self) -> float | None:
        """Accuracy in per cent, 0 to 100."""
        return None if self.correct is None else 100 * self.correct / self.count

    @property
    def rank(self) -> tuple[int, float]:
        """Sorts the better before the worse."""
        error = math.inf if math.isnan(self.error) else self.error
        return (-(self.correct or 0), error)

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        return {
            "acc1": self.acc1,
            "correct": self.correct,
            "count": self.count,
            "relative_error": None if math.isnan(self.error) else self.error,
        }


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Images to mend and to judge with.

    Attributes:
        data: where they come from.
        fitting: images of the training split, drawn by a seed.
        choice: images of the calibration split, drawn by a seed.
        reference: the unslimmed network.
        labelled: whether the labels are those that the network was trained for.
    """

    data: ImageData
    fitting: Split
    choice: Split
    reference: nn.Module
    labelled: bool = True

    def batches(self) -> Iterator[Tensor]:
        """Yield inputs (B, C, H, W) made of the images to mend with."""
        for images, _ in self.fitting.batches(BATCH):
            yield self.data.normalize(images)

    def together(self, most: int) -> Tensor:
        """Return the first `most` inputs to mend with at once, (N, C, H, W)."""
        first = torch.arange(min(most, len(self.fitting)))
        return self.data.normalize(self.fitting.images(first))

    @cached_property
    def unslimmed(self) -> Score:
        """How good the unslimmed network is, where its accuracy means something."""
        if not self._gives_classes():
            return Score(error=0.0)
        correct, count = self._count(self.reference), len(self.choice)
        if not _above_chance(correct, count, classes=len(self.data.classes)):
            return Score(error=0.0)
        return Score(error=0.0, correct=correct, count=count)

    @property
    def by_accuracy(self) -> bool:
        """Whether candidates are judged by accuracy, not by the distance of their outputs."""
        return self.unslimmed.correct is not None

    def score(self, network: nn.Module) -> Score:
        """Return how good a slimmed network is.

        Raises:
            UnsupportedModelError: its outputs cannot be compared with the unslimmed network's.
        """
        first = torch.arange(min(COMPARED, len(self.choice)))
        compared = (
            self.data.normalize(self.choice.images(part)) for part in first.split(COMPARED // 8)
        )
        error = relative_error(network, self.reference, compared)
        if not self.by_accuracy:
            return Score(error=error)
        return Score(error=error, correct=self._count(network), count=len(self.choice))

    def to_dict(self) -> dict[str, Any]:
        """Return what was looked at as JSON values."""
        return {
            "data": self.data.name,
            "data_sha256": self.data.sha256,
            "images_of_training": len(self.fitting),
            "images_of_calibration": len(self.choice),
            "judged_by": "accuracy" if self.by_accuracy else "outputs",
            "unslimmed": self.unslimmed.to_dict(),
        }

    @torch.inference_mode()
    def _gives_classes(self) -> bool:
        if not self.labelled:
            return False
        image = self.data.normalize(self.choice.images(torch.zeros(1, dtype=torch.int64)))
        try:
            logits = logits_of(self.reference(image))
        except CompressError:  # it is no classifier
            return False
        return logits.shape == (1, len(self.data.classes))

    @torch.inference_mode()
    def _count(self, network: nn.Module) -> int:
        """Count the images of which a network says the class; NaN says none."""
        correct = 0
        for images, labels in self.choice.batches(BATCH):
            logits = logits_of(network(self.data.normalize(images)))
            hits = (logits.argmax(1) == labels) & ~logits.isnan().any(1)
            correct += int(hits.sum())
        return correct


def evidence_of(
    data: ImageData, reference: nn.Module, *, images: int, seed: int = 0, labelled: bool = True
) -> Evidence:
    """Draw the images to mend and to judge with.

    Args:
        data: with the splits "train" and "calibration".
        reference: the unslimmed network, in eval mode.
        images: how many of each split at most.
        seed: of the draw.
        labelled: whether the labels are those that the network was trained for.

    Raises:
        UserInputError: `images` is below 1, or a split is empty.
    """
    if images < 1:
        raise UserInputError(f"--images is {images}; expected at least 1")
    return Evidence(
        data=data,
        fitting=_drawn(data, "train", images, seed),
        choice=_drawn(data, "calibration", images, seed),
        reference=reference,
        labelled=labelled,
    )


def _drawn(data: ImageData, name: str, most: int, seed: int) -> Split:
    split = data.splits[name]
    if len(split) == 0:
        raise UserInputError(
            f"the {name} split of {data.name} is empty; expected at least one image to mend and "
            "judge the slimmed network with, or no --data"
        )
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(len(split), generator=generator)[:most]
    return Split(split.source, split.positions[drawn], split.labels[drawn])


def _above_chance(correct: int, count: int, *, classes: int) -> bool:
    chance = 1 / max(classes, 2)
    return correct / count > chance + CHANCE * math.sqrt(chance * (1 - chance) / count)
