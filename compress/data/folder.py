"""Images in one folder a class, as RESISC45 and UC Merced ship them.

    NWPU-RESISC45/airplane/airplane_001.jpg        UCMerced_LandUse/Images/beach/beach00.tif

Every class is divided 65 / 7.5 / 7.5 / 20 % into train, validation, calibration and test. Where a
file goes depends on the seed and on the file names of its class alone. Folders named train, val and
test that hold the class folders are taken as the splits that they say they are; what is not given
is taken out of train.

Every file is read once when the data is loaded: that gives the identity of the data, and finds all
damaged images at once instead of one after hours of training.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from compress.data.image_data import ImageData, Preprocessing, assemble
from compress.data.pictures import FileSource, damage_of
from compress.data.splits import SPLITS, split_names
from compress.errors import UserInputError
from compress.optional import require

__all__ = ["load_folder"]

DEFAULT_SIZE = 224
SHARES = {"train": 650, "validation": 75, "calibration": 75, "test": 200}  # per thousand
EXTENSIONS = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}
NAMED = 5  # damaged images that a message names
GIVEN = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "calibration": "calibration",
    "test": "test",
}

Parts = dict[str, dict[str, list[Path]]]  # class, then split, then its files


@dataclass(frozen=True, kw_only=True)
class _Inspection:
    sha256: bytes
    damage: str | None


def load_folder(
    folder: Path,
    *,
    image_size: int | tuple[int, int] | None = None,
    preprocessing: Preprocessing | None = None,
    seed: int = 0,
) -> ImageData:
    """Return the images under `folder`, decoded as they are asked for.

    Args:
        folder: holds the class folders, or one folder that does.
        image_size: side, pixels; 224 by default. The shorter side is resized to 256/224 of it,
            then the centre is cut out.
        preprocessing: how the images are prepared, in place of the default at `image_size`.
        seed: seed of the split.

    Raises:
        UserInputError: there are no two classes of at least four images each, or images are
            damaged: up to five are named, the rest counted.
        ToolchainError: Pillow or tqdm is missing.
    """
    if preprocessing is None:
        preprocessing = _preprocessing(DEFAULT_SIZE if image_size is None else image_size)
    root = _root_of(folder)
    parts = _parts(root, seed)
    classes = tuple(parts)
    files = [
        (path, label, split)
        for label, name in enumerate(classes)
        for split in SPLITS
        for path in parts[name][split]
    ]
    paths = [path for path, _, _ in files]
    labels = np.array([label for _, label, _ in files], dtype=np.int64)
    held = np.array([split for _, _, split in files])
    positions = {split: np.flatnonzero(held == split).astype(np.int64) for split in SPLITS}
    return assemble(
        "folder",
        FileSource(paths, preprocessing),
        classes=classes,
        labels=labels,
        positions=positions,
        preprocessing=preprocessing,
        seed=seed,
        content=_content(root, paths),
    )


def _preprocessing(image_size: int | tuple[int, int]) -> Preprocessing:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet
    whole = Preprocessing.of_size(image_size, mean, std)
    return replace(whole, resize_size=int(256 / 224 * min(whole.size)), untouched_at_size=True)


def _root_of(folder: Path) -> Path:
    """Return the folder of class folders: `folder`, or what is alone in it, as `Images`."""
    if not folder.is_dir():
        raise UserInputError(f"data folder {folder} does not exist or is no folder; check the path")
    root = folder
    for _ in range(3):
        inside = _folders(root)
        if len(inside) != 1 or not _folders(root / inside[0]):
            break
        root = root / inside[0]
    return root


def _parts(root: Path, seed: int) -> Parts:
    names = _folders(root)
    if "train" not in names or not set(names) <= set(GIVEN):
        return _divided({"train": _class_files(root)}, seed)
    given = {GIVEN[name]: _class_files(root / name) for name in names}
    if len(given) < len(names):
        raise UserInputError(
            f"{root} holds the folders {', '.join(names)}, two of them for one split; expected at "
            "most one folder for validation; merge or remove one"
        )
    return _divided(given, seed)


def _divided(given: Mapping[str, Mapping[str, list[Path]]], seed: int) -> Parts:
    """Divide the training files among train and every split that is not given."""
    training = given["train"]
    shares = {split: SHARES[split] for split in SPLITS if split == "train" or split not in given}
    parts: Parts = {}
    for name, paths in training.items():
        _check_count(paths, name, len(shares))
        by_name = {path.name: path for path in paths}
        divided = split_names(by_name, shares, seed)
        parts[name] = {split: [by_name[file] for file in divided[split]] for split in divided}
    for split in given.keys() - {"train"}:
        _check_same_classes(split, set(given[split]), set(training))
        for name, paths in given[split].items():
            _check_count(paths, f"{split}/{name}", 1)
            parts[name][split] = paths
    return parts


def _class_files(folder: Path) -> dict[str, list[Path]]:
    names = _folders(folder)
    if len(names) < 2:
        found = f"the class folder {names[0]} alone" if names else "no class folders"
        raise UserInputError(
            f"{folder} holds {found}; expected at least two folders of images, one a class"
        )
    return {name: _images(folder / name) for name in names}


def _folders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in _entries(folder) if entry.is_dir())


def _images(folder: Path) -> list[Path]:
    return sorted(
        folder / entry.name
        for entry in _entries(folder)
        if os.path.splitext(entry.name)[1].lower() in EXTENSIONS and entry.is_file()
    )


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return what lies in a folder, but for hidden files and what macOS puts into archives."""
    try:
        with os.scandir(folder) as entries:
            return [
                entry
                for entry in entries
                if not entry.name.startswith(".") and entry.name != "__MACOSX"
            ]
    except OSError as err:
        raise UserInputError(
            f"data folder {folder} cannot be listed ({err.strerror}); check its permissions"
        ) from err


