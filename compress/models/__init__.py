"""Plain torch modules that are rebuilt from data: `arch` names the class, `config` its keywords."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from compress.errors import UnsupportedModelError, UserInputError
from compress.models.early_exit import EarlyExitNetwork
from compress.models.gfnet import GFNet
from compress.models.gfnet_dynn import GFNetDynn
from compress.models.gfnet_pyramid import GFNetPyramid
from compress.models.mobilenet import MobileNetV2
from compress.models.mobilenet_cifar import CifarMobileNetV2
from compress.models.resnet import ResNet
from compress.models.vgg import VGG
from compress.models.vgg_variant import VGGVariant

__all__ = ["ARCHITECTURES", "build", "infer", "with_built_backbone"]

# Adding an architecture: a module class with `arch`, `config` and `infer_config`, named here.
FAMILIES = (VGG, VGGVariant, ResNet, MobileNetV2, CifarMobileNetV2, GFNet, GFNetPyramid, GFNetDynn)
ARCHITECTURES: dict[str, Any] = {cls.arch: cls for cls in FAMILIES}


def build(arch: str, config: Mapping[str, Any]) -> nn.Module:
    """Build the registered architecture `arch` from its keyword arguments.

    Raises:
        UserInputError: `arch` is not registered, or `config` does not fit it.
    """
    if arch == EarlyExitNetwork.arch:
        inner = config.get("backbone")
        if not isinstance(inner, Mapping) or not isinstance(inner.get("config"), Mapping):
            raise UserInputError("the configuration of a network with exits names no backbone")
        if inner.get("arch") in (EarlyExitNetwork.arch, GFNetDynn.arch):
            raise UserInputError(
                "the configuration of a network with exits names a backbone with exits of its own; "
                "expected one without"
            )
        return with_built_backbone(build(str(inner.get("arch")), inner["config"]), config)
    if arch not in ARCHITECTURES:
        raise UserInputError(
            f"architecture {arch!r} is not known; expected one of "
            f"{sorted([*ARCHITECTURES, EarlyExitNetwork.arch])}"
        )
    try:
        return ARCHITECTURES[arch](**config)
    except (TypeError, ValueError, IndexError) as err:
        raise UserInputError(
            f"the configuration does not fit architecture {arch!r}: {err}"
        ) from err


def with_built_backbone(backbone: nn.Module, config: Mapping[str, Any]) -> nn.Module:
    """Build a network with exits around its backbone.

    Raises:
        UserInputError: `config` does not fit the backbone.
    """
    try:
        exits, classes = config["exits"], config["num_classes"]
        return EarlyExitNetwork(backbone, exits=exits, num_classes=classes)
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError) as err:
        raise UserInputError(
            f"the configuration does not fit a network with early exits ({type(err).__name__}: "
            f"{err}); expected backbone, exits and num_classes"
        ) from err


def infer(
    state: Mapping[str, Tensor], *, exits: Sequence[int] | None = None
) -> tuple[str, dict[str, Any]]:
    """Find the architecture and the configuration that the tensors of a state_dict belong to.

    Args:
        state: tensors by name.
        exits: blocks behind which the exits of a GFNet stand, where it has some; names and shapes
            do not tell them.

    Raises:
        UnsupportedModelError: no registered architecture has these names and shapes.
    """
    for arch, cls in ARCHITECTURES.items():
        hints = {"exits": exits} if cls is GFNetDynn else {}
        config = cls.infer_config(state, **hints)
        if config is not None:
            return arch, config
    names = ", ".join(list(state)[:3])
    raise UnsupportedModelError(
        f"the names in the checkpoint ({names}, …) fit none of {sorted(ARCHITECTURES)}; for a "
        "network of your own give the function that builds it with --model package.module:factory"
    )
