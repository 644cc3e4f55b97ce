"""Make a foreign checkpoint describe itself: its images, how they are prepared, its classes.

What was known only to the person who trained the network is written into a checkpoint of our own
layout, once; every later command takes it from there.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compress.checkpoint import save
from compress.data.image_data import ImageData, Preprocessing
from compress.data.sample import noise
from compress.errors import UserInputError
from compress.files import check_output
from compress.measure.accuracy import Accuracy, evaluate_accuracy
from compress.measure.macs import ModelCounts, count
from compress.measure.versions import versions
from compress.models.outputs import logits_of
from compress.opened import Opened, Opening, check_classes, check_forward, open_checkpoint

__all__ = ["AdoptJob", "AdoptReport", "Pixels", "adopt_checkpoint", "near_chance"]

logger = logging.getLogger(__name__)

SCHEMA = "compress.adopt/1"
VALIDATION = "validation"
LEAST_SKILL = 0.1  # of the way from chance to always right; less points at a wrong description
IMAGENET = "--mean 0.485,0.456,0.406 --std 0.229,0.224,0.225"


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """What is told of the preparation of pictures; None where it is not told.

    Attributes:
        mean: one number a channel, or one for all.
        std: the same.
        resize: "none", or the length of the shorter side, pixels.
        crop: side of the square that is cut out of the resized picture.
        interpolation: "bicubic" or "bilinear".
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    resize: str | int | None = None
    crop: int | None = None
    interpolation: str = "bicubic"

    @property
    def is_told(self) -> bool:
        """Whether anything is."""
        return any(value is not None for value in (self.mean, self.std, self.resize, self.crop))


@dataclass(frozen=True, kw_only=True)
class AdoptJob:
    """Which checkpoint to describe, and how.

    Attributes:
        checkpoint: file to read, foreign or ours.
        output: file to write.
        opening: how the checkpoint is opened; its image size is that of the network.
        pixels: how pictures are prepared.
        classes: their names, in the order of the logits; None takes those that are recorded, else
            those of the data.
        data: to measure accuracy on before anything is written; None measures nothing.
        force: replace an existing file.
        device: where to measure.
        seed: of the split of the data.
        cache: folder of decoded images, or "off"; None takes the usual folder.
        progress: show bars on stderr.
    """

    checkpoint: Path
    output: Path
    opening: Opening = field(default_factory=Opening)
    pixels: Pixels = field(default_factory=Pixels)
    classes: tuple[str, ...] | None = None
    data: str | None = None
    force: bool = False
    device: str = "cpu"
    seed: int = 0
    cache: Path | str | None = None
    progress: bool = True


@dataclass(frozen=True, kw_only=True)
class AdoptReport:
    """What a checkpoint says of itself now.

    Attributes:
        network: name of the network.
        factory: that must be named again, or None.
        counts: multiply-adds and parameters at its image size.
        preprocessing: of pictures.
        classes: their names, or None.
        outputs: logits that the network gives.
        data: that it was measured on, as named by the user, or None.
        accuracy: on their validation split, or None.
        output: the file.
    """

    network: str
    factory: str | None
    counts: ModelCounts
    preprocessing: Preprocessing
    classes: tuple[str, ...] | None
    outputs: int
    data: str | None
    accuracy: Accuracy | None
    output: Path

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {
            "schema": SCHEMA,
            "network": self.network,
            "factory": self.factory,
            "macs": self.counts.macs,
            "params": self.counts.params,
            "preprocessing": self.preprocessing.to_dict(),
            "classes": None if self.classes is None else list(self.classes),
            "outputs": self.outputs,
            "data": self.data,
            "validation": None if self.accuracy is None else self.accuracy.to_dict(),
            "output": str(self.output),
            "versions": versions(),
        }

    def to_text(self) -> str:
        """Return the figures for a console."""
        size = "x".join(map(str, self.preprocessing.shape))
        names = "unnamed" if self.classes is None else _shortened(self.classes)
        cost = f"{self.counts.params / 1e6:.4g} M parameters, {self.counts.macs / 1e6:.4g} M"
        lines = [
            f"{self.network}: {cost} multiply-adds at {size}",
            f"images:  {self.preprocessing.describe()}",
            f"classes: {self.outputs}, {names}",
        ]
        if self.accuracy is not None:
            found = self.accuracy
            lines.append(
                f"right:   {found.correct} of {found.count} validation images of {self.data} "
                f"({found.acc1:.2f} %)"
            )
        model = f" --model {self.factory}" if self.factory else ""
        lines += [
            f"written: {self.output}",
            f"next:    python -m compress.slim --ratio 0.4{model} {self.output}",
        ]
        return "\n".join(lines)