def _check_count(paths: Sequence[Path], name: str, least: int) -> None:
    if len(paths) < least:
        raise UserInputError(
            f"class {name} has {len(paths)} images ({', '.join(sorted(EXTENSIONS))}); expected at "
            f"least {least}, so that each split gets one; add images or remove the folder"
        )


def _check_same_classes(split: str, received: set[str], expected: set[str]) -> None:
    if received != expected:
        raise UserInputError(
            f"the {split} folder lacks or adds the classes {sorted(received ^ expected)[:NAMED]}; "
            "expected the same class folders as in train"
        )


def _content(root: Path, paths: Sequence[Path]) -> list[bytes]:
    """Return for each file the bytes that stand for its place and content.

    Raises:
        UserInputError: some of the images are damaged.
    """
    found = _inspect_all(paths)
    damaged = [
        f"{path} ({inspection.damage})"
        for path, inspection in zip(paths, found, strict=True)
        if inspection.damage is not None
    ]
    if damaged:
        more = f" and {len(damaged) - NAMED} more" if len(damaged) > NAMED else ""
        raise UserInputError(
            f"{len(damaged)} of {len(paths)} images cannot be decoded: "
            f"{', '.join(damaged[:NAMED])}{more}; replace or remove them"
        )
    return [
        os.fsencode(path.relative_to(root).as_posix()) + b"\0" + inspection.sha256
        for path, inspection in zip(paths, found, strict=True)
    ]


def _inspect_all(paths: Sequence[Path]) -> list[_Inspection]:
    tqdm = require("tqdm", "progress bars").tqdm
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        inspections = pool.map(_inspect, paths)
        return list(tqdm(inspections, "checking images", len(paths), delay=2, leave=False))


def _inspect(path: Path) -> _Inspection:
    try:
        content = path.read_bytes()
    except OSError as err:
        return _Inspection(sha256=b"", damage=err.strerror or str(err))
    return _Inspection(sha256=hashlib.sha256(content).digest(), damage=damage_of(content))
