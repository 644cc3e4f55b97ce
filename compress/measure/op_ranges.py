"""Named ranges around the operations of a network, for torch's profiler to tell them apart."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import nn
from torch.profiler import record_function

from compress.models.gfnet import GFNet
from compress.models.with_exits import WithExits

__all__ = [
    "BLOCKS",
    "DECISION",
    "DECISIONS",
    "EMBED",
    "FINAL",
    "FORWARD",
    "GATE",
    "HEAD",
    "PATCH",
    "POOL",
    "POSITION",
    "PREFIX",
    "REST",
    "Ranges",
    "has_alike_blocks",
    "lay_ranges_",
]

PATCH, POSITION, BLOCKS, POOL = "patch embedding", "position", "blocks", "norm and pool"
HEAD, GATE, FINAL = "head", "gate", "final head"
DECISION, DECISIONS, REST = "decision and loop", "decisions and the rest", "the rest"
FORWARD, EMBED = "forward", "embed"  # ranges that hold others
PREFIX = "compress: "  # tells our ranges from torch's own


class Ranges:
    """Wraps functions in named ranges; inside a range of the same name none is opened again.

    Args:
        device: on a CUDA device every range waits for its work before it ends.
    """

    def __init__(self, device: torch.device) -> None:
        self._open: set[str] = set()
        self._wait: Callable[[], Any] = lambda: None
        if device.type == "cuda":
            self._wait = lambda: torch.cuda.synchronize(device)

    def around(self, label: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function with a range around each call."""

        @wraps(function)
        def ranged(*arguments: Any, **keywords: Any) -> Any:
            if label in self._open:
                return function(*arguments, **keywords)
            self._open.add(label)
            try:
                with record_function(PREFIX + label):
                    result = function(*arguments, **keywords)
                    self._wait()
                return result
            finally:
                self._open.discard(label)

        return ranged

    def lay_(self, owner: nn.Module, method: str, label: str) -> None:
        """Put a range around a method of this one object."""
        setattr(owner, method, self.around(label, getattr(owner, method)))


def has_alike_blocks(model: nn.Module) -> bool:
    """Whether one time a block tells of all of them, so that its operations are told by kind."""
    return isinstance(model, GFNet)


def lay_ranges_(twin: nn.Module, ranges: Ranges) -> list[str]:
    """Lay ranges around the operations of a network that is to be thrown away.

    Returns:
        Their labels in the order of the network, the one for what lies between them included.
    """
    if isinstance(twin, GFNet):
        return _lay_gfnet_ranges_(twin, ranges)
    if not isinstance(twin, WithExits):
        return [*_lay_layer_ranges_(twin, ranges), REST]
    labels = _lay_layer_ranges_(twin.get_submodule("backbone"), ranges)
    for number, gate in enumerate(twin.gates):
        for head in twin.heads_of(number):
            ranges.lay_(head, "forward", HEAD)
        ranges.lay_(gate, "forward", GATE)
    return [*labels, HEAD, GATE, DECISIONS]


def _lay_layer_ranges_(network: nn.Module, ranges: Ranges) -> list[str]:
    labels = []
    for name, module in network.named_modules():
        if next(module.children(), None) is None:
            labels.append(f"{name or 'network'} ({type(module).__name__})")
            ranges.lay_(module, "forward", labels[-1])
    return labels


def _lay_gfnet_ranges_(twin: GFNet, ranges: Ranges) -> list[str]:
    ranges.lay_(twin, "embed", EMBED)
    ranges.lay_(twin.patch_embed, "forward", PATCH)
    for block in twin.blocks:
        ranges.lay_(block, "forward", BLOCKS)
    ranges.lay_(twin, "pool", POOL)
    ranges.lay_(twin, "classify", FINAL)
    if not isinstance(twin, WithExits):
        return [PATCH, POSITION, BLOCKS, POOL, FINAL, REST]
    ranges.lay_(twin, "pool_exit", POOL)
    ranges.lay_(twin, "exit_logits", HEAD)
    for gate in twin.gates:
        ranges.lay_(gate, "forward", GATE)
    return [PATCH, POSITION, BLOCKS, POOL, HEAD, GATE, DECISION, FINAL]
