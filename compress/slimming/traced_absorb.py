"""What removed channels were worth to the layers that read them, in a network that is not ours.

`compress.slimming.absorb` tells why: a channel behind a BatchNorm is worth E[f(β + γz)] for
z ~ N(0, 1) to the layer that reads it through the activation f. In a traced network there may be
any activation between, and residual sums. So mean and variance of every channel are followed from
the BatchNorms onwards: an activation is applied to a normal variable of that mean and variance, a
sum adds them as if its terms were independent. Where γ is 0 the variance is too, and all is exact.
What passes anything else, such as a product, has no known mean, and its reader is left as it is.

A reader with a bias takes the constant up there. One without, followed directly by BatchNorm, takes
it up in that layer's running mean: exact in eval mode, and the network keeps its parameters and
their names.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.slimming.traced_graph import ChannelGraph, Space, mapped_channels

__all__ = ["Activation", "Reader", "absorb_", "expected_activation", "find_readers"]

Activation = Callable[[Tensor], Tensor]

# Operations that leave a constant channel as it is, apart from padded borders.
PASSING = ("MaxPool", "AvgPool", "AdaptiveAvgPool", "AdaptiveMaxPool", "Mean", "Upsample", "Clone",
           "Squeeze", "ConstantPad", "ReflectionPad", "ReplicationPad", "Alias")  # fmt: skip
# Parameters of an activation are read from the autograd node that saved them.
ACTIVATIONS: dict[str, Callable[[Any], Activation]] = {
    "Relu": lambda node: torch.relu,
    "Hardtanh": lambda node: partial(
        F.hardtanh, min_val=node._saved_min_val, max_val=node._saved_max_val
    ),
    "Clamp": lambda node: partial(torch.clamp, min=node._saved_min, max=node._saved_max),
    "Silu": lambda node: F.silu,
    "Hardswish": lambda node: F.hardswish,
    "Hardsigmoid": lambda node: F.hardsigmoid,
    "Sigmoid": lambda node: torch.sigmoid,
    "Tanh": lambda node: torch.tanh,
    "Mish": lambda node: F.mish,
    "Gelu": lambda node: partial(F.gelu, approximate=node._saved_approximate),
    "LeakyRelu": lambda node: partial(F.leaky_relu, negative_slope=node._saved_negative_slope),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Reader:
    """What a convolution or linear layer reads, on average.

    Attributes:
        means: (in_channels,) of its inputs, NaN where not known.
        following: the BatchNorm that alone reads the layer, or None.
    """

    means: Tensor
    following: str | None


class _Moments(NamedTuple):
    """Mean and variance of every channel of a node, (C,) float64; NaN where not known."""

    mean: Tensor
    variance: Tensor


def expected_activation(activation: Activation, gamma: Tensor, beta: Tensor) -> Tensor:
    """Return E[activation(beta + gamma * z)] for z ~ N(0, 1), elementwise.

    A sum over 1001 places in [-8, 8]: for ReLU the error is below 1e-5 * |gamma|, and where gamma
    is 0 the result is activation(beta).

    Args:
        activation: elementwise function.
        gamma: (C,).
        beta: (C,).
    """
    return _activated(activation, _Moments(beta.double(), gamma.double() ** 2)).mean.to(beta.dtype)


@torch.no_grad()
def find_readers(graph: ChannelGraph) -> dict[str, Reader]:
    """Return what every convolution and linear layer of a traced network reads on average."""
    names = {node: name for name, node in graph.layers.items()}
    moments = _all_moments(graph)
    readers = {}
    for name, node in graph.layers.items():
        givers = sum(graph.carries_channels(giver) for giver in node.inputs)
        # A layer that is used twice reads two things; a transposed convolution spreads a constant
        # unevenly over its output.
        if not graph.is_type(node, "CONV", "LINEAR") or givers != 1 or _is_transposed(node):
            continue
        takers = [t for t in node.outputs if graph.is_type(t, "BN") and len(t.inputs) == 1]
        takers = takers if len(node.outputs) == 1 else []
        means = _arriving(graph, node, moments, terms=1).mean
        means = F.pad(
            means, (0, (graph.width(Space(node, "in")) or 0) - len(means)), value=math.nan
        )
        readers[name] = Reader(means=means, following=names[takers[0]] if takers else None)
    return readers


@torch.no_grad()
def absorb_(
    network: nn.Module,
    readers: Mapping[str, Reader],
    removed: Mapping[tuple[str, str], Tensor],
) -> list[str]:
    """Let every reader take up what the channels that will be removed are worth.

    Args:
        network: not yet cut.
        readers: of `find_readers`.
        removed: (layer, side) to the channels that go.

    Returns:
        The layers that could not, or not for all removed channels.
    """
    layers = dict(network.named_modules())
    left = []
    for (name, side), gone in removed.items():
        if side != "in":
            continue
        reader = readers.get(name)
        if reader is None or not _take_up_(layers, name, reader, gone):
            left.append(name)
    return left


def _all_moments(graph: ChannelGraph) -> dict[Any, _Moments]:
    """Return the moments of every node that a BatchNorm reaches through what is understood."""
    moments: dict[Any, _Moments] = {}
    layers = set(graph.layers.values())
    for node in _givers_first(graph):
        if node in layers and graph.is_type(node, "BN"):
            moments[node] = _of_norm(node.module)
        elif node in layers or graph.why_whole(node) is not None:
            continue
        elif graph.is_type(node, "CONCAT", "RESHAPE"):
            moments[node] = _arriving(graph, node, moments, terms=1)
        elif graph.is_type(node, "ELEMENTWISE"):
            found = _of_operation(graph, node, moments)
            if found is not None:
                moments[node] = found
    return moments


def _givers_first(graph: ChannelGraph) -> list[Any]:
    order: dict[Any, None] = {}
    seen: set[Any] = set()
    pending = [(node, False) for node in graph.nodes]
    while pending:
        node, givers_done = pending.pop()
        if givers_done:
            order[node] = None
        elif node not in seen:
            seen.add(node)
            pending.append((node, True))
            pending.extend((giver, False) for giver in node.inputs)
    return list(order)


def _of_norm(norm: Any) -> _Moments:
    # What BatchNorm has normalised is taken for standard normal in every channel.
    if norm.weight is None:
        return _Moments(
            torch.zeros(norm.num_features).double(), torch.ones(norm.num_features).double()
        )
    return _Moments(norm.bias.double(), norm.weight.double() ** 2)


def _of_operation(
    graph: ChannelGraph, node: Any, moments: Mapping[Any, _Moments]
) -> _Moments | None:
    name = node.grad_fn.name().split("Backward")[0]
    if name == "Add" and len(node.inputs) == 2 and node.grad_fn._saved_alpha == 1:
        return _arriving(graph, node, moments, terms=2)
    if len(node.inputs) != 1:  # an operand that is not in the graph cannot be excluded otherwise
        return None
    if name in ACTIVATIONS:
        arriving = _arriving(graph, node, moments, terms=1)
        return _activated(ACTIVATIONS[name](node.grad_fn), arriving)
    return _arriving(graph, node, moments, terms=1) if name.startswith(PASSING) else None


def _arriving(
    graph: ChannelGraph, node: Any, moments: Mapping[Any, _Moments], *, terms: int
) -> _Moments:
    """Return the moments of what a node reads: `terms` summed for every channel, or NaN."""
    pieces = []
    for giver in dict.fromkeys(node.inputs):  # given twice, it has two edges
        known = moments.get(giver, _Moments(torch.empty(0), torch.empty(0)))
        channels = list(range(len(known.mean)))
        edges = [edge for edge in giver.dependencies if edge.target is node]
        pieces += [(known, mapped_channels(edge, channels)) for edge in edges]
    width = max((there for _, pairs in pieces for _, there in pairs), default=-1) + 1
    mean, variance, filled = torch.zeros(3, width, dtype=torch.float64)
    for known, pairs in pieces:
        here, there = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).T
        mean.index_add_(0, there, known.mean.double()[here])
        variance.index_add_(0, there, known.variance.double()[here])
        filled.index_add_(0, there, torch.ones(len(there), dtype=torch.float64))
    unknown = filled != terms
    return _Moments(mean.masked_fill(unknown, math.nan), variance.masked_fill(unknown, math.nan))


def _activated(activation: Activation, moments: _Moments) -> _Moments:
    z = torch.linspace(-8, 8, 1001, dtype=torch.float64)
    weight = torch.exp(-0.5 * z**2)
    weight /= weight.sum()
    deviation = moments.variance.clamp_min(0).sqrt()
    values = activation(moments.mean[:, None] + deviation[:, None] * z)  # (C, 1001)
    mean = values @ weight
    return _Moments(mean, (values - mean[:, None]) ** 2 @ weight)


def _is_transposed(node: Any) -> bool:
    return getattr(node.module, "transposed", False)


def _take_up_(layers: Mapping[str, nn.Module], name: str, reader: Reader, gone: Tensor) -> bool:
    """Add what the inputs that go are worth to a bias or a mean; False where some is left out."""
    layer = layers[name]
    bias = layer.bias
    mean = layers[reader.following].running_mean if reader.following else None
    if bias is None and mean is None:
        return False
    constants = torch.zeros_like(reader.means)
    constants[gone] = reader.means[gone].nan_to_num(0)
    response = _response(layer, constants)
    if bias is not None:
        bias += response  # type: ignore[operator]
    else:
        mean -= response
    return not reader.means[gone].isnan().any()


def _response(layer: nn.Module, constants: Tensor) -> Tensor:
    """Return what a layer with weight (out, in/groups, …) makes of constant inputs, (out,)."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    summed = (weight.flatten(2).sum(2) if weight.dim() > 2 else weight).double()
    groups: int = getattr(layer, "groups", 1)
    blocks = summed.view(groups, -1, summed.shape[1])  # (groups, out/groups, in/groups)
    response = torch.einsum("goi,gi->go", blocks, constants.view(groups, -1))
    return response.flatten().to(weight.dtype)
