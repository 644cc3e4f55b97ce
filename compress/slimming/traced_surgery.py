"""Remove channels from a network that is not ours, and prove that nothing else changed.

The layers are cut by torch-pruning's layer pruners, each (layer, side) once with all its channels:
cutting group by group would renumber, under the next group, the layers that several groups share.

The proof: with γ and β set to 0 in exactly the channels that go, the network must give what the cut
network gives. It runs in float64, so that rounding in another order is no excuse. Where γ = β = 0
leaves a channel at a number other than 0 (a sigmoid gives 0.5), a layer that reads it must read the
same number from every image; only then is that channel hidden from it, as folding makes up for a
number and for nothing else.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compress.errors import UnsupportedModelError
from compress.models.outputs import float_outputs
from compress.models.with_exits import everything
from compress.optional import require
from compress.slimming.traced_graph import training_form_
from compress.slimming.traced_layers import has_gamma

__all__ = ["InexactCutError", "check_cut", "cut_"]

Removed = Mapping[tuple[str, str], Tensor]  # (layer, side) -> the channels that go

# Relative change of the outputs that rounding in another order may cause in a deep network.
EXACT = {torch.float64: 1e-7, torch.float32: 1e-4}


class InexactCutError(Exception):
    """A cut that does more than take channels away; the text says what was seen."""


@torch.no_grad()
def cut_(network: nn.Module, removed: Removed) -> None:
    """Remove channels from the layers of a network; (layer, side) to the channels that go."""
    pruning = require("torch_pruning", "removing channels from layers")
    trainable = {name: p.requires_grad for name, p in network.named_parameters()}
    layers = dict(network.named_modules())
    work = []
    for (name, side), gone in removed.items():
        # Chosen before anything is cut: a grouped convolution with one channel left in each group
        # would be taken for a depthwise one.
        pruner = pruning.pruner.function.PrunerBox[pruning.ops.module2type(layers[name])]
        prune = pruner.prune_in_channels if side == "in" else pruner.prune_out_channels
        work.append((prune, layers[name], gone.tolist()))
    for prune, layer, channels in work:
        prune(layer, channels)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(trainable[name])  # the pruners make new parameters


def check_cut(
    network: nn.Module, removed: Removed, images: Sequence[Tensor], *, in_training: bool = False
) -> None:
    """Raise InexactCutError unless removing channels does what setting their γ and β to 0 does.

    Args:
        network: left as it is.
        removed: (layer, side) to the channels that go.
        images: at least two, each (1, C, H, W).
        in_training: let the cut network run as in training, too, where other layers run.

    Raises:
        UnsupportedModelError: the outputs of the network are not finite.
    """
    try:
        masked = copy.deepcopy(network).eval().double()
        change, dtype = _change(masked, removed, [i.double() for i in images]), torch.float64
    except (InexactCutError, UnsupportedModelError):
        raise
    except Exception:  # a network that makes float32 tensors of its own
        masked = copy.deepcopy(network).eval().float()
        change, dtype = _change(masked, removed, images), torch.float32
    if not change <= EXACT[dtype]:
        raise InexactCutError(f"outputs change by {change:.2g}, where γ = 0 explains all but 1e-6")
    if in_training:
        _run(training_form_(masked), [image.to(dtype) for image in images[:1]])


@torch.no_grad()
def _change(masked: nn.Module, removed: Removed, images: Sequence[Tensor]) -> float:
    """Return how far masking and cutting are apart, relative to the outputs; leave the cut one."""
    layers = dict(masked.named_modules())
    hidden, hooks = [], []
    for (name, side), gone in removed.items():
        layer = layers[name]
        if side == "in":
            hidden.append(_HiddenInputs(name, gone))
            hooks.append(layer.register_forward_pre_hook(hidden[-1]))
        elif has_gamma(layer):
            layer.weight[gone] = 0
            layer.bias[gone] = 0
    wanted = []
    for image in images:
        for inputs in hidden:
            inputs.next_image()
        wanted.append(float_outputs(everything(masked, image)))
    for hook in hooks:
        hook.remove()
    if not all(t.isfinite().all() for outputs in wanted for t in outputs.values()):
        raise UnsupportedModelError(
            f"the outputs of {type(masked).__name__} are not finite, on noise; expected a network "
            "that can be run, so take an earlier checkpoint"
        )
    cut_(masked, removed)
    got = _run(masked, images)
    return max(_relative(a, b) for a, b in zip(wanted, got, strict=True))


def _run(network: nn.Module, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
    try:
        with torch.no_grad():
            return [float_outputs(everything(network, image)) for image in images]
    except Exception as err:  # whatever the forward of a wrongly cut network raises
        told = str(err).splitlines() or [""]
        raise InexactCutError(f"without them it fails ({type(err).__name__}: {told[0]})") from err


def _relative(wanted: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> float:
    if {n: t.shape for n, t in wanted.items()} != {n: t.shape for n, t in got.items()}:
        raise InexactCutError("the outputs have other shapes without them")
    changes = [
        ((got[name] - tensor).norm() / tensor.norm().clamp_min(1e-12)).item()
        for name, tensor in wanted.items()
    ]
    return max(changes, default=0.0)


class _HiddenInputs:
    """Hides channels from a layer, which must read the same from them whatever the image."""

    def __init__(self, name: str, gone: Tensor) -> None:
        self._name = name
        self._gone = gone
        self._first: list[Tensor] = []  # what the layer read of the first image, call by call
        self._calls = 0
        self._images = 0

    def next_image(self) -> None:
        """Say that the network begins anew."""
        self._calls = 0
        self._images += 1

    def __call__(self, layer: nn.Module, args: Any) -> Any:
        """Compare and hide; a hook that runs before the layer."""
        image: Tensor = args[0]
        weight: Tensor = layer.weight  # type: ignore[assignment]
        dim = -1 if isinstance(layer, nn.Linear) else image.dim() - weight.dim() + 1
        read = image.index_select(dim, self._gone)
        if self._images == 1:
            self._first.append(read)
        scale = image.abs().max().clamp_min(1e-12)
        if not (read - self._first[self._calls]).abs().max() <= EXACT[image.dtype] * scale:
            raise InexactCutError(f"{self._name} reads of them what no γ scales")
        self._calls += 1
        return (image.index_fill(dim, self._gone, 0), *args[1:])
