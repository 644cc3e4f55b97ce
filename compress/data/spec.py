"""Data by name: "digits", "cifar10:DIR", "folder:DIR"."""

from collections.abc import Callable
from pathlib import Path

from compress.data.cifar10 import load_cifar10
from compress.data.digits import load_digits
from compress.data.folder import load_folder
from compress.data.image_data import ImageData
from compress.errors import UserInputError

__all__ = ["load_data"]

READERS: dict[str, Callable[..., ImageData]] = {"cifar10": load_cifar10, "folder": load_folder}
KINDS = "digits, cifar10:DIR, folder:DIR"


def load_data(spec: str, *, image_size: int | None = None, seed: int = 0) -> ImageData:
    """Load labelled images, split into train, validation, calibration and test.

    Args:
        spec: "digits" (built in), "cifar10:DIR" (the binary or python distribution, unpacked or as
            tarball), or "folder:DIR" (one folder of images a class).
        image_size: side of the square images, pixels; 32 by default, 224 for folders.
        seed: seed of the split.

    Raises:
        UserInputError: the kind is unknown, its folder is missing or not what it should be, an
            image is damaged, or `image_size` is below 1.
        ToolchainError: a package that reads the data is missing.
    """
    kind, colon, folder = spec.partition(":")
    if kind == "digits" and not colon:
        return load_digits(image_size=image_size, seed=seed)
    if kind not in READERS or not folder:
        raise UserInputError(f"data is {spec!r}; expected one of {KINDS}")
    return READERS[kind](Path(folder).expanduser(), image_size=image_size, seed=seed)
