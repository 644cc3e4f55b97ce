"""What the names and shapes of a VGG checkpoint tell about the network."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from compress.errors import UnsupportedModelError

__all__ = ["infer_vgg_config", "infer_vgg_variant_config"]

LINEARS_APART = 3  # in torchvision's classifier: linear, ReLU, dropout


def infer_vgg_config(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Read the configuration of torchvision's VGG with BatchNorm from a state_dict.

    Returns:
        None where the names are not those of such a VGG.

    Raises:
        UnsupportedModelError: a VGG, but without BatchNorm or with a layout of its own.
    """
    convs = _convolutions(state, "features")
    linears = _classifier_layers(state, dims=2)
    torchvisions = linears == [LINEARS_APART * i for i in range(len(linears))]
    if not convs or not linears or not torchvisions or _classifier_layers(state, dims=1):
        return None
    if f"features.{convs[0]}.bias" not in state:
        return None
    shapes = [state[f"classifier.{i}.weight"].shape for i in linears]
    channels = len(state[f"features.{convs[-1]}.weight"])
    return {
        "widths": _infer_widths(state, convs, "features"),
        "in_channels": state[f"features.{convs[0]}.weight"].shape[1],
        "num_classes": shapes[-1][0],
        "hidden": [shape[0] for shape in shapes[:-1]],
        "pooled": _side(shapes[0][1], channels, "classifier.0"),
    }


def infer_vgg_variant_config(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Read the configuration of any other VGG with BatchNorm from a state_dict.

    Returns:
        None where the names are not those of a VGG.

    Raises:
        UnsupportedModelError: a VGG, but without BatchNorm or with a layout of its own.
    """
    prefix = next((name for name in ("features", "feature") if _convolutions(state, name)), None)
    linears = _classifier_layers(state, dims=2)
    is_single = "classifier.weight" in state and state["classifier.weight"].dim() == 2
    if prefix is None or not (linears or is_single):
        return None
    convs = _convolutions(state, prefix)
    widths = _infer_widths(state, convs, prefix)
    first, last = (
        ("classifier", "classifier")
        if is_single
        else (f"classifier.{linears[0]}", f"classifier.{linears[-1]}")
    )
    return {
        "widths": widths,
        "in_channels": state[f"{prefix}.{convs[0]}.weight"].shape[1],
        "num_classes": len(state[f"{last}.weight"]),
        "pooled": _side(state[f"{first}.weight"].shape[1], widths[-1][-1], first),
        "conv_bias": f"{prefix}.{convs[0]}.bias" in state,
        "features": prefix,
        "last_pool": prefix == "features",
        "head": None if is_single else _infer_head(state, linears[-1]),
        "hidden": [len(state[f"classifier.{i}.weight"]) for i in linears[:-1]],
    }


def _convolutions(state: Mapping[str, Tensor], prefix: str) -> list[int]:
    """Return the places of the convolutions in the sequence that is called `prefix`."""
    return sorted(
        int(match[1])
        for name, tensor in state.items()
        if (match := re.fullmatch(rf"{prefix}\.(\d+)\.weight", name)) and tensor.dim() == 4
    )


def _classifier_layers(state: Mapping[str, Tensor], *, dims: int) -> list[int]:
    """Return the places of the linear layers (2 dimensions) or BatchNorms (1) in the classifier."""
    return sorted(
        int(match[1])
        for name, tensor in state.items()
        if (match := re.fullmatch(r"classifier\.(\d+)\.weight", name)) and tensor.dim() == dims
    )


def _infer_widths(
    state: Mapping[str, Tensor], convs: Sequence[int], prefix: str
) -> list[list[int]]:
    """A gap of four between convolutions holds a pool, a gap of three does not."""
    stages: list[list[int]] = [[]]
    for conv, following in zip(convs, [*convs[1:], convs[-1] + 4], strict=True):
        if f"{prefix}.{conv + 1}.running_mean" not in state:
            raise UnsupportedModelError(
                f"{prefix}.{conv} of this VGG has no BatchNorm behind it; network slimming ranks "
                "channels by BatchNorm's γ, so train the *_bn form of the network"
            )
        if following - conv not in (3, 4):
            raise UnsupportedModelError(
                f"{prefix}.{conv} and {prefix}.{following} lie {following - conv} apart; expected "
                "Conv-BatchNorm-ReLU and at most one pool between them, as in torchvision's VGG"
            )
        stages[-1].append(state[f"{prefix}.{conv}.weight"].shape[0])
        if following - conv == 4:
            stages.append([])
    return stages[:-1]


def _side(features: int, channels: int, layer: str) -> int:
    """Return the side of the map that the first linear layer reads."""
    side = math.isqrt(features // channels)
    if side**2 * channels != features:
        raise UnsupportedModelError(
            f"{layer} reads {features} values, but the last convolution has {channels} "
            "channels; expected channels times a square map, as in torchvision's VGG"
        )
    return side


def _infer_head(state: Mapping[str, Tensor], last: int) -> list[str]:
    """Name the layers of the classifier before its last.

    Layers without tensors do not show. The first such place behind a linear layer, or behind the
    BatchNorm that follows it at once, is a ReLU; any other is a dropout.
    """
    head: list[str] = []
    is_linear = False  # since the last ReLU
    for i in range(last):
        weight = state.get(f"classifier.{i}.weight")
        if weight is not None:
            head.append("linear" if weight.dim() == 2 else "norm")
            is_linear = is_linear or weight.dim() == 2
        else:
            head.append("relu" if is_linear else "dropout")
            is_linear = False
    return head
