"""Train or fine-tune a checkpoint file: read, measure, train, measure again, report.

The door `python -m compress.finetune` and the recipes call the same function.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compress.checkpoint import Checkpoint, model_from_checkpoint, read_checkpoint
from compress.data.augment import Augment, AugmentConfig
from compress.data.image_data import ImageData
from compress.data.spec import load_data
from compress.errors import UserInputError
from compress.files import write_json
from compress.measure.versions import versions
from compress.slimming.sparsity import GammaSparsity, gamma_sparsity, save_gamma_histogram
from compress.training.accuracy import Accuracy, evaluate_accuracy
from compress.training.config import TrainingConfig
from compress.training.loop import TrainingResult, fit
from compress.training.objectives import objective_of
from compress.training.processes import is_main_process, resolve_device

__all__ = [
    "AUGMENTATIONS",
    "FinetuneJob",
    "FinetuneReport",
    "augmentation",
    "check_classes",
    "finetune_checkpoint",
]

SCHEMA = "compress.finetune/1"
MEASURED = ("validation", "test")

# What each name of --augment switches on, for images of a side in pixels.
AUGMENTATIONS: dict[str, Callable[[int], dict[str, Any]]] = {
    "flip": lambda _: {"horizontal_flip": True},
    "crop": lambda side: {"random_crop_padding": max(1, side // 8)},
    "mixup": lambda _: {"mixup_alpha": 0.2},
    "cutmix": lambda _: {"cutmix_alpha": 1.0},
    "rand-augment": lambda _: {"rand_augment": True},
    "color-jitter": lambda _: {"color_jitter": 0.4},
}


@dataclass(frozen=True, kw_only=True)
class FinetuneJob:
    """What to train, on what, and where to put it.

    Attributes:
        checkpoint: file to start from.
        data: "digits", "cifar10:DIR" or "folder:DIR".
        config: settings of the training; its seed also divides the data.
        augment: names of `AUGMENTATIONS`.
        output: folder of the run; None names it after the checkpoint.
        image_size: side in pixels; None takes the one that the checkpoint records, or the data's.
        device: where to train; None for the best there is.
        resume: refuse to begin a run, only go on with one.
        fresh: discard a run that is in the folder.
        factory: "package.module:function" for a network that is not of `compress.models`.
        unsafe_pickle: read whole-module pickles, which runs code from the file.
    """

    checkpoint: Path
    data: str
    config: TrainingConfig = field(default_factory=TrainingConfig)
    augment: tuple[str, ...] = ()
    output: Path | None = None
    image_size: int | None = None
    device: str | None = None
    resume: bool = False
    fresh: bool = False
    factory: str | None = None
    unsafe_pickle: bool = False

    @property
    def folder(self) -> Path:
        """Folder of the run."""
        return self.output or self.checkpoint.with_name(self.checkpoint.stem + ".finetuned")


@dataclass(frozen=True, kw_only=True)
class FinetuneReport:
    """What training did for a checkpoint.

    Attributes:
        result: of the training.
        before: accuracy of the checkpoint by split.
        after: accuracy of the best epoch by split.
        sparsity: of γ, where it was trained for.
        histogram: figure of γ, likewise.
        source: path and sha256 of the checkpoint.
        settings: of the training, the data and the augmentation.
    """

    result: TrainingResult
    before: Mapping[str, Accuracy]
    after: Mapping[str, Accuracy]
    sparsity: GammaSparsity | None
    histogram: Path | None
    source: dict[str, Any]
    settings: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        result = self.result
        return {
            "schema": SCHEMA,
            "versions": versions(),
            "source": self.source,
            "settings": self.settings,
            "before": {split: accuracy.to_dict() for split, accuracy in self.before.items()},
            "after": {split: accuracy.to_dict() for split, accuracy in self.after.items()},
            "best": result.best_metrics,
            "epochs_run": result.epochs_run,
            "stopped_early": result.stopped_early,
            "gamma_sparsity": self.sparsity.to_dict() if self.sparsity else None,
            "files": {
                "best": str(result.best),
                "last": str(result.last),
                "gamma_histogram": str(self.histogram) if self.histogram else None,
            },
        }

    def to_text(self) -> str:
        """Return the report as a few lines for a terminal."""
        result, best = self.result, self.result.best_metrics
        lines = [f"{'accuracy':<12}{'before':>10}{'after':>10}"]
        for split, before in self.before.items():
            after = self.after[split].acc1
            lines.append(f"{split:<12}{before.acc1:>9.2f}%{after:>9.2f}%")
        early = ", stopped early" if result.stopped_early else ""
        lines.append(f"best epoch: {best['epoch']} of {result.epochs_run}{early}")
        if self.sparsity:
            share, largest = self.sparsity.share_below_1pct, self.sparsity.max
            lines.append(f"γ: {share:.1%} below 1 % of the largest, which is {largest:.4f}")
        return "\n".join([*lines, f"written: {result.best}"])


def finetune_checkpoint(job: FinetuneJob) -> FinetuneReport | None:
    """Train the network of a checkpoint; the folder of the run gets a report.json as well.

    Returns:
        None in all processes but the main one.

    Raises:
        UserInputError: a file or an option cannot be used, or the classes do not fit.
        UnsupportedModelError: the architecture is not known.
        CompressError: training diverged.
    """
    if job.resume and not (job.folder / "state.pt").exists():
        raise UserInputError(
            f"--resume was given, but {job.folder} holds no run; expected one that was begun there"
        )
    device = str(resolve_device(job.device)) if job.device else None
    checkpoint = read_checkpoint(
        job.checkpoint, factory=job.factory, unsafe_pickle=job.unsafe_pickle
    )
    data = load_data(job.data, image_size=_image_size(job, checkpoint), seed=job.config.seed)
    config = augmentation(job.augment, data.preprocessing.image_size)
    model = model_from_checkpoint(checkpoint)
    check_classes(model, data)
    before = _accuracies(job, model, data)
    result = fit(
        model,
        data,
        objective_of(job.config),
        job.config,
        job.folder,
        augment=Augment(config, len(data.classes), data.preprocessing) if job.augment else None,
        device=device,
        fresh=job.fresh,
        save_meta={**checkpoint.meta, "source_sha256": checkpoint.sha256},
    )
    if not is_main_process():
        return None
    report = _report(job, model, result, before, _accuracies(job, model, data), checkpoint)
    write_json(job.folder / "report.json", report.to_dict())
    return report


def augmentation(names: Sequence[str], image_size: int) -> AugmentConfig:
    """Return the settings that the names of `AUGMENTATIONS` stand for.

    Raises:
        UserInputError: a name is not one of them.
    """
    settings: dict[str, Any] = {}
    for name in names:
        if name not in AUGMENTATIONS:
            raise UserInputError(
                f"augmentation {name!r} is not known; expected some of {', '.join(AUGMENTATIONS)}"
            )
        settings |= AUGMENTATIONS[name](image_size)
    return AugmentConfig(**settings)


def check_classes(model: nn.Module, data: ImageData) -> None:
    """Show the network one image of the data.

    Raises:
        UserInputError: it does not take it, or gives another number of classes.
    """
    image = data.normalize(data.splits["validation"].images(torch.zeros(1, dtype=torch.int64)))
    try:
        with torch.inference_mode():
            logits = model.eval()(image)
    except Exception as err:  # whatever the layers raise for a size that they cannot take
        raise UserInputError(
            f"the network does not take images of {tuple(image.shape[1:])} ({err}); give the size "
            "that it was trained with by --image-size"
        ) from err
    if logits.shape[1] != len(data.classes):
        raise UserInputError(
            f"the network has {logits.shape[1]} classes, but the data {data.name} have "
            f"{len(data.classes)}; expected the same number"
        )


def _image_size(job: FinetuneJob, checkpoint: Checkpoint) -> int | None:
    recorded = checkpoint.meta.get("preprocessing", {}).get("image_size")
    return recorded if job.image_size is None else job.image_size


def _accuracies(job: FinetuneJob, model: nn.Module, data: ImageData) -> dict[str, Accuracy]:
    """Accuracy by split, in float32 whatever the precision of the training."""
    measured = {
        split: evaluate_accuracy(
            model,
            data.splits[split],
            data.normalize,
            batch_size=job.config.batch_size,
            device=resolve_device(job.device),
            workers=job.config.workers,
        )
        for split in MEASURED
        if len(data.splits[split]) > 0
    }
    model.cpu()
    return measured


def _report(
    job: FinetuneJob,
    model: nn.Module,
    result: TrainingResult,
    before: Mapping[str, Accuracy],
    after: Mapping[str, Accuracy],
    checkpoint: Checkpoint,
) -> FinetuneReport:
    sparsity, histogram = None, None
    if job.config.sparsity_lambda > 0:
        sparsity, histogram = gamma_sparsity(model), job.folder / "gammas.png"
        save_gamma_histogram(model, histogram)
    return FinetuneReport(
        result=result,
        before=before,
        after=after,
        sparsity=sparsity,
        histogram=histogram,
        source={"path": str(job.checkpoint), "sha256": checkpoint.sha256},
        settings={**job.config.to_dict(), "data": job.data, "augment": list(job.augment)},
    )
