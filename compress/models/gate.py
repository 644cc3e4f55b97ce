"""The gate of an early exit: five parameters that read how sure a head is.

The form of JEI-DNN (Chataoui et al., arXiv 2310.09163): an image leaves where sigmoid(gate) reaches
the threshold of the exit.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["GATE_FEATURES", "LOWEST_LOG", "Gate", "gate_features"]

GATE_FEATURES = ("p_max", "entropy", "margin", "pow_entropy")
# exp(-1e4) is 0 in every float type and 0 * -1e4 is 0, where 0 * -inf would be NaN.
LOWEST_LOG = -1e4


class Gate(nn.Module):
    """A linear layer on four features of an exit's logits; no gradient reaches the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(len(GATE_FEATURES), 1)

    def forward(self, logits: Tensor) -> Tensor:
        """Return gate logits (…,) of logits (…, K)."""
        return self.linear(gate_features(logits.detach())).squeeze(-1)


def gate_features(logits: Tensor) -> Tensor:
    """Return [p_max, entropy, margin, pow_entropy] (…, 4) of logits (…, K), K at least 2.

    In float64 of float64, else in float32.

    With p = softmax(logits), largest first: p_max = p_1, margin = p_1 - p_2, entropy of p, and
    entropy of p² normalised, in nats. Saturated logits give 0 where the limit is 0; logits that are
    not numbers give features that are not.
    """
    wide = logits if logits.dtype == torch.float64 else logits.float()
    log_p = F.log_softmax(wide, dim=-1).clamp(min=LOWEST_LOG)
    log_q = F.log_softmax(2 * log_p, dim=-1).clamp(min=LOWEST_LOG)
    p = log_p.exp()
    top = p.topk(2, dim=-1).values
    entropies = [-(log.exp() * log).sum(-1) for log in (log_p, log_q)]
    return torch.stack([top[..., 0], entropies[0], top[..., 0] - top[..., 1], entropies[1]], dim=-1)
