"""Train, fine-tune or distil a checkpoint file: read, measure, train, measure again, report.

The door `python -m compress.finetune` and the recipes call the same function.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
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
from compress.measure.accuracy import Accuracy, evaluate_accuracy
from compress.slimming.sparsity import gamma_sparsity, save_gamma_histogram
from compress.training.config import TrainingConfig
from compress.training.distillation import distillation
from compress.training.distillation_config import DistillationConfig
from compress.training.finetune_report import DistillationReport, FinetuneReport
from compress.training.loop import fit
from compress.training.objectives import Objective, objective_of
from compress.training.presets import AUGMENTATIONS, preset_augmentation
from compress.training.processes import is_main_process, resolve_device
from compress.training.teacher import Teacher, recorded_image_size, teacher_from
from compress.training.transfer import build_student, transferred

__all__ = [
    "FinetuneJob",
    "augmentation",
    "check_classes",
    "finetune_checkpoint",
]

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
        image_size: side in pixels, to which a GFNet is resampled; None takes the one that the
            checkpoint was trained at, from scratch the teacher's, or the data's.
        new_head: replace the head where it has other classes than the data.
        teacher: checkpoint to distil from.
        teacher_factory: "package.module:function" for a teacher that is not of `compress.models`.
        distillation: how; not read without a teacher.
        device: where to train; None for the best there is.
        resume: refuse to begin a run, only go on with one.
        fresh: discard a run that is in the folder.
        factory: "package.module:function" for a network that is not of `compress.models`.
        unsafe_pickle: read whole-module pickles, which runs code from the file.

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
    image_size: int | None = None
    new_head: bool = False
    teacher: Path | None = None
    teacher_factory: str | None = None
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    device: str | None = None
    resume: bool = False
    fresh: bool = False
    factory: str | None = None
    unsafe_pickle: bool = False

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
    start, tutor = _read_start(job), _read_teacher(job)
    data = load_data(job.data, image_size=_image_size(job, start or tutor), seed=job.config.seed)
    augment = _augment(job, data)
    model = _starting_model(job, start, data)
    check_classes(model, data)
    teacher = teacher_from(tutor, data, path=job.teacher) if tutor and job.teacher else None
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
        settings=_settings(job, augment),
    )
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
            f"{len(data.classes)}; expected the same number, or --new-head for a new head"
        )


def _read_start(job: FinetuneJob) -> Checkpoint | None:
    if job.checkpoint is None:
        return None
    return read_checkpoint(job.checkpoint, factory=job.factory, unsafe_pickle=job.unsafe_pickle)


def _read_teacher(job: FinetuneJob) -> Checkpoint | None:
    if job.teacher is None:
        return None
    return read_checkpoint(
        job.teacher, factory=job.teacher_factory, unsafe_pickle=job.unsafe_pickle
    )


def _image_size(job: FinetuneJob, source: Checkpoint | None) -> int | None:
    if job.image_size is not None or source is None:
        return job.image_size
    return recorded_image_size(source)


def _augment(job: FinetuneJob, data: ImageData) -> Augment | None:
    side = data.preprocessing.image_size
    if job.augment is not None:
        config = augmentation(job.augment, side)
    elif job.preset is not None:
        config = AugmentConfig(**preset_augmentation(job.preset, side))
    else:
        config = AugmentConfig()
    off = config == AugmentConfig()
    return None if off else Augment(config, len(data.classes), data.preprocessing)


def _starting_model(job: FinetuneJob, start: Checkpoint | None, data: ImageData) -> nn.Module:
    classes = len(data.classes)
    # A run that goes on compares nothing but names and shapes, so new weights must be the same.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(job.config.seed)
        if start is None:
            side = data.preprocessing.image_size
            return build_student(str(job.from_scratch), num_classes=classes, image_size=side)
        return transferred(
            model_from_checkpoint(start),
            num_classes=classes if job.new_head else None,
            image_size=job.image_size,
        )


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


def _settings(job: FinetuneJob, augment: Augment | None) -> dict[str, Any]:
    return {
        **job.config.to_dict(),
        "data": job.data,
        "preset": job.preset,
        "augment": None if augment is None else asdict(augment.config),
        "image_size": job.image_size,
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
