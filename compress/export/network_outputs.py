"""What a network gives, as the outputs of an exported file: the logits first, the rest by name.

A classifier's logits are `logits`; every other tensor has the stable name of its path in what the
network returns, as `compress.models.outputs` gives it: `aux`, `1`, `heads.0`. A detector has no
logits. Outputs are float32, or int32 where they are whole numbers or truth values: the types that
every runtime takes and gives.

>>> import torch
>>> list(exported_outputs({"probs": torch.zeros(2, 5), "a map": torch.zeros(2, 3, 4, 4)}))
['logits', 'a_map']
"""

import re
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from compress.errors import UnsupportedModelError
from compress.models.outputs import logits_of, named_outputs
from compress.runtime.manifest import MAX_OUTPUTS, MAX_RANK, RESERVED, TensorSpec

__all__ = ["LOGITS", "as_returned", "exported_outputs", "output_specs"]

LOGITS = "logits"
LONGEST = 200  # characters of a name


def exported_outputs(output: Any) -> dict[str, Tensor]:
    """Return what an exported file gives in place of what a network returned.

    Args:
        output: tensors in lists, tuples, dicts and dataclasses, see `named_outputs`.

    Returns:
        "logits" first, where there are logits (B, K), then all other tensors in the network's
        order, float32 or int32.

    Raises:
        UnsupportedModelError: it holds no tensor, or something that is none, or complex numbers.
    """
    named = named_outputs(output)
    logits = _logits_name(output, named)
    given = {} if logits is None else {LOGITS: named[logits].float()}
    for name, tensor in named.items():
        if name != logits:
            given[_plain_name(name, given)] = _plain_type(name, tensor)
    return given


def as_returned(output: Any) -> Tensor | tuple[Tensor, ...]:
    """Return the tensors of `exported_outputs`: one as it is, several as a tuple."""
    given = tuple(exported_outputs(output).values())
    return given[0] if len(given) == 1 else given


def output_specs(output: Any, images: int) -> tuple[TensorSpec, ...]:
    """Return what `exported_outputs` gives for one image.

    Args:
        output: of the network.
        images: how many it was shown; with two, an output without rows for images is noticed.

    Raises:
        UnsupportedModelError: as `exported_outputs`, or a tensor does not hold one row an image.
    """
    given = exported_outputs(output)
    if len(given) > MAX_OUTPUTS:
        raise UnsupportedModelError(
            f"the network returns {len(given)} tensors; expected at most {MAX_OUTPUTS}"
        )
    specs = []
    for name, tensor in given.items():
        shape = tuple(tensor.shape)
        if shape[:1] != (images,) or 0 in shape or len(shape) > 1 + MAX_RANK:
            raise UnsupportedModelError(
                f"the output {name} of the network has the shape {shape} for {images} images; "
                f"expected ({images}, …), as images are run in batches, none of its sizes 0; leave "
                "it out of what the network returns, or export with onnx_from_module"
            )
        specs.append(TensorSpec(name, str(tensor.dtype).removeprefix("torch."), shape[1:]))
    return tuple(specs)


def _logits_name(output: Any, named: dict[str, Tensor]) -> str | None:
    try:
        logits = logits_of(output)
    except UnsupportedModelError:
        return None
    if logits.dim() != 2 or not logits.is_floating_point():  # the maps of a segmenter, say
        return None
    return next(name for name, tensor in named.items() if tensor is logits)


def _plain_name(name: str, taken: Collection[str]) -> str:
    """Return a name of letters, digits, _ and dots that nothing else has."""
    plain = re.sub(r"[^A-Za-z0-9_.]", "_", name)[:LONGEST]
    found, number = plain, 1
    while found in taken or found in RESERVED:
        number += 1
        found = f"{plain}_{number}"
    return found


def _plain_type(name: str, tensor: Tensor) -> Tensor:
    if tensor.is_complex():
        raise UnsupportedModelError(
            f"the output {name} of the network is complex; expected real numbers, so return "
            "torch.view_as_real of it"
        )
    return tensor.float() if tensor.is_floating_point() else tensor.to(torch.int32)
