"""Train, fine-tune or distil a checkpoint file: read, measure, train, measure again, report.

The door `python -m compress.finetune` and the recipes call the same function.
"""

import logging
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compress.checkpoint import Checkpoint
from compress.data.augment import Augment, AugmentConfig
from compress.data.image_data import ImageData
from compress.data.spec import load_data
from compress.errors import UserInputError
from compress.files import write_json
from compress.measure.accuracy import Accuracy, evaluate_accuracy
from compress.opened import Opened, Opening, check_classes, open_checkpoint
from compress.slimming.sparsity import gamma_sparsity, save_gamma_histogram
from compress.training.augmentations import augmentation
from compress.training.config import TrainingConfig
from compress.training.distillation import distillation
from compress.training.distillation_config import DistillationConfig
from compress.training.finetune_report import DistillationReport, FinetuneReport
from compress.training.loop import fit
from compress.training.objectives import Objective, objective_of
from compress.training.presets import preset_augmentation
from compress.training.processes import is_main_process, resolve_device
from compress.training.teacher import Teacher, teacher_from
from compress.training.transfer import build_student, transferred

__all__ = [
    "FinetuneJob",
    "finetune_checkpoint",
]

logger = logging.getLogger(__name__)

MEASURED = ("validation", "test")


@dataclass(frozen=True, kw_only=True)
class FinetuneJob:
    """What to train, on what, and where to put it.

    Attributes:
        checkpoint: file to start from; None with `from_scratch`.
        from_scratch: a new network in its place, see `compress.training.transfer.build_student`.
        data: "digits", "cifar10:DIR" or "folder:DIR".
        config: settings of the training; its seed also divides the data.
        preset: the recipe that `config` was made from by `preset_config`; its augmentation is used
            where `augment` is None.
        augment: names of `AUGMENTATIONS`; None for the preset's, or none at all.
        output: folder of the run; None names it after what it starts from.
        opening: how the checkpoint is opened; its image size is also that of a new network, where
            it is not the teacher's or the data's.
        new_head: replace the head where it has other classes than the data.
        teacher: checkpoint to distil from.
        teacher_factory: "package.module:function" for a teacher that is not of `compress.models`.
        distillation: how; not read without a teacher.
        device: where to train; None for the best there is.
        resume: refuse to begin a run, only go on with one.
        fresh: discard a run that is in the folder.
        cache: folder of decoded images, or "off"; None takes the usual folder.

    Raises:
        UserInputError: there is both a checkpoint and a new network, or neither.
    """

    checkpoint: Path | None = None
    from_scratch: str | None = None
    data: str
    config: TrainingConfig = field(default_factory=TrainingConfig)
    preset: str | None = None
    augment: tuple[str, ...] | None = None
    output: Path | None = None
    opening: Opening = field(default_factory=lambda: Opening(resample=True, override=True))
    new_head: bool = False
    teacher: Path | None = None
    teacher_factory: str | None = None
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    device: str | None = None
    resume: bool = False
    fresh: bool = False
    cache: Path | str | None = None

    def __post_init__(self) -> None:
        if (self.checkpoint is None) == (self.from_scratch is None):
            raise UserInputError(
                f"checkpoint is {self.checkpoint} and the network to train from scratch "
                f"{self.from_scratch}; expected one of the two to start from"
            )

    @property
    def folder(self) -> Path:
        """Folder of the run."""
        if self.output is not None:
            return self.output
        if self.checkpoint is not None:
            return self.checkpoint.with_name(self.checkpoint.stem + ".finetuned")
        return Path(f"{str(self.from_scratch).partition(':')[0]}.trained")


