"""A network in the form that is exported: the same function in operations that runtimes do fast.

Global filters of small grids are matrix products, those of large ones stay FFTs until
`compress.export.fourier` writes them as products along one axis after the other; scales that
slimming left are folded into the weights that read them; GELU is written so that ONNX Runtime and
TensorRT see one; tokens are averaged by a product with a constant row, which is several times
faster than a reduction over the middle dimension (and needs no ReduceMean, whose axes TensorRT 8
ignores); gates read a few sums in place of a stack.
"""

import copy
import math

import torch
from torch import Tensor, nn

from compress.models.gate import GATE_FEATURES, LOWEST_LOG, Gate
from compress.models.gfnet import GFNet
from compress.models.gfnet_block import MeanTokens, Mlp
from compress.models.global_filter import with_matrix_filters

LARGEST_MATRIX = 1 << 16  # entries: a grid of 16x16 is still one matrix, one of 24x24 is not

__all__ = ["ErfGelu", "FoldedGate", "ProductMean", "deployed_form", "in_half"]


class ErfGelu(nn.GELU):
    """GELU, as x * (1 + erf(x / √2)) * 0.5 in this very order, which runtimes fuse to one node."""

    def forward(self, x: Tensor) -> Tensor:
        """Return GELU of each element."""
        return x * (torch.erf(x / math.sqrt(2)) + 1) * 0.5


class FoldedGate(nn.Module):
    """A gate whose linear layer is spread over the sums that make its features.

    With features [p_1, H(p), p_1 - p_2, H(q)], q = p² normalised, and weights w:
    w·features = (w_0 + w_2) p_1 - w_2 p_2 - Σ (w_1 p log p + w_3 q log q).
    """

    top: Tensor
    entropy: Tensor
    pow_entropy: Tensor
    bias: Tensor

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        weight = gate.linear.weight.detach()[0]
        pair = torch.stack([weight[0] + weight[2], -weight[2]])
        self.register_buffer("top", pair[:, None].clone())  # (2, 1)
        self.register_buffer("entropy", -weight[1:2].clone())
        self.register_buffer("pow_entropy", -weight[3:4].clone())
        self.register_buffer("bias", gate.linear.bias.detach().clone())

    def forward(self, logits: Tensor) -> Tensor:
        """Return gate logits (B,) of logits (B, K)."""
        log_p = torch.log_softmax(logits.float(), dim=-1).clamp(min=LOWEST_LOG)
        log_q = torch.log_softmax(2 * log_p, dim=-1).clamp(min=LOWEST_LOG)
        p = log_p.exp()
        entropies = p * log_p * self.entropy + log_q.exp() * log_q * self.pow_entropy
        gate = p.topk(2, dim=-1).values @ self.top + entropies.sum(-1, keepdim=True) + self.bias
        return gate.squeeze(-1)

    def own_macs(self, inputs: tuple[Tensor, ...], output: Tensor) -> int:
        """Return the multiply-adds of the linear layer that is spread here."""
        return len(output) * len(GATE_FEATURES)


class ProductMean(MeanTokens):
    """The mean (B, D) of tokens (B, N, D) as a matrix product."""

    row: Tensor

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.register_buffer("row", torch.full((1, tokens), 1 / tokens))

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean over the tokens."""
        return (self.row @ x).squeeze(1)


def deployed_form(model: nn.Module) -> nn.Module:
    """Return a copy in the form that is exported, in eval mode.

    Modules are told by their types, wherever in the network they stand.
    """
    twin = with_matrix_filters(model, largest=LARGEST_MATRIX).eval()
    for module in list(twin.modules()):
        if isinstance(module, Mlp):
            _simplify_mlp_(module)
        elif isinstance(module, GFNet):
            module.average = ProductMean(module.pos_embed.shape[1])
        for name, child in module.named_children():
            if isinstance(child, Gate):
                setattr(module, name, FoldedGate(child))
    return twin


def in_half(deployed: nn.Module) -> nn.Module:
    """Return a copy with float16 weights; gates, which cost nothing, stay in float32."""
    twin = copy.deepcopy(deployed).half()
    for module in twin.modules():
        if isinstance(module, FoldedGate):
            module.float()
    return twin


@torch.no_grad()
def _simplify_mlp_(mlp: Mlp) -> None:
    mlp.act = ErfGelu()
    if mlp.scale is not None:
        mlp.fc2.weight.mul_(mlp.scale)
        mlp.scale = None
