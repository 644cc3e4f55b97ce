"""Which BatchNorm alone reads what a layer gives, found by running the network once.

A BatchNorm whose statistics are taken anew swallows whatever constant its inputs gain or lose. A
layer without a bias may rely on that only if nothing else reads its output.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from compress.models.with_exits import everything
from compress.slimming.reestimate import norms

__all__ = ["norms_behind"]


class _Consumers(TorchFunctionMode):
    """Notes every operation that takes a watched tensor and gives a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.watched: dict[int, tuple[str, Tensor]] = {}  # the tensor is held, so its id stays its
        self.readers: dict[str, list[str | None]] = {}
        self.inside: str | None = None  # the BatchNorm that runs

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if _holds_tensor(result):
            for tensor in _tensors((args, tuple(kwargs.values()))):
                watched = self.watched.get(id(tensor))
                if watched is not None:
                    self.readers[watched[0]].append(self.inside)
        return result


@torch.no_grad()
def norms_behind(network: nn.Module, image: Tensor) -> dict[str, str]:
    """Return, by layer, the BatchNorm that alone reads its output.

    Args:
        network: in eval mode.
        image: (1, C, H, W).
    """
    seen = _Consumers()
    hooks = []
    for name, layer in network.named_modules():
        if not list(layer.children()):
            hooks.append(layer.register_forward_hook(_watching(seen, name)))
    for name, norm in norms(network).items():
        hooks.append(norm.register_forward_pre_hook(_entering(seen, name)))
        hooks.append(norm.register_forward_hook(_entering(seen, None)))
    try:
        with seen:
            everything(network, image)
    finally:
        for hook in hooks:
            hook.remove()
    return {
        name: readers[0]
        for name, readers in seen.readers.items()
        if len(readers) == 1 and readers[0] is not None
    }


def _watching(seen: _Consumers, name: str) -> Callable[..., None]:
    def watch(layer: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            seen.watched[id(output)] = (name, output)
            seen.readers.setdefault(name, [])

    return watch


def _entering(seen: _Consumers, name: str | None) -> Callable[..., None]:
    def enter(*_: Any) -> None:
        seen.inside = name

    return enter


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, list | tuple):
        return [tensor for part in value for tensor in _tensors(part)]
    return []


def _holds_tensor(result: Any) -> bool:
    return bool(_tensors(result))
