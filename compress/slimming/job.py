"""Slim a checkpoint file: read, search a ratio if asked, cut, measure, write."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress.checkpoint import Checkpoint, model_from_checkpoint, read_checkpoint, save
from compress.data.image_data import ImageData
from compress.data.spec import load_data
from compress.errors import UnsupportedModelError, UserInputError
from compress.files import check_output, write_json
from compress.measure.latency import measure_latency
from compress.measure.macs import count
from compress.optional import require
from compress.slimming.report import Absorption, Figures, SlimReport
from compress.slimming.scales import channel_scales
from compress.slimming.selection import check_finite, check_ratio
from compress.slimming.slim import SlimOptions, SlimResult, relative_error, slim_model
from compress.slimming.sparsity import GammaSparsity, gamma_sparsity
from compress.slimming.target import TargetReached, counted_share, find_ratio, image_shape

__all__ = ["SlimJob", "report_path", "slim_checkpoint"]

logger = logging.getLogger(__name__)

COMPARED_IMAGES = 4  # enough for a stable relative error, few enough for a VGG-16 on two cores


@dataclass(frozen=True, kw_only=True)
class SlimJob:
    """What to slim and where to put it.

    Attributes:
        checkpoint: file to read.
        ratios: pruning ratios, each gives one network; empty when `target` is given.
        target: ("macs" | "params" | "latency", share that may be left), instead of ratios.
        options: how to slim.
        output: file to write, or folder for several ratios; None names them after the checkpoint.
        force: replace existing outputs.
        write: False only computes and reports.
        factory: "package.module:function" for a network that is not of `compress.models`.
        unsafe_pickle: read whole-module pickles, which runs code from the file.
        image_size: side of the images; None takes the one that the checkpoint records, or 224.
        data: where images to compare outputs on come from ("digits", …); None for seeded noise.
        images: the same, loaded already.
        latency: measure it.
        device: where to measure.
        seed: of the noise.
    """

    checkpoint: Path
    ratios: tuple[float, ...] = ()
    target: tuple[str, float] | None = None
    options: SlimOptions = field(default_factory=SlimOptions)
    output: Path | None = None
    force: bool = False
    write: bool = True
    factory: str | None = None
    unsafe_pickle: bool = False
    image_size: int | None = None
    data: str | None = None
    images: ImageData | None = None
    latency: bool = True
    device: str = "cpu"
    seed: int = 0


def slim_checkpoint(job: SlimJob) -> Iterator[SlimReport]:
    """Yield one report per ratio, after its network and report are on disk.

    Raises:
        UserInputError: a file or an option cannot be used; nothing was written then.
        UnsupportedModelError: the network cannot be slimmed.
    """
    for ratio in job.ratios:
        check_ratio(ratio)
    if job.image_size is not None and job.image_size < 1:
        raise UserInputError(f"--input-size is {job.image_size}; expected at least 1")
    if job.write:
        for ratio in job.ratios:
            _check_outputs(job, ratio)
    checkpoint = read_checkpoint(
        job.checkpoint, factory=job.factory, unsafe_pickle=job.unsafe_pickle
    )
    model = model_from_checkpoint(checkpoint)
    check_finite(channel_scales(model))  # before a forward that would only say "NaN somewhere"
    images, images_name = _images(job, checkpoint, model)
    _check_forward(model, images)
    sparsity = gamma_sparsity(model)
    target = _search(job, model, images[:1])
    for ratio in [target.pruning_ratio] if target else job.ratios:
        _warn_unless_sparse(sparsity, ratio)
        yield _slim_one(job, checkpoint, model, ratio, images, images_name, sparsity, target)


def report_path(output: Path) -> Path:
    """Return where the report of a slim checkpoint lies: name.pth -> name.report.json."""
    return output.with_name(output.stem + ".report.json")


def _slim_one(
    job: SlimJob,
    checkpoint: Checkpoint,
    model: nn.Module,
    ratio: float,
    images: Tensor,
    images_name: str,
    sparsity: GammaSparsity | None,
    target: TargetReached | None,
) -> SlimReport:
    tqdm = require("tqdm", "progress bars").tqdm
    with tqdm(total=4, desc=f"slim {ratio}", unit="step", leave=False) as bar:
        bar.set_postfix_str("cutting channels")
        result = slim_model(model, ratio, job.options, example=images[:1])
        bar.update()
        bar.set_postfix_str("comparing outputs")
        absorption = _compare(job, model, result, images, images_name)
        bar.update()
        bar.set_postfix_str("measuring")
        before, after = _measure(job, model, result.model, images[:1])
        bar.update()
        bar.set_postfix_str("writing")
        report = SlimReport(
            result=result,
            options=job.options,
            before=before,
            after=after,
            absorption=absorption,
            sparsity=sparsity,
            target=target,
            source={"path": str(job.checkpoint), "sha256": checkpoint.sha256},
            settings={"image_size": images.shape[-1], "device": job.device, "seed": job.seed},
            output=str(_output(job, ratio)) if job.write else None,
        )
        if job.write:
            _write(report, checkpoint, _check_outputs(job, ratio))
        bar.update()
    return report


def _write(report: SlimReport, checkpoint: Checkpoint, output: Path) -> None:
    selection = report.result.selection
    meta = {
        **checkpoint.meta,
        "slimming": {
            "pruning_ratio": selection.pruning_ratio,
            "true_pruned_ratio": selection.true_pruned_ratio,
            "threshold": selection.threshold,
            "options": report.to_dict()["options"],
            "source_sha256": checkpoint.sha256,
            "versions": report.to_dict()["versions"],
        },
    }
    save(report.result.model, output, meta=meta)
    write_json(report_path(output), report.to_dict())


def _output(job: SlimJob, ratio: float) -> Path:
    suffix = ".safetensors" if job.checkpoint.suffix == ".safetensors" else ".pth"
    own_name = f"{job.checkpoint.stem}.slim-{ratio}{suffix}"
    if job.output is None:
        return job.checkpoint.with_name(own_name)
    return job.output / own_name if len(job.ratios) > 1 else job.output


def _check_outputs(job: SlimJob, ratio: float) -> Path:
    output = _output(job, ratio)
    if output.resolve() == job.checkpoint.resolve():
        raise UserInputError(f"output {output} is the checkpoint itself; give another name with -o")
    check_output(output, force=job.force)
    check_output(report_path(output), force=job.force)
    return output


def _images(job: SlimJob, checkpoint: Checkpoint, model: nn.Module) -> tuple[Tensor, str]:
    """Images (N, C, S, S) to trace, compare and time with, and what they are."""
    recorded = checkpoint.meta.get("preprocessing", {}).get("image_size")
    size = job.image_size or recorded or 224
    data = job.images
    if data is None and job.data is not None:
        data = load_data(job.data, image_size=size, seed=job.seed)
    if data is not None:
        split = data.splits["calibration"]
        first = split.images(torch.arange(min(COMPARED_IMAGES, len(split))))
        return data.normalize(first), f"{len(first)} calibration images of {data.name}"
    channels = getattr(model, "config", {}).get("in_channels", 3)
    generator = torch.Generator().manual_seed(job.seed)
    noise = torch.randn(COMPARED_IMAGES, channels, size, size, generator=generator)
    return noise, f"{COMPARED_IMAGES} images of noise (seed {job.seed})"


def _check_forward(model: nn.Module, images: Tensor) -> None:
    try:
        with torch.inference_mode():
            output = model(images[:1])
    except Exception as err:  # whatever the layers raise for a size that they cannot take
        raise UserInputError(
            f"the network does not take images of {tuple(images.shape[1:])}: {err}; "
            "give the size that it was trained with by --input-size"
        ) from err
    if isinstance(output, Tensor) and not torch.isfinite(output).all():
        raise UnsupportedModelError(
            "the network computes NaN or infinity before anything is removed; its weights are "
            "damaged or its training diverged, so take an earlier checkpoint"
        )


def _search(job: SlimJob, model: nn.Module, example: Tensor) -> TargetReached | None:
    if job.target is None:
        return None
    kind, wanted = job.target
    if kind == "latency":
        return find_ratio(kind, wanted, _measured_share(job, model, example), steps=50)
    share = counted_share(kind, model, job.options, example)
    return find_ratio(kind, wanted, share)


def _measured_share(job: SlimJob, model: nn.Module, example: Tensor) -> Callable[[float], float]:
    """Latency of the slim network over that of the unpruned one, both timed in turn."""

    def share_at(ratio: float) -> float:
        slim = slim_model(model, ratio, job.options, example=example).model.to(job.device)
        image = example.to(job.device)
        times = measure_latency(
            {"before": (model.to(job.device), image), "after": (slim, image)}, max_seconds=6
        )
        return times["after"].median_ms / times["before"].median_ms

    return share_at


def _compare(
    job: SlimJob, model: nn.Module, result: SlimResult, images: Tensor, images_name: str
) -> Absorption:
    other_options = SlimOptions(
        round_to=job.options.round_to,
        min_channels=job.options.min_channels,
        ignore=job.options.ignore,
        absorb=not job.options.absorb,
    )
    ratio = result.selection.pruning_ratio
    other = slim_model(model, ratio, other_options, example=images[:1])
    errors = [relative_error(slim.model, model, images) for slim in (result, other)]
    absorbed, plain = errors if job.options.absorb else reversed(errors)
    return Absorption(
        applied=job.options.absorb,
        error_plain=plain,
        error_absorbed=absorbed,
        images=images_name,
        not_absorbed=result.not_absorbed if job.options.absorb else other.not_absorbed,
    )


def _measure(
    job: SlimJob, before: nn.Module, after: nn.Module, image: Tensor
) -> tuple[Figures, Figures]:
    shape = image_shape(image)
    counts = [count(model.cpu(), shape) for model in (before, after)]
    if not job.latency:
        return Figures(counts=counts[0]), Figures(counts=counts[1])
    models = {"before": before.to(job.device), "after": after.to(job.device)}
    on_device = image.to(job.device)
    subjects: dict[str, Any] = {name: (model, on_device) for name, model in models.items()}
    subjects |= {
        f"{name}, process": _process(model, image, job.device) for name, model in models.items()
    }
    times = measure_latency(subjects, min_iterations=10, max_seconds=8)
    before.cpu(), after.cpu()
    first, second = (
        Figures(counts=c, compute=times[name], process=times[f"{name}, process"])
        for name, c in zip(models, counts, strict=True)
    )
    return first, second


def _process(model: nn.Module, image: Tensor, device: str) -> Callable[[], Any]:
    """One image as a camera gives it, through the network, to a class on the host."""
    raw = (image.clamp(-1, 1) * 127.5 + 127.5).to(torch.uint8)
    return lambda: model(raw.to(device).float().div_(127.5).sub_(1)).flatten(1).argmax(1).tolist()


def _warn_unless_sparse(sparsity: GammaSparsity | None, ratio: float) -> None:
    if sparsity and ratio > 0 and not sparsity.is_sparse:
        logger.warning(
            "note: only %.1f %% of γ lie below 1 %% of the largest (%.3g to %.3g): this network "
            "was hardly trained for slimming, so expect to need fine-tuning "
            "(train with: python -m compress.finetune --sparsity-lambda 1e-4)",
            100 * sparsity.share_below_1pct,
            sparsity.min,
            sparsity.max,
        )
