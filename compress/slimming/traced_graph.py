"""What reads what in a network that is not ours, found by running it once.

Layers are recognised by their parameters where torch calls them, operations between them where
torch dispatches them; `traced_layers` and `traced_rules` say how channels pass either. Nothing
needs to be known of the network's classes, and nothing of gradients: whatever runs is followed,
also what is not returned.
"""

import contextlib
import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from compress.errors import CompressError, UnsupportedModelError
from compress.models.outputs import float_outputs
from compress.models.with_exits import everything
from compress.slimming.traced_layers import LayerFollower, Reader

__all__ = ["ChannelGraph", "cuttable_layers", "trace", "training_form_"]

CUTTABLE = (nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._BatchNorm)
CONVOLUTIONS = (torch.conv1d, torch.conv2d, torch.conv3d, torch.conv_transpose1d,
                torch.conv_transpose2d, torch.conv_transpose3d)  # fmt: skip
MIXING = {F.group_norm: "GroupNorm", F.layer_norm: "LayerNorm", F.local_response_norm:
          "LocalResponseNorm", F.multi_head_attention_forward: "MultiheadAttention"}  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class ChannelGraph:
    """The layers of a traced network and which of their channels go together.

    Attributes:
        layers: those that ran, by their names in the network, in module order.
        classes: for every (layer, side) the class of each of its channels.
        reasons: why classes must stay.
        suspects: classes that a module picks by position or reshapes, and which module that is.
        readers: what layers read on average.
        unseen: layers that did not run, neither as in use nor as in training.
        in_training: layers run in training that do not run in use.
    """

    layers: Mapping[str, nn.Module]
    classes: Mapping[tuple[str, str], list[int]]
    reasons: Mapping[int, str]
    suspects: Mapping[int, str]
    readers: Mapping[str, Reader]
    unseen: tuple[str, ...]
    in_training: bool


def trace(network: nn.Module, example: Tensor) -> ChannelGraph:
    """Find what reads what in a network by running a copy of it.

    Args:
        network: left as it is.
        example: image (1, C, H, W).

    Raises:
        UnsupportedModelError: the network does not run on the image, or returns what cannot be
            compared.
    """
    traced = copy.deepcopy(network).eval()
    layers = LayerFollower(traced)
    _run(traced, example, layers)
    readers = layers.readers()
    unseen = _unseen(traced, layers)
    if unseen:
        # Heads for deep supervision run in training only, and read channels nevertheless.
        with contextlib.suppress(UnsupportedModelError):
            _run(training_form_(traced), example, layers)
    return _graph(traced, layers, readers, unseen)


def training_form_(network: nn.Module) -> nn.Module:
    """Let a network do what it does in training, but for layers that depend on the batch."""
    network.train()
    for layer in network.modules():
        if isinstance(layer, nn.modules.batchnorm._NormBase | nn.modules.dropout._DropoutNd):
            layer.eval()
    return network


def cuttable_layers(network: nn.Module) -> dict[str, nn.Module]:
    """Return the layers whose channels can be cut, by name."""
    return {n: layer for n, layer in network.named_modules() if isinstance(layer, CUTTABLE)}


def _run(network: nn.Module, example: Tensor, layers: LayerFollower) -> None:
    image = example.detach().clone()
    try:
        with torch.no_grad():
            layers.image(image)
            dispatched = _Operations(layers)
            with _running(network, layers), dispatched, _LayerCalls(layers, dispatched):
                output = everything(network, image)
            for tensor in float_outputs(output).values():
                layers.output(tensor)
    except CompressError:
        raise
    except Exception as err:  # whatever the forward of the network raises
        raise UnsupportedModelError(
            f"{type(network).__name__} cannot be run on an image of shape "
            f"{tuple(example.shape[1:])} ({type(err).__name__}: {err}); give the size that it "
            "expects with --input-size"
        ) from err


@contextlib.contextmanager
def _running(network: nn.Module, layers: LayerFollower) -> Iterator[None]:
    """Let the follower know in whose forward it is."""
    stack = layers.follower.running
    hooks = []

    def leave(*_: Any) -> None:  # what a hook returns would take the place of the output
        stack.pop()

    for module in network.modules():
        hooks.append(module.register_forward_pre_hook(lambda module, _: stack.append(module)))
        hooks.append(module.register_forward_hook(leave))
    try:
        yield
    finally:
        stack.clear()
        for hook in hooks:
            hook.remove()


