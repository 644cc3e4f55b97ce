"""Read and write checkpoints, our own and every foreign layout that is accepted.

A checkpoint of ours is a plain dict that `torch.load(weights_only=True)` opens anywhere:
`format`, `arch` (a registered name), `config` (keyword arguments that rebuild the module, widths
included), `state_dict`, `meta` (how it came to be, JSON values only) and `tensors_sha256`. A
`.safetensors` file carries the same, the non-tensors as one JSON string in its metadata.

Foreign files: a bare state_dict, or one under `state_dict`, `model`, `net` or any other name; names
behind `module.`, `model.` or any one prefix; anything beside the weights. Architecture, widths and
class count are then inferred from names and shapes.

No file is believed. A pickle is read as data, not run (`pickle_outline`): sizes are compared with
the bytes that are there and with a bound before a tensor is made, and checksums as it is read.
"""

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from compress.checkpoint.building import model_from_checkpoint
from compress.checkpoint.content import Checkpoint
from compress.checkpoint.own_layout import FORMAT
from compress.checkpoint.reading import read_checkpoint
from compress.checkpoint.tensors import MAX_GIB
from compress.checkpoint.writing import save

__all__ = [
    "FORMAT",
    "MAX_GIB",
    "Checkpoint",
    "load",
    "model_from_checkpoint",
    "read_checkpoint",
    "save",
]


def load(
    path: str | Path,
    *,
    factory: str | None = None,
    unsafe_pickle: bool = False,
    exits: Sequence[int] | None = None,
    weights: str | None = None,
    max_gib: float = MAX_GIB,
) -> nn.Module:
    """Return the network of a checkpoint in eval mode.

    Args:
        path: `.pth` of torch or `.safetensors`.
        factory: "package.module:function" that builds the network, for those that are not of
            `compress.models`. It is imported; a checkpoint alone never causes an import.
        unsafe_pickle: read whole-module pickles. Plain modules give their weights without running
            anything; what is left is unpickled, which runs code from the file.
        exits: blocks behind which the exits of a foreign early-exit checkpoint stand, 0-based; its
            names hold relative numbers only.
        weights: name of the weights where a file has several, such as "ema"; None takes the plain
            ones, and a note says which.
        max_gib: the most that its tensors may take as float32.

    Raises:
        UserInputError: the file is missing, damaged, a whole-module pickle, or does not fit.
        UnsupportedModelError: its architecture is not known.
    """
    checkpoint = read_checkpoint(
        path,
        factory=factory,
        unsafe_pickle=unsafe_pickle,
        exits=exits,
        weights=weights,
        max_gib=max_gib,
    )
    return model_from_checkpoint(checkpoint)
