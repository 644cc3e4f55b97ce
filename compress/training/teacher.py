"""The teacher of a distillation: any network that gives logits, frozen, behind its own view.

A teacher may have been trained at another image size or with another normalisation than the data
of the student. It then gets what the student sees, resampled and normalised its own way, so that
both look at the same augmented image.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.data.image_data import ImageData, Preprocessing
from compress.errors import UserInputError
from compress.measure.accuracy import Accuracy, evaluate_accuracy
from compress.models.outputs import logits_of
from compress.opened import Opened
from compress.training.batches import first_image

__all__ = ["Teacher", "teacher_from"]


class Teacher:
    """A frozen network in eval mode; calling it gives logits that no gradient flows through.

    It is no `nn.Module`, so it cannot end up among the parameters of a student, in an optimizer or
    in a checkpoint.

    Args:
        model: from images to logits (B, K); a copy of it is frozen.
        view: from the images that the student sees to those that the teacher reads.
        source: how to name it in reports and checkpoints; JSON values.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        view: Callable[[Tensor], Tensor] | None = None,
        source: Mapping[str, Any] | None = None,
    ) -> None:
        # Accelerate and `fit` change what they are given, and the caller may go on with it.
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.view = view or _as_it_is
        self.source = dict(source or {})

    def __call__(self, images: Tensor) -> Tensor:
        """Return logits (B, K) float32 of images as the student sees them, (B, C, H, W).

        The teacher moves to the device of the images.
        """
        first = next(self.model.parameters(), images)
        if first.device != images.device:
            self.model.to(images.device)
        with torch.inference_mode():
            logits = logits_of(self.model(self.view(images)))
        # Autograd refuses to save what was made in inference mode; a copy made outside is its own.
        return logits.clone().float()

    def accuracy(
        self,
        data: ImageData,
        splits: Sequence[str],
        *,
        batch_size: int,
        device: torch.device | str,
        workers: int,
    ) -> dict[str, Accuracy]:
        """Return how often it is right on the splits that hold images, as the student sees them."""
        return {
            split: evaluate_accuracy(
                self.model,
                data.splits[split],
                lambda images: self.view(data.normalize(images)),
                batch_size=batch_size,
                device=device,
                workers=workers,
            )
            for split in splits
            if len(data.splits[split]) > 0
        }


@dataclass(frozen=True, kw_only=True)
class _View:
    """Resample and normalise anew; both steps are linear, so their order does not matter."""

    size: tuple[int, int]
    factor: tuple[float, ...]
    shift: tuple[float, ...]

    def __call__(self, images: Tensor) -> Tensor:
        factor = torch.tensor(self.factor, device=images.device)[:, None, None]
        shift = torch.tensor(self.shift, device=images.device)[:, None, None]
        images = images * factor + shift
        if tuple(images.shape[-2:]) == self.size:
            return images
        return F.interpolate(
            images, size=self.size, mode="bicubic", antialias=True, align_corners=False
        )


def teacher_from(network: Opened, data: ImageData) -> Teacher:
    """Fit the teacher of an opened checkpoint to the data of the student.

    Its preprocessing is what the checkpoint records; where it records none, the only size that the
    network takes counts, and everything else is taken to be as for the data.

    Raises:
        UserInputError: its classes are not those of the data, or it does not take their images.
    """
    checkpoint = network.checkpoint
    teacher = Teacher(
        network.model,
        view=_view(network, data.preprocessing),
        source={"path": str(network.path), "sha256": checkpoint.sha256, "arch": checkpoint.arch},
    )
    _check_logits(teacher, data)
    _check_names(network, data)
    return teacher


def _view(network: Opened, given: Preprocessing) -> Callable[[Tensor], Tensor]:
    wanted, size = network.preprocessing or given, network.size or given.size
    if (size, wanted.mean, wanted.std) == (given.size, given.mean, given.std):
        return _as_it_is
    # (x * given.std + given.mean - mean) / std
    return _View(
        size=size,
        factor=tuple(a / b for a, b in zip(given.std, wanted.std, strict=True)),
        shift=tuple(
            (a - b) / c for a, b, c in zip(given.mean, wanted.mean, wanted.std, strict=True)
        ),
    )


def _as_it_is(images: Tensor) -> Tensor:
    return images


def _check_logits(teacher: Teacher, data: ImageData) -> None:
    image = first_image(data)
    name = teacher.source["path"]
    try:
        logits = teacher(image)
    except Exception as err:  # whatever the layers raise for a size that they cannot take
        raise UserInputError(
            f"the teacher {name} does not take images of {tuple(image.shape[1:])} ({err}); "
            "expected a teacher for the image size of the data"
        ) from err
    if logits.shape[1] != len(data.classes):
        raise UserInputError(
            f"the teacher {name} has {logits.shape[1]} classes, but the student learns the "
            f"{len(data.classes)} of the data {data.name}; expected the same, so fine-tune the "
            "teacher on these data first, with a new head"
        )


def _check_names(network: Opened, data: ImageData) -> None:
    """As many classes in another order would teach the wrong thing, and nobody would notice."""
    for i, (theirs, ours) in enumerate(zip(network.classes or (), data.classes, strict=False)):
        if theirs != ours:
            raise UserInputError(
                f"class {i} of the teacher is {theirs!r}, but of the data {data.name} {ours!r}; "
                "expected a teacher that was trained on the same classes in the same order"
            )
