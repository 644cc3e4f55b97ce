"""The least-squares repair: what removed channels told, told by those that are left.

The fold gives every reader of removed channels the constant that they were worth. But what they
told beyond it is often told by channels that stay, too: weights and bias of the reader are fitted
anew, in closed form, so that the slimmed layer gives on some images what the layer of the unslimmed
network gives on them (before its BatchNorm). Layer after layer in the order in which they run, so
that each is fitted to what the repaired ones before it really give (the asymmetric reconstruction
of He et al., "Channel Pruning for Accelerating Very Deep Neural Networks", arXiv 1707.06168; see
also ThiNet, arXiv 1707.06342). BatchNorms get the statistics of what they then read.

All images pass the slimmed network together, as one batch that halts at every layer until it is
fitted; so one forward is enough. `images_within` says how many fit into memory.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from compress.models.with_exits import everything
from compress.slimming.layer_samples import (
    SampledLayer,
    fan_in,
    is_fittable,
    places,
    sampled_inputs,
    sampled_outputs,
)
from compress.slimming.least_squares import LeastSquares
from compress.slimming.output_readers import norms_behind
from compress.slimming.reestimate import Moments, norms

__all__ = ["RIDGE", "Repaired", "images_within", "repair_"]

RIDGE = 1e-3  # share of the mean square of a layer's inputs
WIDEST = 6144  # inputs of one output; the Gram matrix of more would take more than 300 MiB
FEWEST_SAMPLES = 5  # for every input of an output; with fewer a fit follows the images at hand
STIFF = 1e9  # a ridge that lets no weight move, so that the bias alone is fitted
AT_ONCE = 128  # images
LIVE = 4  # maps of the largest size that a forward holds at a time: a shortcut, in, out, temporary


@dataclass(frozen=True, kw_only=True)
class Repaired:
    """What a repair did.

    Attributes:
        images: how many it looked at.
        left: by fitted layer, the share of its output's variance that stays unexplained, in [0, 1].
        unfitted: why layers keep the weights that they had; of those that are in `left` too, the
            bias alone was fitted.
    """

    images: int
    left: Mapping[str, float]
    unfitted: Mapping[str, str]


@dataclass(kw_only=True, eq=False)
class _Wanted:
    """What the unslimmed network's layer gave, at which places of the images."""

    where: Tensor  # (images, K)
    batches: list[Tensor] = field(default_factory=list)

    def split(self, images: int) -> list[Tensor]:
        """Return the outputs (B * K, C) of every `images` images."""
        return list(torch.cat(self.batches).split(images * self.where.shape[1]))


