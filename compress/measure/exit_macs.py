"""Multiply-adds up to each exit of a network, counted by running it that far.

True ones: every linear layer counts for every token, the global filter as it is executed (by FFT or
as matrix products, formulas in `compress.models.global_filter`; one that lost frequencies always as
matrix products), and the heads and gates that an image passes on its way. Norms, pooling and the
four features of a gate are not multiply-adds of linear layers and count nothing, as everywhere in
`compress.measure.macs`.

GFNet-XS at 224 pixels: 57.80 million for the patches, 232.82 million a block.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from compress.measure._meta_copy import on_copy
from compress.measure.macs import count_macs, macs_by_layer, macs_rules
from compress.models.with_exits import WithExits

__all__ = ["exit_check_macs", "macs_per_exit"]

Shape = tuple[int, int, int]


def macs_per_exit(model: nn.Module, image_shape: Shape) -> list[int]:
    """Return the multiply-adds of one image that leaves at exit 0, 1, …; the final head last.

    Args:
        model: a network; one without exits gives one figure.
        image_shape: (C, H, W).

    An image that leaves at exit i has run the backbone up to there, and the heads and gates 0 … i.
    """
    if not isinstance(model, WithExits):
        return [count_macs(model, image_shape)]
    found: list[int] = on_copy(model, image_shape, _spent_by_exit)
    return found


def exit_check_macs(model: WithExits, image_shape: Shape) -> list[int]:
    """Return the multiply-adds of the head and the gate of every exit alone, image (C, H, W)."""
    by_layer = macs_by_layer(model, image_shape, _all_exits)
    prefixes = [
        tuple(f"{part}.{number}." for part in model.exit_parts)
        for number in range(len(model.gates))
    ]
    return [
        sum(macs for layer, macs in by_layer.items() if f"{layer}.".startswith(mine))
        for mine in prefixes
    ]


def _spent_by_exit(twin: Any, image: Tensor) -> list[int]:
    """Run all exits once: what was spent when a gate has run is what its images have cost."""
    spent: list[int] = [0]
    by_exit: list[int] = []

    def counting(rule: Callable[..., int]) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            spent[0] += rule(module, inputs, output)

        return hook

    for name, rule in macs_rules(twin).items():
        twin.get_submodule(name).register_forward_hook(counting(rule))
    for gate in twin.gates:
        gate.register_forward_hook(lambda *_: by_exit.append(spent[0]))
    twin.every_exit(image)
    return [*by_exit, spent[0]]


def _all_exits(twin: Any, image: Tensor) -> Any:
    return twin.every_exit(image)
