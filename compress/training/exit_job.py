"""Give a checkpoint early exits: read, add exits, train, suggest a threshold, report.

Recipes call this. The suggestion comes from "calibration"; "test" is only measured, at the
threshold of the settings.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compress.checkpoint import save
from compress.data.augment import Augment, AugmentConfig
from compress.data.image_data import ImageData
from compress.errors import UserInputError
from compress.files import write_json
from compress.measure.accuracy import Accuracy, evaluate_accuracy
from compress.measure.versions import versions
from compress.models.with_exits import WithExits
from compress.opened import Opening, check_classes, open_checkpoint
from compress.runtime.exit_spelling import Position, path_of
from compress.training.augmentations import augmentation
from compress.training.batches import first_image
from compress.training.exit_config import ExitTrainingConfig
from compress.training.exit_outcomes import (
    ExitOutcomes,
    cheapest_threshold,
    exit_metrics,
    exit_outcomes,
    threshold_sweep,
)
from compress.training.exit_start import network_with_exits
from compress.training.exit_training import ExitTrainingResult, train_exits
from compress.training.processes import is_main_process, resolve_device

__all__ = ["ExitJob", "ExitReport", "train_exits_checkpoint"]

SCHEMA = "compress.train_exits/1"
NEEDED = ("train", "validation", "calibration")
MEASURED = ("validation", "test")
THRESHOLDS = tuple(round(0.05 * i, 2) for i in range(4, 20))  # 0.2 … 0.95


@dataclass(frozen=True, kw_only=True)
class ExitJob:
    """Which network to give exits, on what, and where to put it.

    Attributes:
        checkpoint: of a network, or of one with exits.
        data: "digits", "cifar10:DIR" or "folder:DIR".
        exits: paths of modules or numbers of blocks, or "auto:K"; None keeps those of the
            checkpoint.
        head: kind of the heads, see `compress.models.exit_head`; None is linear, or what the
            checkpoint has.
        config: settings of the training; its seed also divides the data and draws new heads.
        costs: by exit, the whole network's last; None for multiply-adds.
        augment: settings of the augmentation, or names of `presets.AUGMENTATIONS`; None for none,
            so that features are cached.
        largest_drop: points of accuracy below the final head's on "calibration" that the suggested
            threshold may cost. Few images tell a small drop badly.
        output: folder of the run; None names it after the checkpoint.
        file: where the trained network goes besides, or None.
        cache_dir: folder of cached features, which runs may share; None puts it into the run.
        opening: how the checkpoint is opened.
        device: where to train; None for the best there is.
        cache: folder of decoded images, or "off"; None takes the usual folder.
        fresh: discard a run that is in the folder.
        progress: show bars on stderr.
    """

    checkpoint: Path
    data: str
    exits: tuple[Position, ...] | str | None = None
    head: str | None = None
    config: ExitTrainingConfig = field(default_factory=ExitTrainingConfig)
    costs: tuple[float, ...] | None = None
    augment: AugmentConfig | tuple[str, ...] | None = None
    largest_drop: float = 0.0
    output: Path | None = None
    file: Path | None = None
    cache_dir: Path | None = None
    opening: Opening = field(default_factory=Opening)
    device: str | None = None
    cache: Path | str | None = None
    fresh: bool = False
    progress: bool = True

    @property
    def folder(self) -> Path:
        """Folder of the run."""
        return self.output or self.checkpoint.with_name(self.checkpoint.stem + ".exits")


@dataclass(frozen=True, kw_only=True)
class ExitReport:
    """What training the exits of a checkpoint came to.

    Attributes:
        result: of the training.
        exits: where they stand.
        before: accuracy by split of the network as it came, by its final head.
        calibration: figures by threshold on "calibration".
        suggested_threshold: the cheapest there within the drop that was allowed, or None.
        metrics: figures by split at the threshold of the settings.
        source: path and sha256 of the checkpoint.
        data: name and sha256.
        settings: of the job.
        file: where the trained network lies.
    """

    result: ExitTrainingResult
    exits: tuple[Position, ...]
    before: Mapping[str, Accuracy]
    calibration: Sequence[Mapping[str, float]]
    suggested_threshold: float | None
    metrics: Mapping[str, Mapping[str, float]]
    source: dict[str, Any]
    data: dict[str, Any]
    settings: dict[str, Any]
    file: Path

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        warmup = self.result.warmup
        return {
            "schema": SCHEMA,
            "versions": versions(),
            "source": self.source,
            "data": self.data,
            "settings": self.settings,
            "exits": list(self.exits),
            "costs": self.result.costs.to_dict(),
            "before": {split: accuracy.to_dict() for split, accuracy in self.before.items()},
            "warmup_epochs": warmup.epochs_run if warmup else 0,
            "epochs_run": self.result.main.epochs_run,
            "best": self.result.metrics,
            "calibration": [dict(row) for row in self.calibration],
            "suggested_threshold": self.suggested_threshold,
            "metrics": {split: dict(figures) for split, figures in self.metrics.items()},
            "files": {"best": str(self.file)},
        }

    def to_text(self) -> str:
        """Return the figures for a console."""
        positions = ", ".join(map(path_of, self.exits))
        suggested = self.suggested_threshold
        better = "none keeps the accuracy" if suggested is None else f"suggested: {suggested:g}"
        at = f"threshold {self.settings['threshold']:g} (by calibration data, {better})"
        lines = [
            f"exits behind {positions}, {at}",
            "accuracy     whole network   with exits   MACs of the whole",
        ]
        for split, figures in self.metrics.items():
            lines.append(
                f"{split:10}   {self.before[split].acc1:12.2f}%   {figures['acc1']:9.2f}%   "
                f"{figures['macs_share']:16.1%}"
            )
        lines.append(f"written: {self.file}")
        return "\n".join(lines)


def train_exits_checkpoint(job: ExitJob, data: ImageData | None = None) -> ExitReport | None:
    """Train the exits of a checkpoint; best.pth and report.json go into the folder of the run.

    Args:
        job: what to do.
        data: the images that `job.data` names, where they are loaded already.

    Returns:
        None in all processes but the main one.

    Raises:
        UserInputError: a file, split, position, cost or setting cannot be used.
        UnsupportedModelError: the network is not known, or no exit can stand there.
        CompressError: training diverged.
    """
    network = open_checkpoint(job.checkpoint, job.opening)
    checkpoint = network.checkpoint
    if data is None:
        data = network.data(job.data, seed=job.config.seed, cache=job.cache)
    _check_splits(data)
    check_classes(network.model, data, known=network.classes)
    model = network_with_exits(
        network.model, job.exits, first_image(data), head=job.head, seed=job.config.seed
    )
    before = {split: _accuracy(job, model, data, split) for split in _measured(data)}
    source = {"path": str(job.checkpoint), "sha256": checkpoint.sha256}
    result = train_exits(
        model,
        data,
        job.config,
        job.folder,
        costs=job.costs,
        augment=_augment(job, data),
        cache_dir=job.cache_dir,
        device=job.device,
        fresh=job.fresh,
        progress=job.progress,
        save_meta={**checkpoint.meta, "source_sha256": checkpoint.sha256},
    )
    if not is_main_process():
        return None
    if job.file is not None:
        save(model.cpu(), job.file, meta=job.opening.read(result.best).meta)
    report = _report(job, model, data, result, before=before, source=source)
    write_json(job.folder / "report.json", report.to_dict())
    return report


def _check_splits(data: ImageData) -> None:
    for split in NEEDED:
        if split not in data.splits or len(data.splits[split]) == 0:
            raise UserInputError(
                f"the data {data.name} have no images in the split {split!r}; expected at least one"
            )


def _measured(data: ImageData) -> list[str]:
    return [split for split in MEASURED if split in data.splits and len(data.splits[split])]


def _augment(job: ExitJob, data: ImageData) -> Augment | None:
    if job.augment is None:
        return None
    config = job.augment
    if not isinstance(config, AugmentConfig):
        config = augmentation(config, max(data.preprocessing.size))
    return Augment(config, len(data.classes), data.preprocessing)


def _accuracy(job: ExitJob, model: WithExits, data: ImageData, split: str) -> Accuracy:
    return evaluate_accuracy(
        model,
        data.splits[split],
        data.normalize,
        device=resolve_device(job.device),
        progress=job.progress,
    )


def _outcomes(job: ExitJob, model: WithExits, data: ImageData, split: str) -> ExitOutcomes:
    return exit_outcomes(
        model.to(resolve_device(job.device)),
        data.splits[split],
        data.normalize,
        batch_size=job.config.batch_size,
        workers=job.config.workers,
    )


def _report(
    job: ExitJob,
    model: WithExits,
    data: ImageData,
    result: ExitTrainingResult,
    *,
    before: Mapping[str, Accuracy],
    source: dict[str, Any],
) -> ExitReport:
    calibration = _outcomes(job, model, data, "calibration")
    sweep = threshold_sweep(calibration, result.costs, THRESHOLDS)
    suggested = cheapest_threshold(sweep, calibration, largest_drop=job.largest_drop)
    metrics = {
        split: exit_metrics(
            _outcomes(job, model, data, split),
            result.costs,
            threshold=job.config.threshold,
            cost_lambda=job.config.cost_lambda,
        )
        for split in _measured(data)
    }
    model.cpu()
    return ExitReport(
        result=result,
        exits=model.positions,
        before=before,
        calibration=sweep,
        suggested_threshold=suggested,
        metrics=metrics,
        source=source,
        data={"name": data.name, "sha256": data.sha256},
        file=job.file or result.best,
        settings={
            **job.config.to_dict(),
            "data": job.data,
            "preprocessing": data.preprocessing.to_dict(),
            "largest_drop": job.largest_drop,
        },
    )
