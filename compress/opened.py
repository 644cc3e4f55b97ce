"""A checkpoint opened once: its network, the size of its images, and what is done to their pixels.

Every command that reads a checkpoint comes here, so that all take the same answers from it:

- preprocessing (size, resizing, mean, std) is what the checkpoint records;
- where it records none, the size is what is asked for, else the only one that the network takes,
  else that of the data; the rest is the data's;
- an option that contradicts what is recorded is refused, unless the network is being trained for
  another size;
- a size that nobody tells is asked for.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress.checkpoint import (
    MAX_GIB,
    Checkpoint,
    model_from_checkpoint,
    read_checkpoint,
)
from compress.data.image_data import ImageData, Preprocessing
from compress.data.spec import load_data
from compress.errors import UnsupportedModelError, UserInputError
from compress.models.image_size import (
    built_for,
    for_image_size,
    input_channels,
    published_size,
    unusual_size,
)
from compress.models.outputs import logits_of

__all__ = ["Opened", "Opening", "check_classes", "check_forward", "open_checkpoint", "sized"]

logger = logging.getLogger(__name__)

Shape = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Opening:
    """How a checkpoint is opened; the same at every command.

    Attributes:
        factory: "package.module:function" for a network that is not of `compress.models`.
        unsafe_pickle: read pickled modules, which runs code from the file.
        head_positions: blocks behind which the heads of a foreign checkpoint stand.
        image_size: height and width, pixels, or a side; None takes what is known.
        channels: of the images; None takes what is known.
        weights: which of several sets of weights a file holds, such as "ema"; None the plain ones.
        max_gib: most memory of the tensors, as the file says before it is read.
        resample: a GFNet of another size may be carried over to the one that is asked for.
        override: what is asked for wins over what is recorded, as where a network is about to be
            trained for another size, or described anew.
    """

    factory: str | None = None
    unsafe_pickle: bool = False
    head_positions: tuple[int, ...] | None = None
    image_size: int | tuple[int, int] | None = None
    channels: int | None = None
    weights: str | None = None
    max_gib: float = MAX_GIB
    resample: bool = False
    override: bool = False

    def __post_init__(self) -> None:
        size = self.size
        if size is not None and min(size) < 1:
            raise UserInputError(f"--image-size is {self.image_size}; expected at least 1")
        if not 0 < self.max_gib < float("inf"):
            raise UserInputError(f"--max-gib is {self.max_gib}; expected more than 0")

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width that are asked for."""
        side = self.image_size
        return (side, side) if isinstance(side, int) else side

    def read(self, path: Path) -> Checkpoint:
        """Read the checkpoint at `path`, see `compress.checkpoint.read_checkpoint`."""
        return read_checkpoint(
            path,
            factory=self.factory,
            unsafe_pickle=self.unsafe_pickle,
            exits=self.head_positions,
            weights=self.weights,
            max_gib=self.max_gib,
        )


