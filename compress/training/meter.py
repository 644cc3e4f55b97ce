"""The terms of the loss, brought from the device in bundles, and watched for NaN.

Reading a number from a GPU makes the host wait for it, so the terms of a step stay where they are
until a bundle of steps is full. Every step is still checked, and told by its number.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from compress.errors import CompressError
from compress.training.processes import gathered

__all__ = ["LossMeter", "check_finite"]

REMEDY = (
    "give a lower --lr, a --warmup-epochs or a --clip-grad-norm, with --fresh or another folder; "
    "the checkpoints of earlier epochs are kept"
)


class LossMeter:
    """Collects the terms of the steps of one process."""

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()
        self._steps: list[Tensor] = []

    def __len__(self) -> int:
        return len(self._steps)

    def add(self, micro_batches: Sequence[Mapping[str, Tensor]]) -> None:
        """Take the terms of one step, each averaged over its micro-batches."""
        self._names = tuple(micro_batches[0])
        rows = [
            torch.stack([terms[n].detach().float() for n in self._names]) for terms in micro_batches
        ]
        self._steps.append(torch.stack(rows).mean(dim=0))

    def take(self, *, first_step: int) -> list[dict[str, float]]:
        """Return the terms of the steps added since the last call, averaged over all processes.

        Args:
            first_step: number of the first of these steps, for the message.

        Raises:
            CompressError: a loss is NaN or infinite; raised in every process.
        """
        own = torch.stack(self._steps).cpu().double() if self._steps else torch.empty(0, 0)
        self._steps.clear()
        rows = torch.stack([torch.tensor(rows) for rows in gathered(own.tolist())]).mean(dim=0)
        steps = [dict(zip(self._names, row, strict=True)) for row in rows.tolist()]
        for number, terms in enumerate(steps, first_step):
            check_finite(terms, number)
        return steps


def check_finite(terms: Mapping[str, float], step: int) -> None:
    """Raise `CompressError` where a term of the loss is not a finite number."""
    for name, value in terms.items():
        if not math.isfinite(value):
            raise CompressError(
                f"{name} is {value} at step {step}; training has diverged, so {REMEDY}"
            )
