"""From a checkpoint file to a bundle that is checked against torch before it is kept."""

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from compress.data.image_data import ImageData
from compress.errors import ToolchainError, UserInputError
from compress.exits.recalibrate import Recalibration, recalibrated
from compress.exits.replay import ReplayTable, Source, fill_replay
from compress.export.bundle import (
    INT8_IMAGES,
    SegmentFiles,
    foreign_in_bundle,
    is_bundle,
    write_segments,
)
from compress.export.bundle_replay import reference_rates, replay_bundle
from compress.export.onnx_file import onnx_session
from compress.export.parity import BundleParity, check_parity, measure_parity
from compress.export.probe import with_probe
from compress.export.source import ExportSource, open_export
from compress.export.targets import target
from compress.files import replacing_folder
from compress.measure.versions import hardware, versions
from compress.models.with_exits import WithExits
from compress.opened import Opening
from compress.runtime.cuda import probe_cuda
from compress.runtime.engine_builder import build_engines
from compress.runtime.engine_check import check_engines
from compress.runtime.engines import EngineSet
from compress.runtime.exit_spelling import Position, spelled
from compress.runtime.manifest import Manifest, write_manifest
from compress.runtime.preprocessing import Preprocessing

__all__ = [
    "BUILDERS",
    "ExportJob",
    "ExportReport",
    "checkpoint_bundle",
    "export_checkpoint",
    "parse_batch",
]

logger = logging.getLogger(__name__)

BUILDERS = ("auto", "tensorrt", "tensorrt-rtx", "none")
CALIBRATION = "calibration"


