"""How far the outputs of a slimmed network are from those of the original, whatever they are."""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from compress.errors import UnsupportedModelError
from compress.models.outputs import float_outputs
from compress.models.with_exits import everything

__all__ = ["relative_error"]


@torch.inference_mode()
def relative_error(
    model: nn.Module, reference: nn.Module, images: Tensor | Iterable[Tensor]
) -> float:
    """Return the norm of the difference of two networks' outputs over that of the reference.

    Of several outputs, nested at will, it is that of the one that changed most: a small tensor
    beside a large one counts as much. NaN where one of them is.

    Args:
        model: the slimmed network.
        reference: the original.
        images: (N, C, H, W), or batches of them.

    Raises:
        UnsupportedModelError: the networks give other tensors than one another, or none.
    """
    differences: dict[str, float] = {}
    sizes: dict[str, float] = {}
    for batch in [images] if isinstance(images, Tensor) else images:
        wanted, given = (
            float_outputs(everything(network, batch)) for network in (reference, model)
        )
        _check_same(wanted, given)
        for name, tensor in wanted.items():
            change = (given[name].double() - tensor).square().sum().item()
            differences[name] = differences.get(name, 0.0) + change
            sizes[name] = sizes.get(name, 0.0) + tensor.double().square().sum().item()
    errors = [math.sqrt(differences[name] / max(sizes[name], 1e-60)) for name in sizes]
    return max(errors, key=lambda error: (math.isnan(error), error))


def _check_same(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    shapes = [{name: t.shape for name, t in outputs.items()} for outputs in (wanted, given)]
    if not wanted or shapes[0] != shapes[1]:
        raise UnsupportedModelError(
            f"outputs cannot be compared: the network gives {_told(wanted)}, slimmed it gives "
            f"{_told(given)}; expected the same floating-point tensors"
        )


def _told(outputs: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{name} {tuple(t.shape)}" for name, t in outputs.items()) or "no tensor"
