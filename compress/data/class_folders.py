"""Find classes, splits and images in a folder, as people keep them.

    cifar10/train/cat/0001.jpg     splits that are there: train, val and test, under any usual name
    NWPU-RESISC45/airplane/a.jpg   class folders alone
    Images/beach/2019/May/a.tif    whatever lies deeper belongs to the class above it

What is no image is passed over and counted: notes, thumbnails of a file manager, hidden files.
"""

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from compress.errors import UserInputError
from compress.runtime.pictures import ARRAY_SUFFIX, SUFFIXES

__all__ = [
    "SPLIT_NAMES",
    "UNDIVIDED",
    "ClassFiles",
    "ImageFile",
    "Layout",
    "find_layout",
    "holds_class_folders",
]

UNDIVIDED = "all"  # stands for the split where none is given
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "calibration": "calibration",
    "test": "test",
    "testing": "test",
}
EXTENSIONS = frozenset(SUFFIXES) - {ARRAY_SUFFIX}
UNREAD_EXTENSIONS = {".avif", ".gif", ".heic", ".heif", ".jp2", ".jxl", ".npy", ".svg"}
LITTER = {"@eadir", "__macosx", "thumbs.db", "desktop.ini", "$recycle.bin", "lost+found"}
NAMED = 5  # names that a message lists
DEEPEST = 3  # folders that may lie around the class folders, as in UCMerced_LandUse/Images


class ImageFile(NamedTuple):
    """One image file, and what tells whether it is still the same: there may be a million of them.

    Attributes:
        path: where it lies.
        state: size in bytes, time of its content and of its entry, nanoseconds.
    """

    path: str
    state: tuple[int, int, int]


