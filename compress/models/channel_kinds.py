"""The kinds of channels that a network can lose, and the form in which it loses them.

A VGG has one kind, its channels, and BatchNorm scores them. A GFNet has two: "hidden", the hidden
units of its MLPs, and "frequency", the frequencies of its filters; a GFNet-H has the first alone.
Published GFNets have no scales to score either by, so a network is brought into a form that has
them, slimmed, and brought back.
"""

from collections.abc import Sequence

from torch import nn

from compress.errors import UserInputError
from compress.models.frequency_scale import with_frequency_scale, without_frequency_scale
from compress.models.gfnet import GFNet
from compress.models.gfnet_pyramid import GFNetPyramid
from compress.models.global_filter import with_matrix_filters
from compress.models.hidden_scale import with_hidden_scale, without_hidden_scale

__all__ = [
    "channel_kinds",
    "counted_form",
    "counts_matrices",
    "resolve_kinds",
    "trained_kinds",
    "with_scales",
    "without_scales",
]

GFNET_KINDS = ("hidden", "frequency")


def channel_kinds(model: nn.Module) -> tuple[str, ...]:
    """Return the kinds of channels that a network has, the one that is meant by default first."""
    if isinstance(model, GFNetPyramid):
        return GFNET_KINDS[:1]
    return GFNET_KINDS if isinstance(model, GFNet) else ("channels",)


def resolve_kinds(model: nn.Module, asked: Sequence[str]) -> tuple[str, ...]:
    """Return the kinds that are asked for, each once; the default where none is.

    Raises:
        UserInputError: the network does not have one of them.
    """
    known = channel_kinds(model)
    for kind in asked:
        if kind not in known:
            raise UserInputError(
                f"--groups names {kind!r}, which {type(model).__name__} does not have; expected "
                f"{' or '.join(known)}"
            )
    return tuple(kind for kind in known if kind in asked) or known[:1]


def trained_kinds(model: nn.Module) -> tuple[str, ...]:
    """Return the kinds of channels that the network has scales for."""
    if not isinstance(model, GFNet | GFNetPyramid):
        return channel_kinds(model)
    return tuple(kind for kind in channel_kinds(model) if model.config[f"{kind}_scale"])


def with_scales(model: nn.Module, kinds: Sequence[str]) -> nn.Module:
    """Return the network with scales for these kinds of channels and for no other.

    Scales that are there stay as they are; those that lack are norms, taken out of the weights. The
    function of the network stays the same. A network that needs no change is returned itself.
    """
    if not isinstance(model, GFNet | GFNetPyramid):
        return model
    if "hidden" in kinds:
        model = with_hidden_scale(model, from_weights=True)
    else:
        model = without_hidden_scale(model)
    if isinstance(model, GFNetPyramid):
        return model
    if "frequency" in kinds:
        return with_frequency_scale(model, from_weights=True)
    return without_frequency_scale(model)


def without_scales(model: nn.Module) -> nn.Module:
    """Return the network with all scales that are not its own folded into its weights."""
    return with_scales(model, ())


def counted_form(model: nn.Module, kinds: Sequence[str] = ()) -> nn.Module:
    """Return what is counted of a network that loses channels of these kinds, without its scales.

    Removed frequencies make the matrix form of a filter smaller and not its FFT, so where they are
    removed the filters are counted as matrices, before and after.
    """
    model = without_scales(model)
    return with_matrix_filters(model) if "frequency" in kinds else model


def counts_matrices(model: nn.Module, kinds: Sequence[str] = ()) -> bool:
    """Return whether `counted_form` of a network without scales has filters as matrices."""
    if not isinstance(model, GFNet):
        return False
    return "frequency" in kinds or model.config["frequencies"] is not None
