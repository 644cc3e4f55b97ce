"""How a network with early exits does on a split, at any threshold, from one pass over it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from compress.data.prefetch import LabelledSplit, prefetched
from compress.measure.accuracy import evaluation_mode
from compress.models.with_exits import WithExits
from compress.runtime.decision import first_exit
from compress.training.exit_costs import ExitCosts
from compress.training.exit_objectives import best_exits, gate_targets

__all__ = [
    "ExitOutcomes",
    "cheapest_threshold",
    "exit_metrics",
    "exit_outcomes",
    "exits_taken",
    "threshold_sweep",
]


@dataclass(frozen=True, kw_only=True)
class ExitOutcomes:
    """What every exit makes of every image.

    Attributes:
        losses: cross entropy (N, E+1), nats.
        correct: (N, E+1) bool.
        gates: gate logits (N, E).
    """

    losses: Tensor
    correct: Tensor
    gates: Tensor


def exit_outcomes(
    model: WithExits,
    split: LabelledSplit,
    normalize: Callable[[Tensor], Tensor],
    *,
    batch_size: int,
    network: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None,
    workers: int = 0,
) -> ExitOutcomes:
    """Run all exits on all images of a split, in eval mode, where the network lies.

    Args:
        model: the network.
        split: images, or cached features of them.
        normalize: from what the split gives to what the network reads.
        batch_size: images at a time.
        network: from what `normalize` gives to the logits and gates of all exits; None is the
            model itself, on images.
        workers: threads that load ahead.
    """
    network = network or model.forward_all
    device = next(model.parameters()).device
    chunks = torch.arange(len(split)).split(batch_size)
    loaded = prefetched(lambda i: (split.labels[i], split.images(i)), chunks, workers=workers)
    with evaluation_mode(model), torch.inference_mode():
        parts = [
            _outcomes(*network(normalize(images.to(device))), labels.to(device))
            for labels, images in loaded
        ]
    losses, correct, gates = (torch.cat(part).cpu() for part in zip(*parts, strict=True))
    return ExitOutcomes(losses=losses, correct=correct, gates=gates)


def exits_taken(gates: Tensor, threshold: float) -> Tensor:
    """Return the exit (N,) that each image takes, E for the final head.

    By the rule of compress.runtime.decision, on sigmoid(gate) (N, E).
    """
    scores = torch.sigmoid(gates).double().cpu().numpy()
    return torch.from_numpy(first_exit(scores, [threshold] * gates.shape[1]))


def exit_metrics(
    outcomes: ExitOutcomes, costs: ExitCosts, *, threshold: float, cost_lambda: float
) -> dict[str, float]:
    """Return the figures of one threshold as plain numbers.

    Returns:
        acc1 of the dynamic network (per cent) and its validation_loss (nats); cost_share and
        macs_share, expected per image over the whole network's; gated_cost, which is
        validation_loss + λ·cost_share; for every exit l its accuracy on all images, exit_l_acc1
        (per cent), its loss, exit_l_loss, and the share of images that take it, exit_l_rate; for
        every gate the images that it should let out, exit_l_positives.
    """
    figures = _gated(outcomes, costs, threshold)
    exits = outcomes.losses.shape[1]
    taken = exits_taken(outcomes.gates, threshold)
    best = best_exits(outcomes.losses, costs.shares, cost_lambda)
    positives = gate_targets(best, exits - 1).sum(dim=0)
    figures["gated_cost"] = figures["validation_loss"] + cost_lambda * figures["cost_share"]
    for i in range(exits):
        figures[f"exit_{i}_acc1"] = _percent(outcomes.correct[:, i])
        figures[f"exit_{i}_loss"] = outcomes.losses[:, i].double().mean().item()
        figures[f"exit_{i}_rate"] = (taken == i).sum().item() / len(taken)
    for i in range(exits - 1):
        figures[f"exit_{i}_positives"] = positives[i].item()
    return figures


def threshold_sweep(
    outcomes: ExitOutcomes, costs: ExitCosts, thresholds: Sequence[float]
) -> list[dict[str, float]]:
    """Return threshold, acc1, validation_loss, cost_share and macs_share for every threshold."""
    return [{"threshold": t, **_gated(outcomes, costs, t)} for t in thresholds]


def cheapest_threshold(
    sweep: Sequence[Mapping[str, float]], outcomes: ExitOutcomes, *, largest_drop: float
) -> float | None:
    """Return the threshold of the lowest cost whose accuracy is close to the final head's.

    Args:
        sweep: what `threshold_sweep` gave for `outcomes`.
        outcomes: of a split that is not the test data.
        largest_drop: points of accuracy that may be lost.

    Returns:
        None where no threshold is close enough.
    """
    final = _percent(outcomes.correct[:, -1])
    near = [row for row in sweep if row["acc1"] >= final - largest_drop]
    return min(near, key=lambda row: row["cost_share"])["threshold"] if near else None


def _gated(outcomes: ExitOutcomes, costs: ExitCosts, threshold: float) -> dict[str, float]:
    taken = exits_taken(outcomes.gates, threshold)
    chosen = taken.unsqueeze(1)
    return {
        "acc1": _percent(outcomes.correct.gather(1, chosen)),
        "validation_loss": outcomes.losses.gather(1, chosen).double().mean().item(),
        "cost_share": costs.shares.double()[taken].mean().item(),
        "macs_share": costs.macs_shares.double()[taken].mean().item(),
    }


def _percent(correct: Tensor) -> float:
    """Accuracy from integer counts, to the bit that of `compress.measure.accuracy`."""
    return 100.0 * int(correct.sum()) / len(correct)


def _outcomes(logits: Tensor, gates: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Losses (B, E+1), whether they are right (B, E+1), and gates (B, E) of one batch."""
    wanted = labels[:, None].expand(logits.shape[:2])
    losses = F.cross_entropy(logits.float().transpose(1, 2), wanted, reduction="none")
    return losses, logits.argmax(dim=2) == wanted, gates
