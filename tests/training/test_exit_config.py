from typing import Any

import pytest

from compress.errors import UserInputError
from compress.training.exit_config import ExitTrainingConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cost_lambda": -0.1}, r"cost_lambda is -0.1; expected at least 0"),
        ({"cost_lambda": float("nan")}, "cost_lambda is nan; expected at least 0"),
        ({"regime": "joint"}, "regime is 'joint'; expected one of frozen, mixed"),
        ({"classifier_loss": "boosted"}, "classifier_loss is 'boosted'; expected one of expected"),
        ({"phase_steps": 0}, "phase_steps is 0; expected an integer of at least 1"),
        ({"head_warmup_epochs": -1}, "head_warmup_epochs is -1; expected an integer"),
        ({"head_warmup_epochs": None}, "head_warmup_epochs is None; expected an integer"),
        ({"head_warmup_patience": 0}, "head_warmup_patience is 0; expected an integer"),
        ({"distillation_alpha": 1.5}, "distillation_alpha is 1.5; expected a number from 0 to 1"),
        ({"distillation_temperature": 0}, "distillation_temperature is 0; expected a number above"),
        ({"gate_lr_scale": 0}, "gate_lr_scale is 0; expected a number above 0"),
        ({"max_positive_weight": 0.5}, "max_positive_weight is 0.5; expected at least 1"),
        ({"threshold": 1.2}, "threshold is 1.2; expected a number from 0 to 1"),
        ({"sparsity_lambda": 0.1}, "sparsity_lambda is 0.1; expected 0"),
        ({"lr": 0.0}, "lr is 0.0; expected a number above 0"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserInputError, match=message) as found:
        ExitTrainingConfig(**settings)
    assert found.value.exit_code == 3


def test_the_warmup_keeps_its_learning_rate_and_ties_no_head_to_another() -> None:
    config = ExitTrainingConfig(head_warmup_epochs=7, clip_grad_norm=1.0, warmup_epochs=2)
    warmup = config.for_warmup()
    assert (warmup.epochs, warmup.schedule, warmup.clip_grad_norm) == (7, "constant", None)
    assert (warmup.warmup_epochs, warmup.lr) == (0, config.lr)
