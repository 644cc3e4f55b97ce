"""Which networks a benchmark times: opened, named, and checked to fit together."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from compress.benchmark.kinds import BundleSubject, CheckpointSubject
from compress.benchmark.subject import OpenOptions, Subject, SubjectSpec
from compress.data.image_data import ImageData, Preprocessing
from compress.errors import UserInputError

__all__ = ["check_batches", "check_together", "open_subject", "subject_names"]


def open_subject(spec: SubjectSpec, name: str, options: OpenOptions) -> Subject:
    """Open a checkpoint or a bundle, whichever is at its path.

    Raises:
        UserInputError: there is neither, or it cannot be used.
        ToolchainError: what runs it is missing.
        UnsupportedModelError: its network is not known.
    """
    if not spec.path.exists():
        raise UserInputError(
            f"{spec.path} does not exist; expected a checkpoint file or the folder of a bundle"
        )
    kind = BundleSubject if spec.path.is_dir() else CheckpointSubject
    return kind(spec, name, options)


def subject_names(specs: Sequence[SubjectSpec]) -> list[str]:
    """Return a name for each subject, all different.

    Files of one name are told apart by their paths, and one path that is timed against itself by
    numbers: ["a.pth", "a.pth (2)"].
    """
    short = [spec.name or spec.path.name for spec in specs]
    names: list[str] = []
    for spec, name in zip(specs, short, strict=True):
        if short.count(name) > 1 and not spec.name:
            name = str(spec.path)
        repeats = sum(other == name or other.startswith(f"{name} (") for other in names)
        names.append(f"{name} ({repeats + 1})" if repeats else name)
    return names


def check_together(subjects: Sequence[Subject], data: ImageData | None = None) -> Subject:
    """Return one whose images all subjects take: one that tells how they are prepared, if any does.

    Args:
        subjects: at least one.
        data: that they are timed on, once it is known.

    Raises:
        UserInputError: they take images of different shapes or pixels, or differ in classes among
            each other or from the data.
    """
    for one, other in pairwise(subjects):
        if one.image_shape != other.image_shape:
            raise UserInputError(
                f"{one.name} takes images of {_size(one)} and {other.name} of {_size(other)}; "
                "expected one size, as all are timed over the same images"
            )
        if one.classes != other.classes:
            raise UserInputError(
                f"{one.name} has {one.classes} classes and {other.name} {other.classes}; expected "
                "networks for the same data"
            )
    telling = [subject for subject in subjects if subject.preprocessing is not None]
    for one, other in pairwise(telling):
        if _pixels(one) != _pixels(other):
            raise UserInputError(
                f"{one.name} and {other.name} record other ways to prepare a picture; expected "
                "one, as all are timed over the same images"
            )
    first = (telling or subjects)[0]
    if data is not None:
        _check_data(first, data)
    return first


def _pixels(subject: Subject) -> Preprocessing | None:
    """What is done to pixels before they are normalised, which each network does its own way."""
    told = subject.preprocessing
    if told is None:
        return None
    return replace(told, mean=(0.0,) * told.channels, std=(1.0,) * told.channels)


def _check_data(subject: Subject, data: ImageData) -> None:
    if subject.classes != len(data.classes):
        raise UserInputError(
            f"{subject.name} has {subject.classes} classes, but the data {data.name} have "
            f"{len(data.classes)}; expected the data that it was trained for"
        )
    given = data.preprocessing.shape
    if given != tuple(subject.image_shape):
        raise UserInputError(
            f"{subject.name} takes images of {_size(subject)}, but the data {data.name} give "
            f"{'x'.join(map(str, given))}; load them as it needs them"
        )


def _size(subject: Subject) -> str:
    channels, height, width = subject.image_shape
    return f"{height}x{width}" + ("" if channels == 3 else f" with {channels} channels")


def check_batches(sizes: Sequence[int], subjects: Sequence[Subject], images: int) -> None:
    """Raise UserInputError unless there are as many images, and all subjects take them at a time.

    Args:
        sizes: of batches.
        subjects: that run them.
        images: that there are.
    """
    for size in sizes:
        if size > images:
            raise UserInputError(
                f"--batch is {size}, but there are {images} images in the test split; expected at "
                "most as many"
            )
        for subject in subjects:
            if subject.max_batch is not None and size > subject.max_batch:
                raise UserInputError(
                    f"--batch is {size}, but {subject.name} takes at most {subject.max_batch} "
                    f"images at a time; export it with --batch 1:{size}"
                )
