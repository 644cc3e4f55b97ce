"""Everything that can be set about the training of early exits, checked when it is made.

Imports nothing heavy, as `compress.training.config`, whose settings are all here as well.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

from compress.errors import UserInputError
from compress.training.config import TrainingConfig

__all__ = ["CLASSIFIER_LOSSES", "REGIMES", "ExitTrainingConfig"]

REGIMES = ("frozen", "mixed")
CLASSIFIER_LOSSES = ("expected", "normalised", "uniform")


@dataclass(frozen=True, kw_only=True)
class ExitTrainingConfig(TrainingConfig):
    """The settings of `compress.training.exit_training.train_exits`.

    Those of `TrainingConfig` hold for the main stage; its learning rate and batches also for the
    warm-up of the heads, at a constant learning rate.

    Attributes:
        cost_lambda: λ, what the whole network's cost weighs against one nat of cross entropy, at
            least 0. Higher means earlier exits.
        regime: "frozen" leaves the backbone as it is and alternates between gates and heads;
            "mixed" trains everything at once, the backbone slowly (arXiv 2407.14320).
        classifier_loss: what the heads minimise, see `exit_objectives.classifier_loss`. The gates'
            weighting, "expected" or "normalised", is JEI-DNN's intent; on little data "uniform" is
            safer, as heads that seldom are left at hardly learn under the others.
        phase_steps: optimizer steps from gates to heads and back; None is an epoch each.
        head_warmup_epochs: longest warm-up of the heads; 0 leaves it out.
        head_warmup_patience: epochs without a gain on validation after which a head is restored to
            its best and frozen until the warm-up ends.
        gate_lr_scale: factor on the learning rate of the gates, above 0.
        backbone_lr_scale: factor on that of the backbone and the final head in "mixed", above 0.
        distillation_alpha: α in [0, 1], share of self-distillation from the final exit to the
            heads; 0 leaves it out.
        distillation_temperature: T of it, above 0.
        max_positive_weight: largest weight of a positive gate target, at least 1; its inverse is
            the smallest.
        threshold: at which the dynamic network is evaluated after every epoch, in [0, 1].
        cache_features: train on cached features where nothing is augmented and the backbone rests.
    """

    epochs: int = 30
    batch_size: int = 64
    optimizer: str = "adamw"
    lr: float = 0.01
    cost_lambda: float = 0.5
    regime: str = "frozen"
    classifier_loss: str = "uniform"
    phase_steps: int | None = None
    head_warmup_epochs: int = 30
    head_warmup_patience: int = 3
    gate_lr_scale: float = 5.0
    backbone_lr_scale: float = 0.1
    distillation_alpha: float = 0.0
    distillation_temperature: float = 2.0
    max_positive_weight: float = 5.0
    threshold: float = 0.5
    cache_features: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect("regime", self.regime in REGIMES, f"one of {', '.join(REGIMES)}")
        known = self.classifier_loss in CLASSIFIER_LOSSES
        self._expect("classifier_loss", known, f"one of {', '.join(CLASSIFIER_LOSSES)}")
        for name, least in _COUNTS.items():
            self._expect(name, self._is_count(name, least), f"an integer of at least {least}")
        for name, (low, high) in _RANGES.items():
            expected = f"at least {low}" if math.isinf(high) else f"a number from {low} to {high}"
            self._expect(name, self._is_within(name, low, high), expected)
        for name in ("gate_lr_scale", "backbone_lr_scale", "distillation_temperature"):
            self._expect(name, getattr(self, name) > 0, "a number above 0")
        self._expect("sparsity_lambda", self.sparsity_lambda == 0, "0, as exits have no γ")

    def for_warmup(self) -> "ExitTrainingConfig":
        """Return the settings of the warm-up of the heads."""
        return replace(
            self,
            epochs=self.head_warmup_epochs,
            schedule="constant",
            milestones=(),
            warmup_epochs=0.0,
            early_stopping_patience=None,
            evaluate_every=1,
            clip_grad_norm=None,  # it would tie the heads to each other
        )

    def _is_count(self, name: str, least: int) -> bool:
        value = getattr(self, name)
        if value is None:
            return name == "phase_steps"
        return isinstance(value, int) and not isinstance(value, bool) and value >= least

    def _is_within(self, name: str, low: float, high: float) -> bool:
        value = getattr(self, name)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and math.isfinite(value) and low <= value <= high

    def _expect(self, name: str, fits: bool, expected: str) -> None:
        if not fits:
            value: Any = getattr(self, name)
            raise UserInputError(f"{name} is {value!r}; expected {expected}")


_COUNTS = {"phase_steps": 1, "head_warmup_epochs": 0, "head_warmup_patience": 1}
_RANGES: dict[str, tuple[float, float]] = {
    "cost_lambda": (0, math.inf),
    "gate_lr_scale": (0, math.inf),
    "backbone_lr_scale": (0, math.inf),
    "distillation_alpha": (0, 1),
    "distillation_temperature": (0, math.inf),
    "max_positive_weight": (1, math.inf),
    "threshold": (0, 1),
}
