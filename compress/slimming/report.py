"""The figures of one slimming, as JSON and as the console block of the original logs."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from compress.measure.latency import Latency
from compress.measure.macs import ModelCounts, log_flops_line
from compress.measure.versions import hardware, versions
from compress.slimming.candidates import Choice
from compress.slimming.slim import LayerWidth, SlimOptions, SlimResult
from compress.slimming.sparsity import GammaSparsity
from compress.slimming.target import TargetReached

__all__ = ["SCHEMA", "Absorption", "Figures", "SlimReport"]

SCHEMA = "compress.slim/1"


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What a network costs.

    Attributes:
        counts: MACs and parameters of one image.
        compute: time of the forward alone; None where it was not measured.
        process: time from image on the host to class on the host.
    """

    counts: ModelCounts
    compute: Latency | None = None
    process: Latency | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        return {
            "macs": self.counts.macs,
            "flops_log_convention": self.counts.flops_log_convention,
            "params": self.counts.params,
            "latency_ms": self.compute.to_dict() if self.compute else None,
            "process_latency_ms": self.process.to_dict() if self.process else None,
            "output_shape": list(self.counts.output_shape),
            "uncounted": list(self.counts.uncounted),
        }

    def log_lines(self) -> list[str]:
        """Return the lines that the original logs print for a network."""
        lines = log_flops_line(self.counts).splitlines()
        if self.compute and self.process:
            lines.append(
                f"one process need {_seconds(self.process)}, "
                f"model compute need: {_seconds(self.compute)}"
            )
        return lines


@dataclass(frozen=True, kw_only=True)
class Absorption:
    """How close the outputs stay to those of the unpruned network, relative, in the 2-norm.

    Attributes:
        applied: whether the written network has the constants folded in.
        error_plain: removed channels simply cut.
        error_absorbed: what they were worth on average folded into the next bias; None where no
            layer of the network can take that up.
        images: what the outputs were compared on.
        not_absorbed: layers where folding was not possible.
        wanted: whether the fold could be kept, were it the better (no `--no-absorb`).
    """

    applied: bool
    error_plain: float
    error_absorbed: float | None
    images: str
    not_absorbed: tuple[str, ...] = ()
    wanted: bool = True

    def sentence(self) -> str:
        """Return one line for the console."""
        if self.error_absorbed is None:
            return (
                "constants of removed channels: not folded, no layer of this network takes them "
                f"up; relative output error {self.error_plain:.3g} on {self.images}"
            )
        if self.applied:
            done = "folded into the next layers"
        else:
            done = "not folded, as that is the worse" if self.wanted else "not folded (--no-absorb)"
        gain = self.error_plain / self.error_absorbed if self.error_absorbed > 0 else float("inf")
        return (
            f"constants of removed channels: {done}; relative output error {self.error_plain:.3g} "
            f"plain, {self.error_absorbed:.3g} folded ({gain:.1f} times closer) on {self.images}"
        )


