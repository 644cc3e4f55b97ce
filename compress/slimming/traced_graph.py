"""What reads what in a network that is not ours: torch-pruning's graph, with its gaps closed.

torch-pruning (DepGraph, arXiv 2301.12900) follows autograd from the outputs to the layers and says
for each layer which channels of its neighbours are its own. Three things it does not see are added
here: the image, whose channels must stay; the outputs, also where a layer gives them directly; and
operations that pick or mix channels by position, which it takes for elementwise.
"""

import copy
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from compress.errors import CompressError, UnsupportedModelError
from compress.optional import require

__all__ = ["ChannelGraph", "Space", "mapped_channels", "output_tensors", "trace"]

# Operations whose results hold other channels at a position than their operands do.
MIXING_OPERATIONS = (
    "Transpose", "Permute", "TBackward", "Bmm", "MmBackward", "Addmm", "PixelShuffle",
    "PixelUnshuffle", "ChannelShuffle", "IndexBackward", "IndexPut", "Repeat", "CopySlices",
    "Im2Col", "AsStrided", "Convolution", "GroupNorm", "LayerNorm", "BatchNorm", "Embedding",
    "ScaledDot", "Split", "Unbind", "MeanBackward0", "SumBackward0",
)  # fmt: skip


class Space(NamedTuple):
    """The channels of one node that go together: what it gives, or what it reads.

    Only layers whose channels on both sides are independent (convolutions, linear layers) have an
    "in"; all others have one space, called "out".
    """

    node: Any
    side: str


class _Index(NamedTuple):
    """A channel on its way through torch-pruning's index mappings."""

    idx: int
    root_idx: int


class _WithImage(nn.Module):
    """A layer in front of the network, so that the channels of the image appear in the graph."""

    def __init__(self, network: nn.Module, channels: int) -> None:
        super().__init__()
        self.image = nn.BatchNorm2d(channels)
        self.network = network

    def forward(self, image: Tensor) -> Any:
        return self.network(self.image(image))


class ChannelGraph:
    """The nodes of a traced network: layers by name, operations between them.

    Attributes:
        nodes: all of them, in a fixed order.
        layers: the nodes that are layers, by their names in the network, in module order.
    """

    def __init__(self, dependency_graph: Any, traced: _WithImage) -> None:
        self._graph = dependency_graph
        self._types = require("torch_pruning", "tracing networks").ops.OPTYPE
        self._image = dependency_graph.module2node[traced.image]
        self.nodes: list[Any] = list(dependency_graph.module2node.values())
        self.layers: dict[str, Any] = {
            name: dependency_graph.module2node[module]
            for name, module in traced.network.named_modules()
            if module in dependency_graph.module2node
        }
        self._shared = _sharing_parameters(traced.network)
        self._carrying = self._downstream_of_channels()

    def is_type(self, node: Any, *names: str) -> bool:
        """Whether a node is of one of torch-pruning's types, such as "BN" or "CONCAT"."""
        return node.type in [self._types[name] for name in names]

    def width(self, space: Space) -> int | None:
        """Return the channels of a layer; None for an operation, which takes what comes."""
        graph = self._graph
        if space.side == "in":
            return graph.get_in_channels(space.node)
        if self.is_type(space.node, "OUTPUT"):
            return None
        return graph.get_out_channels(space.node)

    def layer_spaces(self) -> Iterator[Space]:
        """Give the channels of every layer, and of the image."""
        for node in (*self.layers.values(), self._image):
            yield Space(node, "out")
            if self.is_type(node, "CONV", "LINEAR"):
                yield Space(node, "in")

    def carries_channels(self, node: Any) -> bool:
        """Whether a node holds channels, and not only a weight on its way to its layer."""
        return node in self._carrying

    def why_whole(self, node: Any) -> str | None:
        """Say why channels at this node cannot be removed one by one; None where they can."""
        if node is self._image:
            return "they belong to the image"
        if self.is_type(node, "OUTPUT"):
            return "they are the network's output"
        if self.is_type(node, "PARAMETER"):
            return "the network applies a parameter of its own to them"
        if node in self.layers.values():
            return self._why_layer_whole(node)
        return _why_operation_whole(node)

    def _why_layer_whole(self, node: Any) -> str | None:
        kind = type(node.module).__name__
        module = node.module
        if any(self._computes_weight(giver) for giver in node.inputs):
            return f"a {kind} among their layers computes its weight from other parameters"
        if module in self._shared:
            return f"a {kind} among their layers shares its parameters with another layer"
        if self.is_type(node, "DEPTHWISE_CONV") and module.in_channels != module.out_channels:
            return f"a {kind} among their layers has as many groups as outputs, but other inputs"
        if self.is_type(node, "IN") and module.track_running_stats:
            return f"a {kind} among their layers has statistics that torch-pruning does not cut"
        known = ("CONV", "DEPTHWISE_CONV", "LINEAR", "BN", "PRELU", "IN")
        if not self.is_type(node, *known):
            # GroupNorm and LayerNorm average over channels, so no channel leaves them unnoticed.
            return f"a {kind} among their layers works on all channels together"
        return None

    def _computes_weight(self, giver: Any) -> bool:
        # A linear layer transposes its weight; anything more is a parametrization.
        plain = not giver.inputs and giver.grad_fn.name().startswith("TBackward")
        return not self.carries_channels(giver) and not plain

    def _downstream_of_channels(self) -> set[Any]:
        sources = [n for n in self.nodes if self.is_type(n, "PARAMETER")]
        pending = [*sources, *self.layers.values(), self._image]
        carrying: set[Any] = set()
        while pending:
            node = pending.pop()
            if node not in carrying:
                carrying.add(node)
                pending.extend(node.outputs)
        return carrying


