"""Evaluate a checkpoint file: one pass over a split, everything else from its replay table."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import nn

from compress.data.image_data import ImageData
from compress.errors import UserInputError
from compress.exits.calibration import calibrate, calibrate_gated, oracle
from compress.exits.figures import save_exit_rates, save_tradeoff
from compress.exits.replay import (
    ReplayTable,
    Source,
    decide,
    exit_numbers,
    fill_replay,
    load_replay,
    save_replay,
)
from compress.exits.report import Evaluation
from compress.exits.sweep import ExitReport, evaluate_at, parse_sweep, sweep, whole_network
from compress.files import write_json
from compress.measure.accuracy import Accuracy, evaluate_accuracy
from compress.measure.macs import count
from compress.models.with_exits import WithExits
from compress.opened import Opened, Opening, check_classes, open_checkpoint
from compress.runtime.exit_spelling import Position
from compress.runtime.thresholds import check_thresholds

__all__ = ["EvaluateJob", "calibration_file", "evaluate_checkpoint"]

CALIBRATION = "calibration"


@dataclass(frozen=True, kw_only=True)
class EvaluateJob:
    """What to evaluate, and how.

    Attributes:
        checkpoint: file to read.
        data: "digits", "cifar10:DIR" or "folder:DIR".
        split: the split whose figures are reported.
        sweep: "first:last:step" of thresholds, or None.
        exits: positions of the exits that are deployed; None is all.
        thresholds: one for all deployed exits or one for each; None deploys nothing.
        replay: file of the table, read where it is there, else written; that of the calibration
            split lies beside it, see `calibration_file`.
        output: folder for figures and report.json, or None.
        opening: how the checkpoint is opened.
        batch_size: images at a time; 1 gives the very decisions of the early return.
        device: where to run.
        seed: of the split of the data.
        cache: folder of decoded images, or "off"; None takes the usual folder.
        progress: show bars on stderr.
    """

    checkpoint: Path
    data: str
    split: str = "test"
    sweep: str | None = None
    exits: tuple[Position, ...] | None = None
    thresholds: tuple[float, ...] | None = None
    replay: Path | None = None
    output: Path | None = None
    opening: Opening = field(default_factory=Opening)
    batch_size: int = 128
    device: str = "cpu"
    seed: int = 0
    cache: Path | str | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UserInputError(f"--batch-size is {self.batch_size}; expected at least 1")
        if self.exits is not None and self.sweep is None and self.thresholds is None:
            raise UserInputError(
                "--exits was given, but no threshold to deploy them at; expected --threshold or "
                "--sweep too"
            )


def evaluate_checkpoint(job: EvaluateJob) -> Evaluation:
    """Evaluate a network on a split; with early exits, at every threshold that is asked for.

    Raises:
        UserInputError: an option, the file or the data do not fit one another.
        UnsupportedModelError: the network is not known.
        CompressError: the network gives NaN.
    """
    thresholds = parse_sweep(job.sweep) if job.sweep else []
    network = open_checkpoint(job.checkpoint, job.opening)
    model = network.model
    _check_options(job, model)
    data = network.data(job.data, seed=job.seed, cache=job.cache)
    _check_data(job, network, data)
    scene = _Scene(job=job, data=data, network=network)
    if isinstance(model, WithExits):
        found = _with_exits(scene, model, thresholds)
    else:
        found = _whole(scene, model, _accuracy(scene, model))
    if job.output is not None:
        write_json(job.output / "report.json", found.to_dict())
    return found


def calibration_file(replay: Path) -> Path:
    """Return where the table of the calibration split lies: t.npz -> t.calibration.npz."""
    return replay.with_name(f"{replay.stem}.calibration{replay.suffix}")


@dataclass(frozen=True, kw_only=True)
class _Scene:
    """A job with what was read for it."""

    job: EvaluateJob
    data: ImageData
    network: Opened

    def source(self, split: str) -> Source:
        return Source(
            data=self.data.name,
            split=split,
            data_sha256=self.data.sha256,
            checkpoint_sha256=self.network.checkpoint.sha256,
        )


def _whole(scene: _Scene, model: nn.Module, accuracy: Accuracy) -> Evaluation:
    job, prepared = scene.job, scene.data.preprocessing
    return Evaluation(
        name=scene.network.display_name,
        counts=count(model, prepared.shape),
        whole=accuracy,
        source=scene.source(job.split),
        settings={
            "image_size": prepared.to_dict()["image_size"],
            "preprocessing": prepared.to_dict(),
            "batch_size": job.batch_size,
            "device": job.device,
        },
    )


def _with_exits(scene: _Scene, model: WithExits, thresholds: Sequence[float]) -> Evaluation:
    job = scene.job
    table = _table(scene, model, job.split, job.replay)
    beside = None if job.replay is None else calibration_file(job.replay)
    same = job.split == CALIBRATION
    calibration = calibrate(table if same else _table(scene, model, CALIBRATION, beside), table)
    swept = sweep(table, thresholds, positions=job.exits)
    deployed, gated = None, None
    if job.thresholds is not None:
        deployed = evaluate_at(table, _bars(job), positions=job.exits)
        taken = decide(table, _bars(job), exits=table.subset(job.exits))
        gated = calibrate_gated(table, taken, calibration)
    return replace(
        _whole(scene, model, whole_network(table)),
        swept=tuple(swept),
        deployed=deployed,
        calibration=tuple(calibration),
        gated=gated,
        oracle=oracle(table),
        figures=_draw(job.output, swept, deployed) if job.output else (),
        tables=_table_files(job),
    )


def _table_files(job: EvaluateJob) -> dict[str, Path]:
    """Where the table of each split lies. The split that was asked for need not be calibration."""
    if job.replay is None:
        return {}
    if job.split == CALIBRATION:
        return {CALIBRATION: job.replay}
    return {job.split: job.replay, CALIBRATION: calibration_file(job.replay)}


def _table(scene: _Scene, model: WithExits, split: str, file: Path | None) -> ReplayTable:
    """Return the table that the file holds, or run the network and put it there."""
    job, source = scene.job, scene.source(split)
    if file is not None and file.exists():
        known = load_replay(file)
        if known.source == source and known.positions == model.positions:
            return known
        raise UserInputError(
            f"replay table {file} was made from another network or other data "
            f"({known.source.data}, {known.source.split}); remove it, or name another file"
        )
    table = fill_replay(
        model, scene.data.splits[split], scene.data.normalize, source,
        batch_size=job.batch_size, device=job.device, progress=job.progress,
    )  # fmt: skip
    if file is not None:
        save_replay(table, file)
    return table


def _accuracy(scene: _Scene, model: nn.Module) -> Accuracy:
    job = scene.job
    return evaluate_accuracy(
        model, scene.data.splits[job.split], scene.data.normalize,
        batch_size=job.batch_size, device=job.device, progress=job.progress,
    )  # fmt: skip


def _draw(
    folder: Path, swept: Sequence[ExitReport], deployed: ExitReport | None
) -> tuple[Path, ...]:
    drawn = []
    if deployed is not None:
        drawn.append(folder / "exit_rates.svg")
        save_exit_rates(deployed, drawn[-1])
    if swept:
        drawn.append(folder / "tradeoff.svg")
        save_tradeoff(swept, drawn[-1], chosen=deployed)
    return tuple(drawn)


def _bars(job: EvaluateJob) -> float | tuple[float, ...]:
    bars = job.thresholds or ()
    return bars[0] if len(bars) == 1 else bars


def _check_options(job: EvaluateJob, model: nn.Module) -> None:
    """Before hours of running, not after."""
    if not isinstance(model, WithExits):
        _expect_no_exits(job, type(model).__name__)
        return
    positions = model.positions
    chosen = exit_numbers(positions if job.exits is None else job.exits, positions)
    if job.thresholds is not None:
        check_thresholds(_bars(job), len(chosen))


def _check_data(job: EvaluateJob, network: Opened, data: ImageData) -> None:
    model = network.model
    if job.split not in data.splits:
        raise UserInputError(f"--split is {job.split!r}; expected one of {', '.join(data.splits)}")
    for split in (job.split, CALIBRATION) if isinstance(model, WithExits) else (job.split,):
        if len(data.splits[split]) == 0:
            raise UserInputError(
                f"the {split} split of {data.name} is empty; expected at least one image"
            )
    check_classes(model, data, known=network.classes)


def _expect_no_exits(job: EvaluateJob, name: str) -> None:
    options = {
        "--sweep": job.sweep,
        "--exits": job.exits,
        "--threshold": job.thresholds,
        "--replay": job.replay,
    }
    asked = [option for option, value in options.items() if value is not None]
    if asked:
        raise UserInputError(
            f"{asked[0]} was given, but {name} has no early exits; expected a network with "
            "intermediate heads and gates, or leave the option out"
        )
