"""Images in one folder a class: `folder:DIR`.

Folders named train, val and test, in any usual spelling, are taken as the splits that they say they
are, and what is not given is taken out of train; without them every class is divided 65 / 7.5 /
7.5 / 20 % into train, validation, calibration and test. Where a file goes depends on the seed and
on the file names of its class alone.

Every file is decoded once when the data are first loaded: that gives the identity of the data,
finds all damaged images at once instead of one after hours of training, and leaves the pixels in a
file that later epochs and runs read (see `compress.data.image_cache`).
"""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from compress.data.class_folders import (
    NAMED,
    UNDIVIDED,
    ClassFiles,
    ImageFile,
    Layout,
    find_layout,
)
from compress.data.given_splits import only_given
from compress.data.image_cache import ImageListing, prepared_images
from compress.data.image_data import ImageData, Preprocessing, assemble
from compress.data.pictures import usual_preprocessing
from compress.data.splits import SPLITS, shares_of_train, split_names
from compress.errors import UserInputError
from compress.runtime.pictures import DamagedPictureError, open_picture
from compress.runtime.preprocessing import Side

__all__ = ["load_folder"]

logger = logging.getLogger(__name__)

LOOKED_AT = 64  # images whose sizes are compared before all are decoded

Parts = dict[str, dict[str, list[ImageFile]]]  # split, then class, then its files


class _Listed(NamedTuple):
    """One image, and what the data set makes of it."""

    name: str  # below the root
    file: ImageFile
    label: int
    split: str


def load_folder(
    folder: Path,
    *,
    image_size: Side | None = None,
    preprocessing: Preprocessing | None = None,
    seed: int = 0,
    cache: Path | str | None = None,
) -> ImageData:
    """Return the images under `folder`.

    Args:
        folder: holds the class folders, the folders of splits, or one folder that does.
        image_size: side, or height and width, pixels; by default that of the images, where they
            all have one. Images of another size are resized so that the shorter side is 256/224 of
            it, and the centre is cut out.
        preprocessing: how images are prepared; takes the place of `image_size`.
        seed: seed of the split.
        cache: see `compress.data.image_cache.prepared_images`.

    Raises:
        UserInputError: there are no two classes of enough images each, images have several sizes
            and none was asked for, or images are damaged: up to five are named, the rest counted.
        ToolchainError: Pillow or tqdm is missing.
    """
    layout = find_layout(Path(os.path.abspath(folder)))
    parts = _divided(layout, seed)
    classes = tuple(next(iter(parts.values())))
    images = _listed(layout, parts, classes)
    logger.info("%s", _told(folder, layout, parts))
    own_size = image_size is None and preprocessing is None
    if preprocessing is None:
        side = _common_size(layout.root, images) if image_size is None else image_size
        preprocessing = usual_preprocessing(side)
    prepared = prepared_images(_listing(images), preprocessing, cache=cache)
    if own_size and not prepared.one_size:
        raise _several_sizes(layout.root, "")
    labels = np.array([image.label for image in images], dtype=np.int64)
    held = np.array([image.split for image in images])
    data = assemble(
        "folder",
        prepared.source,
        classes=classes,
        labels=labels,
        positions={split: np.flatnonzero(held == split).astype(np.int64) for split in SPLITS},
        preprocessing=preprocessing,
        seed=seed,
        content=[
            os.fsencode(image.name) + b"\0" + digest.tobytes()
            for image, digest in zip(images, prepared.sha256, strict=True)
        ],
    )
    return only_given(data, f"folder:{folder}")


def _divided(layout: Layout, seed: int) -> Parts:
    """Divide the training files among train and every split that is not given."""
    given = dict(layout.given)
    whole = given.pop(UNDIVIDED, None) or given.pop("train", {})
    parts: Parts = {split: {} for split in SPLITS if whole or split in given}
    shares = shares_of_train(layout.given)
    for name, files in whole.items():
        _check_count(files, name, len(shares), layout)
        for split, names in split_names(files, shares, seed).items():
            parts[split][name] = [files[file] for file in names]
    first = whole or next(iter(given.values()))
    for split, classes in given.items():
        _check_same_classes(layout.folders[split], set(classes), set(first))
        for name, files in classes.items():
            _check_count(files, f"{layout.folders[split]}/{name}", 1, layout)
            parts[split][name] = list(files.values())
    return parts


