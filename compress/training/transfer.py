"""Where a training starts from: a network for other classes or another image size, or a new one."""

import json
from typing import Any

import torch
from torch import nn

from compress.errors import UnsupportedModelError, UserInputError
from compress.models import ARCHITECTURES, build
from compress.models.gfnet import GFNET_VARIANTS, GFNet
from compress.models.image_size import for_image_size
from compress.models.published import PUBLISHED
from compress.models.vgg import VGG_DEPTHS, vgg_bn

__all__ = ["build_student", "network_names", "transferred"]

VGG_NAMES = {f"vgg{depth}_bn": depth for depth in VGG_DEPTHS}


@torch.no_grad()
def transferred(
    model: nn.Module,
    *,
    num_classes: int | None = None,
    image_size: tuple[int, int] | None = None,
) -> nn.Module:
    """Return the network for another number of classes, another image size, or both.

    Other classes: the last linear layer is drawn anew. At a GFNet with a distillation token or with
    early exits that is every head, and the gates with them, as they read logits. All other weights
    are kept. Another image size: a GFNet is resampled (`compress.models.gfnet_resize.resized`);
    other networks stay as they are, and take any size that is large enough.

    Args:
        model: left as it is.
        num_classes: None, or as many as it has, keeps the heads.
        image_size: height and width, pixels; None, or those that it has, keep positions and
            filters.

    Raises:
        UnsupportedModelError: a new head for a network that is not of `compress.models`, or another
            size for a GFNet whose filters lost frequencies.
        UserInputError: the patch size does not divide the image size.
    """
    if image_size is not None:
        model = for_image_size(model, image_size)
    if num_classes is None:
        return model
    arch, config = getattr(model, "arch", None), getattr(model, "config", {})
    if arch not in ARCHITECTURES:
        raise UnsupportedModelError(
            f"{type(model).__name__} is not of compress.models, so which layer is its head is not "
            "known; expected a checkpoint with as many classes as the data"
        )
    return model if config["num_classes"] == num_classes else _with_new_heads(model, num_classes)


def build_student(spec: str, *, num_classes: int, image_size: int | tuple[int, int]) -> nn.Module:
    """Build a network with random weights, in eval mode, from its name.

    Args:
        spec: one of `network_names()`; after a colon JSON may override its configuration:
            "gfnet_12_192", or 'gfnet:{"width": 24, "depth": 6, "patch_size": 4}'.
        num_classes: length of the logits.
        image_size: side in pixels, or height and width; only a GFNet is built for one.

    Raises:
        UserInputError: the name is not known, or the configuration does not fit.
    """
    name, colon, text = spec.partition(":")
    arch, config = _configuration(name)
    if issubclass(ARCHITECTURES[arch], GFNet):
        config["image_size"] = image_size
    options = _read_options(name, text) if colon else {}
    return build(arch, {**config, **options, "num_classes": num_classes}).eval()


def network_names() -> tuple[str, ...]:
    """Return the names that `build_student` knows."""
    return tuple(dict.fromkeys((*GFNET_VARIANTS, *VGG_NAMES, *PUBLISHED, *ARCHITECTURES)))


def _with_new_heads(model: nn.Module, num_classes: int) -> nn.Module:
    config: dict[str, Any] = model.config  # type: ignore[assignment]  # nn.Module says Tensor
    twin = build(str(model.arch), {**config, "num_classes": num_classes})
    state = twin.state_dict()
    for name, tensor in model.state_dict().items():
        if state[name].shape == tensor.shape and not name.startswith("gates."):
            state[name] = tensor
    twin.load_state_dict(state)
    return twin.to(next(model.parameters()).device).train(model.training)


def _configuration(name: str) -> tuple[str, dict[str, Any]]:
    if name in GFNET_VARIANTS:
        return "gfnet", dict(GFNET_VARIANTS[name])
    if name in VGG_NAMES:
        with torch.device("meta"):  # only its widths are read
            return "vgg", vgg_bn(VGG_NAMES[name]).config
    if name in PUBLISHED:
        arch, config = PUBLISHED[name]
        return arch, dict(config)
    if name in ARCHITECTURES:
        return name, {}
    raise UserInputError(
        f"network {name!r} is not known; expected one of {', '.join(network_names())}"
    )


def _read_options(name: str, text: str) -> dict[str, Any]:
    try:
        options = json.loads(text)
    except json.JSONDecodeError as err:
        raise _no_options(name, text, str(err)) from err
    if not isinstance(options, dict):
        raise _no_options(name, text, type(options).__name__)
    return options


def _no_options(name: str, text: str, reason: str) -> UserInputError:
    return UserInputError(
        f"what follows {name}: is {text!r} ({reason}); expected a JSON object such as "
        '{"width": 24, "depth": 6}'
    )
