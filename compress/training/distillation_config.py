"""How strongly, and by what, a student is drawn to its teacher.

Imports nothing heavy: the door reads its defaults from here to print its help.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

from compress.errors import UserInputError

__all__ = ["DISTILLATIONS", "DistillationConfig"]

DISTILLATIONS = ("soft", "hard")


@dataclass(frozen=True, kw_only=True)
class DistillationConfig:
    """The settings of a distillation, see `compress.training.distillation`.

    Attributes:
        kind: "soft" learns the teacher's probabilities, "hard" the class that it finds likeliest.
        alpha: weight of the teacher, in [0, 1]; the labels weigh the rest.
        temperature: T > 0 that both networks' logits are divided by; "hard" does not read it.
    """

    kind: str = "soft"
    alpha: float = 0.5
    temperature: float = 3.0

    def __post_init__(self) -> None:
        if self.kind not in DISTILLATIONS:
            raise UserInputError(
                f"distillation is {self.kind!r}; expected one of {', '.join(DISTILLATIONS)}"
            )
        if not 0 <= self.alpha <= 1:  # NaN fails this too
            raise UserInputError(
                f"distillation alpha is {self.alpha}; expected 0 <= alpha <= 1, the weight of the "
                "teacher against the labels"
            )
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise UserInputError(f"temperature is {self.temperature}; expected a number above 0")

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON values."""
        return asdict(self)
