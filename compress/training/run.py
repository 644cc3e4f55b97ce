"""What the functions of the loop share while a run lasts."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import nn

from compress.training.batches import BatchPlan, Prepare, TrainingData
from compress.training.config import TrainingConfig
from compress.training.meter import LossMeter
from compress.training.objectives import Objective
from compress.training.runfiles import RunFiles
from compress.training.state import Position

__all__ = ["Control", "Run", "Score", "Validate"]

Validate = Callable[[nn.Module], Mapping[str, float]]
Score = Callable[[Mapping[str, Any]], tuple[float, ...]]


class Control(Protocol):
    """What steers a run between its steps and epochs; its state is part of the resume point."""

    def skipped(self, step: int) -> Iterable[nn.Parameter]:
        """Return the parameters that one step leaves as they are; steps count from 0."""
        ...

    def after_epoch(self, model: nn.Module, record: Mapping[str, Any]) -> bool:
        """Look at an evaluation, perhaps change the weights; True ends the run.

        Called in every process with the same record, before the checkpoints are written.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return tensors, numbers and lists that `load_state_dict` takes back."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        ...


@dataclass(kw_only=True)
class Run:
    """One run of `compress.training.loop.fit`.

    Attributes:
        config: settings.
        data: what it trains on.
        objective: what it minimises.
        prepare: from images, labels and a seed to a batch.
        validate: what an evaluation measures, or None for accuracy on "validation".
        score: what of it is compared.
        control: what steers it, or None.
        files: where it writes.
        identity: what tells it from other runs.
        meta: what its checkpoints say besides.
        accelerator: Accelerate's object.
        model: the network as the caller gave it.
        wrapped: the same as Accelerate wraps it; objectives call this one.
        optimizer: as Accelerate wraps it.
        plan: how an epoch is cut into steps.
        position: where the run stands.
        bar: progress bar.
        meter: losses that are still on the device.
        clock: when `position.elapsed_s` was last brought up to date.
        saved_at: when the last resume point was written.
    """

    config: TrainingConfig
    data: TrainingData
    objective: Objective
    prepare: Prepare
    validate: Validate | None
    score: Score
    control: Control | None
    files: RunFiles
    identity: dict[str, Any]
    meta: dict[str, Any]
    accelerator: Any
    model: nn.Module
    wrapped: Any
    optimizer: Any
    plan: BatchPlan
    position: Position = field(default_factory=Position)
    bar: Any = None
    meter: LossMeter = field(default_factory=LossMeter)
    clock: float = field(default_factory=time.monotonic)
    saved_at: float = field(default_factory=time.monotonic)

    @property
    def steps_done(self) -> int:
        """Optimizer steps done, over all epochs."""
        return self.position.epoch * self.plan.steps + self.position.step

    @property
    def own_parts(self) -> range:
        """Which micro-batches of every step this process takes."""
        count = self.config.gradient_accumulation
        first = self.accelerator.process_index * count
        return range(first, first + count)

    def tick(self) -> None:
        """Bring the time spent on the epoch up to date."""
        now = time.monotonic()
        self.position.elapsed_s += now - self.clock
        self.clock = now
