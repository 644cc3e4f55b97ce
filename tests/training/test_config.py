import dataclasses
import json

import pytest

from compress.errors import UserInputError
from compress.training.config import TrainingConfig


def test_defaults_are_json() -> None:
    settings = TrainingConfig(schedule="steps", milestones=(2, 5)).to_dict()
    assert json.loads(json.dumps(settings)) == settings
    assert set(settings) == {setting.name for setting in dataclasses.fields(TrainingConfig)}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs is 0; expected an integer of at least 1"),
        ({"epochs": 2.5}, "epochs is 2.5"),
        ({"epochs": True}, "epochs is True"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"optimizer": "adam"}, "optimizer is 'adam'; expected one of sgd, adamw"),
        ({"schedule": "linear"}, "schedule is 'linear'"),
        ({"mixed_precision": False}, "mixed_precision is False; expected one of no, fp16, bf16"),
        ({"lr": 0}, "lr is 0; expected a number above 0"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"lr": "1e-3"}, "lr is '1e-3'"),
        ({"momentum": 1.0}, "expected 0 <= momentum < 1"),
        ({"weight_decay": -1e-4}, "weight_decay is -0.0001"),
        ({"lr_decay": 0.0}, "expected 0 < lr_decay <= 1"),
        ({"label_smoothing": 1.0}, "expected 0 <= label_smoothing < 1"),
        ({"sparsity_lambda": float("inf")}, "sparsity_lambda is inf"),
        ({"clip_grad_norm": 0.0}, "clip_grad_norm is 0.0"),
        ({"early_stopping_patience": 0}, "early_stopping_patience is 0"),
        ({"save_every_steps": 0}, "save_every_steps is 0"),
        ({"epochs": 5, "warmup_epochs": 5}, "expected fewer than the 5 epochs"),
        ({"min_lr": 0.2, "lr": 0.1}, "min_lr is 0.2; expected at most lr, 0.1"),
        ({"milestones": (3, 3)}, "expected rising epochs"),
        ({"milestones": (0,)}, "expected rising epochs"),
        ({"schedule": "steps"}, "'steps' without milestones"),
    ],
)
def test_a_setting_out_of_range_is_told(settings: dict, message: str) -> None:
    with pytest.raises(UserInputError, match=message):
        TrainingConfig(**settings)
