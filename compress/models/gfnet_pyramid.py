"""GFNet-H, the hierarchical Global Filter Network (Rao et al., arXiv 2107.00645).

Stages with grids of their own: the first cuts the image into patches of 4x4 pixels, every further
one halves rows and columns and widens the tokens. Blocks scale their branch by a learnt `gamma` per
channel. Names and shapes of the state_dict are the published ones: `patch_embed.{s}.proj`,
`blocks.{s}.{i}`, positions at the first stage alone.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from compress.errors import UnsupportedModelError, UserInputError
from compress.models.channels import ChannelGroup
from compress.models.gfnet import hidden_group, initialised
from compress.models.gfnet_block import Block, MeanTokens, PatchEmbed
from compress.models.gfnet_config import check_config, check_image
from compress.models.gfnet_layout import numbered, shape_of

__all__ = ["GFNET_H_VARIANTS", "GFNetPyramid", "gfnet_h"]

DOWN = 2  # side of the patches of tokens that become one at the next stage

GFNET_H_VARIANTS: dict[str, dict[str, Any]] = {
    "gfnet_h_ti": {
        "widths": [64, 128, 256, 512],
        "depths": [3, 3, 10, 3],
        "drop_path": 0.1,
        "gamma": 1e-3,
    },
    "gfnet_h_s": {
        "widths": [96, 192, 384, 768],
        "depths": [3, 3, 10, 3],
        "drop_path": 0.2,
        "gamma": 1e-5,
    },
    "gfnet_h_b": {
        "widths": [96, 192, 384, 768],
        "depths": [3, 3, 27, 3],
        "drop_path": 0.4,
        "gamma": 1e-6,
    },
}


class ScaledBlock(Block):
    """A block whose branch is scaled: x + gamma * mlp(norm2(filter(norm1(x))))."""

    def __init__(self, width: int, hidden: int, grid: tuple[int, int], **options: Any) -> None:
        gamma = options.pop("gamma")
        super().__init__(width, hidden, grid, **options)
        self.gamma = nn.Parameter(torch.full((width,), float(gamma)))

    def branch(self, x: Tensor) -> Tensor:
        """Return what is added to the tokens (B, N, D)."""
        return self.gamma * super().branch(x)


class GFNetPyramid(nn.Module):
    """Stages of patches and blocks, one norm, mean over tokens, one linear head.

    Args:
        image_size: side, or height and width, in pixels; multiples of the first patch size times
            two to the power of the stages behind it.
        patch_size: side of the first patches in pixels.
        in_channels: channels of the image.
        widths: channels of the tokens of every stage.
        depths: blocks of every stage; not read when `hidden` is given.
        mlp_ratio: hidden width over width; not read when `hidden` is given.
        hidden: hidden widths of the blocks of every stage.
        num_classes: length of the logits.
        hidden_scale: a learnable scale per hidden unit, for network slimming.
        drop_path: rate at which the last block is skipped in training, in [0, 1); it grows linearly
            from 0 at the first block.
        gamma: what the branches of a new network are scaled by.

    Shapes: image (B, in_channels, H, W); logits (B, num_classes).

    Raises:
        UserInputError: a size is out of range, or the stages do not divide the image size.
    """

    arch = "gfnet_h"

    def __init__(
        self,
        *,
        image_size: int | Sequence[int] = 224,
        patch_size: int = 4,
        in_channels: int = 3,
        widths: Sequence[int] = (64, 128, 256, 512),
        depths: Sequence[int] = (3, 3, 10, 3),
        mlp_ratio: float = 4.0,
        hidden: Sequence[Sequence[int]] | None = None,
        num_classes: int = 1000,
        hidden_scale: bool = False,
        drop_path: float = 0.0,
        gamma: float = 1e-3,
    ) -> None:
        super().__init__()
        size = [image_size] * 2 if isinstance(image_size, int) else list(image_size)
        if hidden is None:
            pairs = zip(widths, depths, strict=False)
            hidden = [[int(width * mlp_ratio)] * depth for width, depth in pairs]
        self.config: dict[str, Any] = {
            "image_size": size,
            "patch_size": patch_size,
            "in_channels": in_channels,
            "widths": list(widths),
            "hidden": [list(stage) for stage in hidden],
            "num_classes": num_classes,
            "hidden_scale": hidden_scale,
            "drop_path": drop_path,
            "gamma": gamma,
        }
        self._check()
        self.grids = stage_grids(size, patch_size, len(widths))
        sources = [in_channels, *widths[:-1]]
        sides = [patch_size, *[DOWN] * (len(widths) - 1)]
        self.patch_embed = nn.ModuleList(map(PatchEmbed, sources, widths, sides))
        self.pos_embed = nn.Parameter(torch.zeros(1, math.prod(self.grids[0]), widths[0]))
        self.blocks = self._stages()
        self.norm = nn.LayerNorm(widths[-1], eps=1e-6)
        self.average = MeanTokens()
        self.head = nn.Linear(widths[-1], num_classes)
        self._initialise()

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (B, num_classes) of images (B, in_channels, H, W).

        Raises:
            UserInputError: the image is not of the size that the network is built for.
        """
        check_image(image, self.config["image_size"], "resize the image")
        x = self.blocks[0](self.patch_embed[0](image) + self.pos_embed)
        for (grid, _), embed, stage in zip(
            pairwise(self.grids), self.patch_embed[1:], self.blocks[1:], strict=True
        ):
            x = stage(embed(x.transpose(1, 2).unflatten(2, grid)))  # (B, D, a, b) to (B, N/4, D')
        return self.head(self.average(self.norm(x)))

    @property
    def display_name(self) -> str:
        """A name such as "gfnet_h_19_512": blocks, and width of the last stage."""
        return f"gfnet_h_{sum(map(len, self.config['hidden']))}_{self.config['widths'][-1]}"

    def no_weight_decay(self) -> set[str]:
        """Return names of parameters that training must not decay, besides all of one dimension."""
        return {
            name
            for name, _ in self.named_parameters()
            if name == "pos_embed" or name.endswith((".mlp.scale", ".gamma"))
        }

    def channel_groups(self) -> list[ChannelGroup]:
        """One group a block: its hidden units.

        Raises:
            UnsupportedModelError: the network has no scales.
        """
        if not self.config["hidden_scale"]:
            raise UnsupportedModelError(
                "this GFNet-H has no scale per hidden unit to rank them by; add it with "
                "compress.models.hidden_scale.with_hidden_scale, train it with an L1 penalty, then "
                "slim"
            )
        return [hidden_group(f"blocks.{s}.{i}.mlp") for s, i in self._places()]

    def config_with(self, widths: Mapping[str, int]) -> dict[str, Any]:
        """Return the configuration with the hidden widths of the named MLPs replaced."""
        hidden = [list(stage) for stage in self.config["hidden"]]
        for s, i in self._places():
            hidden[s][i] = widths.get(f"blocks.{s}.{i}.mlp", hidden[s][i])
        return {**self.config, "hidden": hidden}

    @classmethod
    def infer_config(cls, state: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """Read the configuration from the names and shapes of a state_dict.

        Returns:
            None where the names are not those of a GFNet-H.

        Raises:
            UnsupportedModelError: the names of a GFNet-H, but shapes that fit none.
        """
        stages = numbered(state, r"patch_embed\.(\d+)\.proj\.weight")
        if stages == 0 or "blocks.0.0.filter.complex_weight" not in state:
            return None
        embeds = [shape_of(state, f"patch_embed.{s}.proj.weight", 4) for s in range(stages)]
        hidden = []
        for s in range(stages):
            depth = numbered(state, rf"blocks\.{s}\.(\d+)\.filter\.complex_weight")
            names = [f"blocks.{s}.{i}.mlp.fc1.weight" for i in range(depth)]
            hidden.append([shape_of(state, name, 2)[0] for name in names])
        return {
            "image_size": _inferred_size(state, [embed[2] for embed in embeds]),
            "patch_size": embeds[0][2],
            "in_channels": embeds[0][1],
            "widths": [embed[0] for embed in embeds],
            "hidden": hidden,
            "num_classes": shape_of(state, "head.weight", 2)[0],
            "hidden_scale": "blocks.0.0.mlp.scale" in state,
        }

    def _check(self) -> None:
        config = self.config
        stages = len(config["widths"])
        if stages == 0 or len(config["hidden"]) != stages or not all(config["hidden"]):
            raise UserInputError(
                f"a GFNet-H has widths {config['widths']} and blocks "
                f"{[len(stage) for stage in config['hidden']]}; expected as many of both, and at "
                "least one block a stage"
            )
        patch = config["patch_size"] * DOWN ** (stages - 1)
        for width, hidden in zip(config["widths"], config["hidden"], strict=True):
            check_config({**config, "patch_size": patch, "width": width, "hidden": hidden})

    def _stages(self) -> nn.ModuleList:
        hidden, widths = self.config["hidden"], self.config["widths"]
        count = sum(map(len, hidden))
        rates = iter(torch.linspace(0, self.config["drop_path"], count, device="cpu").tolist())
        return nn.ModuleList(
            nn.Sequential(
                *(
                    ScaledBlock(
                        width,
                        units,
                        grid,
                        hidden_scale=self.config["hidden_scale"],
                        drop_path=next(rates),
                        gamma=self.config["gamma"],
                    )
                    for units in stage
                )
            )
            for width, stage, grid in zip(widths, hidden, self.grids, strict=True)
        )

    def _places(self) -> list[tuple[int, int]]:
        """Stage and number of every block."""
        return [(s, i) for s, stage in enumerate(self.config["hidden"]) for i in range(len(stage))]

    def _initialise(self) -> None:
        if self.pos_embed.is_meta:
            return  # there is nothing to fill
        for module in self.modules():
            if isinstance(module, nn.Linear):
                initialised(module)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)


