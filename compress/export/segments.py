"""A network cut into segments: modules that end behind an exit, each with its head and gate inside.

Segment i takes the image (i = 0) or the hidden state (B, N, D) and gives hidden state, logits and
the gate's probability; the last gives logits. A network without exits is one segment, and gives
whatever it returns, by the names of `compress.export.network_outputs`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from compress.errors import UnsupportedModelError
from compress.export.network_outputs import as_returned
from compress.measure.exit_macs import macs_per_exit
from compress.measure.macs import count_macs
from compress.models.early_exit import GFNetDynn
from compress.runtime.manifest import TensorSpec

__all__ = ["SegmentModule", "split_network"]


@dataclass(frozen=True, kw_only=True)
class SegmentSpecs:
    """What a segment is, apart from its weights: see `compress.runtime.manifest.Segment`."""

    blocks: tuple[int, int]
    macs: int
    input: TensorSpec
    outputs: tuple[TensorSpec, ...]


class SegmentModule(nn.Module):
    """Blocks `start` to `stop` of a network, with what stands before the first and behind the last.

    Args:
        network: in deployed form; shared, not copied.
        specs: what the segment is.
        exit_number: of the exit at its end; None at the end of the network.
        whole: it is the network itself.
    """

    def __init__(
        self, network: nn.Module, specs: SegmentSpecs, *, exit_number: int | None, whole: bool
    ) -> None:
        super().__init__()
        self.network = network
        self.specs = specs
        self.exit_number = exit_number
        self.whole = whole

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return (hidden, logits, gate), or what the last segment gives; only hidden in half."""
        network: GFNetDynn = self.network  # type: ignore[assignment]
        if self.specs.input.name == "image":
            x = x.to(next(network.parameters()).dtype)
        if self.whole:
            return as_returned(network(x))
        start, stop = self.specs.blocks
        x = network.run_blocks(network.embed(x) if start == 0 else x, start, stop)
        if self.exit_number is None:
            return network.classify(network.pool(x)).float()
        logits, gate = network.exit_outputs(self.exit_number, x)
        return x, logits.float(), torch.sigmoid(gate.float())


def split_network(
    deployed: nn.Module,
    image_shape: Sequence[int],
    classes: int,
    *,
    whole: bool = False,
    outputs: Sequence[TensorSpec] | None = None,
) -> list[SegmentModule]:
    """Return the segments of a network in the order in which they run.

    Args:
        deployed: in the form of `compress.export.deployed_form`.
        image_shape: (C, H, W).
        classes: of the logits.
        whole: one segment, without early exits.
        outputs: of the whole network, as `output_specs` gives them; None is logits alone.

    Raises:
        UnsupportedModelError: there are no exits to split at.
    """
    image = TensorSpec("image", "float32", tuple(image_shape))
    logits = TensorSpec("logits", "float32", (classes,))
    if whole:
        blocks = (0, len(getattr(deployed, "blocks", ())))
        specs = SegmentSpecs(
            blocks=blocks,
            macs=_whole_macs(deployed, image),
            input=image,
            outputs=(logits,) if outputs is None else tuple(outputs),
        )
        return [SegmentModule(deployed, specs, exit_number=None, whole=True)]
    if not isinstance(deployed, GFNetDynn):
        raise UnsupportedModelError(
            f"--split-exits was given, but a {type(deployed).__name__} has no early exits; leave "
            "it out, or train exits first"
        )
    return _split_at_exits(deployed, image, logits)


def _split_at_exits(
    network: GFNetDynn, image: TensorSpec, logits: TensorSpec
) -> list[SegmentModule]:
    tokens, width = network.pos_embed.shape[1:]
    dtype = str(network.pos_embed.dtype).removeprefix("torch.")
    hidden = TensorSpec("hidden", dtype, (tokens, width))
    gate = TensorSpec("gate", "float32", ())
    stops = [position + 1 for position in network.config["exits"]] + [len(network.blocks)]
    totals = macs_per_exit(network)
    segments = []
    for i, stop in enumerate(stops):
        is_last = i == len(stops) - 1
        specs = SegmentSpecs(
            blocks=(stops[i - 1] if i else 0, stop),
            macs=totals[i] - (totals[i - 1] if i else 0),
            input=replace(hidden, name="hidden_in") if i else image,
            outputs=(logits,) if is_last else (hidden, logits, gate),
        )
        number = None if is_last else i
        segments.append(SegmentModule(network, specs, exit_number=number, whole=False))
    return segments


def _whole_macs(deployed: nn.Module, image: TensorSpec) -> int:
    channels, height, width = image.shape
    return count_macs(deployed, (channels, height, width))
