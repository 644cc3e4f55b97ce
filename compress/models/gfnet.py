"""Global Filter Networks (Rao et al., arXiv 2107.00645), plain and with distillation tokens.

Names and shapes of the state_dict are the published ones, so published and home-trained checkpoints
load strictly. What slimming changes is data: the hidden width of every block, and the frequencies
that its filter keeps.

The distilled form puts a class and a distillation token before the patches, as DeiT does (Touvron
et al., arXiv 2012.12877). All tokens are then laid out anew on a grid, see `token_grid`; the logits
are the mean of two heads.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compress.errors import UnsupportedModelError, UserInputError
from compress.models.channels import ChannelGroup, TensorSlice
from compress.models.frequencies import real_frequencies
from compress.models.gfnet_block import Block, MeanTokens, PatchEmbed
from compress.models.gfnet_config import check_config, check_frequencies, check_grid, check_image
from compress.models.gfnet_layout import DISTIL_TOKENS, infer_gfnet_config, token_grid

__all__ = ["GFNET_VARIANTS", "GFNet", "gfnet", "hidden_group", "initialised"]

# Width, depth, drop path of the published networks and of the early-exit logs.
GFNET_VARIANTS: dict[str, dict[str, Any]] = {
    "gfnet_ti": {"width": 256, "depth": 12},
    "gfnet_xs": {"width": 384, "depth": 12},
    "gfnet_s": {"width": 384, "depth": 19, "drop_path": 0.15},
    "gfnet_b": {"width": 512, "depth": 19, "drop_path": 0.25},
    "gfnet_12_384": {"width": 384, "depth": 12},
    "gfnet_12_192": {"width": 192, "depth": 12},
    "gfnet_distil_12_192": {"width": 192, "depth": 12, "distilled": True},
}


class GFNet(nn.Module):
    """Patches, blocks of global filter and MLP, one norm, mean over tokens, one linear head.

    Args:
        image_size: side, or height and width, in pixels; multiples of `patch_size`.
        patch_size: side of a patch in pixels.
        in_channels: channels of the image.
        width: channels D of a token.
        depth: blocks; not read when `hidden` is given.
        mlp_ratio: hidden width over `width`; not read when `hidden` is given.
        hidden: hidden width of every block's MLP.
        num_classes: length of the logits.
        distilled: class and distillation token, two heads.
        grid: rows and columns that the filters lay the tokens on; None is `token_grid`.
        hidden_scale: a learnable scale per hidden unit, for network slimming.
        frequency_scale: a learnable scale per frequency of every filter, for the same.
        frequencies: the frequencies that the filter of every block keeps, ascending, as numbered by
            `compress.models.frequencies.real_frequencies`; filters are then stored by rows. None is
            the published form, or all of them with `frequency_scale`.
        drop_path: rate at which the last block is skipped in training, in [0, 1); it grows linearly
            from 0 at the first block.

    Shapes: image (B, in_channels, H, W); logits (B, num_classes).

    Raises:
        UserInputError: a size is out of range, the patch size does not divide the image size, the
            grid does not hold the tokens, or has no such frequencies.
    """

    arch = "gfnet"

    def __init__(
        self,
        *,
        image_size: int | Sequence[int] = 224,
        patch_size: int = 16,
        in_channels: int = 3,
        width: int = 384,
        depth: int = 12,
        mlp_ratio: float = 4.0,
        hidden: Sequence[int] | None = None,
        num_classes: int = 1000,
        distilled: bool = False,
        grid: Sequence[int] | None = None,
        hidden_scale: bool = False,
        frequency_scale: bool = False,
        frequencies: Sequence[Sequence[int]] | None = None,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        size = [image_size] * 2 if isinstance(image_size, int) else list(image_size)
        hidden = [int(width * mlp_ratio)] * depth if hidden is None else list(hidden)
        self.config: dict[str, Any] = {
            "image_size": size,
            "patch_size": patch_size,
            "in_channels": in_channels,
            "width": width,
            "hidden": hidden,
            "num_classes": num_classes,
            "distilled": distilled,
            "hidden_scale": hidden_scale,
            "frequency_scale": frequency_scale,
            "drop_path": drop_path,
        }
        check_config(self.config, whole_patches=grid is None)
        patches = (size[0] // patch_size, size[1] // patch_size)
        tokens = patches[0] * patches[1] + DISTIL_TOKENS * distilled
        self.config["grid"] = list(grid or token_grid(patches, distilled=distilled))
        check_grid(self.config["grid"], tokens)
        self.config["frequencies"] = self._kept_frequencies(frequencies)

        self.patch_embed = PatchEmbed(in_channels, width, patch_size)
        if distilled:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
            self.dist_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, width))
        rates = torch.linspace(0, drop_path, len(hidden), device="cpu").tolist()
        self.blocks = nn.ModuleList(self._block(i, rate) for i, rate in enumerate(rates))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.average = MeanTokens()
        self.head = nn.Linear(width, num_classes)
        if distilled:
            self.head_dist = nn.Linear(width, num_classes)
        self._initialise()

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (B, num_classes) of images (B, in_channels, H, W)."""
        return self.classify(self.pool(self.run_blocks(self.embed(image))))

    def forward_both(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of the class head and of the distillation head, (B, num_classes) each.

        Raises:
            UnsupportedModelError: the network has no distillation token.
        """
        if not self.config["distilled"]:
            raise UnsupportedModelError(
                "this GFNet has one head; two are given by the distilled form (distilled=True)"
            )
        pooled = self.pool(self.run_blocks(self.embed(image)))
        return self.head(pooled[:, 0]), self.head_dist(pooled[:, 1])

    def embed(self, image: Tensor) -> Tensor:
        """Return the tokens (B, N, D) that enter the first block.

        Raises:
            UserInputError: the image is not of the size that the network is built for.
        """
        remedy = "resize the image, or the network with compress.models.gfnet_resize.resized"
        check_image(image, self.config["image_size"], remedy)
        x = self.patch_embed(image)
        if self.config["distilled"]:
            extra = torch.cat((self.cls_token, self.dist_token), dim=1)
            x = torch.cat((extra.expand(x.shape[0], -1, -1), x), dim=1)
        return x + self.pos_embed

    def run_blocks(self, x: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """Return the tokens (B, N, D) behind blocks `start` to `stop`, `stop` not included."""
        for block in self.blocks[start:stop]:
            x = block(x)
        return x

    def pool(self, x: Tensor) -> Tensor:
        """Return what the heads read: (B, D), or (B, 2, D) of the distilled form."""
        if self.config["distilled"]:
            return self.norm(x[:, :DISTIL_TOKENS])
        return self.average(self.norm(x))

    def classify(self, pooled: Tensor) -> Tensor:
        """Return logits (…, num_classes) of pooled features (…, D) or (…, 2, D)."""
        if self.config["distilled"]:
            return (self.head(pooled[..., 0, :]) + self.head_dist(pooled[..., 1, :])) / 2
        return self.head(pooled)

    @property
    def display_name(self) -> str:
        """A name such as "gfnet_12_384" or "gfnet_distil_12_192": depth and width."""
        form = "gfnet_distil" if self.config["distilled"] else "gfnet"
        return f"{form}_{len(self.config['hidden'])}_{self.config['width']}"

    def no_weight_decay(self) -> set[str]:
        """Return names of parameters that training must not decay, besides all of one dimension."""
        names = {name for name, _ in self.named_parameters()}
        spared = ("pos_embed", "cls_token", "dist_token")
        return {n for n in names if n in spared or n.endswith((".mlp.scale", ".filter.scale"))}

    def channel_groups(self) -> list[ChannelGroup]:
        """Up to two groups a block, where they have scales: frequencies, then hidden units.

        Raises:
            UnsupportedModelError: the network has no scales.
        """
        groups = []
        for i in range(len(self.blocks)):
            if self.config["frequency_scale"]:
                groups.append(_frequency_group(f"blocks.{i}.filter"))
            if self.config["hidden_scale"]:
                groups.append(hidden_group(f"blocks.{i}.mlp"))
        if not groups:
            raise UnsupportedModelError(
                "this GFNet has no scale per hidden unit to rank them by; add it with "
                "compress.models.hidden_scale.with_hidden_scale (or one per frequency with "
                "compress.models.frequency_scale.with_frequency_scale), train it with an L1 "
                "penalty, then slim"
            )
        return groups

    def config_with(self, widths: Mapping[str, int]) -> dict[str, Any]:
        """Return the configuration with the hidden widths of the named MLPs replaced."""
        hidden = [
            widths.get(f"blocks.{i}.mlp", units) for i, units in enumerate(self.config["hidden"])
        ]
        return {**self.config, "hidden": hidden}

    def config_keeping(self, kept: Mapping[str, Sequence[int]]) -> dict[str, Any]:
        """Return the configuration with only these units and frequencies of the named groups.

        Args:
            kept: places among what the group has now, ascending.
        """
        config = self.config_with({name: len(places) for name, places in kept.items()})
        if config["frequencies"] is not None:
            config["frequencies"] = [
                [numbers[place] for place in kept.get(f"blocks.{i}.filter", range(len(numbers)))]
                for i, numbers in enumerate(config["frequencies"])
            ]
        return config

    @classmethod
    def infer_config(cls, state: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """Read the configuration from the names and shapes of a state_dict.

        Returns:
            None where the names are not those of a GFNet, or where it has early exits.

        Raises:
            UnsupportedModelError: the names of a GFNet, but shapes that fit none.
        """
        if any(name.startswith("intermediate_heads.") for name in state):
            return None
        return infer_gfnet_config(state)

    def _kept_frequencies(
        self, frequencies: Sequence[Sequence[int]] | None
    ) -> list[list[int]] | None:
        rows, columns = self.config["grid"]
        depth = len(self.config["hidden"])
        if frequencies is None:
            everything = real_frequencies((rows, columns))
            return [everything] * depth if self.config["frequency_scale"] else None
        check_frequencies(frequencies, (rows, columns), depth)
        return [list(numbers) for numbers in frequencies]

    def _block(self, i: int, drop_path: float) -> Block:
        rows, columns = self.config["grid"]
        kept = self.config["frequencies"]
        return Block(
            self.config["width"],
            self.config["hidden"][i],
            (rows, columns),
            hidden_scale=self.config["hidden_scale"],
            frequency_scale=self.config["frequency_scale"],
            frequencies=None if kept is None else kept[i],
            drop_path=drop_path,
        )

    def _initialise(self) -> None:
        if self.pos_embed.is_meta:
            return  # there is nothing to fill
        for module in self.modules():
            if isinstance(module, nn.Linear):
                initialised(module)
        for name in ("pos_embed", "cls_token", "dist_token"):
            if hasattr(self, name):
                nn.init.trunc_normal_(getattr(self, name), std=0.02)


def initialised(linear: nn.Linear) -> nn.Linear:
    """Return the layer with the published initialisation: truncated normal, no bias."""
    nn.init.trunc_normal_(linear.weight, std=0.02)
    nn.init.zeros_(linear.bias)
    return linear


def gfnet(variant: str, **config: Any) -> GFNet:
    """Build a named network; keywords override what the name says.

    >>> gfnet("gfnet_12_192", num_classes=10).config["width"]
    192
    """
    if variant not in GFNET_VARIANTS:
        raise UserInputError(f"GFNet {variant!r} is not known; expected one of {[*GFNET_VARIANTS]}")
    return GFNet(**{**GFNET_VARIANTS[variant], **config})


def hidden_group(mlp: str) -> ChannelGroup:
    """Return the hidden units of an MLP with scales, by its name in the state_dict."""
    rows = [f"{mlp}.{name}" for name in ("fc1.weight", "fc1.bias", "scale")]
    return ChannelGroup(
        name=mlp,
        kind="hidden",
        scale=f"{mlp}.scale",
        slices=(
            *(TensorSlice(tensor=name, dim=0) for name in rows),
            TensorSlice(tensor=f"{mlp}.fc2.weight", dim=1),
        ),
    )


def _frequency_group(layer: str) -> ChannelGroup:
    rows = [f"{layer}.{name}" for name in ("complex_weight", "scale")]
    return ChannelGroup(
        name=layer,
        kind="frequency",
        scale=f"{layer}.scale",
        slices=tuple(TensorSlice(tensor=name, dim=0) for name in rows),
    )
