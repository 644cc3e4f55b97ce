"""A checkpoint opened for slimming: its network with scales, and images to look at it with."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from compress.checkpoint import Checkpoint
from compress.data.image_data import ImageData
from compress.data.sample import noise, pictures
from compress.models.channel_kinds import (
    resolve_kinds,
    trained_kinds,
    with_scales,
    without_scales,
)
from compress.opened import Opened, check_forward
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
        opened: the checkpoint, and all that it tells.
        model: its network, with a scale for every channel that may go.
        plain: the same without scales that are not its own: the network "before".
        kinds: kinds of channels that may go.
        untrained: those among them that had no scales to train.
        sparsity: how sparse the scales of the others are.
        images: (N, C, H, W) to trace, compare and time with.
        images_name: what they are.
        data: where they come from; None for noise.
    """

    opened: Opened
    model: nn.Module
    plain: nn.Module
    kinds: tuple[str, ...]
    untrained: tuple[str, ...]
    sparsity: dict[str, GammaSparsity]
    images: Tensor
    images_name: str
    data: ImageData | None = None

    @property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint as read."""
        return self.opened.checkpoint

    @property
    def example(self) -> Tensor:
        """One image, (1, C, H, W)."""
        return self.images[:1]

    @property
    def preprocessing(self) -> dict[str, Any] | None:
        """How pictures are prepared, as JSON values; None where the images are noise."""
        told = self.opened.preprocessing if self.data is None else self.data.preprocessing
        return None if told is None else told.to_dict()

    @property
    def image_size(self) -> int | list[int]:
        """Side of the images, or height and width where they differ."""
        height, width = self.images.shape[-2:]
        return width if height == width else [height, width]


def open_source(
    network: Opened,
    *,
    groups: Sequence[str] = (),
    data: str | ImageData | None = None,
    seed: int = 0,
    cache: Path | str | None = None,
) -> SlimSource:
    """Bring the network of a checkpoint into the form in which it is slimmed.

    Args:
        network: the opened checkpoint.
        groups: kinds of channels that may go; the network's default where none is named.
        data: where the images come from; None for noise.
        seed: of the noise, and of the split of the data.
        cache: folder of decoded images, or "off"; None takes the usual folder.

    Raises:
        UserInputError: the network has no channels of a kind, or does not take such images.
        UnsupportedModelError: the network has nothing to rank its channels by, or NaN in it.
    """
    original = network.model
    kinds = resolve_kinds(original, groups)
    untrained = tuple(kind for kind in kinds if kind not in trained_kinds(original))
    model = with_scales(original, kinds)
    check_finite(channel_scales(model))  # before a forward that would only say "NaN somewhere"
    loaded = None if data is None else network.data(data, seed=seed, cache=cache)
    if loaded is None:
        images, images_name = noise(network.image_shape(), count=COMPARED_IMAGES, seed=seed)
    else:
        images, images_name = pictures(loaded, count=COMPARED_IMAGES)
    check_forward(model, images)
    if untrained:
        _warn_untrained(untrained)
    trained = [kind for kind in kinds if kind not in untrained]
    found = {kind: gamma_sparsity(with_scales(model, [kind])) for kind in trained}
    return SlimSource(
        opened=network,
        model=model,
        plain=without_scales(original),
        kinds=kinds,
        untrained=untrained,
        sparsity={kind: sparsity for kind, sparsity in found.items() if sparsity},
        images=images,
        images_name=images_name,
        data=loaded,
    )


def _warn_untrained(kinds: Sequence[str]) -> None:
    logger.warning(
        "note: this network has no scales for %s, so it was not trained for slimming; they are "
        "ranked by the norm of their weights, so expect to need fine-tuning (to train it for "
        "slimming set %s in its configuration and --sparsity-lambda 1e-4)",
        " and ".join(PLURALS[kind] for kind in kinds),
        " and ".join(f"{kind}_scale" for kind in kinds),
    )
