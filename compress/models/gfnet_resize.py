"""Carry a GFNet over to another image size: positions and filters are resampled.

The result starts where the original stood and wants fine-tuning. It shares no tensors with it.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from compress.errors import UnsupportedModelError, UserInputError
from compress.models.frequency_scale import with_frequency_scale, without_frequency_scale
from compress.models.gfnet import GFNet
from compress.models.global_filter import resample_filter

__all__ = ["FILTER_RULES", "resized"]

FILTER_RULES = ("bicubic", "spatial")


@torch.no_grad()
def resized(model: GFNet, image_size: int | Sequence[int], *, filters: str = "bicubic") -> GFNet:
    """Return the network for images of another size, in the mode of the original.

    Args:
        model: a GFNet, with early exits or without; left as it is.
        image_size: side, or height and width, in pixels; multiples of the patch size.
        filters: "bicubic", the published rule: interpolate the half spectrum; or "spatial": keep
            the same kernel in units of tokens, padded with zeros or cropped.

    Raises:
        UserInputError: the patch size does not divide the image size, or `filters` is not known.
        UnsupportedModelError: frequencies were removed from the filters.

    The grid of the distilled form is no picture of the image, so there the filters only give a
    better start than chance.
    """
    if filters not in FILTER_RULES:
        raise UserInputError(f"filters is {filters!r}; expected one of {list(FILTER_RULES)}")
    if model.config["frequency_scale"]:  # scales of one grid mean nothing on another
        plain = resized(without_frequency_scale(model), image_size, filters=filters)
        return with_frequency_scale(plain)
    if model.config["frequencies"] is not None:
        raise UnsupportedModelError(
            "frequencies were removed from the filters of this GFNet, and another image size has "
            "other frequencies; expected whole filters, so resize the network that it was slimmed "
            "from, then slim"
        )
    config: dict[str, Any] = {**model.config, "image_size": image_size, "grid": None}
    twin = type(model)(**config).to(model.pos_embed.device)
    old, new = tuple(model.config["grid"]), tuple(twin.config["grid"])
    state = dict(model.state_dict())
    for name, tensor in state.items():
        if name.endswith(".filter.complex_weight"):
            state[name] = resample_filter(tensor, old, new, how=filters)
    state["pos_embed"] = _resample_positions(state["pos_embed"], _patches(model), _patches(twin))
    twin.load_state_dict(state)
    return twin.train(model.training)


def _resample_positions(pos_embed: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Interpolate (1, N, D) over the patches; tokens before them stay."""
    if old == new:
        return pos_embed
    extra = pos_embed.shape[1] - old[0] * old[1]
    before, patches = pos_embed[:, :extra], pos_embed[:, extra:]
    planes = patches.transpose(1, 2).unflatten(2, old)  # (1, D, rows, columns)
    planes = F.interpolate(planes, size=new, mode="bicubic", align_corners=False)
    return torch.cat((before, planes.flatten(2).transpose(1, 2)), dim=1)


def _patches(model: GFNet) -> tuple[int, int]:
    height, width = model.config["image_size"]
    patch = model.config["patch_size"]
    return height // patch, width // patch
