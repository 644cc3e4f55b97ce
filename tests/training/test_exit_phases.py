from typing import Any

import torch

from compress.training.exit_phases import GateAndHeads, HeadWarmup, head_parameters
from tests.training.exit_fakes import exit_config, tiny_dynn


def record(epoch: int, accuracies: list[float], losses: list[float]) -> dict[str, Any]:
    found: dict[str, Any] = {"epoch": epoch}
    for i, (accuracy, loss) in enumerate(zip(accuracies, losses, strict=True)):
        found |= {f"exit_{i}_acc1": accuracy, f"exit_{i}_loss": loss}
    return found


def fill(model: Any, value: float) -> None:
    """Give every head the weights of an epoch, but for those that are frozen already."""
    for head in model.intermediate_heads:
        torch.nn.init.constant_(head.weight, value)


def test_each_head_is_restored_to_its_own_best_and_frozen() -> None:
    model = tiny_dynn()
    control = HeadWarmup(model, patience=2, epochs=10)
    accuracies = [[50, 40], [60, 30], [55, 45], [60, 50], [10, 49], [10, 50]]
    ended = []
    for epoch, accuracy in enumerate(accuracies, start=1):
        frozen = {id(parameter) for parameter in control.skipped(0)}
        for head in model.intermediate_heads:
            if id(head.weight) not in frozen:
                torch.nn.init.constant_(head.weight, epoch)
        ended.append(control.after_epoch(model, record(epoch, accuracy, [1.0, 1.0])))
    # Head 0: best in epoch 2, no gain in 3 and 4 (the same accuracy at the same loss is none).
    assert model.intermediate_heads[0].weight.unique().tolist() == [2]
    # Head 1: best in epoch 4, no gain in 5 and 6.
    assert model.intermediate_heads[1].weight.unique().tolist() == [4]
    assert ended == [False] * 5 + [True]


def test_the_same_accuracy_at_a_lower_loss_is_a_gain() -> None:
    model = tiny_dynn()
    control = HeadWarmup(model, patience=1, epochs=10)
    assert not control.after_epoch(model, record(1, [50, 50], [1.0, 1.0]))
    assert not control.after_epoch(model, record(2, [50, 50], [0.9, 1.0]))
    assert control.frozen == [False, True]


def test_the_last_epoch_restores_what_still_trains() -> None:
    model = tiny_dynn()
    control = HeadWarmup(model, patience=5, epochs=2)
    fill(model, 1)
    control.after_epoch(model, record(1, [50, 50], [1.0, 1.0]))
    fill(model, 2)
    assert control.after_epoch(model, record(2, [40, 60], [1.0, 1.0]))
    values = [head.weight.unique().tolist() for head in model.intermediate_heads]
    assert values == [[1], [2]]


def test_the_warmup_goes_on_from_its_state() -> None:
    one, other = tiny_dynn(), tiny_dynn()
    whole = HeadWarmup(one, patience=1, epochs=9)
    fill(one, 1)
    whole.after_epoch(one, record(1, [50, 50], [1.0, 1.0]))
    resumed = HeadWarmup(other, patience=1, epochs=9)
    resumed.load_state_dict(whole.state_dict())
    fill(other, 2)
    assert resumed.after_epoch(other, record(2, [40, 40], [1.0, 1.0]))
    assert other.intermediate_heads[0].weight.unique().tolist() == [1]


def test_both_heads_of_a_distilled_exit_belong_together() -> None:
    model = tiny_dynn(distilled=True)
    heads = head_parameters(model)
    assert [len(head) for head in heads] == [4, 4]
    assert any(p is model.intermediate_heads_dist[1].bias for p in heads[1])


def positives(*counts: float) -> dict[str, float]:
    return {f"exit_{i}_positives": count for i, count in enumerate(counts)}


def phases(**settings: Any) -> GateAndHeads:
    return GateAndHeads(
        tiny_dynn(), exit_config(**settings), steps_per_epoch=4,
        metrics=positives(3, 10), validation_images=30,
    )  # fmt: skip


def test_gates_and_heads_take_turns_gates_first() -> None:
    assert rests(phases(phase_steps=2), 8) == ["heads", "heads", "gates", "gates"] * 2
    assert rests(phases(), 12) == ["heads"] * 4 + ["gates"] * 4 + ["heads"] * 4  # an epoch each


def rests(control: GateAndHeads, steps: int) -> list[str]:
    gates = {id(parameter) for parameter in control.gates}
    skipped = [{id(parameter) for parameter in control.skipped(step)} for step in range(steps)]
    return ["gates" if one == gates else "heads" for one in skipped]


def test_everything_moves_in_the_mixed_regime() -> None:
    control = phases(regime="mixed", phase_steps=1)
    assert not [parameter for step in range(4) for parameter in control.skipped(step)]


def test_the_weights_are_counted_anew_after_every_epoch() -> None:
    control = phases()
    torch.testing.assert_close(control.weights, torch.tensor([5.0, 2.0]))  # 27 / 3 is cut to 5
    control.after_epoch(tiny_dynn(), positives(15, 24))
    torch.testing.assert_close(control.weights, torch.tensor([1.0, 0.25]))
    again = phases()
    again.load_state_dict(control.state_dict())
    torch.testing.assert_close(again.weights, torch.tensor([1.0, 0.25]))
