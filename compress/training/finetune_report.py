"""What a fine-tuning run reports: accuracy before and after, its teacher, γ, settings and files."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.measure.accuracy import Accuracy
from compress.measure.versions import versions
from compress.slimming.sparsity import GammaSparsity
from compress.training.distillation_config import DistillationConfig
from compress.training.loop import TrainingResult

__all__ = ["DistillationReport", "FinetuneReport"]

SCHEMA = "compress.finetune/1"


@dataclass(frozen=True, kw_only=True)
class DistillationReport:
    """Who taught, and how.

    Attributes:
        source: path, sha256 and architecture of the teacher.
        config: kind, α and T.
        accuracy: of the teacher by split, on the images as the student sees them.
    """

    source: Mapping[str, Any]
    config: DistillationConfig
    accuracy: Mapping[str, Accuracy]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        measured = {split: accuracy.to_dict() for split, accuracy in self.accuracy.items()}
        return {**self.config.to_dict(), "teacher": {**self.source, "accuracy": measured}}

    def to_text(self) -> str:
        """Return one line for a terminal."""
        measured = ", ".join(f"{split} {a.acc1:.2f}%" for split, a in self.accuracy.items())
        softened = f", T {self.config.temperature:g}" if self.config.kind == "soft" else ""
        how = f"{self.config.kind}, α {self.config.alpha:g}{softened}"
        return f"teacher: {self.source['path']} ({measured}); {how}"


@dataclass(frozen=True, kw_only=True)
class FinetuneReport:
    """What training did for a checkpoint.

    Attributes:
        result: of the training.
        before: accuracy of what the training started from, by split.
        after: accuracy of the best epoch by split.
        sparsity: of γ, where it was trained for.
        histogram: figure of γ, likewise.
        source: path and sha256 of the checkpoint, or the name of the new network.
        distillation: the teacher, where there was one.
        settings: of the training, the data and the augmentation.
    """

    result: TrainingResult
    before: Mapping[str, Accuracy]
    after: Mapping[str, Accuracy]
    sparsity: GammaSparsity | None
    histogram: Path | None
    source: dict[str, Any]
    distillation: DistillationReport | None
    settings: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        result = self.result
        return {
            "schema": SCHEMA,
            "versions": versions(),
            "source": self.source,
            "settings": self.settings,
            "distillation": self.distillation.to_dict() if self.distillation else None,
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
        if self.distillation:
            lines.append(self.distillation.to_text())
        early = ", stopped early" if result.stopped_early else ""
        lines.append(f"best epoch: {best['epoch']} of {result.epochs_run}{early}")
        if self.sparsity:
            share, largest = self.sparsity.share_below_1pct, self.sparsity.max
            lines.append(f"γ: {share:.1%} below 1 % of the largest, which is {largest:.4f}")
        return "\n".join([*lines, f"written: {result.best}"])
