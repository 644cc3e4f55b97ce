"""What tells one run from another, and what its checkpoints say of it."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, is_dataclass
from typing import Any

from torch import nn

from compress.errors import UnsupportedModelError, UserInputError
from compress.measure.versions import versions
from compress.training.batches import TrainingData
from compress.training.config import TrainingConfig

__all__ = ["check_trainable", "checkpoint_meta", "run_identity"]

# Settings that change how a run goes, but not what it comes to. The micro-batches of a step are
# compared over all processes: a run may go on with twice the processes and half the accumulation.
WITHOUT_EFFECT = ("gradient_accumulation", "save_every_steps", "tensorboard", "workers")


def check_trainable(model: nn.Module, data: TrainingData) -> None:
    """Find out before the training, not after it, that it cannot be saved or evaluated.

    Raises:
        UnsupportedModelError: the model does not tell its `arch` and `config`.
        UserInputError: a split is missing or empty.
    """
    if not isinstance(getattr(model, "arch", None), str) or not hasattr(model, "config"):
        raise UnsupportedModelError(
            f"{type(model).__name__} has no `arch` and `config` to rebuild it from, so what is "
            "trained could not be saved; expected a model of compress.models, or one built through "
            "a factory"
        )
    for split in ("train", "validation"):
        if split not in data.splits or len(data.splits[split]) == 0:
            raise UserInputError(
                f"the data {data.name} have no images in the split {split!r}; expected at least one"
            )


def run_identity(
    model: nn.Module,
    data: TrainingData,
    config: TrainingConfig,
    *,
    augment: Callable[..., Any] | None,
    micro_batches: int,
    meta: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the JSON values that two runs must share for one to go on where the other stopped.

    Args:
        model: counts by the names and shapes of its tensors, and which of them are trained.
        data: counts by name and content.
        config: counts but for what changes only how a run goes.
        augment: counts by its settings.
        micro_batches: of a step, over all processes.
        meta: what the caller says of the run, such as the sha256 of the starting weights.
    """
    settings = {k: v for k, v in config.to_dict().items() if k not in WITHOUT_EFFECT}
    return {
        **settings,
        "micro_batches": micro_batches,
        "data": {"name": data.name, "sha256": data.sha256},
        "augment": _settings_of(augment),
        "model": {"arch": getattr(model, "arch", None), "shapes": _digest_of_shapes(model)},
        "meta": dict(meta),
    }


def checkpoint_meta(
    data: TrainingData,
    config: TrainingConfig,
    *,
    augment: Callable[..., Any] | None,
) -> dict[str, Any]:
    """Return what a checkpoint says of its training, apart from how well it went."""
    return {
        "data": {"name": data.name, "sha256": data.sha256},
        "preprocessing": data.preprocessing.to_dict(),
        "classes": list(data.classes),
        "training": {
            **config.to_dict(),
            "augment": _settings_of(augment),
            "versions": versions(),
        },
    }


def _settings_of(augment: Callable[..., Any] | None) -> Any:
    """The settings of an augmentation; of one that tells none, that there is one."""
    settings = getattr(augment, "config", None)
    if is_dataclass(settings) and not isinstance(settings, type):
        return asdict(settings)
    return None if augment is None else "without settings"


def _digest_of_shapes(model: nn.Module) -> str:
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    lines = [
        f"{name} {tuple(tensor.shape)} {tensor.dtype} {name in trained}"
        for name, tensor in model.state_dict().items()
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
