"""What training minimises: functions of (model, batch) that return named terms, "loss" among them.

An objective that needs more than the batch (a teacher, a weighting) closes over it. Objectives are
wrapped to add a term, so that every combination is the same loop.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from compress.errors import UserInputError
from compress.models.outputs import logits_of
from compress.slimming.scales import channel_scales
from compress.training.batches import Batch
from compress.training.config import TrainingConfig

__all__ = ["Objective", "bare", "cross_entropy", "objective_of", "with_gamma_penalty"]

Objective = Callable[[nn.Module, Batch], dict[str, Tensor]]


def objective_of(config: TrainingConfig, base: Objective | None = None) -> Objective:
    """Return the objective that the settings name: cross entropy, and the penalty where λ > 0.

    Args:
        config: gives the label smoothing and λ.
        base: stands in for cross entropy, such as a distillation.
    """
    objective = base or cross_entropy(label_smoothing=config.label_smoothing)
    if config.sparsity_lambda > 0:
        objective = with_gamma_penalty(objective, config.sparsity_lambda)
    return objective


def cross_entropy(*, label_smoothing: float = 0.0) -> Objective:
    """Cross entropy of the logits against the soft targets, averaged over the batch."""

    def objective(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        logits = logits_of(model(batch.images))  # (B, K)
        return {"loss": F.cross_entropy(logits, batch.targets, label_smoothing=label_smoothing)}

    return objective


def with_gamma_penalty(objective: Objective, sparsity_lambda: float) -> Objective:
    """Add λ·Σ|γ| to an objective, as network slimming does (arXiv 1708.06519).

    It is a term of the loss, not a change of the gradients. So the loss scale of mixed precision
    applies to it like to the rest, and as each of k accumulated micro-batches counts 1/k, the
    gradient of γ holds λ·sign(γ) exactly once per optimizer step.

    Args:
        objective: what to add it to; its other terms are passed on.
        sparsity_lambda: λ; 1e-4 for VGG, 1e-5 for deeper networks.
    """

    def penalised(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        terms = objective(model, batch)
        penalty = sparsity_lambda * _sum_of_scales(model)
        return {**terms, "loss": terms["loss"] + penalty, "gamma_penalty": penalty}

    return penalised


def bare(model: nn.Module) -> nn.Module:
    """Return the network itself, without what distributes it over processes."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def _sum_of_scales(model: nn.Module) -> Tensor:
    inner = bare(model)
    scales = channel_scales(inner)
    if not scales:
        raise UserInputError(
            f"sparsity_lambda is set, but {type(inner).__name__} has no BatchNorm with a scale γ; "
            "expected one, or sparsity_lambda 0"
        )
    return torch.stack([scale.abs().sum() for scale in scales.values()]).sum()
