"""Mixup and CutMix: two images and their labels become one.

mixup (Zhang et al., arXiv 1710.09412): λ x + (1-λ) x', and the same of the targets.
CutMix (Yun et al., arXiv 1905.04899): a box of x' replaces that of x; the targets mix by area.
Both draw one λ ~ Beta(α, α) a batch, and pair each image with one of a random permutation.

Own code, because kornia's RandomMixUpV2 draws λ evenly instead of from Beta(α, α), and its
RandomCutMixV2 keeps the box inside the image where the paper clips it at the border.
"""

import math

import numpy as np
import torch
from torch import Tensor

__all__ = ["cut_box", "cutmix", "mixup"]


def mixup(
    images: Tensor, targets: Tensor, *, alpha: float, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Blend each image with another.

    Args:
        images: (B, 3, S, S) float.
        targets: (B, K) float, rows that add up to 1.
        alpha: both parameters of the Beta distribution, above 0; small values mix little.
        rng: where λ and the pairs are drawn.
    """
    share = rng.beta(alpha, alpha)
    partner = _partners(images, rng)
    return (
        share * images + (1 - share) * images[partner],
        share * targets + (1 - share) * targets[partner],
    )


def cutmix(
    images: Tensor, targets: Tensor, *, alpha: float, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Paste a box of another image into each; arguments as for `mixup`.

    The targets follow the area that was really replaced, after clipping.
    """
    height, width = images.shape[-2:]
    top, bottom, left, right = cut_box(
        rng.beta(alpha, alpha),
        (int(rng.integers(height)), int(rng.integers(width))),
        (height, width),
    )
    partner = _partners(images, rng)
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images[partner, :, top:bottom, left:right]
    replaced = (bottom - top) * (right - left) / (height * width)
    return mixed, (1 - replaced) * targets + replaced * targets[partner]


def cut_box(
    share: float, centre: tuple[int, int], size: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Return top, bottom, left, right of a box, clipped at the border of the image.

    Before clipping its sides are sqrt(1 - share) of the image's. With share 0.75 in an image of 8x8
    they are 4: centred at (4, 4) the box is 2:6, 2:6; at (0, 7) it is clipped to 0:2, 5:8.

    Args:
        share: area that should remain, in [0, 1].
        centre: row and column.
        size: height and width of the image.
    """
    side = math.sqrt(1 - share)
    spans = []
    for middle, length in zip(centre, size, strict=True):
        cut = int(length * side)
        start = middle - cut // 2
        spans += [max(start, 0), min(start + cut, length)]
    return spans[0], spans[1], spans[2], spans[3]


def _partners(images: Tensor, rng: np.random.Generator) -> Tensor:
    return torch.from_numpy(rng.permutation(len(images))).to(images.device)
