"""Which parts of a network with early exits move when.

`HeadWarmup` trains every head until it stops to gain, restores its best and freezes it;
`GateAndHeads` lets gates and heads move in turn, and keeps the weights of the gates' targets fresh.
Both are a `Control` of the loop: their state goes into the resume point.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from compress.models.with_exits import WithExits
from compress.training.exit_config import ExitTrainingConfig
from compress.training.exit_objectives import positive_weights

__all__ = ["GateAndHeads", "HeadWarmup", "gate_parameters", "head_parameters"]


def head_parameters(model: WithExits) -> list[list[nn.Parameter]]:
    """Return the parameters of the head, or of the two heads, of every exit."""
    return [
        [parameter for module in model.heads_of(i) for parameter in module.parameters()]
        for i in range(len(model.gates))
    ]


def gate_parameters(model: WithExits) -> list[nn.Parameter]:
    """Return the parameters of all gates."""
    return list(model.gates.parameters())


def _head_tensors(model: WithExits) -> list[list[Tensor]]:
    """Return all that makes the logits of every exit: parameters and running statistics."""
    return [
        [
            tensor
            for module in model.heads_of(i)
            for tensor in (*module.parameters(), *module.buffers())
        ]
        for i in range(len(model.gates))
    ]


class HeadWarmup:
    """Per head: patience on validation, best weights restored, then frozen; ends with the last.

    A gain is a higher accuracy, or the same at a lower loss.

    Args:
        model: the network.
        patience: epochs without a gain.
        epochs: of the whole warm-up; in the last one all heads are restored.
    """

    def __init__(self, model: WithExits, *, patience: int, epochs: int) -> None:
        self.heads = head_parameters(model)
        self.tensors = _head_tensors(model)
        self.patience = patience
        self.epochs = epochs
        self.scores: list[list[float]] = [[] for _ in self.heads]
        self.waited = [0] * len(self.heads)
        self.frozen = [False] * len(self.heads)
        self.best: list[list[Tensor]] = [[] for _ in self.heads]

    def skipped(self, step: int) -> Iterable[nn.Parameter]:
        """Return the parameters of the frozen heads."""
        pairs = zip(self.heads, self.frozen, strict=True)
        return [parameter for head, frozen in pairs if frozen for parameter in head]

    def after_epoch(self, model: nn.Module, record: Mapping[str, Any]) -> bool:
        """Note gains, restore and freeze; True once all heads are frozen."""
        for i, frozen in enumerate(self.frozen):
            if frozen:
                self._restore(i)  # its running statistics moved on with the images
            else:
                self._note(i, [record[f"exit_{i}_acc1"], -record[f"exit_{i}_loss"]])
                if self.waited[i] >= self.patience or record["epoch"] == self.epochs:
                    self._restore(i)
                    self.frozen[i] = True
        return all(self.frozen)

    def state_dict(self) -> dict[str, Any]:
        """Return everything but the weights of the moment."""
        names = ("scores", "waited", "frozen", "best")
        return {name: list(getattr(self, name)) for name in names}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a resume point."""
        for name, value in state.items():
            setattr(self, name, value)

    def _note(self, i: int, score: list[float]) -> None:
        if score > self.scores[i]:
            self.scores[i], self.waited[i] = score, 0
            self.best[i] = [tensor.detach().cpu().clone() for tensor in self.tensors[i]]
        else:
            self.waited[i] += 1

    @torch.no_grad()
    def _restore(self, i: int) -> None:
        for tensor, best in zip(self.tensors[i], self.best[i], strict=True):
            tensor.copy_(best)


class GateAndHeads:
    """Gates and heads in turn, gates first; in the mixed regime all at once.

    Args:
        model: the network.
        config: names the regime, λ's largest weight and the steps of a phase.
        steps_per_epoch: the length of a phase where the settings name none.
        metrics: of the network as it is, with `exit_l_positives`.
        validation_images: how many of them there were.
    """

    def __init__(
        self,
        model: WithExits,
        config: ExitTrainingConfig,
        *,
        steps_per_epoch: int,
        metrics: Mapping[str, Any],
        validation_images: int,
    ) -> None:
        self.alternating = config.regime == "frozen"
        self.phase_steps = config.phase_steps or steps_per_epoch
        self.largest = config.max_positive_weight
        self.validation_images = validation_images
        self.gates = gate_parameters(model)
        self.heads = [parameter for head in head_parameters(model) for parameter in head]
        self.weights = self._weights(metrics)

    def skipped(self, step: int) -> Iterable[nn.Parameter]:
        """Return the parameters of the heads in a gate phase, and of the gates in a head phase."""
        if not self.alternating:
            return []
        return self.gates if step // self.phase_steps % 2 else self.heads

    def after_epoch(self, model: nn.Module, record: Mapping[str, Any]) -> bool:
        """Count anew how many images each gate should let out."""
        self.weights = self._weights(record)
        return False

    def state_dict(self) -> dict[str, Any]:
        """Return the weights of the positive gate targets."""
        return {"weights": self.weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a resume point."""
        self.weights = state["weights"]

    def _weights(self, metrics: Mapping[str, Any]) -> Tensor:
        gates = range(len(self.gates) // 2)  # a weight and a bias each
        positives = torch.tensor([metrics[f"exit_{i}_positives"] for i in gates])
        return positive_weights(positives, self.validation_images, largest=self.largest)
