import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.training.config import TrainingConfig
from compress.training.schedule import learning_rate


def rates(steps_per_epoch: int, **settings: object) -> list[float]:
    config = TrainingConfig(**settings)  # type: ignore[arg-type]
    steps = range(config.epochs * steps_per_epoch)
    return [learning_rate(config, step=s, steps_per_epoch=steps_per_epoch) for s in steps]


def test_constant_after_a_warm_up_of_half_an_epoch() -> None:
    got = rates(4, epochs=2, lr=0.8, warmup_epochs=0.5, schedule="constant")
    assert got == pytest.approx([0.4, 0.8] + [0.8] * 6)


def test_steps_drop_at_the_first_step_of_each_milestone() -> None:
    got = rates(2, epochs=4, lr=1.0, schedule="steps", milestones=(1, 3), lr_decay=0.1)
    assert got == pytest.approx([1, 1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01])


def test_cosine_by_hand() -> None:
    # Four steps at angles 0, 45, 90 and 135 degrees, between 0.2 and 1.
    got = rates(2, epochs=2, lr=1.0, min_lr=0.2, schedule="cosine")
    half = math.sqrt(0.5)
    assert got == pytest.approx([1.0, 0.6 + 0.4 * half, 0.6, 0.6 - 0.4 * half])


@given(
    steps=st.integers(1, 9),
    epochs=st.integers(2, 9),
    warmup=st.floats(0, 1),
    floor=st.floats(0, 1),
)
def test_cosine_stays_between_its_ends_and_never_rises_after_the_warm_up(
    steps: int, epochs: int, warmup: float, floor: float
) -> None:
    got = rates(steps, epochs=epochs, lr=1.0, min_lr=floor, warmup_epochs=warmup)
    after = got[round(warmup * steps) :]
    assert all(0 < rate <= 1 for rate in got)
    assert after[0] == 1.0
    assert min(after) >= floor - 1e-12
    assert after == sorted(after, reverse=True)
