"""Slim a checkpoint file: read, search a ratio if asked, cut, measure, write."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress.checkpoint import Checkpoint, save
from compress.data.image_data import ImageData
from compress.errors import UserInputError
from compress.files import check_output, write_json
from compress.measure.latency import measure_latency
from compress.measure.macs import count
from compress.models.channel_kinds import counted_form, counts_matrices
from compress.opened import Opening, open_checkpoint
from compress.optional import require
from compress.slimming.best import best_network
from compress.slimming.candidates import Candidate, Mending
from compress.slimming.judge import Evidence, evidence_of
from compress.slimming.report import Figures, SlimReport
from compress.slimming.selection import check_ratio
from compress.slimming.slim import SlimOptions, slim_model
from compress.slimming.source import SlimSource, open_source
from compress.slimming.sparsity import GammaSparsity
from compress.slimming.target import TargetReached, counted_share, find_ratio, image_shape

__all__ = ["SlimJob", "report_path", "slim_checkpoint"]

logger = logging.getLogger(__name__)


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
        opening: how the checkpoint is opened.
        data: where images to compare outputs on come from ("digits", …); None for seeded noise.
        images: the same, loaded already.
        mending: what to try with images of the data; None judges the plain cut and the fold alone,
            by outputs.
        look: is shown every candidate that is tried, and leaves it as it is.
        latency: measure it.
        device: where to measure.
        seed: of the noise, of the split of the data, and of the draw of images.
        cache: folder of decoded images, or "off"; None takes the usual folder.
    """

    checkpoint: Path
    ratios: tuple[float, ...] = ()
    target: tuple[str, float] | None = None
    options: SlimOptions = field(default_factory=SlimOptions)
    output: Path | None = None
    force: bool = False
    write: bool = True
    opening: Opening = field(default_factory=Opening)
    data: str | None = None
    images: ImageData | None = None
    mending: Mending | None = None
    look: Callable[[Candidate], None] | None = None
    latency: bool = True
    device: str = "cpu"
    seed: int = 0
    cache: Path | str | None = None


def slim_checkpoint(job: SlimJob) -> Iterator[SlimReport]:
    """Yield one report per ratio, after its network and report are on disk.

    Raises:
        UserInputError: a file or an option cannot be used; nothing was written then.
        UnsupportedModelError: the network cannot be slimmed.
    """
    for ratio in job.ratios:
        check_ratio(ratio)
    if job.write:
        for ratio in job.ratios:
            _check_outputs(job, ratio)
    source = open_source(
        open_checkpoint(job.checkpoint, job.opening),
        groups=job.options.groups,
        data=job.data if job.images is None else job.images,
        seed=job.seed,
        cache=job.cache,
    )
    evidence = _evidence(job, source)
    target = _search(job, source)
    for ratio in [target.pruning_ratio] if target else job.ratios:
        for sparsity in source.sparsity.values():
            _warn_unless_sparse(sparsity, ratio)
        yield _slim_one(job, source, ratio, target, evidence)


def _evidence(job: SlimJob, source: SlimSource) -> Evidence | None:
    if job.mending is None or source.data is None:
        return None
    macs = count(source.plain, image_shape(source.example)).macs
    return evidence_of(
        source.data,
        source.model,
        images=job.mending.images_for(macs),
        seed=job.seed,
        labelled=source.opened.classes in (None, tuple(source.data.classes)),
    )


def report_path(output: Path) -> Path:
    """Return where the report of a slim checkpoint lies: name.pth -> name.report.json."""
    return output.with_name(output.stem + ".report.json")


def _slim_one(
    job: SlimJob,
    source: SlimSource,
    ratio: float,
    target: TargetReached | None,
    evidence: Evidence | None,
) -> SlimReport:
    tqdm = require("tqdm", "progress bars").tqdm
    with tqdm(total=3, desc=f"slim {ratio}", unit="step", leave=False) as bar:
        bar.set_postfix_str("cutting channels, comparing outputs")
        best = best_network(
            source, ratio, job.options, evidence=evidence, mending=job.mending, look=job.look
        )
        bar.update()
        bar.set_postfix_str("measuring")
        before, after = _measure(job, source, best.result.model)
        bar.update()
        bar.set_postfix_str("writing")
        report = SlimReport(
            result=best.result,
            options=job.options,
            before=before,
            after=after,
            absorption=best.absorption,
            choice=best.choice,
            sparsity=source.sparsity,
            untrained=source.untrained,
            counts_matrices=counts_matrices(source.plain, source.kinds),
            target=target,
            source={"path": str(job.checkpoint), "sha256": source.checkpoint.sha256},
            settings={
                "image_size": source.image_size,
                "preprocessing": source.preprocessing,
                "device": job.device,
                "seed": job.seed,
            },
            output=str(_output(job, ratio)) if job.write else None,
        )
        if job.write:
            _write(report, source.checkpoint, _check_outputs(job, ratio))
        bar.update()
    return report


def _write(report: SlimReport, checkpoint: Checkpoint, output: Path) -> None:
    told = report.to_dict()
    slimming = {
        "pruning_ratio": told["predict_pruned_ratio"],
        **{key: told[key] for key in ("true_pruned_ratio", "threshold", "groups", "options")},
        "made_by": told["made_by"],
        "source_sha256": checkpoint.sha256,
        "versions": told["versions"],
    }
    save(report.result.model, output, meta={**checkpoint.meta, "slimming": slimming})
    write_json(report_path(output), told)


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


def _search(job: SlimJob, source: SlimSource) -> TargetReached | None:
    if job.target is None:
        return None
    kind, wanted = job.target
    if kind == "latency":
        return find_ratio(kind, wanted, _measured_share(job, source), steps=50)
    share = counted_share(kind, source.model, job.options, source.example)
    return find_ratio(kind, wanted, share)


def _measured_share(job: SlimJob, source: SlimSource) -> Callable[[float], float]:
    """Latency of the slim network over that of the unpruned one, both timed in turn."""

    def share_at(ratio: float) -> float:
        result = slim_model(source.model.cpu(), ratio, job.options, example=source.example)
        image = source.example.to(job.device)
        networks = {"before": source.plain.to(job.device), "after": result.model.to(job.device)}
        times = measure_latency(
            {name: (network, image) for name, network in networks.items()}, max_seconds=3
        )
        return times["after"].median_ms / times["before"].median_ms

    return share_at


def _measure(job: SlimJob, source: SlimSource, after: nn.Module) -> tuple[Figures, Figures]:
    before, image = source.plain, source.example
    shape = image_shape(image)
    counts = [count(counted_form(model.cpu(), source.kinds), shape) for model in (before, after)]
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
