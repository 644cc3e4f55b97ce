"""The weights of a layer that give wanted outputs for given inputs, in closed form.

Minimised is, over all samples (x, y) of inputs and wanted outputs,

    sum |y - W x - b|² + λ |W - W0|²,    λ = ridge * mean diagonal of the Gram matrix of the inputs

so that where the samples say nothing (too few of them, inputs that never vary) the weights W0 that
the layer has already stay. The inputs enter only by their Gram matrix, which is summed in float64:
memory does not grow with the number of samples.

Worked example: a layer y = 2 a + 1 c loses the input c, and c = a + 3 on all samples. Fitted on a
alone it becomes y = 3 a + 3, and nothing is lost.
"""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Fitted", "LeastSquares"]

SAMPLES_AT_ONCE = 16384


class Fitted(NamedTuple):
    """A solution.

    Attributes:
        weight: (out, in/groups), float64.
        bias: (out,), float64; zero where no bias was fitted.
        left: share of the wanted outputs' variance that the fit leaves unexplained, in [0, 1].
    """

    weight: Tensor
    bias: Tensor
    left: float


class LeastSquares:
    """Sums over samples, for every group of a layer by itself.

    Args:
        inputs: inputs of one group.
        outputs: outputs of one group.
        groups: of the layer; outputs of one group depend on the inputs of that group alone.
    """

    def __init__(self, inputs: int, outputs: int, *, groups: int = 1) -> None:
        self.samples = 0
        self._shape = (groups, inputs, outputs)
        self._gram = torch.zeros(groups, inputs, inputs, dtype=torch.float64)
        self._cross = torch.zeros(groups, inputs, outputs, dtype=torch.float64)
        self._inputs = torch.zeros(groups, inputs, dtype=torch.float64)
        self._outputs = torch.zeros(groups, outputs, dtype=torch.float64)
        self._squares = 0.0  # of the outputs

    def add(self, inputs: Tensor, outputs: Tensor) -> None:
        """Take in samples: inputs (N, groups * in), wanted outputs (N, groups * out)."""
        for x, y in zip(inputs.split(SAMPLES_AT_ONCE), outputs.split(SAMPLES_AT_ONCE), strict=True):
            groups, width_in, width_out = self._shape
            x = x.double().reshape(-1, groups, width_in).transpose(0, 1)  # (groups, N, in)
            y = y.double().reshape(-1, groups, width_out).transpose(0, 1)
            self.samples += x.shape[1]
            self._gram += x.mT @ x
            self._cross += x.mT @ y
            self._inputs += x.sum(1)
            self._outputs += y.sum(1)
            self._squares += y.square().sum().item()

    def solve(self, weight: Tensor, *, ridge: float, bias: bool) -> Fitted:
        """Return the best weights.

        Args:
            weight: (groups * out, in), those that the layer has.
            ridge: λ as a share of the mean diagonal of the Gram matrix, above 0.
            bias: fit one too; without, the outputs for inputs of zero are zero.

        Raises:
            ValueError: there are no samples.
        """
        if self.samples == 0:
            raise ValueError("no samples were added")
        groups, _, width_out = self._shape
        mean_in = self._inputs / self.samples * bias
        mean_out = self._outputs / self.samples * bias
        gram = self._gram - self.samples * mean_in[:, :, None] * mean_in[:, None]
        cross = self._cross - self.samples * mean_in[:, :, None] * mean_out[:, None]
        start = weight.detach().double().reshape(groups, width_out, -1).mT  # (groups, in, out)
        change = _solved(gram, cross - gram @ start, ridge)
        found = start + change
        offset = mean_out - (mean_in[:, None] @ found)[:, 0]
        whole = self._squares - self.samples * mean_out.square().sum().item()
        error = whole - 2 * (cross * found).sum().item() + (found * (gram @ found)).sum().item()
        left = min(max(error / whole, 0.0), 1.0) if whole > 0 else 0.0
        return Fitted(found.mT.reshape(groups * width_out, -1), offset.flatten(), left)


def _solved(gram: Tensor, right: Tensor, ridge: float) -> Tensor:
    """Solve (G + λ) D = R for every group; where all inputs are zero, D is zero."""
    diagonal = gram.diagonal(dim1=1, dim2=2)
    strength = ridge * diagonal.mean(1)
    strength = torch.where(strength > 0, strength, torch.ones_like(strength))
    eye = torch.eye(gram.shape[1], dtype=gram.dtype)
    return torch.linalg.solve(gram + strength[:, None, None] * eye, right)
