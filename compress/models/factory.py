"""Networks that are not ours: built by a function that the user names, then fitted to the weights.

A slimmed network of somebody else's class has other widths than its constructor gives. They are
read from the shapes of the state_dict and set on the layers, so no pruning history is needed.
"""

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from compress.errors import UnsupportedModelError, UserInputError

__all__ = ["FACTORY_ARCH", "build_from_factory", "call_factory", "fit_widths_"]

FACTORY_ARCH = "factory"


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


def fit_widths_(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Set the width attributes of convolutions, BatchNorms and linear layers to those of `state`.

    Only the attributes change; the tensors are replaced by `load_state_dict(assign=True)`.

    Raises:
        UnsupportedModelError: a layer of another kind has another shape in `state`.
    """
    for name, layer in model.named_modules():
        weight = state.get(f"{name}.weight" if name else "weight")
        own = getattr(layer, "weight", None)
        if weight is None or not isinstance(own, Tensor) or own.shape == weight.shape:
            continue
        raise UnsupportedModelError(f"{name}")
