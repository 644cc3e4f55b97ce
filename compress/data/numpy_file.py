"""Images in one file: `numpy:FILE.npz`.

images   uint8, (N, H, W, C), or (N, H, W) for grey ones
labels   whole numbers from 0, (N,)
split    optional: "train", "validation", "calibration" or "test" of each image; what is not
         given is taken out of train; without it every class is divided as `folder:` does
classes  optional: names, in the order of the labels
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.data.class_folders import SPLIT_NAMES
from compress.data.given_splits import only_given
from compress.data.image_data import ImageData, Preprocessing, assemble
from compress.data.npz import NpzArray, open_npz
from compress.data.pictures import array_source, usual_preprocessing
from compress.data.splits import SPLITS, shares_of_train, stratified_split
from compress.errors import UserInputError
from compress.runtime.preprocessing import Side

__all__ = ["load_numpy"]

NAMES = ("images", "labels", "split", "classes")
MOST_NAMES = 1 << 26  # bytes of split or classes


def load_numpy(
    path: Path,
    *,
    image_size: Side | None = None,
    preprocessing: Preprocessing | None = None,
    seed: int = 0,
) -> ImageData:
    """Return the images of a .npz file; nothing in it is run.

    Args:
        path: of the file; uncompressed, as `numpy.savez` writes it, its images are mapped.
        image_size: side, or height and width, pixels; by default that of the images.
        preprocessing: how images are prepared; takes the place of `image_size`.
        seed: seed of the split.

    Raises:
        UserInputError: an array is missing, damaged, too large or not as it should be.
    """
    arrays = open_npz(path, NAMES)
    missing = [name for name in NAMES[:2] if name not in arrays]
    if missing:
        raise UserInputError(
            f"{path} has no array {' and '.join(missing)}; expected images, uint8 of shape "
            "(N, H, W, C), and labels of shape (N,), as numpy.savez(file, images=…, labels=…) "
            "writes them"
        )
    images = _images(arrays["images"])
    labels = _labels(arrays["labels"], len(images))
    classes = _classes(arrays.get("classes"), path, labels)
    positions = _positions(arrays.get("split"), path, labels, seed)
    if preprocessing is None:
        own = (images.shape[1], images.shape[2])
        preprocessing = usual_preprocessing(image_size or own, channels=images.shape[3])
    data = assemble(
        "numpy",
        array_source(images, preprocessing),
        classes=classes,
        labels=labels,
        positions=positions,
        preprocessing=preprocessing,
        seed=seed,
        content=[str(images.shape).encode(), np.ascontiguousarray(images).reshape(-1).data],
    )
    return only_given(data, f"numpy:{path}")


def _images(array: NpzArray) -> NDArray[np.uint8]:
    shape = array.shape
    if array.dtype != np.uint8 or len(shape) not in (3, 4) or 0 in shape:
        raise UserInputError(
            f"images of {array.path} are {array.dtype} of shape {shape}; expected uint8 of shape "
            "(N, H, W, C), or (N, H, W) for grey ones"
        )
    if len(shape) == 4 and shape[3] > min(shape[1:3]) and shape[1] in (1, 3):
        raise UserInputError(
            f"images of {array.path} have the shape {shape}, with the channels first; expected "
            "(N, H, W, C): write images.transpose(0, 2, 3, 1)"
        )
    images = array.read()
    return images[..., None] if images.ndim == 3 else images


def _labels(array: NpzArray, count: int) -> NDArray[np.int64]:
    if array.dtype.kind not in "iu" or array.shape != (count,):
        raise UserInputError(
            f"labels of {array.path} are {array.dtype} of shape {array.shape}; expected whole "
            f"numbers of shape ({count},), one an image"
        )
    labels = array.read()
    if int(labels.min()) < 0 or int(labels.max()) >= count:
        raise UserInputError(
            f"labels of {array.path} go from {labels.min()} to {labels.max()}; expected 0 to the "
            "number of classes less one, with images of each class"
        )
    return labels.astype(np.int64)


def _classes(array: NpzArray | None, path: Path, labels: NDArray[np.int64]) -> tuple[str, ...]:
    highest = int(labels.max())
    names = tuple(map(str, range(highest + 1))) if array is None else tuple(_texts(array))
    if highest < 1 or len(names) <= highest or len(set(names)) < len(names):
        raise UserInputError(
            f"{path} names {len(set(names))} classes and has labels up to {highest}; expected at "
            "least two classes, and one name each"
        )
    return names


def _positions(
    array: NpzArray | None, path: Path, labels: NDArray[np.int64], seed: int
) -> dict[str, NDArray[np.int64]]:
    split = np.full(len(labels), "train") if array is None else _splits(array, len(labels))
    given = set(split.tolist())
    positions = {name: np.flatnonzero(split == name).astype(np.int64) for name in SPLITS}
    training = positions["train"]
    if len(training):
        shares = shares_of_train(given)
        _check_counts(path, labels[training], len(shares))
        divided = stratified_split(labels[training], shares, seed)
        positions |= {name: training[part] for name, part in divided.items()}
    return positions


def _splits(array: NpzArray, count: int) -> NDArray[np.str_]:
    if array.shape != (count,):
        raise UserInputError(
            f"split of {array.path} has the shape {array.shape}; expected ({count},), one an image"
        )
    texts = np.array(_texts(array))
    names = {text: SPLIT_NAMES.get(text.strip().lower()) for text in set(texts.tolist())}
    unknown = sorted(text for text, name in names.items() if name is None)
    if unknown:
        raise UserInputError(
            f"split of {array.path} has the values {unknown[:5]}; expected {', '.join(SPLITS)}"
        )
    return np.array([names[text] for text in texts.tolist()])


def _texts(array: NpzArray) -> list[str]:
    size = array.dtype.itemsize * int(np.prod(array.shape))
    if array.dtype.kind not in "US" or len(array.shape) != 1 or size > MOST_NAMES:
        raise UserInputError(
            f"{array.name} of {array.path} is {array.dtype} of shape {array.shape}; expected a "
            "list of short texts"
        )
    values: list[Any] = array.read().tolist()
    return [
        value.decode("utf-8", "replace") if isinstance(value, bytes) else value for value in values
    ]


def _check_counts(path: Path, labels: NDArray[np.int64], least: int) -> None:
    counts = np.bincount(labels)
    few = np.flatnonzero((counts > 0) & (counts < least))
    if len(few):
        raise UserInputError(
            f"class {few[0]} of {path} has {counts[few[0]]} training images; expected at least "
            f"{least}, so that each split gets one; add images of it"
        )
