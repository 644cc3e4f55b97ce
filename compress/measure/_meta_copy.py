"""A copy of a network that can be run without computing anything, and changed without harm.

Counters hang hooks and buffers on a network. On a copy they leave no trace on the original,
whatever goes wrong in between. The copy's tensors lie on torch's meta device: they have shapes, but
no values and no memory, so a forward takes milliseconds at any width.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from compress.errors import CompressError, UnsupportedModelError

__all__ = ["Forward", "on_copy"]

Forward = Callable[[nn.Module, Tensor], Any]


def on_copy(model: nn.Module, image_shape: tuple[int, int, int], work: Forward) -> Any:
    """Return `work(copy, image)` for a copy of `model` in eval mode and one image (1, C, H, W).

    The copy lives on the meta device; networks that read values in their forward (early returns,
    tensors that are neither parameters nor buffers) are copied with their values instead.

    Raises:
        UnsupportedModelError: the network cannot be run on an image of this shape.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            return work(_copy(model, meta=True), _image(model, image_shape, "meta"))
        except CompressError:
            raise
        except Exception:
            return _with_values(model, image_shape, work)


def _with_values(model: nn.Module, image_shape: tuple[int, int, int], work: Forward) -> Any:
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    try:
        return work(_copy(model, meta=False), _image(model, image_shape, device))
    except CompressError:
        raise
    except Exception as err:  # whatever the forward of the network raises
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot be run on an image of shape {tuple(image_shape)} "
            f"({type(err).__name__}: {err}); expected (channels, height, width) that it accepts"
        ) from err


def _copy(model: nn.Module, *, meta: bool) -> nn.Module:
    memo: dict[int, Any] = {}
    if meta:  # deepcopy takes what the memo names instead of copying it: no memory is needed
        memo.update({id(t): _meta_like(t) for t in (*model.parameters(), *model.buffers())})
    twin = copy.deepcopy(model, memo)
    for module in twin.modules():
        # Hooks that watch outputs are the caller's and would see the copy's run.
        module._forward_hooks.clear()
    return twin.eval()


def _meta_like(tensor: Tensor) -> Tensor:
    like = torch.empty_like(tensor, device="meta")
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(like, requires_grad=tensor.requires_grad)
    return like


def _image(
    model: nn.Module, image_shape: tuple[int, int, int], device: torch.device | str
) -> Tensor:
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    return torch.zeros((1, *image_shape), dtype=dtype, device=device)
