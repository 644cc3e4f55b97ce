"""The teacher of a distillation: any network that gives logits, frozen, behind its own view.

A teacher may have been trained at another image size or with another normalisation than the data
of the student. It then gets what the student sees, resampled and normalised its own way, so that
both look at the same augmented image.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.checkpoint import Checkpoint, model_from_checkpoint, read_checkpoint
from compress.data.image_data import ImageData, Preprocessing
from compress.errors import UserInputError
from compress.measure.accuracy import Accuracy, evaluate_accuracy

__all__ = ["Teacher", "load_teacher", "recorded_image_size", "teacher_from"]


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
            logits = self.model(self.view(images))
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


def load_teacher(
    path: Path, data: ImageData, *, factory: str | None = None, unsafe_pickle: bool = False
) -> Teacher:
    """Read a teacher from a file and fit it to the data of the student, see `teacher_from`.

    Args:
        path: a checkpoint as for `compress.load`.
        data: what the student is trained on.
        factory: "package.module:function" for a network that is not of `compress.models`.
        unsafe_pickle: read whole-module pickles, which runs code from the file.

    Raises:
        UserInputError: the file cannot be used, or its classes are not those of the data.
        UnsupportedModelError: the architecture is not known.
    """
    checkpoint = read_checkpoint(path, factory=factory, unsafe_pickle=unsafe_pickle)
    return teacher_from(checkpoint, data, path=path)


def teacher_from(checkpoint: Checkpoint, data: ImageData, *, path: Path) -> Teacher:
    """Fit the teacher of a checkpoint to the data of the student.

    Its preprocessing is what the checkpoint records; where it records none, a GFNet tells its image
    size, and everything else is taken to be as for the data.

    Raises:
        UserInputError: its classes are not those of the data, or it does not take their images.
    """
    teacher = Teacher(
        model_from_checkpoint(checkpoint),
        view=_view(checkpoint, data.preprocessing),
        source={"path": str(path), "sha256": checkpoint.sha256, "arch": checkpoint.arch},
    )
    _check_logits(teacher, data)
    _check_names(checkpoint, data)
    return teacher


def recorded_image_size(checkpoint: Checkpoint) -> int | None:
    """Return the side in pixels that a checkpoint was trained at, where it tells.

    Raises:
        UserInputError: it was built for images that are not square, which no data give.
    """
    built_for = checkpoint.config.get("image_size")  # of a GFNet
    if built_for is None:
        return checkpoint.meta.get("preprocessing", {}).get("image_size")
    height, width = [built_for] * 2 if isinstance(built_for, int) else built_for
    if height != width:
        raise UserInputError(
            f"the network is built for images of {height}x{width}, but the data give squares; "
            "expected the same, so give a side by --image-size to resample the network"
        )
    return int(height)


def _view(checkpoint: Checkpoint, given: Preprocessing) -> Callable[[Tensor], Tensor]:
    wanted = checkpoint.meta.get("preprocessing", {})
    size = recorded_image_size(checkpoint) or given.image_size
    mean, std = wanted.get("mean", given.mean), wanted.get("std", given.std)
    if (size, tuple(mean), tuple(std)) == (given.image_size, given.mean, given.std):
        return _as_it_is
    # (x * given.std + given.mean - mean) / std
    return _View(
        size=(size, size),
        factor=tuple(a / b for a, b in zip(given.std, std, strict=True)),
        shift=tuple((a - b) / c for a, b, c in zip(given.mean, mean, std, strict=True)),
    )


def _as_it_is(images: Tensor) -> Tensor:
    return images


def _check_logits(teacher: Teacher, data: ImageData) -> None:
    image = data.normalize(data.splits["train"].images(torch.zeros(1, dtype=torch.int64)))
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


def _check_names(checkpoint: Checkpoint, data: ImageData) -> None:
    """As many classes in another order would teach the wrong thing, and nobody would notice."""
    known = checkpoint.meta.get("classes", ())
    for i, (theirs, ours) in enumerate(zip(known, data.classes, strict=False)):
        if theirs != ours:
            raise UserInputError(
                f"class {i} of the teacher is {theirs!r}, but of the data {data.name} {ours!r}; "
                "expected a teacher that was trained on the same classes in the same order"
            )
