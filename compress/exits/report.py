"""What an evaluation found, as JSON values and as text for a console."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from compress.exits.calibration import ExitCalibration, GatedCalibration, Oracle
from compress.exits.log_text import deployment_block, sweep_block
from compress.exits.replay import Source
from compress.exits.sweep import ExitReport
from compress.measure.accuracy import Accuracy
from compress.measure.macs import ModelCounts
from compress.measure.versions import hardware, versions

__all__ = ["Evaluation"]

SCHEMA = "compress.evaluate/1"


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The figures of one network on one split.

    Attributes:
        name: of the network.
        counts: its multiply-adds and parameters.
        whole: accuracy of the whole network, without leaving early.
        source: what was run on what.
        swept: figures per threshold of the sweep.
        deployed: figures at the deployed thresholds, or None.
        calibration: per exit, the final head last; empty without exits.
        gated: calibration of what images leave with at the deployed thresholds, or None.
        oracle: the best that the exits could do, or None.
        figures: pictures that were drawn.
        tables: where the replay table of each split lies.
        settings: what else the figures depend on.
    """

    name: str
    counts: ModelCounts
    whole: Accuracy
    source: Source
    swept: tuple[ExitReport, ...] = ()
    deployed: ExitReport | None = None
    calibration: tuple[ExitCalibration, ...] = ()
    gated: GatedCalibration | None = None
    oracle: Oracle | None = None
    figures: tuple[Path, ...] = ()
    tables: Mapping[str, Path] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        return {
            "schema": SCHEMA,
            "network": self.name,
            "macs": self.counts.macs,
            "params": self.counts.params,
            "source": asdict(self.source),
            "settings": dict(self.settings),
            "whole_network": self.whole.to_dict(),
            "sweep": [report.to_dict() for report in self.swept],
            "deployed": self.deployed.to_dict() if self.deployed else None,
            "calibration": [each.to_dict() for each in self.calibration],
            "gated_calibration": self.gated.to_dict() if self.gated else None,
            "oracle": self.oracle.to_dict() if self.oracle else None,
            "figures": [str(path) for path in self.figures],
            "replay": {split: str(path) for split, path in self.tables.items()},
            "versions": versions(),
            "hardware": hardware(),
        }

    def to_text(self) -> str:
        """Return the figures for a console, in the wording of the published logs."""
        lines = [sweep_block(report) for report in self.swept]
        if self.deployed:
            lines.append(deployment_block(self.deployed))
        whole, costs = self.whole, self.counts
        size = f"{costs.params / 1e6:.3f} M params, {costs.macs / 1e6:.2f} M MACs"
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
        lines += [f"table of the {split} split: {path}" for split, path in self.tables.items()]
        if "calibration" in self.tables:
            lines.append(f"plan with: python -m compress.plan_exits {self.tables['calibration']}")
        return "\n".join(lines)

    def _calibration_table(self) -> list[str]:
        names = [str(each.position) for each in self.calibration]
        width = max(6, *map(len, names))
        where = "block" if isinstance(self.calibration[-1].position, int) else "exit"
        head = "accuracy   gate AUROC   temperature     ECE   ECE scaled"
        rows = [f"{where:>{width}}   {head}"]
        rows += [
            f"{name:>{width}} {each.acc1:9.2f}%   {_number(each.auroc):>10}   "
            f"{_number(each.temperature):>11}   {_number(each.ece_before):>5}   "
            f"{_number(each.ece_after):>10}"
            for name, each in zip(names, self.calibration, strict=True)
        ]
        if self.gated and self.deployed:
            rows.append(
                f"{'gated':>{width}} {self.deployed.acc1:9.2f}%   {'-':>10}   {'-':>11}   "
                f"{_number(self.gated.ece_before):>5}   {_number(self.gated.ece_after):>10}"
            )
        return rows


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