@dataclass(frozen=True, kw_only=True)
class SlimReport:
    """One slim network with all its figures.

    Attributes:
        result: the network and how it came to be.
        options: how it was slimmed.
        before: what the unpruned network costs.
        after: what the slim one costs.
        absorption: how close their outputs are.
        sparsity: how sparse the trained scales of every kind of channels are.
        untrained: kinds of channels that were ranked by their weights, for want of trained scales.
        counts_matrices: global filters are counted as matrix products, not by FFT.
        source: path and sha256 of the checkpoint.
        settings: what else the figures depend on.
        target: what a search found.
        output: the file that was written.
        choice: what was tried with images of the data, and which of it was written.
    """

    result: SlimResult
    options: SlimOptions
    before: Figures
    after: Figures
    absorption: Absorption
    sparsity: Mapping[str, GammaSparsity]
    source: Mapping[str, Any]
    untrained: tuple[str, ...] = ()
    counts_matrices: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    target: TargetReached | None = None
    output: str | None = None
    choice: Choice | None = None

    @property
    def made_by(self) -> str:
        """What the written network is: "plain", "fold", "repair", …."""
        if self.choice is not None:
            return self.choice.best.name
        return "fold" if self.absorption.applied else "plain"

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the network as JSON values."""
        selection = self.result.selection
        groups = self._groups()
        only = next(iter(groups.values())) if len(groups) == 1 else {}
        return {
            "schema": SCHEMA,
            "source": dict(self.source),
            "output": self.output,
            "predict_pruned_ratio": selection.pruning_ratio,
            "true_pruned_ratio": selection.true_pruned_ratio,
            "threshold": only.get("threshold"),
            "groups": groups,
            "widths": [layer.after for layer in self.result.layers],
            "layers": [layer.to_dict() for layer in self.result.layers],
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
            "kept_whole": dict(self.result.kept_whole),
            "notes": list(self.result.notes),
            "target": asdict(self.target) if self.target else None,
            "absorption": asdict(self.absorption),
            "made_by": self.made_by,
            "choice": self.choice.to_dict() if self.choice else None,
            "gamma": only.get("gamma"),
            "filters_counted_as_matrices": self.counts_matrices,
            "options": asdict(self.options),
            "settings": dict(self.settings),
            "versions": versions(),
            "hardware": hardware(),
        }

    def to_text(self) -> str:
        """Return the block of the original logs, then the table of layers."""
        lines = [*self.before.log_lines(), *self.after.log_lines(), _module_text(self.result.model)]
        lines += [
            *self._selection_lines(),
            str(torch.Size(self.after.counts.output_shape)),
            "",
            *self._layer_table(),
            "",
            *self._notes(),
        ]
        return "\n".join(lines)

    def _groups(self) -> dict[str, dict[str, Any]]:
        """Return the figures of every kind of channels as JSON values.

        A threshold or sparsity for several kinds together would mean nothing, so these stand here.
        """
        return {
            kind: {
                "threshold": selection.threshold,
                "true_pruned_ratio": selection.true_pruned_ratio,
                "channels": sum(selection.totals.values()),
                "channels_kept": sum(selection.widths.values()),
                "ranked_by": "weights" if kind in self.untrained else "scale",
                "gamma": self.sparsity[kind].to_dict() if kind in self.sparsity else None,
            }
            for kind, selection in self.result.by_kind.items()
        }

    def _selection_lines(self) -> list[str]:
        """Return the ratios and thresholds; a threshold as the logs print it: tensor(0.3885)."""
        whole = self.result.selection
        lines = [
            f"predict pruned ratio: {whole.pruning_ratio}",
            f"true pruned ratio: {whole.true_pruned_ratio}",
        ]
        for kind, selection in self.result.by_kind.items():
            if len(self.result.by_kind) > 1:
                lines.append(f"{kind}: true pruned ratio: {selection.true_pruned_ratio}")
            prefix = f"{kind}: " if len(self.result.by_kind) > 1 else ""
            lines.append(f"{prefix}threshold: {torch.tensor(selection.threshold)!s}")
        return lines

    def _layer_table(self) -> list[str]:
        layers = self.result.layers
        name_width = max(len("layer"), *(len(layer.name) for layer in layers))
        kinds = {layer.kind for layer in layers}
        kind_width = 0 if kinds == {"channels"} else 3 + max(len("group"), *map(len, kinds))
        group, score = ("   group", "score") if kind_width else ("", "|γ|")
        head = f"{'layer':{name_width}}{group:{kind_width}}   width before -> after   kept    "
        rows = [f"{head}smallest {score} kept"]
        for layer in layers:
            group = f"   {layer.kind}" if kind_width else ""
            rows.append(
                f"{layer.name:{name_width}}{group:{kind_width}}   {layer.before:12d} -> "
                f"{layer.after:<5d}   {layer.share_kept:6.1%}   {self._smallest_kept(layer)}"
            )
        return rows

    def _smallest_kept(self, layer: LayerWidth) -> str:
        if layer.smallest_kept is None:
            return f"kept whole: {self.result.kept_whole.get(layer.name, 'nothing ranks it')}"
        why = f"   {layer.unrounded}" if layer.unrounded else ""
        return f"{layer.smallest_kept:.4g}{why}"

    def _notes(self) -> list[str]:
        before, after = self.before.counts, self.after.counts
        size = (
            f"MACs {after.macs / before.macs:.1%} and params {after.params / before.params:.1%} "
            f"of the unpruned network are left ({after.macs / 1e9:.4g} G, "
            f"{after.params / 1e6:.4g} M)"
        )
        if self.before.compute and self.after.compute:
            share = self.after.compute.median_ms / self.before.compute.median_ms
            size += f", latency {share:.1%} ({self.after.compute.median_ms:.3g} ms)"
        notes = [size]
        if self.target:
            notes.append(
                f"target {self.target.kind} {self.target.wanted}: reached "
                f"{self.target.reached:.4f} with --ratio {self.target.pruning_ratio}"
            )
        if self.counts_matrices:
            notes.append(
                "global filters are counted as matrix products, before and after; by FFT, as torch "
                "runs them, removed frequencies save nothing"
            )
        if self.untrained:
            kinds = ", ".join(self.untrained)
            notes.append(f"ranked by their weights, not by trained scales: {kinds}")
        notes += self.result.notes
        notes.append((self.choice or self.absorption).sentence())
        if after.uncounted:
            notes.append(f"not counted in MACs: {', '.join(after.uncounted)}")
        if self.output:
            notes.append(f"written: {self.output}")
        return notes


def _seconds(latency: Latency) -> str:
    """Seconds as the logs print them; small networks get the digits that they need."""
    seconds = latency.median_ms / 1000
    return f"{seconds:.3f}s" if seconds >= 0.01 else f"{seconds:.6f}s"


def _module_text(model: nn.Module) -> str:
    """The module as the logs print it: newer versions of torch add a word to every BatchNorm."""
    return str(model).replace("affine=True, bias=True, track", "affine=True, track")