def _check_count(files: ClassFiles, name: str, least: int, layout: Layout) -> None:
    if len(files) < least:
        others = f"; passed over: {_counts(layout.skipped)}" if layout.skipped else ""
        raise UserInputError(
            f"class {name} in {layout.root} has {len(files)} images; expected at least {least}, so "
            f"that each split gets one; add images of it{others}"
        )


def _check_same_classes(folder: str, received: set[str], expected: set[str]) -> None:
    if received != expected:
        raise UserInputError(
            f"the {folder} folder lacks or adds the classes {sorted(received ^ expected)[:NAMED]}; "
            "expected the same class folders as in the other splits"
        )


def _listed(layout: Layout, parts: Parts, classes: Sequence[str]) -> list[_Listed]:
    """Return all images in the order of their names, whatever the split: so the cache has them."""
    labels = {name: label for label, name in enumerate(classes)}
    prefix = len(os.fspath(layout.root)) + 1
    images = [
        _Listed(file.path[prefix:].replace(os.sep, "/"), file, labels[name], split)
        for split, part in parts.items()
        for name, files in part.items()
        for file in files
    ]
    return sorted(images)


def _listing(images: Sequence[_Listed]) -> ImageListing:
    return ImageListing(
        paths=[image.file.path for image in images],
        names=[image.name for image in images],
        states=[image.file.state for image in images],
    )


def _common_size(root: Path, images: Sequence[_Listed]) -> tuple[int, int]:
    """Return height and width of the first image that can be opened, if others agree."""
    found: dict[tuple[int, int], str] = {}
    step = -(-len(images) // LOOKED_AT)
    for image in images[::step]:
        try:
            with open_picture(Path(image.file.path)) as picture:
                found.setdefault((picture.height, picture.width), image.name)
        except DamagedPictureError:
            continue  # named with all others when they are decoded
        if len(found) > 1:
            told = " and ".join(f"{name} {size[0]}x{size[1]}" for size, name in found.items())
            raise _several_sizes(root, f", as {told}")
    if not found:
        raise UserInputError(
            f"none of {len(images[::step])} images of {root} that were tried can be opened, as "
            f"{images[0].name}; expected pictures that Pillow reads"
        )
    return next(iter(found))


def _several_sizes(root: Path, examples: str) -> UserInputError:
    return UserInputError(
        f"the images of {root} have several sizes{examples}, and no size for the network's input "
        "was given; give one with --image-size, such as 224"
    )


def _told(folder: Path, layout: Layout, parts: Parts) -> str:
    """Say in one line what became of what."""
    counts = {split: sum(map(len, classes.values())) for split, classes in parts.items()}
    told = [f"{split} {count:,}" for split, count in counts.items()]
    origin = "each class divided by the seed"
    if layout.folders:
        taken = [split for split in parts if split not in layout.folders]
        named = ", ".join(f"{name}/ is {split}" for split, name in layout.folders.items())
        origin = f"{named}; {' and '.join(taken)} out of train" if taken else named
        if "train" not in layout.folders:
            origin += "; there is no train folder, so nothing is trained or calibrated on these"
    parts_of_line = [
        f"folder:{folder}: {len(next(iter(parts.values())))} classes, {', '.join(told)} ({origin})"
    ]
    if layout.skipped:
        parts_of_line.append(f"passed over {_counts(layout.skipped)}")
    if layout.unused:
        more = " …" if len(layout.unused) > NAMED else ""
        parts_of_line.append(f"folders not used: {', '.join(layout.unused[:NAMED])}{more}")
    return "; ".join(parts_of_line)


def _counts(skipped: Mapping[str, int]) -> str:
    total = sum(skipped.values())
    kinds = sorted(skipped, key=lambda kind: -skipped[kind])[:NAMED]
    named = ", ".join(f"{kind} {skipped[kind]}" for kind in kinds)
    return f"{total} file{'s' if total > 1 else ''} ({named})"