def stage_grids(size: Sequence[int], patch_size: int, stages: int) -> list[tuple[int, int]]:
    """Return rows and columns of the tokens of every stage.

    >>> stage_grids((224, 224), 4, 4)
    [(56, 56), (28, 28), (14, 14), (7, 7)]
    """
    sides = [patch_size * DOWN**stage for stage in range(stages)]
    return [(size[0] // side, size[1] // side) for side in sides]


def gfnet_h(variant: str, **config: Any) -> GFNetPyramid:
    """Build a named network; keywords override what the name says.

    >>> gfnet_h("gfnet_h_ti", num_classes=10).config["widths"]
    [64, 128, 256, 512]
    """
    if variant not in GFNET_H_VARIANTS:
        raise UserInputError(
            f"GFNet-H {variant!r} is not known; expected one of {[*GFNET_H_VARIANTS]}"
        )
    return GFNetPyramid(**{**GFNET_H_VARIANTS[variant], **config})


def _inferred_size(state: Mapping[str, Tensor], sides: Sequence[int]) -> list[int]:
    """Rows are those of the first filter, columns what is left of the tokens."""
    tokens = shape_of(state, "pos_embed", 3)[1]
    rows = shape_of(state, "blocks.0.0.filter.complex_weight", 4)[0]
    columns = tokens // rows if rows else 0
    for s, (a, b) in enumerate(stage_grids((rows, columns), 1, len(sides))):
        found = shape_of(state, f"blocks.{s}.0.filter.complex_weight", 4)[:2]
        halved = s == 0 or sides[s] == DOWN
        if rows * columns != tokens or found != (a, b // 2 + 1) or not halved:
            raise UnsupportedModelError(
                f"pos_embed holds {tokens} tokens, and stage {s} has {found[0]}x{found[1]} "
                f"frequencies behind patches of {sides[s]}; expected {a}x{b // 2 + 1}, and patches "
                f"of {DOWN} from the second stage on"
            )
    return [rows * sides[0], columns * sides[0]]
