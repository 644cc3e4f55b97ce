"""Networks by the names under which they are published: architecture and configuration."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from compress.models.mobilenet import mobilenet_v2_config

__all__ = ["PUBLISHED"]

BASIC, BOTTLENECK = 1, 4  # channels behind a block over those inside


def _imagenet(
    blocks: tuple[int, ...], expansion: int, *, groups: int = 1, width_per_group: int = 64
) -> dict[str, Any]:
    planes = [64 * 2**stage for stage in range(len(blocks))]
    inner = [p * width_per_group // 64 * groups for p in planes]
    convolutions = 1 if expansion == BASIC else 2  # before the block's last
    return {
        "stage_widths": [p * expansion for p in planes],
        "block_widths": [[[w] * convolutions] * n for w, n in zip(inner, blocks, strict=True)],
        "num_classes": 1000,
        "projections": [expansion > BASIC, True, True, True],
        "groups": groups,
    }


def _cifar(depth: int) -> dict[str, Any]:
    """Section 4.2 of the paper: three stages of (depth - 2) / 6 blocks, shortcuts of option A."""
    widths = [16, 32, 64]
    return {
        "stage_widths": widths,
        "block_widths": [[[width]] * ((depth - 2) // 6) for width in widths],
        "num_classes": 10,
        "projections": [False] * 3,
        "stem_width": 16,
        "stem_kernel": 3,
        "stem_stride": 1,
        "stem_pool": False,
        "head": "linear",
    }


_RESNETS = {
    "resnet18": _imagenet((2, 2, 2, 2), BASIC),
    "resnet34": _imagenet((3, 4, 6, 3), BASIC),
    "resnet50": _imagenet((3, 4, 6, 3), BOTTLENECK),
    "resnet101": _imagenet((3, 4, 23, 3), BOTTLENECK),
    "resnet152": _imagenet((3, 8, 36, 3), BOTTLENECK),
    "resnext50_32x4d": _imagenet((3, 4, 6, 3), BOTTLENECK, groups=32, width_per_group=4),
    "resnext101_32x8d": _imagenet((3, 4, 23, 3), BOTTLENECK, groups=32, width_per_group=8),
    "resnext101_64x4d": _imagenet((3, 4, 23, 3), BOTTLENECK, groups=64, width_per_group=4),
    "wide_resnet50_2": _imagenet((3, 4, 6, 3), BOTTLENECK, width_per_group=128),
    "wide_resnet101_2": _imagenet((3, 4, 23, 3), BOTTLENECK, width_per_group=128),
    **{f"resnet{depth}": _cifar(depth) for depth in (20, 32, 44, 56, 110)},
}

# Architecture and configuration by name; ImageNet's networks have 1000 classes, CIFAR's 10.
PUBLISHED: Mapping[str, tuple[str, Mapping[str, Any]]] = MappingProxyType(
    {
        **{name: ("resnet", config) for name, config in _RESNETS.items()},
        "mobilenet_v2": ("mobilenet_v2", mobilenet_v2_config()),
    }
)