ClassFiles = Mapping[str, ImageFile]  # by their path below the class folder, in its order


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What a folder holds.

    Attributes:
        root: the folder of the class folders, or of the folders of splits.
        given: per split, or under "all", per class in alphabetical order its files.
        folders: per split the name of its folder; empty where none is given.
        skipped: what was passed over: kind and how many.
        unused: folders that hold no class of this data set.
    """

    root: Path
    given: Mapping[str, Mapping[str, ClassFiles]]
    folders: Mapping[str, str]
    skipped: Mapping[str, int]
    unused: tuple[str, ...]


@dataclass(kw_only=True)
class _Tree:
    images: dict[str, ImageFile] = field(default_factory=dict)
    folders: dict[str, "_Tree"] = field(default_factory=dict)
    skipped: Counter[str] = field(default_factory=Counter)

    def below(self, prefix: str = "") -> Iterator[tuple[str, ImageFile]]:
        """Yield every image here and deeper, with its path below this folder."""
        for name, image in self.images.items():
            yield prefix + name, image
        for name, folder in self.folders.items():
            yield from folder.below(f"{prefix}{name}/")

    def all_skipped(self) -> Counter[str]:
        return sum((tree.all_skipped() for tree in self.folders.values()), Counter(self.skipped))

    def has_images(self) -> bool:
        return bool(self.images) or any(tree.has_images() for tree in self.folders.values())

    def has_classes(self) -> bool:
        return any(tree.has_images() for tree in self.folders.values())


def find_layout(folder: Path) -> Layout:
    """Return the classes and splits under `folder`.

    Raises:
        UserInputError: it is no folder, cannot be listed, holds fewer than two classes, or gives
            one split twice.
    """
    if not folder.is_dir():
        raise UserInputError(f"data folder {folder} does not exist or is no folder; check the path")
    whole = _read_tree(folder)
    root, tree = _class_level(folder, whole)
    splits = _split_folders(root, tree)
    if splits:
        given = {split: _classes(root / name, tree.folders[name]) for split, name in splits.items()}
    else:
        given = {UNDIVIDED: _classes(root, tree)}
    return Layout(
        root=root,
        given=given,
        folders=splits,
        skipped=_passed_over(tree, whole, splits),
        unused=_unused(tree, splits),
    )


def holds_class_folders(folder: Path) -> bool:
    """Say whether `folder` holds images in folders, so that `folder:` may read it."""
    return folder.is_dir() and _read_tree(folder).has_classes()


def _read_tree(folder: Path, above: frozenset[tuple[int, int]] = frozenset()) -> _Tree:
    tree = _Tree()
    above = above | {_identity(os.stat(folder))}
    for entry in _entries(folder):
        name, suffix = entry.name, os.path.splitext(entry.name)[1].lower()
        try:
            if name.startswith(".") or name.lower() in LITTER:
                tree.skipped["hidden" if name.startswith(".") else name] += 1
            elif entry.is_dir():
                if entry.is_symlink() and _identity(entry.stat()) in above:
                    tree.skipped["links to a folder above"] += 1
                else:
                    tree.folders[name] = _read_tree(folder / name, above)
            elif suffix in EXTENSIONS and entry.is_file():
                state = entry.stat()
                times = (state.st_size, state.st_mtime_ns, state.st_ctime_ns)
                tree.images[name] = ImageFile(entry.path, times)
            else:
                tree.skipped[suffix or "without extension"] += 1
        except OSError as err:
            raise UserInputError(
                f"{entry.path} cannot be looked at ({err.strerror}); check its permissions"
            ) from err
    return tree


def _identity(state: os.stat_result) -> tuple[int, int]:
    return state.st_dev, state.st_ino


def _entries(folder: Path) -> "list[os.DirEntry[str]]":
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as err:
        raise UserInputError(
            f"data folder {folder} cannot be listed ({err.strerror}); check its permissions"
        ) from err


def _class_level(root: Path, tree: _Tree) -> tuple[Path, _Tree]:
    """Go down to the folder of class folders, through folders that are alone, as `Images`."""
    for _ in range(DEEPEST):
        inside = [name for name, folder in tree.folders.items() if folder.has_images()]
        if len(inside) != 1 or inside[0].lower() in SPLIT_NAMES:
            break
        if tree.images or not tree.folders[inside[0]].has_classes():
            break
        root, tree = root / inside[0], tree.folders[inside[0]]
    return root, tree


def _split_folders(root: Path, tree: _Tree) -> dict[str, str]:
    """Return per split the folder that gives it; nothing where the folders are classes.

    "train" is a class beside "bus" and "car", and a split beside "test" or alone.
    """
    inside = [name for name, folder in tree.folders.items() if folder.has_images()]
    named = [name for name in inside if name.lower() in SPLIT_NAMES]
    if not named or (len(named) == 1 and len(inside) > 1):
        return {}
    splits: dict[str, str] = {}
    for name in named:
        split = SPLIT_NAMES[name.lower()]
        if split in splits:
            raise UserInputError(
                f"{root} holds the folders {splits[split]} and {name}, two of them for one split; "
                f"expected one folder for {split}; put their images into one"
            )
        if split == "train" or tree.folders[name].has_classes():
            splits[split] = name  # else images without labels, as contests hand out: not of use
    return splits


def _classes(folder: Path, tree: _Tree) -> dict[str, ClassFiles]:
    classes: dict[str, ClassFiles] = {
        name: dict(sorted(inside.below()))
        for name, inside in sorted(tree.folders.items())
        if inside.has_images() or _may_be_a_class(inside)
    }
    if len(classes) < 2:
        found = f"the class folder {next(iter(classes))} alone" if classes else "no class folders"
        loose = f" and {len(tree.images)} images beside them" if tree.images else ""
        raise UserInputError(
            f"{folder} holds {found}{loose}; expected at least two folders of images, one a class"
        )
    return classes


def _may_be_a_class(tree: _Tree) -> bool:
    """Say whether a folder without readable images should have some: a person must look at it."""
    skipped = tree.all_skipped()
    return not skipped or bool(UNREAD_EXTENSIONS & set(skipped))


def _passed_over(tree: _Tree, whole: _Tree, splits: Mapping[str, str]) -> dict[str, int]:
    skipped = whole.all_skipped()
    levels = [tree, *(tree.folders[name] for name in splits.values())]
    loose = sum(len(level.images) for level in levels)
    if loose:
        skipped["images outside of class folders"] += loose
    return dict(sorted(skipped.items()))


def _unused(tree: _Tree, splits: Mapping[str, str]) -> tuple[str, ...]:
    if splits:
        return tuple(sorted(set(tree.folders) - set(splits.values())))
    return tuple(
        sorted(
            name
            for name, inside in tree.folders.items()
            if not inside.has_images() and not _may_be_a_class(inside)
        )
    )
