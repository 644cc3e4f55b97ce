"""What a GFNet is made of: patches, and blocks of global filter and MLP (arXiv 2107.00645)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from compress.models.global_filter import GlobalFilter

__all__ = ["Block", "MeanTokens", "Mlp", "PatchEmbed"]


class PatchEmbed(nn.Module):
    """Cut the image (B, C, H, W) into patches and embed each: (B, H*W / patch_size**2, D)."""

    def __init__(self, in_channels: int, width: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, width, patch_size, stride=patch_size)

    def forward(self, image: Tensor) -> Tensor:
        """Return tokens, row by row."""
        return self.proj(image).flatten(2).transpose(1, 2)


class MeanTokens(nn.Module):
    """The mean (B, D) of tokens (B, N, D); a module, so that an export can write it otherwise."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean over the tokens."""
        return x.mean(1)


class Mlp(nn.Module):
    """fc1, GELU, fc2; with an optional scale (hidden,) between GELU and fc2."""

    def __init__(self, width: int, hidden: int, *, scale: bool = False) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, width)
        self.scale = nn.Parameter(torch.ones(hidden)) if scale else None

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens (B, N, D)."""
        x = self.act(self.fc1(x))
        return self.fc2(x if self.scale is None else x * self.scale)


class Block(nn.Module):
    """One residual around filter and MLP together: x + mlp(norm2(filter(norm1(x))))."""

    def __init__(
        self,
        width: int,
        hidden: int,
        grid: tuple[int, int],
        *,
        hidden_scale: bool = False,
        frequency_scale: bool = False,
        frequencies: Sequence[int] | None = None,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.filter = GlobalFilter(width, grid, frequencies=frequencies, scale=frequency_scale)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, hidden, scale=hidden_scale)
        self.drop_path = drop_path

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens (B, N, D)."""
        branch = self.branch(x)
        if self.training and self.drop_path > 0:
            keep = 1 - self.drop_path
            branch = branch * x.new_empty(len(x), 1, 1).bernoulli_(keep) / keep
        return x + branch

    def branch(self, x: Tensor) -> Tensor:
        """Return what is added to the tokens (B, N, D)."""
        return self.mlp(self.norm2(self.filter(self.norm1(x))))
