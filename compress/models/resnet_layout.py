"""What the names and shapes of a ResNet checkpoint tell about the network."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from compress.models.state_names import shape_of

__all__ = ["infer_resnet_config"]

FAMILY = "ResNet"
STEM_OF_IMAGENET = 7  # side of the kernel of the stem that halves twice


def infer_resnet_config(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Read the configuration of a ResNet from a state_dict; whether all tensors fit is not checked.

    Returns:
        None where the names are not those of a ResNet.

    Raises:
        UnsupportedModelError: a tensor that tells a width has another number of dimensions.
    """
    head = next((name for name in ("fc", "linear") if f"{name}.weight" in state), None)
    if head is None or not {"conv1.weight", "bn1.weight", "layer1.0.conv1.weight"} <= set(state):
        return None
    is_bottleneck = "layer1.0.conv3.weight" in state
    stages = list(_stages(state))
    shortcut = "shortcut" if any(".shortcut." in name for name in state) else "downsample"
    stem_width, in_channels, kernel, _ = _convolution(state, "conv1")
    _, per_group, *_ = _convolution(state, "layer1.0.conv2")
    last = "conv3" if is_bottleneck else "conv2"
    return {
        "stage_widths": [_convolution(state, f"{blocks[0]}.{last}")[0] for blocks in stages],
        "block_widths": [
            [_inner_widths(state, block, is_bottleneck) for block in blocks] for blocks in stages
        ],
        "num_classes": shape_of(state, f"{head}.weight", dims=2, family=FAMILY)[0],
        "projections": [f"{blocks[0]}.{shortcut}.0.weight" in state for blocks in stages],
        "strides": [1, *[2] * (len(stages) - 1)],
        "groups": max(1, _convolution(state, "layer1.0.conv1")[0] // per_group),
        "stem_width": stem_width,
        "stem_kernel": kernel,
        "stem_stride": 2 if kernel == STEM_OF_IMAGENET else 1,
        "stem_pool": kernel == STEM_OF_IMAGENET,
        "in_channels": in_channels,
        "head": head,
        "shortcut": shortcut,
    }


def _stages(state: Mapping[str, Tensor]) -> Iterator[list[str]]:
    """Give the names of the blocks of every stage."""
    stage = 1
    while f"layer{stage}.0.conv1.weight" in state:
        blocks = [f"layer{stage}.0"]
        while f"layer{stage}.{len(blocks)}.conv1.weight" in state:
            blocks.append(f"layer{stage}.{len(blocks)}")
        yield blocks
        stage += 1


def _inner_widths(state: Mapping[str, Tensor], block: str, is_bottleneck: bool) -> list[int]:
    convolutions = ("conv1", "conv2") if is_bottleneck else ("conv1",)
    return [_convolution(state, f"{block}.{name}")[0] for name in convolutions]


def _convolution(state: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    return shape_of(state, f"{name}.weight", dims=4, family=FAMILY)