def images_within(network: nn.Module, image: Tensor, mebibytes: int) -> int:
    """Return how many images can pass a network together in so much memory; at least 1.

    Args:
        network: the larger of those that they pass.
        image: (1, C, H, W).
        mebibytes: memory for its maps.
    """
    largest = 0

    def look(layer: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal largest
        if isinstance(output, Tensor):
            largest = max(largest, output.nbytes)

    hooks = [layer.register_forward_hook(look) for layer in network.modules()]
    try:
        with torch.inference_mode():
            everything(network, image)
    finally:
        for hook in hooks:
            hook.remove()
    return max(1, mebibytes * 2**20 // max(LIVE * largest, 1))


@torch.no_grad()
def repair_(
    slim: nn.Module,
    original: nn.Module,
    images: Tensor,
    kept: Mapping[str, Tensor],
    *,
    ridge: float = RIDGE,
) -> Repaired:
    """Fit the layers of a slimmed network to what those of the original give on some images.

    Args:
        slim: changed in place; its layers have the names that they have in `original`.
        original: the network before channels were removed.
        images: (N, C, H, W), as the networks read them.
        kept: by layer, which outputs of the original's layer are left; of layers that are not
            named all are.
        ridge: how strongly weights hold to what they are, as a share of the inputs' mean square.
    """
    slim.eval(), original.eval()
    fits, unfitted = _layers(slim, original)
    wanted = _wanted(original, fits, images, kept, unfitted)
    behind = norms_behind(slim, images[:1])
    left: dict[str, float] = {}

    def fit(name: str) -> Callable[..., None]:
        def halt(layer: SampledLayer, inputs: Any) -> None:
            stiff = _too_few(name, layer, wanted[name], unfitted)
            strength = STIFF if stiff else ridge
            left[name] = _fit_(layer, inputs[0], wanted[name], strength, normed=name in behind)

        return halt

    hooks = [fits[name].register_forward_pre_hook(fit(name)) for name in wanted]
    hooks += [norm.register_forward_pre_hook(_refresh_) for norm in norms(slim).values()]
    try:
        everything(slim, images)
    finally:
        for hook in hooks:
            hook.remove()
    return Repaired(images=len(images), left=left, unfitted=unfitted)


def _layers(slim: nn.Module, original: nn.Module) -> tuple[dict[str, SampledLayer], dict[str, str]]:
    """Return the layers to fit, and why others are not."""
    there = dict(original.named_modules())
    owners: dict[int, int] = {}
    for layer in slim.modules():
        for parameter in layer.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    fits: dict[str, Any] = {}
    unfitted: dict[str, str] = {}
    for name, layer in slim.named_modules():
        if not is_fittable(layer) or not is_fittable(there.get(name, nn.Identity())):
            continue
        if "weight" not in layer._parameters or owners[id(layer.weight)] > 1:
            unfitted[name] = "its weight is shared or computed"
        elif fan_in(layer) > WIDEST:
            unfitted[name] = f"an output reads {fan_in(layer)} inputs, more than {WIDEST}"
        else:
            fits[name] = layer
    return fits, unfitted


def _wanted(
    original: nn.Module,
    fits: Mapping[str, SampledLayer],
    images: Tensor,
    kept: Mapping[str, Tensor],
    unfitted: dict[str, str],
) -> dict[str, _Wanted]:
    """Run the original over the images; note which of the layers cannot be fitted after all."""
    there: dict[str, Any] = dict(original.named_modules())
    found: dict[str, _Wanted] = {}
    first = 0  # image of the batch that passes
    calls: dict[str, int] = {}

    def noting(name: str) -> Callable[..., None]:
        def note(layer: SampledLayer, _: Any, output: Tensor) -> None:
            calls[name] = calls.get(name, 0) + 1
            count = min(AT_ONCE, len(images) - first)
            if name in unfitted or calls[name] > 1 or len(output) != count:
                unfitted.setdefault(name, "it does not read every image once")
                found.pop(name, None)
                return
            if name in kept:
                output = output.index_select(_channel_axis(layer), kept[name])
            if name not in found:
                found[name] = _Wanted(where=places(name, fits[name], output, len(images)))
            where = found[name].where[first : first + count]
            found[name].batches.append(sampled_outputs(layer, output, where))

        return note

    hooks = [there[name].register_forward_hook(noting(name)) for name in fits]
    try:
        for batch in images.split(AT_ONCE):
            calls.clear()
            original(batch)
            first += len(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _too_few(name: str, layer: SampledLayer, wanted: _Wanted, unfitted: dict[str, str]) -> bool:
    if wanted.where.numel() >= FEWEST_SAMPLES * fan_in(layer):
        return False
    unfitted[name] = (
        f"{wanted.where.numel()} samples are too few for {fan_in(layer)} inputs; only a bias is "
        "fitted"
    )
    return True


def _fit_(
    layer: SampledLayer, inputs: Tensor, wanted: _Wanted, ridge: float, *, normed: bool
) -> float:
    """Fit one layer to its wanted outputs; return the share of variance that is left."""
    groups = getattr(layer, "groups", 1)
    squares = LeastSquares(fan_in(layer), len(layer.weight) // groups, groups=groups)
    parts = zip(
        inputs.split(AT_ONCE), wanted.where.split(AT_ONCE), wanted.split(AT_ONCE), strict=True
    )
    for batch, where, outputs in parts:
        squares.add(sampled_inputs(layer, batch, where), outputs)
    # Where a BatchNorm alone reads the layer, its new statistics take up the constant.
    found = squares.solve(layer.weight, ridge=ridge, bias=layer.bias is not None or normed)
    layer.weight.copy_(found.weight.reshape(layer.weight.shape))
    if layer.bias is not None:
        layer.bias.copy_(found.bias)
    return found.left


def _refresh_(norm: nn.modules.batchnorm._BatchNorm, inputs: Any) -> None:
    moments = Moments()
    for batch in inputs[0].split(AT_ONCE):
        moments.add(batch)
    found = moments.result()
    norm.running_mean.copy_(found.mean)  # type: ignore[union-attr]
    norm.running_var.copy_(found.variance)  # type: ignore[union-attr]


def _channel_axis(layer: nn.Module) -> int:
    return -1 if isinstance(layer, nn.Linear) else 1
