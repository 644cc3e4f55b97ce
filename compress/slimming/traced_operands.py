"""What an operation of torch's dispatcher is given and gives, taken apart."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from compress.slimming.traced_cells import FIRST
from compress.slimming.traced_shadow import compact

__all__ = [
    "activation_of",
    "first_tensor",
    "named_arguments",
    "padded_shape",
    "picked_dimension",
    "renewed",
    "tensors_in",
    "why_fixed",
    "with_tensors_replaced",
]


def renewed(shadow: Tensor, made: Callable[[Tensor], Tensor]) -> Tensor:
    """Return a shadow with new cells for the old ones; those of no layer stay what they are."""
    distinct, where = compact(shadow).unique(return_inverse=True)
    new = distinct.clone()
    of_layers = distinct >= FIRST
    new[of_layers] = made(distinct[of_layers])
    return new[where].expand(shadow.shape)


def activation_of(
    func: Any, args: Sequence[Any], kwargs: dict[str, Any]
) -> Callable[[Tensor], Tensor]:
    """Return an operation of one tensor as a function of other values."""

    def apply(values: Tensor) -> Tensor:
        given = [values.clone() if isinstance(arg, Tensor) else arg for arg in args]
        return func(*given, **kwargs)

    return apply


def why_fixed(operand: Tensor, parameters: set[int]) -> str:
    """Say what an operand is whose width nothing removes."""
    base = operand._base
    if id(operand) in parameters or (base is not None and id(base) in parameters):
        return "the network applies a parameter of its own to them"
    return "they are combined with values of a fixed width"


def padded_shape(shape: torch.Size, length: int) -> list[int]:
    """Return a shape with ones in front, as broadcasting aligns it."""
    return [1] * (length - len(shape)) + list(shape)


def picked_dimension(plain: str, args: Sequence[Any]) -> int:
    """Return the dimension along which an operation picks values by position."""
    place = 2 if plain.removeprefix("unsafe_") in ("split", "split_with_sizes") else 1
    return args[place] if len(args) > place else 0


def named_arguments(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of an operation by the names of its schema."""
    names = [argument.name for argument in func._schema.arguments]
    return {**dict(zip(names, args, strict=False)), **kwargs}


def first_tensor(out: Any) -> Tensor:
    """Return the first tensor in a result."""
    return tensors_in([out])[0]


def tensors_in(values: Any) -> list[Tensor]:
    """Return all tensors in arguments or results, in order."""
    found = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += tensors_in(value)
    return found


def with_tensors_replaced(values: Any, by: Callable[[Tensor], Tensor]) -> list[Any]:
    """Return arguments with every tensor replaced by what a function gives for it."""
    return [
        by(value)
        if isinstance(value, Tensor)
        else with_tensors_replaced(value, by)
        if isinstance(value, list | tuple) and any(isinstance(part, Tensor) for part in value)
        else value
        for value in values
    ]
