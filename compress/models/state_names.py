"""Whether the tensors of a state_dict are those of a network, name by name and shape by shape."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from compress.errors import UnsupportedModelError, UserInputError

__all__ = ["WAY_OUT", "confirmed", "shape_of"]

WAY_OUT = "for a network of your own give the function that builds it with --model module:factory"


def shape_of(state: Mapping[str, Tensor], name: str, *, dims: int, family: str) -> tuple[int, ...]:
    """Return the shape of a tensor that a network of this family must have.

    Raises:
        UnsupportedModelError: it is not there, or has another number of dimensions.
    """
    shape = tuple(state[name].shape) if name in state else ()
    if len(shape) != dims or 0 in shape:
        found = f"has shape {shape}" if name in state else "is not there"
        raise UnsupportedModelError(
            f"the names are those of a {family}, but {name} {found}; expected {dims} dimensions; "
            f"{WAY_OUT}"
        )
    return shape


def confirmed(
    network: type[nn.Module], config: dict[str, Any], state: Mapping[str, Tensor], *, family: str
) -> dict[str, Any]:
    """Return `config` if the network that it builds has exactly the tensors of `state`.

    Counters of batches do not count: files that were written before torch 0.4.1 have none.

    Raises:
        UnsupportedModelError: a tensor is missing, left over, or has another shape.
    """
    try:
        with torch.device("meta"):
            own = network(**config).state_dict()
    except UserInputError as err:
        raise UnsupportedModelError(
            f"the names are those of a {family}, but the shapes are not: {err}; {WAY_OUT}"
        ) from err
    wanted = {name: tuple(t.shape) for name, t in own.items() if not _is_counter(name)}
    found = {name: tuple(t.shape) for name, t in state.items() if not _is_counter(name)}
    if why := _difference(wanted, found):
        raise UnsupportedModelError(f"the names are those of a {family}, but {why}; {WAY_OUT}")
    return config


def _is_counter(name: str) -> bool:
    return name.endswith(".num_batches_tracked")


def _difference(
    wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]
) -> str | None:
    for name, shape in found.items():
        if name not in wanted:
            return f"{name} {shape} is not among its tensors"
        if wanted[name] != shape:
            return f"{name} is {shape} where {wanted[name]} is expected"
    missing = next((name for name in wanted if name not in found), None)
    return missing and f"{missing} is not there"