@dataclass(frozen=True, kw_only=True)
class Opened:
    """An opened checkpoint.

    Attributes:
        path: of its file.
        checkpoint: as read.
        model: its network, in eval mode, at `size` where it is built for one.
        preprocessing: what is done to pixels; None where nobody tells, and the data have the say.
        size: height and width of its images; None where the data have the say.
        channels: of its images.
        classes: their names; None where nobody tells.
    """

    path: Path
    checkpoint: Checkpoint
    model: nn.Module
    preprocessing: Preprocessing | None
    size: tuple[int, int] | None
    channels: int
    classes: tuple[str, ...] | None

    def image_shape(self, data: ImageData | None = None) -> Shape:
        """Return the shape (C, H, W) of an image: of the data where there are some, else as known.

        Raises:
            UserInputError: nobody tells the size.
        """
        if data is not None:
            return data.preprocessing.shape
        if self.size is not None:
            return (self.channels, *self.size)
        size = published_size(self.model)
        if size is None:
            raise UserInputError(
                f"{self.path} does not record the size of its images, and {_name(self.model)} "
                "takes any; give it by --image-size PIXELS, or record it once and for all with: "
                "python -m compress.adopt"
            )
        logger.info(
            "note: images of %dx%d are taken, as %s was published for them; another size is given "
            "by --image-size",
            *size,
            _name(self.model),
        )
        return (self.channels, *size)

    def data(
        self, data: str | ImageData, *, seed: int = 0, cache: Path | str | None = None
    ) -> ImageData:
        """Return the images prepared for this network.

        Args:
            data: a name as for `compress.data.spec.load_data`; or images that are loaded already,
                whose pixels must have been prepared as this network needs them.
            seed: of the split.
            cache: folder of decoded images.

        Raises:
            UserInputError: the data cannot be read, or do not fit the network.
        """
        if isinstance(data, str):
            loaded = load_data(
                data, image_size=self.size, preprocessing=self.preprocessing, seed=seed, cache=cache
            )
            logger.info("images: %s", loaded.preprocessing.describe())
        else:
            loaded = self._as_recorded(data)
        self._check_published_size(loaded)
        return loaded

    def _as_recorded(self, data: ImageData) -> ImageData:
        """Take the network's own mean and std; the pixels must be prepared as it needs them."""
        wanted, given = self.preprocessing, data.preprocessing
        if wanted is None or wanted == given:
            return data
        if replace(wanted, mean=given.mean, std=given.std) == given:
            return replace(data, preprocessing=replace(given, mean=wanted.mean, std=wanted.std))
        raise UserInputError(
            f"the images of {data.name} were prepared otherwise than {self.path} records: "
            f"{given.describe()}; expected {wanted.describe()}"
        )

    def _check_published_size(self, data: ImageData) -> None:
        """Refuse to guess between the size of the data and the one of the network's family."""
        published = published_size(self.model)
        found = data.preprocessing.size
        if self.size is None and published is not None and found != published:
            raise UserInputError(
                f"{self.path} does not record the size of its images: {_name(self.model)} was "
                f"published for {published[0]}x{published[1]}, the data {data.name} give "
                f"{found[0]}x{found[1]}; give the size that it was trained with by --image-size"
            )

    @property
    def display_name(self) -> str:
        """The name of the network that people use."""
        return _name(self.model)


def open_checkpoint(path: Path, opening: Opening | None = None) -> Opened:
    """Open a checkpoint.

    Raises:
        UserInputError: the file cannot be used, or an option contradicts what it records.
        UnsupportedModelError: the network is not known.
    """
    opening = opening or Opening()
    return opened(path, opening.read(path), opening)


def opened(path: Path, checkpoint: Checkpoint, opening: Opening) -> Opened:
    """Open a checkpoint that was read already, see `open_checkpoint`."""
    model = model_from_checkpoint(checkpoint)
    recorded = _recorded(checkpoint, path)
    if opening.head_positions is not None:
        _check_positions(model, opening.head_positions, path)
    size = opening.size or (recorded.size if recorded else None) or built_for(model)
    if recorded is not None and size is not None and size != recorded.size:
        if not opening.override and not (opening.resample and built_for(model)):
            raise UserInputError(
                f"--image-size is {_times(size)}, but {path} records {_times(recorded.size)}; "
                "leave the option out, as a checkpoint says itself what it takes"
            )
        recorded = sized(recorded, size)
    if opening.size is None and recorded is None and (words := unusual_size(model)) is not None:
        logger.info("note: %s: %s", path, words)
    if size is not None:
        model = for_image_size(model, size, resample=opening.resample)
    classes = checkpoint.meta.get("classes")
    channels = recorded.channels if recorded else input_channels(model)
    _check_channels(opening.channels, channels, path)
    return Opened(
        path=path,
        checkpoint=checkpoint,
        model=model,
        preprocessing=recorded,
        size=size,
        channels=channels,
        classes=None if classes is None else tuple(classes),
    )


