"""Write the segments of a network as the files of a bundle."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress.export.deployed_form import deployed_form, in_half
from compress.export.graph import graph_from_module
from compress.export.lint import check_lint
from compress.export.lowering import lowered
from compress.export.quantise import faster_than, quantised
from compress.export.segments import SegmentModule, split_network
from compress.export.simplify import simplified
from compress.export.source import ExportSource
from compress.export.targets import Target
from compress.files import sha256_of
from compress.measure.exit_macs import exit_check_macs
from compress.models.early_exit import GFNetDynn
from compress.runtime.manifest import Segment

__all__ = ["SegmentFiles", "foreign_in_bundle", "is_bundle", "write_segments"]

FILES = (
    *("manifest.json", "segment_*.onnx", "segment_*.engine", "engines.json", "timing.cache"),
    ".*.part",  # what a killed writer left
)
INT8_IMAGES = 128  # of calibration; more moved no scale on the data at hand


@dataclass(frozen=True, kw_only=True)
class SegmentFiles:
    """The written files.

    Attributes:
        segments: as the manifest describes them.
        opset: of the files.
        reference: the same segments in torch, float32.
        notes: what the manifest notes about them.
    """

    segments: tuple[Segment, ...]
    opset: int
    reference: tuple[SegmentModule, ...]
    notes: dict[str, Any]


def write_segments(
    source: ExportSource,
    folder: Path,
    *,
    target: Target,
    precision: str,
    max_batch: int,
    keep_int8: bool = False,
    calibration: Tensor | None = None,
) -> SegmentFiles:
    """Write `segment_0.onnx` … into a folder.

    Args:
        source: an opened checkpoint.
        folder: that exists.
        target: what the files are written for.
        precision: "fp32", "fp16" or "int8".
        max_batch: 1 writes files for one image, more leaves the batch free.
        keep_int8: keep int8 in segments that it does not make faster here, too.
        calibration: (N, C, H, W) for the scales of int8.

    Raises:
        UnsupportedModelError: torch, the target or the quantiser cannot handle a segment.
        ToolchainError: a package is missing.
    """
    network = deployed_form(source.model)
    reference = _split(source, network)
    exported = _split(source, in_half(network)) if precision == "fp16" else reference
    examples = _inputs(reference, source.images[:2])
    feeds = None if calibration is None else _inputs(reference, calibration[:INT8_IMAGES])
    notes: dict[str, Any] = {}
    if isinstance(network, GFNetDynn) and source.thresholds:
        notes["check_macs"] = exit_check_macs(network)
    written, gains = [], []
    for i, module in enumerate(exported):
        graph = _float_graph(module, examples[i], target, max_batch)
        kept, gain = precision, None
        if precision == "int8" and feeds is not None:
            int8, gain = _int8_graph(graph, module, feeds[i], target, max_batch)
            if gain is None or gain > 1 or keep_int8:
                graph = int8
            else:
                kept = "fp32"
        check_lint(graph, target)
        path = folder / f"segment_{i}.onnx"
        path.write_bytes(graph.SerializeToString(deterministic=True))
        threshold = source.thresholds[i] if i < len(source.thresholds) else None
        written.append(_described(module, path, threshold, kept))
        gains.append(gain)
    if precision == "int8":
        notes["int8_speedup"] = gains
    return SegmentFiles(
        segments=tuple(written), opset=target.opset, reference=tuple(reference), notes=notes
    )


def is_bundle(folder: Path) -> bool:
    """Whether a folder holds a manifest of ours, of whatever version."""
    try:
        content = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        return str(content["format"]).startswith("compress.bundle/")
    except (OSError, ValueError, KeyError, TypeError):
        return False


def foreign_in_bundle(folder: Path) -> list[str]:
    """Return what lies in a folder and is no part of a bundle; all of it without a manifest."""
    names = sorted(each.name for each in folder.iterdir())
    if not is_bundle(folder):
        return names
    return [name for name in names if not any(fnmatch(name, form) for form in FILES)]


def _split(source: ExportSource, network: nn.Module) -> list[SegmentModule]:
    shape = tuple(source.images.shape[1:])
    return split_network(network, shape, len(source.classes), whole=not source.thresholds)


def _float_graph(module: SegmentModule, example: Tensor, target: Target, max_batch: int) -> Any:
    specs = module.specs
    example = example.to(getattr(torch, specs.input.dtype))
    graph = graph_from_module(
        module,
        example,
        input_name=specs.input.name,
        output_names=[spec.name for spec in specs.outputs],
        free_batch=max_batch > 1,
    )
    graph, _ = simplified(graph, {specs.input.name: example[:1].numpy()})
    return lowered(graph, target)


def _int8_graph(
    graph: Any,
    module: SegmentModule,
    images: Tensor,
    target: Target,
    max_batch: int,
) -> tuple[Any, float | None]:
    """Return the int8 form, and how many times faster it is, where that is measured.

    Only ONNX Runtime's speed can be measured on any machine; for a device, int8 is what was asked.
    """
    name = module.specs.input.name
    rows = 1 if max_batch == 1 else min(max_batch, len(images))
    feeds = [{name: part.numpy()} for part in images.split(rows) if len(part) == rows]
    found = quantised(graph, feeds, float_weights=target.int8_float_weights)
    if target.name != "onnxruntime":
        return found, None
    return found, faster_than(found, graph, feeds[0])


@torch.inference_mode()
def _inputs(segments: Sequence[SegmentModule], images: Tensor) -> list[Tensor]:
    """Return what each segment takes for these images."""
    inputs, x = [], images
    for segment in segments:
        inputs.append(x)
        found = segment(x)
        x = found[0] if isinstance(found, tuple) else found
    return inputs


def _described(
    module: SegmentModule, path: Path, threshold: float | None, precision: str
) -> Segment:
    specs = module.specs
    return Segment(
        file=path.name,
        sha256=sha256_of(path),
        blocks=specs.blocks,
        macs=specs.macs,
        threshold=threshold,
        inputs=(specs.input,),
        outputs=specs.outputs,
        precision=precision,
    )
