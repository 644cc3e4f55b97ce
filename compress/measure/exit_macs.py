"""Multiply-adds up to each exit of a GFNet with early exits.

True ones: every linear layer counts for every token, the global filter as it is executed (by FFT or
as matrix products, formulas in `compress.models.global_filter`; one that lost frequencies always as
matrix products), and the heads and gates that an image passes on its way. Norms, pooling and the
four features of a gate are not multiply-adds of linear layers and count nothing, as everywhere in
`compress.measure.macs`.

GFNet-XS at 224 pixels: 57.80 million for the patches, 232.82 million a block.
"""

import re
from typing import cast

from compress.measure.macs import macs_by_layer
from compress.models.early_exit import GFNetDynn
from compress.models.gfnet import GFNet

__all__ = ["exit_check_macs", "macs_per_exit"]

EXIT_PARTS = ("intermediate_heads", "intermediate_heads_dist", "gates")


def macs_per_exit(model: GFNet) -> list[int]:
    """Return the multiply-adds of one image that leaves at exit 0, 1, …; the final head last.

    An image that leaves at exit i has run the blocks up to its position, and the heads and gates
    0 … i. A GFNet without exits gives one figure.
    """
    if not isinstance(model, GFNetDynn):
        return [sum(macs_by_layer(model, _image_shape(model)).values())]
    by_layer = _macs_with_exits(model)
    positions = model.config["exits"]
    spent = _part(by_layer, "patch_embed")
    done, totals = 0, []
    for i, position in enumerate(positions):
        spent += sum(_part(by_layer, f"blocks.{k}") for k in range(done, position + 1))
        spent += sum(_part(by_layer, f"{part}.{i}") for part in EXIT_PARTS)
        done = position + 1
        totals.append(spent)
    spent += sum(_part(by_layer, f"blocks.{k}") for k in range(done, len(model.blocks)))
    return [*totals, spent + _part(by_layer, "head") + _part(by_layer, "head_dist")]


def exit_check_macs(model: GFNetDynn) -> list[int]:
    """Return the multiply-adds of the head and the gate of every exit alone."""
    by_layer = _macs_with_exits(model)
    return [
        sum(_part(by_layer, f"{part}.{i}") for part in EXIT_PARTS) for i in range(len(model.gates))
    ]


def _macs_with_exits(model: GFNetDynn) -> dict[str, int]:
    """Multiply-adds by layer when every exit is run."""
    return macs_by_layer(
        model,
        _image_shape(model),
        lambda twin, image: cast(GFNetDynn, twin).forward_all(image),
    )


def _image_shape(model: GFNet) -> tuple[int, int, int]:
    height, width = model.config["image_size"]
    return model.config["in_channels"], height, width


def _part(by_layer: dict[str, int], name: str) -> int:
    pattern = re.compile(rf"{re.escape(name)}(\..*)?")
    return sum(macs for layer, macs in by_layer.items() if pattern.fullmatch(layer))
