"""Networks that are not ours: built by a function that the user names, then fitted to the weights.

A slimmed network of somebody else's class has other widths than its constructor gives. They are
read from the shapes of the state_dict and set on the layers, so no pruning history is needed.
"""

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress.errors import UnsupportedModelError, UserInputError
from compress.models.early_exit import EarlyExitNetwork

__all__ = ["FACTORY_ARCH", "build_from_factory", "call_factory", "factory_of", "fit_widths_"]

FACTORY_ARCH = "factory"
TENSORS = ("weight", "bias", "running_mean", "running_var")
FEATURE_NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)


def build_from_factory(factory: str, state: Mapping[str, Tensor]) -> nn.Module:
    """Call `factory` and give its layers the widths of `state`; `arch` and `config` are set on it.

    Raises:
        UserInputError: the factory cannot be imported or called.
        UnsupportedModelError: a layer cannot take the width that the state_dict asks for.
    """
    model = call_factory(factory)
    fit_widths_(model, state)
    return model


def call_factory(factory: str) -> nn.Module:
    """Import "package.module:function", call it without arguments, return its module in eval mode.

    The current folder is searched too, as `python -m` does.

    Raises:
        UserInputError: the name has another form, the import or the call fails, or what comes back
            is not an `nn.Module`.
    """
    module_name, _, function = factory.partition(":")
    if not module_name or not function:
        raise UserInputError(f"--model is {factory!r}; expected package.module:factory")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        model = getattr(importlib.import_module(module_name), function)()
    except Exception as err:  # whatever the user's code raises
        raise UserInputError(
            f"--model {factory} cannot be built ({type(err).__name__}: {err}); expected a function "
            "that takes no arguments and returns the network"
        ) from err
    if not isinstance(model, nn.Module):
        raise UserInputError(
            f"--model {factory} returned {type(model).__name__}; expected a torch nn.Module"
        )
    model.arch = FACTORY_ARCH  # type: ignore[assignment]
    model.config = {"factory": factory}  # type: ignore[assignment]
    return model.eval()


def factory_of(arch: str, config: Mapping[str, Any]) -> str | None:
    """Return the factory that a checkpoint names for its network, or for what has exits in it."""
    inner = config.get("backbone")
    if arch == EarlyExitNetwork.arch and isinstance(inner, Mapping):
        arch, config = inner.get("arch", ""), inner.get("config", {})
    found = arch == FACTORY_ARCH and isinstance(config, Mapping)
    named = config.get("factory") if found else None
    return str(named) if named is not None else None


def fit_widths_(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Set the width attributes of the layers of `model` to those of `state`.

    Attributes change (`out_channels`, `num_features`, `normalized_shape`, …), and tensors of other
    shapes give way to empty ones on the meta device, for `load_state_dict(assign=True)` to fill.
    Depthwise convolutions stay depthwise; other grouped convolutions keep their number of groups.

    Raises:
        UnsupportedModelError: a layer of another kind, or of another kernel size, has another shape
            in `state`.
    """
    for name, layer in model.named_modules():
        # BatchNorm without γ tells its width by its statistics.
        for key in ("weight", "running_mean"):
            own, wanted = getattr(layer, key, None), state.get(f"{name}.{key}" if name else key)
            if isinstance(own, Tensor) and wanted is not None and own.shape != wanted.shape:
                _fit_layer_(f"{name}.{key}" if name else key, layer, own.shape, wanted.shape)
                _fit_tensors_(layer, {k: state.get(f"{name}.{k}" if name else k) for k in TENSORS})
                break
        _fit_others_(name, layer, state)


def _fit_layer_(name: str, layer: nn.Module, own: torch.Size, wanted: torch.Size) -> None:
    """Give one layer the width of a tensor of another shape."""
    width = wanted[0] if len(wanted) else 0
    if isinstance(layer, nn.modules.conv._ConvNd) and own[2:] == wanted[2:]:
        _fit_convolution_(layer, wanted)
    elif isinstance(layer, nn.Linear) and len(wanted) == 2:
        layer.out_features, layer.in_features = wanted
    elif isinstance(layer, FEATURE_NORMS) and len(wanted) == 1:
        layer.num_features = width
    elif isinstance(layer, nn.GroupNorm) and width and width % layer.num_groups == 0:
        layer.num_channels = width
    elif isinstance(layer, nn.LayerNorm) and len(wanted) == len(own):
        layer.normalized_shape = tuple(wanted)
    elif isinstance(layer, nn.PReLU) and len(wanted) == 1:
        layer.num_parameters = width
    else:
        raise UnsupportedModelError(
            f"{name} is {tuple(wanted)} in the checkpoint and {tuple(own)} in the "
            f"{type(layer).__name__} of the factory's network; expected a layer whose width alone "
            "differs, so give the factory that the checkpoint was made from"
        )


def _fit_others_(name: str, layer: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Fit vectors that a layer of the user's own keeps besides, such as the γ of a layer scale.

    Numbers of the layer that were the old width are taken for it.
    """
    for key, own in [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]:
        wanted = state.get(f"{name}.{key}" if name else key)
        if key in TENSORS or wanted is None or own.shape == wanted.shape:
            continue
        if _is_vector(own.shape) and own.dim() == wanted.dim() and _is_vector(wanted.shape):
            _fit_tensors_(layer, {key: wanted})
            for attribute, value in vars(layer).items():
                if type(value) is int and value == own.numel() != 1:
                    setattr(layer, attribute, wanted.numel())


def _is_vector(shape: torch.Size) -> bool:
    """Whether all sides but one are 1, as of (C,) and (1, C, 1, 1)."""
    return max(shape, default=1) == shape.numel() > 0


def _fit_tensors_(layer: nn.Module, wanted: Mapping[str, Tensor | None]) -> None:
    for name, tensor in wanted.items():
        own = getattr(layer, name, None)
        if tensor is None or not isinstance(own, Tensor) or own.shape == tensor.shape:
            continue
        empty = torch.empty_like(tensor, device="meta")
        trained = isinstance(own, nn.Parameter)
        setattr(layer, name, nn.Parameter(empty, own.requires_grad) if trained else empty)


def _fit_convolution_(layer: nn.modules.conv._ConvNd, shape: torch.Size) -> None:
    if layer.groups == layer.in_channels == layer.out_channels:
        layer.groups = layer.in_channels = layer.out_channels = shape[0]
    elif layer.transposed:
        layer.in_channels, layer.out_channels = shape[0], shape[1] * layer.groups
    else:
        layer.out_channels, layer.in_channels = shape[0], shape[1] * layer.groups