def adopt_checkpoint(job: AdoptJob) -> AdoptReport:
    """Write a checkpoint that says itself what it takes and what it gives.

    Raises:
        UserInputError: a fact is missing, contradicts the network or the data, or a file cannot be
            used; nothing was written then.
        UnsupportedModelError: the network is not known.
    """
    check_output(job.output, force=job.force)
    if job.output.resolve() == job.checkpoint.resolve():
        raise UserInputError(f"output {job.output} is the checkpoint itself; give another name")
    # What is recorded already may be told anew: that is what this command is for.
    asked = Opening(**{**vars(job.opening), "override": True})
    network = open_checkpoint(job.checkpoint, asked)
    preprocessing = _preprocessing(network, job)
    example, _ = noise(preprocessing.shape, count=1)
    outputs = logits_of(check_forward(network.model, example)).shape[-1]
    described = Opened(
        **{**vars(network), "preprocessing": preprocessing, "size": preprocessing.size}
    )
    data = None
    if job.data is not None:
        data = described.data(job.data, seed=job.seed, cache=job.cache)
        check_classes(network.model, data, known=job.classes or network.classes)
    classes = job.classes or network.classes or (None if data is None else data.classes)
    if classes is not None and len(classes) != outputs:
        raise UserInputError(
            f"--classes names {len(classes)} classes, but the network gives {outputs} logits; "
            "expected one name a logit"
        )
    accuracy = None if data is None else _measured(job, network, data)
    meta = _meta(network, preprocessing, classes, data, accuracy)
    save(network.model, job.output, meta=meta)
    return AdoptReport(
        network=network.display_name,
        factory=network.checkpoint.config.get("factory"),
        counts=count(network.model, preprocessing.shape),
        preprocessing=preprocessing,
        classes=classes,
        outputs=outputs,
        data=job.data,
        accuracy=accuracy,
        output=job.output,
    )


def near_chance(accuracy: Accuracy, classes: int) -> bool:
    """Tell whether a network is hardly better than guessing.

    >>> near_chance(Accuracy(count=100, correct=11, correct5=50, loss_sum=0.0), 10)
    True
    """
    chance = 1 / classes
    return accuracy.correct / accuracy.count < chance + LEAST_SKILL * (1 - chance)


def _preprocessing(network: Opened, job: AdoptJob) -> Preprocessing:
    pixels = job.pixels
    if not pixels.is_told and network.preprocessing is not None:
        return network.preprocessing
    size = _size(network, job)
    mean, std = _normalization(network, pixels)
    shorter = min(size)
    how, resize_size = f"pillow-{pixels.interpolation}", shorter
    if pixels.resize == "none":
        how = "none" if pixels.crop is None else "crop"
    elif pixels.resize is not None:
        resize_size = int(pixels.resize)
    return Preprocessing(
        image_size=size,
        resize=how,
        resize_size=resize_size,
        mean=mean,
        std=std,
        untouched_at_size=pixels.resize is None,
    )


def _size(network: Opened, job: AdoptJob) -> tuple[int, int]:
    crop = job.pixels.crop
    cut = None if crop is None else (crop, crop)
    size = job.opening.size or cut or network.size
    if size is None:
        return network.image_shape()[1:]  # of its family, or an error that asks for it
    if cut is not None and cut != size:
        raise UserInputError(
            f"--crop is {crop}, but the network takes images of {size[0]}x{size[1]}; expected the "
            "same, as what is cut out is what the network gets"
        )
    return size


def _normalization(network: Opened, pixels: Pixels) -> tuple[tuple[float, ...], tuple[float, ...]]:
    recorded = network.preprocessing
    mean = pixels.mean or (recorded.mean if recorded else None)
    std = pixels.std or (recorded.std if recorded else None)
    if mean is None or std is None:
        missing = "--mean" if mean is None else "--std"
        raise UserInputError(
            f"{missing} is not given, and {network.path} does not record how pixels were "
            f"normalised in training; expected for instance {IMAGENET} as on ImageNet, or --mean 0 "
            "--std 1 for pixels / 255 alone"
        )
    return _each("--mean", mean, network.channels), _each("--std", std, network.channels)


def _each(option: str, values: Sequence[float], channels: int) -> tuple[float, ...]:
    if len(values) not in (1, channels):
        raise UserInputError(
            f"{option} has {len(values)} numbers, but the network takes images of {channels} "
            "channels; expected one number a channel, or one for all"
        )
    return tuple(values) if len(values) == channels else tuple(values) * channels


def _measured(job: AdoptJob, network: Opened, data: ImageData) -> Accuracy:
    accuracy = evaluate_accuracy(
        network.model,
        data.splits[VALIDATION],
        data.normalize,
        device=job.device,
        progress=job.progress,
    )
    network.model.cpu()
    if near_chance(accuracy, len(data.classes)):
        logger.warning(
            "warning: %.2f %% is near chance for %d classes; the usual causes are another "
            "normalisation (--mean, --std), image size, order of the channels, or order of the "
            "classes than in training",
            accuracy.acc1,
            len(data.classes),
        )
    return accuracy


def _meta(
    network: Opened,
    preprocessing: Preprocessing,
    classes: tuple[str, ...] | None,
    data: ImageData | None,
    accuracy: Accuracy | None,
) -> dict[str, Any]:
    meta: dict[str, Any] = {
        **network.checkpoint.meta,
        "preprocessing": preprocessing.to_dict(),
        "source_sha256": network.checkpoint.sha256,
    }
    if classes is not None:
        meta["classes"] = list(classes)
    if data is not None and accuracy is not None:
        meta["data"] = {"name": data.name, "sha256": data.sha256}
        meta["validation"] = {"acc1": accuracy.acc1, "count": accuracy.count}
    return meta


def _shortened(names: Sequence[str], most: int = 10) -> str:
    return " ".join(names[:most]) + (" …" if len(names) > most else "")
