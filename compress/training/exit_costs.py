"""What it costs to leave at each exit: true multiply-adds, or whatever was measured."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor, tensor

from compress.errors import UserInputError
from compress.measure.exit_macs import macs_per_exit
from compress.models.with_exits import WithExits

__all__ = ["ExitCosts", "exit_costs"]


@dataclass(frozen=True, kw_only=True)
class ExitCosts:
    """Cumulative costs of an image by the exit that it takes, the final head last.

    Attributes:
        values: (E+1,) rising, in multiply-adds or in the unit of the caller, such as milliseconds.
        macs: (E+1,) multiply-adds.
        measured: the values came from the caller.
    """

    values: tuple[float, ...]
    macs: tuple[int, ...]
    measured: bool

    @property
    def shares(self) -> Tensor:
        """IC of JEI-DNN: costs over that of the whole network, (E+1,) in (0, 1], the last 1."""
        return tensor(self.values) / self.values[-1]

    @property
    def macs_shares(self) -> Tensor:
        """Multiply-adds over those of the whole network, (E+1,)."""
        return tensor(self.macs) / self.macs[-1]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {"values": list(self.values), "macs": list(self.macs), "measured": self.measured}


def exit_costs(
    model: WithExits, image_shape: tuple[int, int, int], costs: Sequence[float] | None = None
) -> ExitCosts:
    """Return the costs that training weighs against the loss.

    Args:
        model: the network.
        image_shape: (C, H, W).
        costs: E+1 rising numbers above 0, the whole network's last, such as measured milliseconds;
            None takes the multiply-adds of `compress.measure.exit_macs`.

    Raises:
        UserInputError: `costs` has another length, or does not rise.
    """
    macs = tuple(macs_per_exit(model, image_shape))
    if costs is None:
        return ExitCosts(values=tuple(map(float, macs)), macs=macs, measured=False)
    given = list(costs)
    wanted = "expected rising numbers above 0, one for every exit and the final head's last"
    if len(given) != len(macs):
        raise UserInputError(f"{len(given)} costs are given for {len(macs)} exits; {wanted}")
    if not all(isinstance(cost, int | float) and math.isfinite(cost) for cost in given):
        raise UserInputError(f"the costs are {given}; {wanted}")
    if given[0] <= 0 or any(after <= before for before, after in pairwise(given)):
        raise UserInputError(f"the costs are {given}; {wanted}")
    return ExitCosts(values=tuple(map(float, given)), macs=macs, measured=True)