def finetune_checkpoint(job: FinetuneJob) -> FinetuneReport | None:
    """Train the network of a checkpoint, or a new one; the folder gets a report.json as well.

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
    network, tutor = _open_start(job), _open_teacher(job)
    start = None if network is None else network.checkpoint
    data = _data(job, network, tutor)
    augment = _augment(job, data)
    model = _starting_model(job, network, data)
    check_classes(model, data, known=None if network is None or job.new_head else network.classes)
    teacher = teacher_from(tutor, data) if tutor else None
    before = _accuracies(job, model, data)
    result = fit(
        model,
        data,
        _objective(job, teacher),
        job.config,
        job.folder,
        augment=augment,
        device=device,
        fresh=job.fresh,
        save_meta=_meta(job, start, teacher),
    )
    if not is_main_process():
        return None
    sparsity, histogram = None, None
    if job.config.sparsity_lambda > 0:
        sparsity, histogram = gamma_sparsity(model), job.folder / "gammas.png"
        save_gamma_histogram(model, histogram)
    report = FinetuneReport(
        result=result,
        before=before,
        after=_accuracies(job, model, data),
        sparsity=sparsity,
        histogram=histogram,
        source=_source(job, start),
        distillation=_distillation_report(job, teacher, data) if teacher else None,
        settings=_settings(job, augment, data),
    )
    write_json(job.folder / "report.json", report.to_dict())
    return report


def _open_start(job: FinetuneJob) -> Opened | None:
    if job.checkpoint is None:
        return None
    return open_checkpoint(job.checkpoint, replace(job.opening, resample=True, override=True))


def _open_teacher(job: FinetuneJob) -> Opened | None:
    if job.teacher is None:
        return None
    unsafe = job.opening.unsafe_pickle
    return open_checkpoint(job.teacher, Opening(factory=job.teacher_factory, unsafe_pickle=unsafe))


def _data(job: FinetuneJob, network: Opened | None, tutor: Opened | None) -> ImageData:
    """Load the images as the network takes them; a new network sees what its teacher sees."""
    if network is not None:
        return network.data(job.data, seed=job.config.seed, cache=job.cache)
    size = job.opening.size or (None if tutor is None else tutor.size)
    data = load_data(job.data, image_size=size, seed=job.config.seed, cache=job.cache)
    logger.info("images: %s", data.preprocessing.describe())
    return data


def _augment(job: FinetuneJob, data: ImageData) -> Augment | None:
    side = min(data.preprocessing.size)
    if job.augment is not None:
        config = augmentation(job.augment, side)
    elif job.preset is not None:
        config = AugmentConfig(**preset_augmentation(job.preset, side))
    else:
        config = AugmentConfig()
    off = config == AugmentConfig()
    return None if off else Augment(config, len(data.classes), data.preprocessing)


def _starting_model(job: FinetuneJob, network: Opened | None, data: ImageData) -> nn.Module:
    classes = len(data.classes)
    # A run that goes on compares nothing but names and shapes, so new weights must be the same.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(job.config.seed)
        if network is None:
            size = data.preprocessing.size
            return build_student(str(job.from_scratch), num_classes=classes, image_size=size)
        return transferred(network.model, num_classes=classes if job.new_head else None)


def _objective(job: FinetuneJob, teacher: Teacher | None) -> Objective:
    base = None
    if teacher is not None:
        smoothing = job.config.label_smoothing
        base = distillation(teacher, job.distillation, label_smoothing=smoothing)
    return objective_of(job.config, base)


def _meta(job: FinetuneJob, start: Checkpoint | None, teacher: Teacher | None) -> dict[str, Any]:
    """What the checkpoints say of their origin; a run with another one is another run."""
    if start is None:
        meta: dict[str, Any] = {"from_scratch": job.from_scratch}
    else:
        meta = {**start.meta, "source_sha256": start.sha256}
    if teacher is None:
        return meta
    told = {f"teacher_{name}": teacher.source[name] for name in ("sha256", "arch")}
    return {**meta, "distillation": {**job.distillation.to_dict(), **told}}


def _source(job: FinetuneJob, start: Checkpoint | None) -> dict[str, Any]:
    if start is None:
        return {"from_scratch": job.from_scratch}
    return {"path": str(job.checkpoint), "sha256": start.sha256}


def _settings(job: FinetuneJob, augment: Augment | None, data: ImageData) -> dict[str, Any]:
    return {
        **job.config.to_dict(),
        "data": job.data,
        "preprocessing": data.preprocessing.to_dict(),
        "preset": job.preset,
        "augment": None if augment is None else asdict(augment.config),
        "image_size": job.opening.size,
        "new_head": job.new_head,
    }


def _distillation_report(job: FinetuneJob, teacher: Teacher, data: ImageData) -> DistillationReport:
    measured = teacher.accuracy(
        data,
        MEASURED,
        batch_size=job.config.batch_size,
        device=resolve_device(job.device),
        workers=job.config.workers,
    )
    return DistillationReport(source=teacher.source, config=job.distillation, accuracy=measured)


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