def _graph(
    network: nn.Module,
    layers: LayerFollower,
    readers: Mapping[str, Reader],
    unseen_in_use: tuple[str, ...],
) -> ChannelGraph:
    follower = layers.follower
    root = follower.cells.root
    reasons: dict[int, str] = {}
    # What γ does not scale comes last: where another reason holds, no γ would help.
    for cell, why in (*follower.reasons, *follower.unscaled):
        reasons.setdefault(root(cell), why)
    seen = {name for name, _ in layers.places}
    unseen = _unseen(network, layers)
    return ChannelGraph(
        layers={name: layer for name, layer in network.named_modules() if name in seen},
        classes={place: [root(c) for c in cells] for place, cells in layers.places.items()},
        reasons=reasons,
        suspects={root(cell): who for cell, who in reversed(follower.suspects.items())},
        readers=readers,
        unseen=unseen,
        in_training=unseen != unseen_in_use,
    )


def _unseen(network: nn.Module, layers: LayerFollower) -> tuple[str, ...]:
    seen = {name for name, _ in layers.places}
    return tuple(name for name in cuttable_layers(network) if name not in seen)


class _Operations(TorchDispatchMode):
    """Shows every operation between layers to the follower."""

    def __init__(self, layers: LayerFollower) -> None:
        super().__init__()
        self._follower = layers.follower
        self._inside_layer = False

    @contextlib.contextmanager
    def inside_layer(self) -> Iterator[None]:
        """Look away from what a layer does inside."""
        before, self._inside_layer = self._inside_layer, True
        try:
            yield
        finally:
            self._inside_layer = before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not self._inside_layer:
            with torch._C.DisableTorchFunction():
                self._follower.follow(func, args, kwargs or {}, out)
        return out


class _LayerCalls(TorchFunctionMode):
    """Shows every call of a layer to the follower, as one thing."""

    def __init__(self, layers: LayerFollower, operations: _Operations) -> None:
        super().__init__()
        self._layers = layers
        self._operations = operations

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in _LAYERS:
            return func(*args, **kwargs)
        with self._operations.inside_layer():
            out = func(*args, **kwargs)
            with torch._C.DisableTorchFunction():
                _LAYERS[func](self._layers, args, kwargs, out)
        return out


def _argument(args: Any, kwargs: Any, place: int, name: str) -> Any:
    return args[place] if len(args) > place else kwargs.get(name)


def _image_and_parameters(args: Any, kwargs: Any) -> tuple[Any, Any, Any]:
    image, weight, bias = (
        _argument(args, kwargs, i, name) for i, name in enumerate(("input", "weight", "bias"))
    )
    return image, weight, bias


def _convolution(layers: LayerFollower, args: Any, kwargs: Any, out: Tensor) -> None:
    image, weight, bias = _image_and_parameters(args, kwargs)
    layers.convolve("convolution", image, weight, bias, out)


def _linear(layers: LayerFollower, args: Any, kwargs: Any, out: Tensor) -> None:
    image, weight, bias = _image_and_parameters(args, kwargs)
    layers.convolve("Linear", image, weight, bias, out)


def _batch_norm(layers: LayerFollower, args: Any, kwargs: Any, out: Tensor) -> None:
    keys = [_argument(args, kwargs, 3, "weight"), _argument(args, kwargs, 1, "running_mean")]
    layers.normalize("BatchNorm", _argument(args, kwargs, 0, "input"), keys, out)


def _instance_norm(layers: LayerFollower, args: Any, kwargs: Any, out: Tensor) -> None:
    keys = [_argument(args, kwargs, 3, "weight"), _argument(args, kwargs, 1, "running_mean")]
    layers.normalize("InstanceNorm", _argument(args, kwargs, 0, "input"), keys, out)


def _prelu(layers: LayerFollower, args: Any, kwargs: Any, out: Tensor) -> None:
    image, weight, _ = _image_and_parameters(args, kwargs)
    layers.rectify(image, weight, out)


def _mixing(kind: str) -> Any:
    def follow(layers: LayerFollower, args: Any, kwargs: Any, out: Any) -> None:
        operands = [t for t in (*args, *kwargs.values()) if isinstance(t, Tensor)]
        layers.mix(kind, operands, out)

    return follow


_LAYERS: dict[Any, Any] = {
    **dict.fromkeys(CONVOLUTIONS, _convolution),
    F.linear: _linear,
    F.batch_norm: _batch_norm,
    F.instance_norm: _instance_norm,
    torch.prelu: _prelu,
    **{function: _mixing(kind) for function, kind in MIXING.items()},
}
