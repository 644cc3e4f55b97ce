"""A checkpoint opened for slimming: its network with scales, and images to look at it with."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compress.checkpoint import Checkpoint, model_from_checkpoint
from compress.data.image_data import ImageData
from compress.data.spec import load_data
from compress.errors import UnsupportedModelError, UserInputError
from compress.models.channel_kinds import (
    resolve_kinds,
    trained_kinds,
    with_scales,
    without_scales,
)
from compress.slimming.scales import channel_scales
from compress.slimming.selection import check_finite
from compress.slimming.sparsity import GammaSparsity, gamma_sparsity

__all__ = ["SlimSource", "open_source"]

logger = logging.getLogger(__name__)

COMPARED_IMAGES = 4  # enough for a stable relative error, few enough for a VGG-16 on two cores
PLURALS = {"hidden": "hidden units", "frequency": "frequencies"}


@dataclass(frozen=True, kw_only=True)
class SlimSource:
    """An opened checkpoint.

    Attributes:
        checkpoint: as read.
        model: its network, with a scale for every channel that may go.
        plain: the same without scales that are not its own: the network "before".
        kinds: kinds of channels that may go.
        untrained: those among them that had no scales to train.
        sparsity: how sparse the scales of the others are.
        images: (N, C, H, W) to trace, compare and time with.
        images_name: what they are.
    """

    checkpoint: Checkpoint
    model: nn.Module
    plain: nn.Module
    kinds: tuple[str, ...]
    untrained: tuple[str, ...]
    sparsity: dict[str, GammaSparsity]
    images: Tensor
    images_name: str

    @property
    def example(self) -> Tensor:
        """One image, (1, C, H, W)."""
        return self.images[:1]

    @property
    def image_size(self) -> int | list[int]:
        """Side of the images, or height and width where they differ."""
        height, width = self.images.shape[-2:]
        return width if height == width else [height, width]


def open_source(
    checkpoint: Checkpoint,
    *,
    groups: Sequence[str] = (),
    image_size: int | None = None,
    data: str | ImageData | None = None,
    seed: int = 0,
) -> SlimSource:
    """Build the network of a checkpoint and bring it into the form in which it is slimmed.

    Args:
        checkpoint: as read.
        groups: kinds of channels that may go; the network's default where none is named.
        image_size: side of the images; None takes the one that the network is built for or that the
            checkpoint records, or 224.
        data: where the images come from; None for noise.
        seed: of the noise, and of the split of the data.

    Raises:
        UserInputError: the network has no channels of a kind, or does not take such images.
        UnsupportedModelError: the network has nothing to rank its channels by, or NaN in it.
    """
    original = model_from_checkpoint(checkpoint)
    kinds = resolve_kinds(original, groups)
    untrained = tuple(kind for kind in kinds if kind not in trained_kinds(original))
    model = with_scales(original, kinds)
    check_finite(channel_scales(model))  # before a forward that would only say "NaN somewhere"
    size = _image_size(image_size, checkpoint, model)
    images, images_name = _noise(model, size, seed) if data is None else _pictures(data, size, seed)
    _check_forward(model, images)
    if untrained:
        _warn_untrained(untrained)
    trained = [kind for kind in kinds if kind not in untrained]
    found = {kind: gamma_sparsity(with_scales(model, [kind])) for kind in trained}
    return SlimSource(
        checkpoint=checkpoint,
        model=model,
        plain=without_scales(original),
        kinds=kinds,
        untrained=untrained,
        sparsity={kind: sparsity for kind, sparsity in found.items() if sparsity},
        images=images,
        images_name=images_name,
    )


def _image_size(asked: int | None, checkpoint: Checkpoint, model: nn.Module) -> tuple[int, int]:
    built_for: Any = getattr(model, "config", {}).get("image_size")
    recorded = checkpoint.meta.get("preprocessing", {}).get("image_size")
    size = asked or built_for or recorded or 224
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return height, width


def _pictures(data: str | ImageData, size: tuple[int, int], seed: int) -> tuple[Tensor, str]:
    if isinstance(data, str):
        if size[0] != size[1]:
            raise UserInputError(
                f"the network takes images of {size[0]}x{size[1]}, and --data {data} gives square "
                "ones; leave --data out to compare outputs on noise"
            )
        data = load_data(data, image_size=size[0], seed=seed)
    split = data.splits["calibration"]
    first = split.images(torch.arange(min(COMPARED_IMAGES, len(split))))
    return data.normalize(first), f"{len(first)} calibration images of {data.name}"


def _noise(model: nn.Module, size: tuple[int, int], seed: int) -> tuple[Tensor, str]:
    channels = getattr(model, "config", {}).get("in_channels", 3)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(COMPARED_IMAGES, channels, *size, generator=generator)
    return noise, f"{COMPARED_IMAGES} images of noise (seed {seed})"


def _check_forward(model: nn.Module, images: Tensor) -> None:
    try:
        with torch.inference_mode():
            output = model(images[:1])
    except Exception as err:  # whatever the layers raise for a size that they cannot take
        raise UserInputError(
            f"the network does not take images of {tuple(images.shape[1:])}: {err}; "
            "give the size that it was trained with by --input-size"
        ) from err
    if isinstance(output, Tensor) and not torch.isfinite(output).all():
        raise UnsupportedModelError(
            "the network computes NaN or infinity before anything is removed; its weights are "
            "damaged or its training diverged, so take an earlier checkpoint"
        )


def _warn_untrained(kinds: Sequence[str]) -> None:
    logger.warning(
        "note: this network has no scales for %s, so it was not trained for slimming; they are "
        "ranked by the norm of their weights, so expect to need fine-tuning (to train it for "
        "slimming set %s in its configuration and --sparsity-lambda 1e-4)",
        " and ".join(PLURALS[kind] for kind in kinds),
        " and ".join(f"{kind}_scale" for kind in kinds),
    )