@dataclass(frozen=True, kw_only=True)
class ExportJob:
    """What to export, and how.

    Attributes:
        checkpoint: file to read.
        output: folder of the bundle.
        split_exits: one segment an exit; off, the whole network is one segment.
        exits: where exits are exported, by paths of modules or numbers of blocks; None is all that
            there are.
        thresholds: one for all or one for each; None takes the plan's, else 0.5.
        plan: file that names exits and thresholds, or None.
        target: name of what the files are written for, see `compress.export.targets`.
        precision: "fp32", "fp16" or "int8".
        max_batch: the most images that a segment takes at a time.
        builder: one of `BUILDERS`; "auto" builds engines where the target is here.
        data: "digits", "cifar10:DIR", "folder:DIR", or the images; None takes what is recorded.
        opening: how the checkpoint is opened.
        tolerance: largest relative error of an output of an image; None takes the precision's.
        keep_int8: keep int8 in segments that it does not make faster here, too.
        force: replace a bundle that is there.
        seed: of the split of the data, and of noise.
        cache: folder of decoded images, or "off"; None takes the usual folder.
        progress: show bars on stderr.
    """

    checkpoint: Path
    output: Path
    split_exits: bool = False
    exits: tuple[Position, ...] | None = None
    thresholds: float | tuple[float, ...] | None = None
    plan: Path | None = None
    target: str = "jetpack6.2"
    precision: str = "fp32"
    max_batch: int = 1
    builder: str = "auto"
    data: str | ImageData | None = None
    opening: Opening = field(default_factory=Opening)
    tolerance: float | None = None
    keep_int8: bool = False
    force: bool = False
    seed: int = 0
    cache: Path | str | None = None
    progress: bool = True


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What was exported.

    Attributes:
        bundle: its folder.
        manifest: as written.
        parity: how well the files agree with torch.
        sizes: bytes of each segment's file.
        recalibration: thresholds and exit rates before and after quantisation, or None.
        engines: those that were built, or None.
        next_step: what is left to do on the device, or "".
    """

    bundle: Path
    manifest: Manifest
    parity: BundleParity
    sizes: tuple[int, ...]
    recalibration: Recalibration | None
    engines: EngineSet | None
    next_step: str

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {
            "schema": "compress.export/1",
            "bundle": str(self.bundle),
            "manifest": self.manifest.to_dict(),
            "sizes": list(self.sizes),
            "recalibration": self.recalibration.to_dict() if self.recalibration else None,
            "engines": self.engines.to_dict() if self.engines else None,
            "next_step": self.next_step,
        }

    def to_text(self) -> str:
        """Return the figures for a console."""
        manifest, parity = self.manifest, self.parity
        batch = "batch 1" if manifest.batch[1] == 1 else f"batch 1 to {manifest.batch[1]}"
        lines = [
            f"{manifest.name} for {manifest.target} (opset {manifest.opset}), {batch}",
            *_table(
                ("segment", "exit behind", "crosses", "precision", "threshold", "MACs", "size"),
                [_row(manifest, i, size) for i, size in enumerate(self.sizes)],
            ),
        ]
        lines.append(
            f"against torch on {parity.images_name}: worst relative error "
            f"{parity.worst_relative_error:.1e}, {_agreeing(parity)}"
        )
        if manifest.further_outputs:
            lines.append(_outputs_line(parity))
        if self.recalibration is not None:
            lines.append(f"quantised: {self.recalibration.to_text()}")
        lines.append(f"written: {self.bundle}")
        return "\n".join([*lines, *([self.next_step] if self.next_step else [])])


def _row(manifest: Manifest, number: int, size: int) -> tuple[str, ...]:
    """Return what a line of the table tells of a segment."""
    segment = manifest.segments[number]
    crosses = manifest.living(number)
    kib = sum(spec.image_bytes for spec in crosses) / 1024
    return (
        str(number),
        "-" if segment.at is None else str(spelled(segment.at)),
        f"{len(crosses)}, {kib:.1f} KiB" if crosses else "-",
        segment.precision,
        "-" if segment.threshold is None else f"{segment.threshold:.4g}",
        f"{segment.macs / 1e6:.2f} M",
        f"{size / 1e6:.2f} MB",
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return lines whose columns end below one another."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in (head, *rows)
    ]


def _agreeing(parity: BundleParity) -> str:
    if parity.top1_agreement is None:
        return "no classes to compare"
    return f"same class {parity.top1_agreement:.2%}, same exit {parity.exit_agreement:.2%}"


def _outputs_line(parity: BundleParity) -> str:
    """Tell the outputs and the error of each."""
    return "outputs: " + ", ".join(f"{n} {e:.1e}" for n, e in parity.output_errors.items())


def export_checkpoint(job: ExportJob) -> ExportReport:
    """Export a checkpoint as a bundle; nothing is left where something fails.

    Raises:
        UserInputError: a file or an option cannot be used, or they do not fit one another.
        UnsupportedModelError: torch, the target or the quantiser cannot handle the network.
        AccuracyError: the files compute something else than torch.
        ToolchainError: a package or a builder that was asked for is missing.
    """
    chosen = target(job.target)
    _check(job)
    if job.precision == "int8" and chosen.int8_note:
        logger.warning("note: %s", chosen.int8_note)
    source = open_export(
        job.checkpoint,
        split_exits=job.split_exits,
        exits=job.exits,
        thresholds=job.thresholds,
        plan=job.plan,
        data=job.data,
        opening=job.opening,
        seed=job.seed,
        cache=job.cache,
    )
    with replacing_folder(job.output, foreign_in=foreign_in_bundle) as folder:
        files = write_segments(
            source,
            folder,
            target=chosen,
            precision=job.precision,
            max_batch=job.max_batch,
            keep_int8=job.keep_int8,
            calibration=_calibration_images(job, source),
        )
        manifest = _manifest(job, source, files)
        write_manifest(manifest, folder)  # with which the files can be replayed
        replay = functools.cache(lambda: _bundle_table(job, source, folder))  # one pass at most
        manifest, recalibration = _recalibrated(job, source, manifest, replay)
        parity = _parity(source, files, manifest, folder)
        check_parity(parity, job.precision, tolerance=job.tolerance)
        manifest = replace(manifest, parity=parity.to_dict())
        manifest = _with_reference_rates(source, manifest, replay)
        manifest = with_probe(source.images.numpy(), manifest, folder)
        write_manifest(manifest, folder)
        engines, next_step = _engines(job, folder)
        sizes = tuple((folder / segment.file).stat().st_size for segment in manifest.segments)
    return ExportReport(
        bundle=job.output,
        manifest=manifest,
        parity=parity,
        sizes=sizes,
        recalibration=recalibration,
        engines=engines,
        next_step=next_step,
    )


def _check(job: ExportJob) -> None:
    """Before a minute of exporting, not after."""
    if job.builder not in BUILDERS:
        raise UserInputError(f"--builder is {job.builder!r}; expected one of {', '.join(BUILDERS)}")
    if job.output.exists() and not is_bundle(job.output):
        raise UserInputError(
            f"output {job.output} exists and is no bundle; give another name with -o/--output"
        )
    if job.output.exists() and not job.force:
        raise UserInputError(
            f"output {job.output} exists; give another name with -o/--output, or --force to "
            "replace it"
        )


def _calibration_images(job: ExportJob, source: ExportSource) -> torch.Tensor | None:
    if job.precision != "int8":
        return None
    if source.data is None or source.preprocessing is None:
        raise UserInputError(
            "--precision int8 was given without images to calibrate on; expected --data SPEC"
        )
    split = source.data.splits[CALIBRATION]
    first = split.images(torch.arange(min(INT8_IMAGES, len(split))))
    return source.preprocessing.normalize(first)


def _manifest(job: ExportJob, source: ExportSource, files: SegmentFiles) -> Manifest:
    prepared = source.preprocessing
    return Manifest(
        name=getattr(source.model, "display_name", type(source.model).__name__.lower()),
        classes=source.classes,
        preprocessing=None if prepared is None else Preprocessing.from_dict(prepared.to_dict()),
        batch=(1, job.max_batch),
        target=job.target,
        opset=files.opset,
        segments=files.segments,
        provenance={
            "checkpoint": job.checkpoint.name,
            "checkpoint_sha256": source.checkpoint.sha256,
            "plan": source.plan.to_dict() if source.plan else None,
            "versions": versions(),
            "hardware": hardware(),
        },
        notes=files.notes,
    )


def _bundle_table(job: ExportJob, source: ExportSource, folder: Path) -> ReplayTable:
    """What the files of a bundle say of the calibration split; thresholds have no part in it."""
    if source.data is None:
        raise TypeError("a table needs images")
    split = source.data.splits[CALIBRATION]
    return replay_bundle(folder, split, _origin(source, source.data), progress=job.progress)


def _recalibrated(
    job: ExportJob,
    source: ExportSource,
    manifest: Manifest,
    replay: Callable[[], ReplayTable],
) -> tuple[Manifest, Recalibration | None]:
    """Move thresholds that quantisation shifted the scores of, so that as many images leave."""
    if job.precision != "int8" or not source.thresholds or source.data is None:
        return manifest, None
    found = recalibrated(_torch_table(job, source), replay(), source.thresholds)
    notes = {**manifest.notes, "recalibration": found.to_dict()}
    return replace(manifest.with_thresholds(found.thresholds), notes=notes), found


def _with_reference_rates(
    source: ExportSource, manifest: Manifest, replay: Callable[[], ReplayTable]
) -> Manifest:
    """Note what the bundle does on calibration data, which a monitor compares a stream with."""
    if source.data is None or source.preprocessing is None or manifest.exits == 0:
        return manifest
    rates = reference_rates(replay(), manifest.thresholds)
    return replace(manifest, notes={**manifest.notes, "calibration": rates.to_dict()})


def _origin(source: ExportSource, data: ImageData) -> Source:
    return Source(
        data=data.name,
        split=CALIBRATION,
        data_sha256=data.sha256,
        checkpoint_sha256=source.checkpoint.sha256,
    )


def _torch_table(job: ExportJob, source: ExportSource) -> ReplayTable:
    if not isinstance(source.model, WithExits) or source.data is None:
        raise TypeError("a table needs exits and images")
    if source.preprocessing is None:
        raise TypeError("a table needs images that are prepared in a known way")
    origin = _origin(source, source.data)
    return fill_replay(
        source.model,
        source.data.splits[CALIBRATION],
        source.preprocessing.normalize,
        origin,
        progress=job.progress,
    )


def _parity(
    source: ExportSource, files: SegmentFiles, manifest: Manifest, folder: Path
) -> BundleParity:
    return measure_parity(
        files.network,
        [
            onnx_session(folder / segment.file, half=segment.precision == "fp16")
            for segment in files.segments
        ],
        None if files.in_float is None else [onnx_session(each) for each in files.in_float],
        source.images,
        manifest.thresholds,
        outputs=[spec.name for spec in manifest.segments[-1].outputs],
        batch=manifest.batch[1],
        images_name=source.images_name,
    )


def _engines(job: ExportJob, folder: Path) -> tuple[EngineSet | None, str]:
    builder = job.builder
    if builder == "auto":
        builder = _builder_here(job.target)
    if builder != "none":
        engines = build_engines(folder, builder=builder)
        check_engines(folder, engines)
        return engines, ""
    if job.target == "onnxruntime":
        return None, ""
    return None, (
        "no engines were built, as they fit the device they are built on; there run: "
        f"python -m compress.build_engines {job.output.name}"
    )


def _builder_here(target_name: str) -> str:
    """The builder whose engines this machine can make and the target can run."""
    if target_name == "tensorrt-rtx":
        return "tensorrt-rtx" if find_spec("tensorrt_rtx") else "none"
    if target_name == "onnxruntime" or find_spec("tensorrt") is None:
        return "none"
    try:
        probe_cuda()
    except ToolchainError:
        return "none"
    return "tensorrt"


def parse_batch(text: str) -> int:
    """Return the largest batch of "1" or "1:32".

    Raises:
        UserInputError: it has another form.
    """
    first, colon, last = text.partition(":")
    try:
        numbers = [int(part) for part in ([first, last] if colon else [first])]
    except ValueError:
        numbers = []
    if not numbers or numbers[0] != 1 or numbers[-1] < 1:
        raise UserInputError(
            f"--batch is {text!r}; expected 1, or 1:N for up to N images at a time: they leave one "
            "by one, so any smaller number must do too"
        )
    return numbers[-1]


def checkpoint_bundle(checkpoint: Path) -> Path:
    """Return where the bundle of a checkpoint goes by default: best.pth -> best.bundle."""
    return checkpoint.with_suffix(".bundle")
