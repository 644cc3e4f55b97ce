import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from compress.training.exit_objectives import (
    best_exits,
    classifier_loss,
    exit_losses,
    exit_probabilities,
    gate_targets,
    positive_weights,
)


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def published_probabilities(gates: list[float]) -> list[float]:
    """The formula as JEI-DNN's code has it, one image, in Python floats."""
    probabilities, spent = [], 0.0
    for gate in gates:
        g = 1 / (1 + math.exp(-gate))
        probabilities.append(max(0.0, min(g, 1 - spent)))
        spent += g
    return [*probabilities, max(0.0, 1 - spent)]


@settings(deadline=None)
@given(st.lists(st.floats(-20, 20), min_size=1, max_size=6))
def test_exit_probabilities_follow_the_published_formula(gates: list[float]) -> None:
    got = exit_probabilities(torch.tensor([gates]))[0]
    torch.testing.assert_close(
        got, torch.tensor(published_probabilities(gates)), atol=1e-6, rtol=1e-5
    )
    assert got.sum().item() == pytest.approx(1, abs=1e-6)


@settings(deadline=None)
@given(st.lists(st.floats(-6, 6), min_size=1, max_size=5))
def test_jei_dnns_hard_rule_fires_wherever_ours_does(gates: list[float]) -> None:
    """What the docstring of `exit_probabilities` says of the two rules at threshold 0.5."""
    probabilities, left = published_probabilities(gates), 1.0
    for i, gate in enumerate(gates):
        conditional = min(1.0, probabilities[i] / left) if left > 1e-9 else 1.0
        if gate >= 0:
            assert conditional >= 0.5 - 1e-9
        if i == 0 and abs(gate) > 1e-6:
            assert (conditional >= 0.5) == (gate >= 0)
        left -= probabilities[i]


def test_losses_are_cross_entropies_of_every_exit() -> None:
    logits = torch.randn(5, 3, 4)
    labels = torch.tensor([0, 3, 1, 1, 2])
    got = exit_losses(logits, F.one_hot(labels, 4).float())
    for i in range(3):
        torch.testing.assert_close(
            got[:, i], F.cross_entropy(logits[:, i], labels, reduction="none")
        )


def test_self_distillation_by_hand_and_only_into_the_heads() -> None:
    logits = torch.randn(6, 3, 4, requires_grad=True)
    targets = F.one_hot(torch.arange(6) % 4, 4).float()
    got = exit_losses(logits, targets, alpha=0.3, temperature=2.0)
    plain = exit_losses(logits, targets)
    teacher = F.softmax(logits[:, 2] / 2, dim=1)
    for i in range(2):
        kl = F.kl_div(F.log_softmax(logits[:, i] / 2, 1), teacher, reduction="none").sum(1)
        torch.testing.assert_close(got[:, i], 0.7 * plain[:, i] + 0.3 * 4 * kl)
    torch.testing.assert_close(got[:, 2], plain[:, 2])
    got[:, :2].sum().backward()
    assert not logits.grad[:, 2].any(), "the teacher must not move towards its heads"
    assert logits.grad[:, :2].any()


def test_a_head_that_agrees_with_the_final_exit_pays_nothing_for_it() -> None:
    logits = torch.randn(4, 1, 5).expand(4, 2, 5)
    targets = F.one_hot(torch.arange(4), 5).float()
    got = exit_losses(logits, targets, alpha=1.0, temperature=3.0)
    torch.testing.assert_close(got[:, 0], torch.zeros(4), atol=1e-6, rtol=0)


def gradients(kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients with respect to the losses themselves, the losses, and the probabilities."""
    losses = torch.tensor([[2.0, 0.5, 0.1], [0.2, 0.3, 0.4]], requires_grad=True)
    probabilities = torch.tensor([[0.1, 0.7, 0.2], [0.9, 0.1, 0.0]])
    classifier_loss(losses, probabilities, kind).backward()
    return losses.grad, losses.detach(), probabilities


def test_the_expected_loss_weighs_exits_by_their_probability() -> None:
    gradient, _, probabilities = gradients("expected")
    torch.testing.assert_close(gradient, probabilities / 2)


def test_the_normaliser_is_held_constant() -> None:
    """JEI-DNN's released code differentiates through it, and so trains all exits alike."""
    gradient, losses, probabilities = gradients("normalised")
    ratio = losses.sum(1) / (losses * probabilities).sum(1)
    torch.testing.assert_close(gradient, probabilities * ratio[:, None] / 2)
    uniform, _, _ = gradients("uniform")
    torch.testing.assert_close(uniform, torch.full((2, 3), 0.5))
    assert not torch.allclose(gradient, uniform, atol=0.1)

    again = losses.clone().requires_grad_()  # the mistake: value and gradient are the uniform ones
    expected = (probabilities * again).sum(1)
    (expected * again.sum(1) / expected).mean().backward()
    torch.testing.assert_close(again.grad, uniform)


@pytest.mark.parametrize("kind", ["expected", "normalised", "uniform"])
def test_losses_of_zero_give_no_nan(kind: str) -> None:
    losses = torch.zeros(2, 3, requires_grad=True)
    loss = classifier_loss(losses, torch.tensor([[1.0, 0.0, 0.0]] * 2), kind)
    loss.backward()
    assert loss.item() == 0
    assert losses.grad.isfinite().all()


def test_the_best_exit_weighs_loss_against_cost() -> None:
    losses = torch.tensor([[1.5, 0.3, 0.2], [0.1, 0.1, 0.1], [9.0, 8.0, 0.0]])
    shares = torch.tensor([0.2, 0.6, 1.0])
    assert best_exits(losses, shares, 0.0).tolist() == [2, 0, 2]  # the first of equal ones
    assert best_exits(losses, shares, 1.0).tolist() == [1, 0, 2]
    assert best_exits(losses, shares, 100.0).tolist() == [0, 0, 0]


@given(
    st.lists(st.lists(st.floats(0, 5), min_size=4, max_size=4), min_size=1, max_size=8),
    st.floats(0, 3),
    st.floats(0, 3),
)
def test_a_higher_lambda_never_leaves_later(
    losses: list[list[float]], one: float, other: float
) -> None:
    shares = torch.tensor([0.1, 0.4, 0.7, 1.0])
    low, high = (
        best_exits(torch.tensor(losses, dtype=torch.float64), shares, value)
        for value in sorted((one, other))
    )
    assert (high <= low).all()


def test_targets_are_cumulative() -> None:
    got = gate_targets(torch.tensor([0, 1, 2, 3]), 3)
    assert got.tolist() == [[1, 1, 1], [0, 1, 1], [0, 0, 1], [0, 0, 0]]


def test_positive_weights_count_what_the_targets_count() -> None:
    best = torch.tensor([0] + [1] * 3 + [2] * 4 + [3] * 2)  # ten images, three gates
    positives = gate_targets(best, 3).sum(0)
    assert positives.tolist() == [1, 4, 8]
    got = positive_weights(positives, 10, largest=5.0)
    # 9 / 1 is cut to 5; 6 / 4; 2 / 8. By counts of l* alone the last would be 6 / 4 = 1.5.
    torch.testing.assert_close(got, torch.tensor([5.0, 1.5, 0.25]))


def test_a_gate_whose_targets_are_all_alike_still_learns() -> None:
    got = positive_weights(torch.tensor([0.0, 10.0]), 10, largest=5.0)
    torch.testing.assert_close(got, torch.tensor([5.0, 0.2]))
