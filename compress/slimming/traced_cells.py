"""Channels on their way through a network: which go together, and what is known of each.

A cell is one channel at one point of the forward: behind a convolution, behind its BatchNorm,
behind the ReLU after that. Every layer gives fresh cells, so does every operation that computes
something, and operations that only move values around hand on the cells that they are given. Cells
that an operation ties together are merged into one class (union-find): what goes, goes as a class.

Each cell also knows its mean and variance, where they follow from the BatchNorms before it, and
what becomes of it once γ and β of the BatchNorms of its class are 0: nothing (ZERO), a number that
does not depend on the image (STEADY), or a channel as alive as before (ALIVE), which no γ scales.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["ALIVE", "COMPUTED", "CONSTANT", "FIRST", "NOTHING", "STEADY", "ZERO", "Cells"]

# Cells of no layer: padding, values that every image shares, and values computed by something that
# is not followed. The latter two have a width of their own, which nothing removes.
NOTHING, CONSTANT, COMPUTED = 0, 1, 2
ZERO, STEADY, ALIVE = 0, 1, 2
FIRST = 3


class Cells:
    """All cells of a traced network, numbered; the first three are those of no layer."""

    def __init__(self) -> None:
        self._parents: list[int] = [NOTHING, CONSTANT, COMPUTED]
        self.states = torch.tensor([ZERO, STEADY, ALIVE], dtype=torch.int8)
        self.means = torch.tensor([0.0, torch.nan, torch.nan], dtype=torch.float64)
        self.variances = self.means.clone()
        self.owners = torch.full((FIRST,), -1)

    def fresh(
        self,
        count: int,
        *,
        state: Tensor | int = ALIVE,
        mean: Tensor | None = None,
        variance: Tensor | None = None,
        owner: int = -1,
        like: Tensor | None = None,
    ) -> Tensor:
        """Return `count` new cells (count,) int64.

        Args:
            count: how many.
            state: what becomes of each without γ and β of its class.
            mean: (count,) of each; None where unknown.
            variance: (count,) of each; None where unknown.
            owner: number of the layer whose output they are.
            like: cells (count,) in whose classes they are; None gives each a class of its own.
        """
        start = len(self._parents)
        ids = torch.arange(start, start + count)
        self._parents += ids.tolist() if like is None else like.tolist()
        unknown = torch.full((count,), torch.nan, dtype=torch.float64)
        new_states = torch.as_tensor(state, dtype=torch.int8).expand(count)
        self.states = torch.cat([self.states, new_states])
        self.means = torch.cat([self.means, unknown if mean is None else mean.double()])
        self.variances = torch.cat(
            [self.variances, unknown if variance is None else variance.double()]
        )
        self.owners = torch.cat([self.owners, torch.full((count,), owner)])
        return ids

    def root(self, cell: int) -> int:
        """Return the cell that stands for the class of a cell."""
        parents = self._parents
        while parents[cell] != cell:
            parents[cell] = cell = parents[parents[cell]]
        return cell

    def merge(self, one: int, other: int) -> None:
        """Let two cells go together; those of no layer go with nothing."""
        if one >= FIRST and other >= FIRST:
            self._parents[self.root(other)] = self.root(one)

    def merge_all(self, cells: Sequence[int]) -> None:
        """Let all of these go together."""
        of_layers = [cell for cell in cells if cell >= FIRST]
        for cell in of_layers[1:]:
            self.merge(of_layers[0], cell)

    @staticmethod
    def of_layers(cells: Tensor) -> Tensor:
        """Return the distinct cells that belong to layers."""
        found = cells.unique()
        return found[found >= FIRST]
