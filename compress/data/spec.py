"""Data by name: "digits", "cifar10:DIR", "cifar100:DIR", "folder:DIR", "numpy:FILE.npz"."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

from compress.data.cifar import load_cifar10, load_cifar100
from compress.data.digits import load_digits
from compress.data.folder import load_folder
from compress.data.image_data import ImageData, Preprocessing
from compress.data.numpy_file import load_numpy
from compress.errors import UserInputError
from compress.runtime import preprocessing as runtime
from compress.runtime.preprocessing import Side

__all__ = ["KINDS", "load_data"]

READERS: dict[str, Callable[..., ImageData]] = {
    "cifar10": load_cifar10,
    "cifar100": load_cifar100,
    "numpy": load_numpy,
}
KINDS = "digits, cifar10:DIR, cifar100:DIR, folder:DIR, numpy:FILE.npz"


def load_data(
    spec: str,
    *,
    image_size: Side | None = None,
    preprocessing: runtime.Preprocessing | None = None,
    seed: int = 0,
    cache: Path | str | None = None,
) -> ImageData:
    """Load labelled images, split into train, validation, calibration and test.

    Args:
        spec: "digits" (built in), "cifar10:DIR" or "cifar100:DIR" (the binary or python
            distribution, unpacked or as tarball), "folder:DIR" (images in one folder a class) or
            "numpy:FILE.npz" (arrays `images` and `labels`).
        image_size: side, or height and width, pixels; by default 32 for digits, and the size of the
            images for all else.
        preprocessing: how images are prepared, as a checkpoint records it; it says the size too.
        seed: seed of the split.
        cache: folder for decoded images of "folder:DIR"; "off" decodes in every epoch; None is a
            folder in the cache of the user.

    Raises:
        UserInputError: the kind is unknown, its folder is missing or not what it should be, an
            image is damaged, `image_size` is below 1 or contradicts `preprocessing`, or no size was
            given for images of several.
        ToolchainError: a package that reads the data is missing.
    """
    kind, colon, place = spec.partition(":")
    prepared = None if preprocessing is None else _of_torch(preprocessing, image_size)
    if kind == "digits" and not colon:
        return load_digits(image_size=image_size, preprocessing=prepared, seed=seed)
    if kind not in (*READERS, "folder") or not place:
        raise UserInputError(f"data is {spec!r}; expected one of {KINDS}")
    path = Path(place).expanduser()
    if kind == "folder":
        return load_folder(
            path, image_size=image_size, preprocessing=prepared, seed=seed, cache=cache
        )
    return READERS[kind](path, image_size=image_size, preprocessing=prepared, seed=seed)


def _of_torch(given: runtime.Preprocessing, image_size: Side | None) -> Preprocessing:
    values = {field.name: getattr(given, field.name) for field in fields(given)}
    prepared = Preprocessing(**values)
    asked = (image_size, image_size) if isinstance(image_size, int) else image_size
    if asked is not None and tuple(asked) != prepared.size:
        raise UserInputError(
            f"--image-size is {'x'.join(map(str, asked))}, but the network was recorded to take "
            f"{'x'.join(map(str, prepared.size))}; leave --image-size out"
        )
    return prepared
