"""The network of a checkpoint: built within bounds, then filled."""

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules import module as registration

from compress.checkpoint.content import Checkpoint
from compress.checkpoint.layouts import versions_of
from compress.checkpoint.names import closest, readings
from compress.checkpoint.own_layout import check_size
from compress.checkpoint.wording import first_lines
from compress.errors import CompressError, UserInputError
from compress.models import build, with_built_backbone
from compress.models.early_exit import BACKBONE
from compress.models.factory import FACTORY_ARCH, call_factory, factory_of, fit_widths_

__all__ = ["model_from_checkpoint"]

# Layers without tensors (activations, pools, containers) that a network may have for each tensor,
# and parameters that a layer may register before it settles on one.
LAYERS_PER_TENSOR = 8
FEW_LAYERS = 1000


def model_from_checkpoint(checkpoint: Checkpoint) -> nn.Module:
    """Build the network of a checkpoint in eval mode; its float tensors become float32.

    The module takes over the tensors of the checkpoint where their type fits: nothing is copied.
    The names of a foreign state_dict are read in the way that fits the network of a factory.

    Raises:
        UserInputError: configuration and tensors do not fit one another.
    """
    state: dict[str, Tensor] = checkpoint.state_dict
    if checkpoint.arch == FACTORY_ARCH:
        model = call_factory(checkpoint.config["factory"])
        ways = readings(state, versions_of(state))
        state = closest(ways, model.state_dict().keys(), "the checkpoint")
        fit_widths_(model, state)
    elif factory_of(checkpoint.arch, checkpoint.config) is not None:
        model = _with_exits(checkpoint)
    else:
        model = _built(checkpoint)
    _fill(model, state, checkpoint.arch)
    return model.eval()


def _with_exits(checkpoint: Checkpoint) -> nn.Module:
    """Build a network with exits around one that a factory builds."""
    config, state = checkpoint.config, checkpoint.state_dict
    check_size(config, state, "the checkpoint")
    backbone = call_factory(config["backbone"]["config"]["factory"])
    inner = {n.removeprefix(BACKBONE): t for n, t in state.items() if n.startswith(BACKBONE)}
    fit_widths_(backbone, inner)
    with _bounded_layers(len(state)), torch.device("meta"):
        return with_built_backbone(backbone, config)


def _built(checkpoint: Checkpoint) -> nn.Module:
    arch, config = checkpoint.arch, checkpoint.config
    check_size(config, checkpoint.state_dict, "the checkpoint")
    try:
        # The meta device: no memory, and no time spent on weights that are replaced.
        with _bounded_layers(len(checkpoint.state_dict)), torch.device("meta"):
            return build(arch, config)
    except CompressError:
        raise
    except Exception as err:  # a configuration that was tampered with raises nearly anything
        raise UserInputError(
            f"the configuration does not fit architecture {arch!r} ({type(err).__name__}: "
            f"{first_lines(err)}); expected the one that compress.save wrote"
        ) from err


def _fill(model: nn.Module, state: dict[str, Tensor], arch: str) -> None:
    whole = OrderedDict((name, _as_float32(tensor)) for name, tensor in state.items())
    if versions := versions_of(state):
        whole._metadata = versions  # type: ignore[attr-defined]  # where torch looks for them
    try:
        model.load_state_dict(whole, strict=True, assign=True)
    except RuntimeError as err:
        raise UserInputError(
            f"the tensors do not fit architecture {arch!r} as inferred or recorded: "
            f"{first_lines(err)}"
        ) from err


@contextmanager
def _bounded_layers(tensors: int) -> Iterator[None]:
    """Stop a configuration that makes far more layers than there are tensors for."""
    left = FEW_LAYERS + LAYERS_PER_TENSOR * tensors
    thread = threading.get_ident()

    def count(*_registered: object) -> None:
        nonlocal left
        left -= threading.get_ident() == thread
        if left < 0:
            raise UserInputError(
                f"the configuration asks for more layers than the {tensors} tensors of the "
                "checkpoint are for; expected one that fits, so the file is damaged"
            )

    hooks = (
        registration.register_module_module_registration_hook(count),
        registration.register_module_parameter_registration_hook(count),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _as_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor
