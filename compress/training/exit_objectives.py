"""What early exits minimise: JEI-DNN (Chataoui et al., arXiv 2310.09163), its mistakes mended.

For an image, L_l is the cross entropy of exit l, IC_l its cost as a share of the whole network's
(`exit_costs.ExitCosts.shares`), g_l = sigmoid(gate_l). Exits are numbered 0 … E, E the final head.

Gates    l* = argmin_l (L_l + λ·IC_l) over all E+1 exits; gate l learns t_l = 1[l >= l*] by binary
         cross entropy, so g_l estimates the probability that it is right to be out by exit l.
Heads    the expected loss Σ_l P_l·L_l, the probability P_l of leaving at exit l given by the gates.

The gates read logits without passing gradients on, and P_l is a constant, so each of the two terms
reaches parameters that the other does not. Both are computed in every step; `exit_phases` says
which of the parameters move.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.training.batches import Batch
from compress.training.exit_config import ExitTrainingConfig
from compress.training.exit_costs import ExitCosts
from compress.training.objectives import Objective

__all__ = [
    "best_exits",
    "classifier_loss",
    "exit_losses",
    "exit_probabilities",
    "gate_targets",
    "head_warmup_objective",
    "joint_objective",
    "positive_weights",
]

SMALLEST_LOSS = 1e-8  # nats; keeps the normaliser a number where all losses vanish


def head_warmup_objective(config: ExitTrainingConfig) -> Objective:
    """Sum of the losses of all heads; each head learns as if it were alone.

    The model must give logits (B, E+1, K) and gate logits (B, E), as `forward_all` does.
    """

    def objective(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        logits, _ = model(batch.images)
        losses = _distilled_losses(logits, batch.targets, config)
        return {"loss": losses[:, :-1].mean(dim=0).sum()}

    return objective


def joint_objective(
    config: ExitTrainingConfig, costs: ExitCosts, weights: Callable[[], Tensor]
) -> Objective:
    """Classifier loss plus gate loss.

    Args:
        config: names λ, the classifier loss and the self-distillation.
        costs: of the exits.
        weights: gives the weights (E,) of positive gate targets that hold at the moment.
    """

    def objective(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        logits, gates = model(batch.images)  # (B, E+1, K), (B, E)
        losses = _distilled_losses(logits, batch.targets, config)
        heads = classifier_loss(losses, exit_probabilities(gates.detach()), config.classifier_loss)
        with torch.no_grad():
            plain = exit_losses(logits, batch.targets)
            best = best_exits(plain, costs.shares.to(plain.device), config.cost_lambda)
        gate = F.binary_cross_entropy_with_logits(
            gates, gate_targets(best, gates.shape[1]), pos_weight=weights().to(gates.device)
        )
        return {"loss": heads + gate, "classifier_loss": heads, "gate_loss": gate}

    return objective


def exit_losses(
    logits: Tensor,
    targets: Tensor,
    *,
    label_smoothing: float = 0.0,
    alpha: float = 0.0,
    temperature: float = 1.0,
) -> Tensor:
    """Return the loss of every image at every exit, (B, E+1), in nats.

    With α > 0 the heads also learn from the final exit (LGViT, arXiv 2308.00255):
    L_l = (1-α)·CE(z_l) + α·T²·KL(softmax(z_E/T) || softmax(z_l/T)) for l < E, the final exit's
    logits held constant; the final exit keeps its cross entropy.

    Args:
        logits: (B, E+1, K).
        targets: (B, K), rows that sum to 1.
        label_smoothing: in [0, 1).
        alpha: α in [0, 1].
        temperature: T above 0.
    """
    by_class = logits.float().transpose(1, 2)  # (B, K, E+1)
    everywhere = targets.unsqueeze(2).expand_as(by_class)
    plain = F.cross_entropy(by_class, everywhere, reduction="none", label_smoothing=label_smoothing)
    if alpha == 0:
        return plain
    log_p = F.log_softmax(logits.float() / temperature, dim=-1)
    teacher = log_p[:, -1:].detach()
    divergence = (teacher.exp() * (teacher - log_p[:, :-1])).sum(dim=-1)  # (B, E)
    heads = (1 - alpha) * plain[:, :-1] + alpha * temperature**2 * divergence
    return torch.cat([heads, plain[:, -1:]], dim=1)


def exit_probabilities(gates: Tensor) -> Tensor:
    """Return the probability P (B, E+1) of leaving at each exit, of gate logits (B, E).

    P_l = max(0, min(g_l, 1 - Σ_{j<l} g_j)) and what is left for the final head; rows sum to 1.

    JEI-DNN's hard rule leaves at the first exit whose conditional probability
    c_l = P_l / (1 - Σ_{j<l} P_j) is at least 0.5. Here, as in the deployed networks, an image
    leaves at the first exit with g_l >= threshold. At threshold 0.5 the first exit decides alike
    under both; a later one fires under JEI-DNN's rule wherever it fires under this one.

    >>> exit_probabilities(torch.tensor([[0.0, 0.0, 0.0]]))
    tensor([[0.5000, 0.5000, 0.0000, 0.0000]])
    """
    spent = torch.sigmoid(gates.float()).cumsum(dim=1).clamp(max=1)  # Σ_{j<=l} P_j
    ends = spent.new_zeros(len(spent), 1), spent.new_ones(len(spent), 1)
    return torch.diff(torch.cat([ends[0], spent, ends[1]], dim=1), dim=1)


def classifier_loss(losses: Tensor, probabilities: Tensor, kind: str) -> Tensor:
    """Return what the heads minimise, averaged over the images.

    "expected"    Σ_l P_l·L_l
    "normalised"  the same times (Σ_l L_l) / (Σ_l P_l·L_l) of the image, held constant: images of
                  a small expected loss count as much as others. Were the factor not held constant,
                  the whole would be Σ_l L_l, and the gates would weigh nothing.
    "uniform"     Σ_l L_l

    Args:
        losses: L (B, E+1).
        probabilities: P (B, E+1), constants.
        kind: one of the above.
    """
    if kind == "uniform":
        return losses.sum(dim=1).mean()
    expected = (probabilities * losses).sum(dim=1)  # (B,)
    if kind == "normalised":
        constant = losses.detach().sum(dim=1) / expected.detach().clamp(min=SMALLEST_LOSS)
        expected = expected * constant
    return expected.mean()


def best_exits(losses: Tensor, cost_shares: Tensor, cost_lambda: float) -> Tensor:
    """Return l* = argmin_l (L_l + λ·IC_l), (B,); the first of equal ones.

    Two exits and the final head; at λ = 1 the middle exit is worth its cost, at λ = 0 it is not:

    >>> losses, shares = torch.tensor([[1.5, 0.3, 0.2]]), torch.tensor([0.2, 0.6, 1.0])
    >>> [best_exits(losses, shares, cost_lambda).item() for cost_lambda in (0.0, 1.0, 5.0)]
    [2, 1, 0]
    """
    return (losses + cost_lambda * cost_shares).argmin(dim=1)


def gate_targets(best: Tensor, exits: int) -> Tensor:
    """Return t_l = 1[l >= l*] (B, exits) of the best exits (B,); all 0 for the final head."""
    return (torch.arange(exits, device=best.device) >= best.unsqueeze(1)).float()


def positive_weights(positives: Tensor, total: int, *, largest: float) -> Tensor:
    """Return the weights (E,) that make up for rare, or very common, positive gate targets.

    (total - positives) / positives, kept within [1 / largest, largest]. The counts are those of the
    cumulative targets t_l; JEI-DNN counted l* = l, which weighs the late gates' positives up though
    they are common, and so leans towards leaving. Without the lower bound a gate whose targets are
    all positive would have weight 0, learn nothing, and never fire.

    Args:
        positives: (E,) images with t_l = 1.
        total: images.
        largest: at least 1.
    """
    counts = positives.float()
    return ((total - counts) / counts.clamp(min=0.1)).clamp(min=1 / largest, max=largest)


def _distilled_losses(logits: Tensor, targets: Tensor, config: ExitTrainingConfig) -> Tensor:
    return exit_losses(
        logits,
        targets,
        label_smoothing=config.label_smoothing,
        alpha=config.distillation_alpha,
        temperature=config.distillation_temperature,
    )