def trace(network: nn.Module, example: Tensor) -> ChannelGraph:
    """Find what reads what in a network by running a copy of it.

    Args:
        network: left as it is.
        example: image (1, C, H, W).

    Raises:
        UnsupportedModelError: the network does not run on the image, or cannot be traced.
    """
    pruning = require("torch_pruning", "slimming networks that are not of compress.models")
    # A copy, because tracing needs gradients everywhere and eval mode, and leaves its marks.
    traced = _WithImage(copy.deepcopy(network), example.shape[1]).requires_grad_(True).eval()
    try:
        with torch.enable_grad():
            graph = pruning.DependencyGraph().build_dependency(
                traced,
                example,
                forward_fn=_outputs,
                # A copied output is a node of its own, which tells outputs from layers.
                output_transform=lambda outputs: [tensor.clone() for tensor in outputs],
                verbose=False,
            )
        return ChannelGraph(graph, traced)
    except CompressError:
        raise
    except Exception as err:  # torch-pruning fails with whatever its assumptions run into
        raise UnsupportedModelError(
            f"{type(network).__name__} cannot be traced ({type(err).__name__}: {err}); expected a "
            "network of layers that autograd can follow from the image to every output"
        ) from err


def output_tensors(output: Any) -> list[Tensor]:
    """Return the floating-point tensors in what a network returned, in order."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    if isinstance(output, Mapping):
        output = list(output.values())
    if isinstance(output, list | tuple):
        return [tensor for part in output for tensor in output_tensors(part)]
    return []


def mapped_channels(edge: Any, channels: list[int]) -> list[tuple[int, int]]:
    """Follow channels along an edge of the graph; return pairs (channel here, channel there)."""
    pairs: Any = [_Index(channel, channel) for channel in channels]
    for mapping in edge.index_mapping:
        if mapping is not None:
            pairs = mapping(pairs)
    return [(pair.root_idx, pair.idx) for pair in pairs]


def _outputs(traced: _WithImage, image: Tensor) -> list[Tensor]:
    name = type(traced.network).__name__
    try:
        outputs = output_tensors(traced(image))
    except Exception as err:  # whatever the forward of the network raises
        raise UnsupportedModelError(
            f"{name} cannot be run on an image of shape {tuple(image.shape[1:])} "
            f"({type(err).__name__}: {err}); give the size that it expects with --input-size"
        ) from err
    if not outputs or any(tensor.grad_fn is None for tensor in outputs):
        raise UnsupportedModelError(
            f"{name} returns {len(outputs)} tensors, not all with a path back to its layers; "
            "expected outputs computed with gradients enabled, not detached"
        )
    return outputs


def _sharing_parameters(network: nn.Module) -> set[nn.Module]:
    owners: dict[int, list[nn.Module]] = {}
    for module in network.modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(module)
    return {module for modules in owners.values() if len(modules) > 1 for module in modules}


def _why_operation_whole(node: Any) -> str | None:
    function = node.grad_fn
    name = function.name() if hasattr(function, "name") else type(function).__name__
    kind = name.removesuffix("0").removesuffix("1").removesuffix("Backward")
    why = f"they pass through {kind}, which picks or mixes channels by position"
    if any(operation in name for operation in MIXING_OPERATIONS):
        return why
    if name.startswith("Cat"):
        known = function._saved_dim == 1 and getattr(node.module, "offsets", None) is not None
        return None if known else f"they pass through {kind}, and not along known channels"
    if name.startswith("ConstantPad"):
        return why if len(function._saved_pad) > 4 else None
    return why if _touches_channel_dimension(function) else None


def _touches_channel_dimension(function: Any) -> bool:
    """Whether an operation along given dimensions (a mean, a slice) works along channels."""
    dims = getattr(function, "_saved_dim", getattr(function, "_saved_dims", None))
    if dims is None:
        return False
    shape = getattr(function, "_saved_self_sym_sizes", None)
    for dim in dims if isinstance(dims, tuple) else (dims,):
        # Negative dimensions are saved as unsigned numbers.
        signed = dim - 2**64 if dim >= 2**63 else dim
        if signed % (len(shape) if shape else 4) == 1:
            return True
    return False
