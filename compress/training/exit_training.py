"""Train the exits of a network: heads alone first, then gates and heads in turn.

    warm-up      heads only, each until it stops to gain on validation      RUN_DIR/warmup
    main stage   "frozen": gates and heads in turn                           RUN_DIR
                 "mixed": everything at once, the backbone slowly

Both stages are runs of the one loop (`compress.training.loop.fit`) and resume as it does. While the
backbone and the final head are frozen they stay in eval mode, so the whole network keeps its
accuracy to the bit; where nothing is augmented, features are cached (`feature_cache`).

Method: JEI-DNN, arXiv 2310.09163; mixed regime: arXiv 2407.14320. All choices (patience, weights of
the gates' targets, best epoch) read "validation", never "test".
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from compress.errors import UserInputError
from compress.models.with_exits import WithExits
from compress.training.batches import TrainingData, first_image, plan_batches
from compress.training.exit_config import ExitTrainingConfig
from compress.training.exit_costs import ExitCosts, exit_costs
from compress.training.exit_objectives import head_warmup_objective, joint_objective
from compress.training.exit_outcomes import exit_metrics, exit_outcomes
from compress.training.exit_phases import GateAndHeads, HeadWarmup
from compress.training.feature_cache import (
    FeatureData,
    cached_features,
    feature_shapes,
    tensors_sha256,
)
from compress.training.identity import check_trainable
from compress.training.loop import TrainingResult, fit
from compress.training.processes import resolve_device
from compress.training.run import Validate

__all__ = ["ExitTrainingResult", "train_exits"]

logger = logging.getLogger(__name__)

MAX_CACHE_GIB = 16.0
BYTES_PER_FEATURE = 2  # float16


@dataclass(frozen=True, kw_only=True)
class ExitTrainingResult:
    """What the training of exits came to.

    Attributes:
        best: checkpoint of the best epoch of the main stage.
        metrics: its figures on validation, see `exit_outcomes.exit_metrics`.
        costs: what the gates weighed.
        warmup: the run of the heads' warm-up, or None where it was left out.
        main: the run of the main stage.
    """

    best: Path
    metrics: dict[str, Any]
    costs: ExitCosts
    warmup: TrainingResult | None
    main: TrainingResult


def train_exits(
    model: WithExits,
    data: TrainingData,
    config: ExitTrainingConfig,
    run_dir: Path,
    *,
    costs: Sequence[float] | None = None,
    augment: Callable[..., Any] | None = None,
    cache_dir: Path | None = None,
    device: str | None = None,
    fresh: bool = False,
    progress: bool = True,
    save_meta: Mapping[str, Any] | None = None,
) -> ExitTrainingResult:
    """Train heads and gates in place; afterwards the model holds the best weights, in eval mode.

    Killed at any moment, it goes on where it was when called again with the same arguments and the
    same starting weights; on the CPU it ends in the same bits.

    Args:
        model: its final head should be trained; heads and gates may be new.
        data: the splits "train" and "validation".
        config: settings.
        run_dir: folder of the run; metrics.jsonl and best.pth lie there, see the module.
        costs: E+1 rising numbers, such as measured milliseconds; None takes multiply-adds.
        augment: (images, labels, *, seed) to normalised images and soft targets; rules the cache
            out.
        cache_dir: folder of cached features, which runs may share; None is RUN_DIR/features.
        device: such as "cpu" or "cuda"; by default the best there is.
        fresh: discard a run that is in the folder.
        progress: show bars on stderr.
        save_meta: JSON values that go into the checkpoints.

    Raises:
        UserInputError: the data, costs or settings do not fit, or the folder holds another run.
        CompressError: training diverged.
    """
    check_trainable(model, data)
    _check_classes(model, data)
    spending = exit_costs(model, _image_shape(data), costs)
    meta = {
        **(save_meta or {}),
        "early_exit": {
            "exits": list(model.positions),
            "cost_lambda": config.cost_lambda,
            "threshold": config.threshold,
            "costs": spending.to_dict(),
            "start_sha256": tensors_sha256(model.state_dict()),
        },
    }
    stages = _Stages(
        model=model,
        images=data,
        config=config,
        costs=spending,
        run_dir=Path(run_dir),
        cache_dir=cache_dir,
        augment=augment,
        options={"device": device, "fresh": fresh, "progress": progress, "save_meta": meta},
    )
    with _gradients_restored(model):
        warmup = stages.warm_up() if config.head_warmup_epochs else None
        logger.info("Unfreezing classifiers after warmup")  # in the words of the reference's log
        main = stages.train()
    return ExitTrainingResult(
        best=main.best, metrics=main.best_metrics, costs=spending, warmup=warmup, main=main
    )


@dataclass(frozen=True, kw_only=True)
class _Stages:
    """The two stages, over what they share."""

    model: WithExits
    images: TrainingData
    config: ExitTrainingConfig
    costs: ExitCosts
    run_dir: Path
    cache_dir: Path | None
    augment: Callable[..., Any] | None
    options: dict[str, Any]

    def warm_up(self) -> TrainingResult:
        """Train the heads alone, each to its best."""
        config = self.config.for_warmup()
        model = self.model
        _train_only(model, lambda name: model.is_exit_parameter(name) and not is_gate(name))
        source = self._source(frozen=True)
        with source.read_by(self.model):
            return fit(
                self.model,
                source.data,
                head_warmup_objective(config),
                config,
                self.run_dir / "warmup",
                augment=self.augment,
                validate=self._validation(source),
                score=lambda record: (record["epoch"],),  # the last has every head at its best
                control=HeadWarmup(
                    self.model, patience=config.head_warmup_patience, epochs=config.epochs
                ),
                **self.options,
            )

    def train(self) -> TrainingResult:
        """Train gates and heads; in the mixed regime everything."""
        config, is_frozen = self.config, self.config.regime == "frozen"
        _train_only(self.model, lambda name: self.model.is_exit_parameter(name) or not is_frozen)
        source = self._source(frozen=is_frozen)
        validate = self._validation(source)
        images = len(source.data.splits["train"])
        control = GateAndHeads(
            self.model,
            config,
            steps_per_epoch=plan_batches(images, batch_size=config.batch_size, slices=1).steps,
            metrics=validate(self.model.to(self._device)),
            validation_images=len(source.data.splits["validation"]),
        )
        with source.read_by(self.model):
            return fit(
                self.model,
                source.data,
                joint_objective(config, self.costs, lambda: control.weights),
                config,
                self.run_dir,
                augment=self.augment,
                validate=validate,
                score=lambda record: (-record["gated_cost"],),
                control=control,
                lr_scale=self._lr_scale,
                **self.options,
            )

    def _source(self, *, frozen: bool) -> "_Source":
        """Features where they never change, else the images."""
        config = self.config
        wanted = frozen and config.cache_features and self.augment is None
        if not wanted or self._is_too_large():
            return _Source(data=self.images)
        features = cached_features(
            self.model,
            self.images,
            self.cache_dir or self.run_dir / "features",
            device=self._device,
            workers=config.workers,
            progress=self.options["progress"],
        )
        return _Source(data=features)

    def _is_too_large(self) -> bool:
        """Say so, where the features are more than a cache shall hold."""
        images = sum(len(self.images.splits[split]) for split in ("train", "validation"))
        values = sum(map(math.prod, feature_shapes(self.model, self.images)))
        gib = images * values * BYTES_PER_FEATURE / (1 << 30)
        if gib <= MAX_CACHE_GIB:
            return False
        logger.warning(
            "note: what the heads read takes %.0f GiB, more than the %g that are cached, so every "
            "epoch runs the backbone; heads on pooled features (linear, hidden:N) read less",
            gib, MAX_CACHE_GIB,
        )  # fmt: skip
        return True

    def _validation(self, source: "_Source") -> Validate:
        def validate(model: nn.Module) -> Mapping[str, float]:
            outcomes = exit_outcomes(
                cast(WithExits, model),
                source.data.splits["validation"],
                source.data.normalize,
                batch_size=self.config.batch_size,
                network=source.network(cast(WithExits, model)),
                workers=self.config.workers,
            )
            return exit_metrics(
                outcomes,
                self.costs,
                threshold=self.config.threshold,
                cost_lambda=self.config.cost_lambda,
            )

        return validate

    def _lr_scale(self, name: str) -> float:
        if is_gate(name):
            return self.config.gate_lr_scale
        return 1.0 if self.model.is_exit_parameter(name) else self.config.backbone_lr_scale

    @property
    def _device(self) -> torch.device:
        return resolve_device(self.options["device"])


@dataclass(frozen=True, kw_only=True)
class _Source:
    """What the loop reads: images, or features in their place."""

    data: TrainingData

    def network(self, model: WithExits) -> Callable[[Any], tuple[Any, Any]]:
        """Return what gives logits and gates of all exits for what this source holds."""
        if isinstance(self.data, FeatureData):
            return partial(self.data.all_exits, model)
        return model.forward_all

    @contextmanager
    def read_by(self, model: WithExits) -> Iterator[None]:
        """Let a call of the model give all exits of what this source holds.

        The call, not a method of it, because that is where Accelerate divides and casts. Heads on
        features are too little work to divide among threads: on a busy machine they would wait for
        each other ten times as long as one of them computes.
        """
        vars(model)["forward"] = self.network(model)
        threads = torch.get_num_threads()
        try:
            if isinstance(self.data, FeatureData):
                torch.set_num_threads(1)
            yield
        finally:
            torch.set_num_threads(threads)
            vars(model).pop("forward", None)


def is_gate(name: str) -> bool:
    """Whether a name of the state_dict belongs to a gate."""
    return name.startswith("gates.")


def _image_shape(data: TrainingData) -> tuple[int, int, int]:
    _, channels, height, width = first_image(data).shape
    return channels, height, width


def _check_classes(model: WithExits, data: TrainingData) -> None:
    if model.num_classes != len(data.classes):
        raise UserInputError(
            f"the network has {model.num_classes} classes, but the data {data.name} have "
            f"{len(data.classes)}; expected the same number"
        )


def _train_only(model: WithExits, chosen: Callable[[str], bool]) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(chosen(name))


@contextmanager
def _gradients_restored(model: nn.Module) -> Iterator[None]:
    """Leave what requires gradients as the caller had it."""
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    try:
        yield
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(before[name])
            parameter.grad = None
