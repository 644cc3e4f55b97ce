"""Data by name: "digits", "cifar10:DIR", "folder:DIR"."""

from collections.abc import Callable
from pathlib import Path

from compress.data.cifar10 import load_cifar10
from compress.data.digits import load_digits
from compress.data.folder import load_folder
from compress.data.image_data import ImageData, Preprocessing
from compress.errors import UserInputError

__all__ = ["load_data"]

READERS: dict[str, Callable[..., ImageData]] = {"cifar10": load_cifar10, "folder": load_folder}
Size = int | tuple[int, int] | None
KINDS = "digits, cifar10:DIR, folder:DIR"


def load_data(
    spec: str,
    *,
    image_size: Size = None,
    preprocessing: Preprocessing | None = None,
    seed: int = 0,
    cache: Path | None = None,
) -> ImageData:
    """Load labelled images, split into train, validation, calibration and test.

    Args:
        spec: "digits" (built in), "cifar10:DIR" (the binary or python distribution, unpacked or as
            tarball), or "folder:DIR" (one folder of images a class).
        image_size: side of the square images, pixels, or height and width; 32 by default, 224 for
            folders.
        preprocessing: how the images are prepared; None for the default of the data at that size.
        seed: seed of the split.
        cache: folder of decoded images.

    Raises:
        UserInputError: the kind is unknown, its folder is missing or not what it should be, an
            image is damaged, or `image_size` is below 1.
        ToolchainError: a package that reads the data is missing.
    """
    kind, colon, folder = spec.partition(":")
    if kind == "digits" and not colon:
        return load_digits(image_size=image_size, preprocessing=preprocessing, seed=seed)
    if kind not in READERS or not folder:
        raise UserInputError(f"data is {spec!r}; expected one of {KINDS}")
    return READERS[kind](
        Path(folder).expanduser(), image_size=image_size, preprocessing=preprocessing, seed=seed
    )
