"""What a network returns, as a flat list of named tensors.

A classifier returns one tensor, a detector a list of three, others dicts, dataclasses, named
tuples, or any of these inside one another. The name of a tensor is its path: `probs`, `0`,
`1.boxes`; a network that returns one tensor gives it as `output`. The order is the network's own.
"""

import dataclasses
import numbers
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from compress.errors import UnsupportedModelError

__all__ = ["SINGLE", "float_outputs", "logits_of", "named_outputs"]

LOGITS = ("logits", "out", "probs")  # what classifiers call them, the clearest first
SINGLE = "output"  # the name of the only tensor of a network that returns just this


def named_outputs(output: Any) -> dict[str, Tensor]:
    """Return every tensor in what a network returned, by its path.

    >>> import torch
    >>> sorted(named_outputs({"probs": torch.zeros(2), "maps": [torch.ones(1), None]}))
    ['maps.0', 'probs']

    Args:
        output: a tensor, or mappings, lists, tuples and dataclasses of tensors, nested at will.
            None, numbers and strings among them are passed over.

    Raises:
        UnsupportedModelError: something else is in it, so that a tensor could be overlooked, or it
            holds no tensor, or two tensors get the same name.
    """
    named: dict[str, Tensor] = {}
    for name, tensor in _walk(output, ""):
        if name in named:
            raise UnsupportedModelError(
                f"the network returns two tensors by the name {name!r}; expected keys that differ "
                "as text"
            )
        named[name] = tensor
    if not named:
        raise UnsupportedModelError(
            f"the network returns no tensor ({type(output).__name__}); expected a tensor, or a "
            "list, tuple, dict or dataclass of tensors"
        )
    return named


def float_outputs(output: Any) -> dict[str, Tensor]:
    """Return the floating-point tensors of `named_outputs`: those that can be compared."""
    return {name: t for name, t in named_outputs(output).items() if t.is_floating_point()}


def logits_of(output: Any) -> Tensor:
    """Return the logits (B, K) among what a classifier returned.

    That is its only tensor, or the one called "logits", "out" or "probs" (as the published VGGNet
    calls its logits), or the first that is a float matrix: auxiliary classifiers stand behind.

    Raises:
        UnsupportedModelError: there is none.
    """
    if isinstance(output, Tensor):
        return output
    named = float_outputs(output)
    by_key = (named[key] for key in LOGITS if key in named)
    matrices = (tensor for tensor in named.values() if tensor.dim() == 2)
    found = next(by_key, None)
    if found is None:
        found = next(matrices, None)
    if found is None:
        raise UnsupportedModelError(
            f"the network returns {', '.join(named) or 'no float tensor'}; expected logits of "
            "shape (B, classes), as a classifier gives"
        )
    return found


def _walk(part: Any, path: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(part, Tensor):
        yield path or SINGLE, part
    elif part is None or isinstance(part, str | numbers.Number):
        return
    else:
        for key, value in _entries(part, path):
            yield from _walk(value, f"{path}.{key}" if path else str(key))


def _entries(part: Any, path: str) -> list[tuple[Any, Any]]:
    if isinstance(part, Mapping):
        return list(part.items())
    if dataclasses.is_dataclass(part) and not isinstance(part, type):
        return [(field.name, getattr(part, field.name)) for field in dataclasses.fields(part)]
    if isinstance(part, tuple) and hasattr(part, "_fields"):  # a named tuple
        return list(zip(part._fields, part, strict=True))
    if isinstance(part, list | tuple):
        return list(enumerate(part))
    where = f" at {path!r}" if path else ""
    raise UnsupportedModelError(
        f"the network returns a {type(part).__name__}{where}; expected tensors, or lists, tuples, "
        "dicts and dataclasses of tensors"
    )
