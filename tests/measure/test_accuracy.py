from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compress.errors import CompressError, UserInputError
from compress.measure.accuracy import Accuracy, evaluate_accuracy
from tests.training.fakes import Net, fake_data


class LogitSplit:
    def __init__(self, logits: Tensor, labels: list[int]) -> None:
        self.logits, self.labels = logits, torch.tensor(labels)

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, indices: Tensor) -> Tensor:
        return self.logits[indices]


def measure(split: Any, **options: Any) -> Accuracy:
    options = {"progress": False, "workers": 0, **options}
    return evaluate_accuracy(nn.Identity(), split, lambda images: images, **options)


def test_counts_by_hand() -> None:
    # Rank of the right class: 1, 2, 6, 5 of seven classes.
    logits = torch.tensor(
        [
            [9.0, 1, 2, 3, 4, 5, 6],
            [8.0, 9, 2, 3, 4, 5, 6],
            [1.0, 9, 0, 3, 4, 5, 6],
            [1.0, 9, 2, 3, 4, 5, 6],
        ]
    )
    accuracy = measure(LogitSplit(logits, [0, 0, 0, 3]), batch_size=3)
    assert (accuracy.count, accuracy.correct, accuracy.correct5) == (4, 1, 3)
    assert (accuracy.acc1, accuracy.acc5) == (25.0, 75.0)
    log_probabilities = logits.double().log_softmax(dim=1)
    expected = -log_probabilities[torch.arange(4), torch.tensor([0, 0, 0, 3])].mean()
    assert accuracy.loss == pytest.approx(expected.item(), rel=1e-6)


def test_fewer_classes_than_five() -> None:
    accuracy = measure(LogitSplit(torch.tensor([[0.0, 1.0], [0.0, 1.0]]), [0, 1]))
    assert (accuracy.acc1, accuracy.acc5) == (50.0, 100.0)


@pytest.mark.parametrize("processes", [1, 2, 3, 9])
def test_shares_add_up_to_the_whole(processes: int) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50, 8, generator=generator)
    split = LogitSplit(logits, [n % 8 for n in range(50)])
    whole = measure(split, batch_size=7)
    parts = [measure(split, batch_size=7, share=(i, processes)) for i in range(processes)]
    together = sum(parts, Accuracy(count=0, correct=0, correct5=0, loss_sum=0.0))
    assert (together.count, together.correct) == (whole.count, whole.correct)
    assert together.correct5 == whole.correct5
    assert together.loss == pytest.approx(whole.loss)


def test_the_mode_of_every_layer_is_put_back() -> None:
    model, data = Net(dropout=0.9), fake_data()
    model.train()
    model.norm.eval()
    modes = [layer.training for layer in model.modules()]
    statistics = model.norm.running_mean.clone()
    options: dict[str, Any] = {"progress": False, "workers": 0}
    first = evaluate_accuracy(model, data.splits["validation"], data.normalize, **options)
    again = evaluate_accuracy(model, data.splits["validation"], data.normalize, **options)
    assert first == again  # no dropout
    assert [layer.training for layer in model.modules()] == modes
    assert torch.equal(model.norm.running_mean, statistics)


def test_nan_is_an_error_and_not_an_accuracy() -> None:
    logits = torch.tensor([[1.0, 0.0], [float("nan"), 0.0], [0.0, float("nan")]])
    with pytest.raises(CompressError, match="gives NaN for 2 of 3 images"):
        measure(LogitSplit(logits, [0, 0, 0]))


def test_a_class_that_the_network_does_not_know() -> None:
    with pytest.raises(UserInputError, match=r"class 4, but the network gives 2 logits"):
        measure(LogitSplit(torch.zeros(2, 2), [0, 4]))


def test_an_empty_split() -> None:
    with pytest.raises(UserInputError, match="split to evaluate on is empty"):
        measure(LogitSplit(torch.zeros(0, 2), []))
