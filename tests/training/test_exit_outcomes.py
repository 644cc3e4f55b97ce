import pytest
import torch

from compress.training.exit_costs import ExitCosts
from compress.training.exit_outcomes import (
    ExitOutcomes,
    cheapest_threshold,
    exit_metrics,
    exit_outcomes,
    exits_taken,
    threshold_sweep,
)
from tests.training.exit_fakes import exit_data, tiny_dynn

COSTS = ExitCosts(values=(1.0, 2.0, 4.0), macs=(10, 50, 100), measured=True)


def hand_made() -> ExitOutcomes:
    """Four images, two gates: they leave at exits 0, 1, 2, 0 at threshold 0.5."""
    return ExitOutcomes(
        losses=torch.tensor([[0.1, 0.2, 0.3], [2.0, 0.4, 0.3], [3.0, 2.0, 0.5], [1.0, 0.6, 0.7]]),
        correct=torch.tensor([[1, 1, 1], [0, 1, 1], [0, 0, 1], [0, 1, 1]]).bool(),
        gates=torch.tensor([[1.0, 1.0], [-1.0, 0.0], [-2.0, -1.0], [2.0, -3.0]]),
    )


def test_the_figures_of_four_images_by_hand() -> None:
    got = exit_metrics(hand_made(), COSTS, threshold=0.5, cost_lambda=1.0)
    expected = {
        "acc1": 75.0,
        "validation_loss": (0.1 + 0.4 + 0.5 + 1.0) / 4,
        "cost_share": (0.25 + 0.5 + 1.0 + 0.25) / 4,
        "macs_share": (0.1 + 0.5 + 1.0 + 0.1) / 4,
        "gated_cost": 0.5 + 0.5,
        "exit_0_acc1": 25.0, "exit_1_acc1": 75.0, "exit_2_acc1": 100.0,
        "exit_0_loss": 6.1 / 4, "exit_1_loss": 3.2 / 4, "exit_2_loss": 1.8 / 4,
        "exit_0_rate": 0.5, "exit_1_rate": 0.25, "exit_2_rate": 0.25,
        # l* at λ = 1: costs + (0.25, 0.5, 1) -> exits 0, 1, 2, 1
        "exit_0_positives": 1.0, "exit_1_positives": 3.0,
    }  # fmt: skip
    assert got == pytest.approx(expected)


def test_a_gate_that_is_not_a_number_never_fires() -> None:
    gates = torch.tensor([[float("nan"), 3.0], [float("nan"), float("nan")], [float("inf"), 0.0]])
    assert exits_taken(gates, 0.5).tolist() == [1, 2, 0]
    assert exits_taken(gates, 0.0).tolist() == [1, 2, 0]
    assert exits_taken(torch.zeros(1, 2), 0.5).tolist() == [0]  # reached counts as fired


def test_a_gate_a_rounding_below_the_threshold_decides_as_in_the_early_return() -> None:
    around = torch.linspace(0.8472, 0.8474, 20_001)  # logits of about 0.7
    gate = around[torch.sigmoid(around) == torch.tensor(0.7)][0]
    assert torch.sigmoid(gate).item() < 0.7  # which float32 cannot hold
    assert exits_taken(gate.view(1, 1), 0.7).tolist() == [1]


def test_the_decisions_are_those_of_the_early_return() -> None:
    model, data = tiny_dynn(), exit_data()
    split = data.splits["test"]
    outcomes = exit_outcomes(model, split, data.normalize, batch_size=5)
    bars = torch.sigmoid(outcomes.gates.median(dim=0).values)
    for threshold in (0.0, 0.3, bars[0].item(), bars[1].item(), 0.7, 1.0):
        taken = exits_taken(outcomes.gates, threshold)
        images = data.normalize(split.pixels)
        early = [model.forward_early(image[None], threshold) for image in images]
        assert taken.tolist() == [exit_index for _, exit_index in early]
        right = [logits.argmax().item() for logits, _ in early] == split.labels.numpy()
        chosen = outcomes.correct.gather(1, taken[:, None])[:, 0]
        assert chosen.tolist() == right.tolist()


def test_a_sweep_and_the_cheapest_threshold_that_is_close_enough() -> None:
    outcomes = hand_made()
    sweep = threshold_sweep(outcomes, COSTS, [0.5, 0.85, 1.0])
    assert [row["acc1"] for row in sweep] == [75.0, 75.0, 100.0]
    assert [row["cost_share"] for row in sweep] == pytest.approx([0.5, 0.8125, 1.0])
    assert cheapest_threshold(sweep, outcomes, largest_drop=25.0) == 0.5
    assert cheapest_threshold(sweep, outcomes, largest_drop=0.5) == 1.0
    assert cheapest_threshold(sweep[:2], outcomes, largest_drop=0.5) is None
