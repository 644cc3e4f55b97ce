"""Evaluate a checkpoint file: one pass over a split, everything else from its replay table."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compress.checkpoint import model_from_checkpoint, read_checkpoint
from compress.data.image_data import ImageData
from compress.data.spec import load_data
from compress.errors import UserInputError
from compress.exits.calibration import ExitCalibration, Oracle, calibrate, oracle
from compress.exits.figures import save_exit_rates, save_tradeoff
from compress.exits.log_text import deployment_block, sweep_block
from compress.exits.replay import ReplayTable, Source, fill_replay, load_replay, save_replay
from compress.exits.sweep import ExitReport, evaluate_at, parse_sweep, sweep
from compress.measure.macs import ModelCounts, count
from compress.measure.versions import hardware, versions
from compress.models.early_exit import GFNetDynn, check_exit_positions
from compress.training.accuracy import Accuracy, evaluate_accuracy
from compress.training.job import check_classes
from compress.training.teacher import recorded_image_size

__all__ = ["SCHEMA", "EvaluateJob", "Evaluation", "evaluate_checkpoint"]

SCHEMA = "compress.evaluate/1"


@dataclass(frozen=True, kw_only=True)
class EvaluateJob:
    """What to evaluate, and how.

    Attributes:
        checkpoint: file to read.
        data: "digits", "cifar10:DIR" or "folder:DIR".
        split: the split whose figures are reported.
        sweep: "first:last:step" of thresholds, or None.
        exits: blocks whose exits are deployed; None is all.
        thresholds: one for all deployed exits or one for each; None deploys nothing.
        head_positions: blocks behind which the heads of a foreign checkpoint stand.
        replay: file of the table: read when it is there and fits, else written.
        output: folder for figures, or None.
        image_size: side in pixels; None takes the one that the network was trained at.
        batch_size: images at a time; 1 gives the very decisions of the early return.
        device: where to run.
        factory: "package.module:function" for a network that is not of `compress.models`.
        unsafe_pickle: read whole-module pickles, which runs code from the file.
        seed: of the split of the data.
        progress: show bars on stderr.
    """

    checkpoint: Path
    data: str
    split: str = "test"
    sweep: str | None = None
    exits: tuple[int, ...] | None = None
    thresholds: tuple[float, ...] | None = None
    head_positions: tuple[int, ...] | None = None
    replay: Path | None = None
    output: Path | None = None
    image_size: int | None = None
    batch_size: int = 128
    device: str = "cpu"
    factory: str | None = None
    unsafe_pickle: bool = False
    seed: int = 0
    progress: bool = True


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        name: of the network.
        counts: its multiply-adds and parameters.
        whole: accuracy of the whole network, without leaving early.
        source: what was run on what.
        swept: figures per threshold of the sweep.
        deployed: figures at the deployed thresholds, or None.
        calibration: per exit, the final head last; empty without exits.
        oracle: the best that the exits could do, or None.
        figures: pictures that were drawn.
    """

    name: str
    counts: ModelCounts
    whole: Accuracy
    source: Source
    swept: tuple[ExitReport, ...] = ()
    deployed: ExitReport | None = None
    calibration: tuple[ExitCalibration, ...] = ()
    oracle: Oracle | None = None
    figures: tuple[Path, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        return {
            "schema": SCHEMA,
            "network": self.name,
            "macs": self.counts.macs,
            "params": self.counts.params,
            "source": vars(self.source),
            "whole_network": self.whole.to_dict(),
            "sweep": [report.to_dict() for report in self.swept],
            "deployed": self.deployed.to_dict() if self.deployed else None,
            "calibration": [each.to_dict() for each in self.calibration],
            "oracle": self.oracle.to_dict() if self.oracle else None,
            "figures": [str(path) for path in self.figures],
            "versions": versions(),
            "hardware": hardware(),
        }

    def to_text(self) -> str:
        """Return the figures for a console, in the wording of the published logs."""
        lines = [sweep_block(report) for report in self.swept]
        if self.deployed:
            lines.append(deployment_block(self.deployed))
        whole = self.whole
        size = f"{self.counts.params / 1e6:.3f} M params, {self.counts.macs / 1e6:.2f} M MACs"
        lines += [
            f"whole network {self.name}, {size}, {whole.count} {self.source.split} images:",
            f"* Acc@1 {whole.acc1:.3f} Acc@5 {whole.acc5:.3f} loss {whole.loss:.3f}",
        ]
        if self.calibration:
            lines += ["", *self._calibration_table()]
        if self.oracle:
            lines.append(
                f"leaving at the first right exit would give {self.oracle.acc1:.2f} % at "
                f"{self.oracle.expected_macs / 1e6:.2f} M MACs; {self.oracle.overthinking:.2f} % "
                "of the images an earlier exit has right and the last head wrong"
            )
        lines += [f"written: {path}" for path in self.figures]
        return "\n".join(lines)

    def _calibration_table(self) -> list[str]:
        rows = [" block   accuracy   gate AUROC   temperature   ECE   ECE scaled"]
        for each in self.calibration:
            auroc = "     -" if each.auroc is None else f"{each.auroc:6.3f}"
            rows.append(
                f"{each.position:6d} {each.acc1:9.2f}%   {auroc:>10}   {each.temperature:11.3f}"
                f"   {each.ece_before:.3f}   {each.ece_after:10.3f}"
            )
        return rows


def evaluate_checkpoint(job: EvaluateJob) -> Evaluation:
    """Evaluate a network on a split; with early exits, at every threshold that is asked for.

    Raises:
        UserInputError: an option, the file or the data do not fit one another.
        UnsupportedModelError: the network is not known, or exits are asked of one without.
    """
    thresholds = parse_sweep(job.sweep) if job.sweep else []
    checkpoint = read_checkpoint(
        job.checkpoint,
        factory=job.factory,
        unsafe_pickle=job.unsafe_pickle,
        exits=job.head_positions,
    )
    model = model_from_checkpoint(checkpoint)
    if not isinstance(model, GFNetDynn):
        _expect_no_exits(job, type(model).__name__)
    elif job.exits is not None:
        check_exit_positions(job.exits, len(model.blocks))
    built_for = recorded_image_size(checkpoint)
    data = load_data(job.data, image_size=job.image_size or built_for, seed=job.seed)
    check_classes(model, data)
    size = data.preprocessing.image_size
    found = Evaluation(
        name=str(getattr(model, "display_name", type(model).__name__)),
        counts=count(model, (3, size, size)),
        whole=evaluate_accuracy(
            model, _split(data, job.split), data.normalize, batch_size=job.batch_size,
            device=job.device, progress=job.progress,
        ),
        source=_source(data, job.split, checkpoint.sha256),
    )  # fmt: skip
    if not isinstance(model, GFNetDynn):
        return found
    table = _table(job, model, data, found.source)
    return _with_exits(job, found, model, data, table, thresholds)


def _with_exits(
    job: EvaluateJob,
    found: Evaluation,
    model: GFNetDynn,
    data: ImageData,
    table: ReplayTable,
    thresholds: Sequence[float],
) -> Evaluation:
    swept = sweep(table, thresholds, positions=job.exits)
    deployed = None
    if job.thresholds is not None:
        bars = job.thresholds[0] if len(job.thresholds) == 1 else job.thresholds
        deployed = evaluate_at(table, bars, positions=job.exits)
    source = _source(data, "calibration", found.source.checkpoint_sha256)
    calibration = fill_replay(
        model, _split(data, "calibration"), data.normalize, source,
        batch_size=job.batch_size, device=job.device, progress=job.progress,
    )  # fmt: skip
    return Evaluation(
        name=found.name,
        counts=found.counts,
        whole=found.whole,
        source=found.source,
        swept=tuple(swept),
        deployed=deployed,
        calibration=tuple(calibrate(calibration, table)),
        oracle=oracle(table),
        figures=_draw(job.output, swept, deployed) if job.output else (),
    )


def _table(job: EvaluateJob, model: GFNetDynn, data: ImageData, source: Source) -> ReplayTable:
    if job.replay is not None and job.replay.exists():
        table = load_replay(job.replay)
        if table.source == source and table.positions == tuple(model.config["exits"]):
            return table
        raise UserInputError(
            f"replay table {job.replay} was made from another network or other data "
            f"({table.source.data}, {table.source.split}); remove it, or name another file"
        )
    table = fill_replay(
        model, _split(data, job.split), data.normalize, source,
        batch_size=job.batch_size, device=job.device, progress=job.progress,
    )  # fmt: skip
    if job.replay is not None:
        save_replay(table, job.replay)
    return table


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


def _split(data: ImageData, name: str) -> Any:
    if name not in data.splits:
        raise UserInputError(f"--split is {name!r}; expected one of {', '.join(data.splits)}")
    if len(data.splits[name]) == 0:
        raise UserInputError(
            f"the {name} split of {data.name} is empty; expected at least one image"
        )
    return data.splits[name]


def _source(data: ImageData, split: str, checkpoint_sha256: str) -> Source:
    return Source(
        data=data.name,
        split=split,
        data_sha256=data.sha256,
        checkpoint_sha256=checkpoint_sha256,
    )


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
