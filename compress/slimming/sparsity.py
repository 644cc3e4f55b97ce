"""Whether training really made γ sparse, which is what network slimming lives on.

A network trained with an L1 penalty on γ (arXiv 1708.06519) ends with many γ near zero, and cutting
these costs little. One trained without it has all its γ in one hump: cutting the lower part of a
hump costs accuracy that only fine-tuning brings back.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compress.files import replacing
from compress.optional import require
from compress.slimming.scales import channel_scales

__all__ = ["GammaSparsity", "gamma_sparsity", "save_gamma_histogram"]

SPARSE_SHARE = 0.05  # below this share of near-zero γ nobody trained for sparsity


@dataclass(frozen=True, kw_only=True)
class GammaSparsity:
    """How sparse the γ of a network are.

    Attributes:
        channels: how many γ there are.
        share_below_1pct: share of |γ| below 1 % of the largest, in [0, 1].
        min: smallest |γ|.
        median: median of |γ|.
        max: largest |γ|.
    """

    channels: int
    share_below_1pct: float
    min: float
    median: float
    max: float

    @property
    def is_sparse(self) -> bool:
        """Whether enough γ are near zero to say that training aimed at it."""
        return self.share_below_1pct >= SPARSE_SHARE

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        return {**asdict(self), "is_sparse": self.is_sparse}


def gamma_sparsity(model: nn.Module) -> GammaSparsity | None:
    """Measure the γ of a network; None where it has none."""
    gammas = _all_gammas(model)
    if len(gammas) == 0:
        return None
    largest = gammas.max()
    return GammaSparsity(
        channels=len(gammas),
        share_below_1pct=(gammas < 0.01 * largest).float().mean().item(),
        min=gammas.min().item(),
        median=gammas.median().item(),
        max=largest.item(),
    )


def save_gamma_histogram(model: nn.Module, path: Path, *, threshold: float | None = None) -> None:
    """Draw the histogram of |γ| over all layers, with the pruning threshold where one is given.

    Args:
        model: a network with BatchNorm or other channel scales.
        path: its ending names the format, such as .svg or .png.
        threshold: drawn as a line.
    """
    require("matplotlib", "drawing the γ histogram")
    from matplotlib.figure import Figure  # without pyplot: no window system, no global state

    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.add_subplot()
    axes.hist(_all_gammas(model).numpy(), bins=60, color="#3b6fb6")
    axes.set_xlabel("|γ|")
    axes.set_ylabel("channels")
    axes.spines[["top", "right"]].set_visible(False)
    if threshold is not None:
        axes.axvline(threshold, color="#c0392b", linewidth=1.2)
        axes.annotate(
            f"threshold {threshold:.4f}", (threshold, 0.97), xycoords=("data", "axes fraction"),
            xytext=(4, 0), textcoords="offset points", va="top", color="#c0392b",
        )  # fmt: skip
    with replacing(Path(path)) as part:
        # Without a date the same γ give the same file.
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(part, format=path.suffix.lstrip("."), metadata=metadata)


def _all_gammas(model: nn.Module) -> torch.Tensor:
    scales = [
        scale.detach().abs().flatten().float().cpu() for scale in channel_scales(model).values()
    ]
    return torch.cat(scales) if scales else torch.empty(0)