def sized(preprocessing: Preprocessing, size: tuple[int, int]) -> Preprocessing:
    """Return the same preprocessing for another size: what is cut away keeps its share.

    >>> half = Preprocessing(112, "pillow-bicubic", 128, (0.5,), (0.5,))
    >>> sized(half, (224, 224)).resize_size
    256
    """
    shorter = preprocessing.resize_size * min(size) // min(preprocessing.size)
    return replace(preprocessing, image_size=size, resize_size=shorter)


def check_forward(model: nn.Module, images: Tensor, *, option: str = "--image-size") -> Any:
    """Show the network one image; return what it says.

    Args:
        model: in eval mode.
        images: (N, C, H, W), N at least 1.
        option: by which another size is given.

    Raises:
        UserInputError: the network does not take images of this shape.
        UnsupportedModelError: it computes NaN or infinity.
    """
    try:
        with torch.inference_mode():
            output = model(images[:1])
    except Exception as err:  # whatever the layers raise for a shape that they cannot take
        raise UserInputError(
            f"the network does not take images of {tuple(images.shape[1:])}: {_one_line(err)}; "
            f"give the size that it was trained with by {option}"
        ) from err
    if isinstance(output, Tensor) and not torch.isfinite(output).all():
        raise UnsupportedModelError(
            "the network computes NaN or infinity as it is; its weights are damaged or its "
            "training diverged, so take an earlier checkpoint"
        )
    return output


def check_classes(model: nn.Module, data: ImageData, *, known: Sequence[str] | None = None) -> None:
    """Show the network one image of the data.

    Args:
        model: gives one logit a class.
        data: that it is used with.
        known: names of the classes that the network was trained for, where they are recorded.

    Raises:
        UserInputError: it does not take the image, or has other classes.
    """
    split = next((split for split in data.splits.values() if len(split)), None)
    if split is None:
        raise UserInputError(f"the data {data.name} are empty; expected at least one image")
    image = data.normalize(split.images(torch.zeros(1, dtype=torch.int64)))
    count = logits_of(check_forward(model.eval(), image)).shape[-1]
    if count != len(data.classes):
        raise UserInputError(
            f"the network has {count} classes, but the data {data.name} have "
            f"{len(data.classes)}; expected the data that it was trained for, or --new-head for a "
            "new head"
        )
    for i, (recorded, given) in enumerate(zip(known or (), data.classes, strict=False)):
        if recorded != given:
            raise UserInputError(
                f"class {i} of the network is {recorded!r}, but of the data {data.name} {given!r}; "
                "expected the same classes in the same order"
            )


def _recorded(checkpoint: Checkpoint, path: Path) -> Preprocessing | None:
    told = checkpoint.meta.get("preprocessing")
    if told is None:
        return None
    try:
        return Preprocessing.from_dict(told)
    except UserInputError as err:
        raise UserInputError(f"checkpoint {path}: {err}") from err


def _check_positions(model: nn.Module, positions: Sequence[int], path: Path) -> None:
    recorded = getattr(model, "config", {}).get("exits")
    if recorded is None:
        raise UserInputError(
            f"--head-positions was given, but the network of {path} has no early exits; leave the "
            "option out"
        )
    if list(positions) != list(recorded):
        raise UserInputError(
            f"--head-positions is {','.join(map(str, positions))}, but {path} records "
            f"{','.join(map(str, recorded))}; leave the option out"
        )


def _check_channels(asked: int | None, known: int, path: Path) -> None:
    if asked is not None and asked != known:
        raise UserInputError(
            f"--image-size asks for {asked} channels, but the network of {path} takes {known}; "
            "expected the channels that it was built for"
        )


def _name(model: nn.Module) -> str:
    return str(getattr(model, "display_name", type(model).__name__))


def _times(size: Sequence[int]) -> str:
    return "x".join(map(str, size))


def _one_line(err: Exception, limit: int = 300) -> str:
    text = " ".join(str(err).split()) or type(err).__name__
    return text if len(text) <= limit else text[:limit] + "…"
