"""Write the segments of a network as the files of a bundle.

The network is exported once, with all its exits as outputs; the graph is then cut.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from compress.export.bundle_replay import CHECK_MACS, DEPTH
from compress.export.chain import Tensors, run_chain
from compress.export.cut import GraphSegment, cut_graph
from compress.export.deployed_form import deployed_form, in_half
from compress.export.graph import graph_from_module
from compress.export.lint import check_lint
from compress.export.lowering import lowered
from compress.export.onnx_file import onnx_session
from compress.export.quantise import faster_than, linear_nodes, quantised
from compress.export.simplify import simplified
from compress.export.single_precision import in_single_precision
from compress.export.source import ExportSource
from compress.export.targets import Target
from compress.export.whole_network import WholeNetwork, results_of_exits
from compress.files import sha256_of
from compress.measure.exit_macs import exit_check_macs, macs_per_exit
from compress.measure.macs import count_macs
from compress.models.with_exits import WithExits, depth_of
from compress.runtime.manifest import Segment, TensorSpec

if TYPE_CHECKING:
    import onnx

__all__ = ["SegmentFiles", "foreign_in_bundle", "is_bundle", "write_segments"]

FILES = (
    *("manifest.json", "segment_*.onnx", "segment_*.engine", "engines.json", "timing.cache"),
    "probe.bin",
    ".*.part",  # what a killed writer left
)
IMAGE = "image"
INT8_IMAGES = 128  # of calibration; more moved no scale on the data at hand


@dataclass(frozen=True, kw_only=True)
class SegmentFiles:
    """The written files.

    Attributes:
        segments: as the manifest describes them.
        opset: of the files.
        network: what they are compared with: the network in torch, float32.
        in_float: the same segments computed in float32; None where the files are that.
        notes: what the manifest notes about them.
    """

    segments: tuple[Segment, ...]
    opset: int
    network: WholeNetwork
    in_float: "tuple[onnx.ModelProto, ...] | None"
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
        UnsupportedModelError: torch, the target or the quantiser cannot handle the network, or it
            cannot be cut at its exits.
        ToolchainError: a package is missing.
    """
    network = deployed_form(source.model)
    exported = in_half(network) if precision == "fp16" else network
    whole = _whole_graph(exported, source, target, max_batch)
    parts = _cut(whole, source)
    for part in parts:  # whose ends are inputs and outputs by now
        check_lint(part.proto, target)
    written = [_Written(proto=part.proto, precision=precision) for part in parts]
    if precision == "int8" and calibration is not None:
        feeds = _feeds(parts, calibration[:INT8_IMAGES], max_batch)
        written = _in_int8(parts, feeds, target, keep_int8)
    notes: dict[str, Any] = {DEPTH: depth_of(source.model)}  # by which the final head is named
    if source.thresholds and isinstance(network, WithExits):
        notes[CHECK_MACS] = exit_check_macs(network, _shape(source))
    if precision == "int8":
        notes["int8_speedup"] = [each.gain for each in written]
    macs = _macs_of_segments(network, source)
    in_float = None
    if precision != "fp32":
        in_float = tuple(in_single_precision(part.proto) for part in parts)
    return SegmentFiles(
        segments=tuple(
            _saved(folder, source, i, part, file, macs[i])
            for i, (part, file) in enumerate(zip(parts, written, strict=True))
        ),
        opset=target.opset,
        network=WholeNetwork(network, split=bool(source.thresholds)),
        in_float=in_float,
        notes=notes,
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


@dataclass(frozen=True, kw_only=True)
class _Written:
    """A segment as it is kept: its graph, its precision, and how much faster int8 makes it."""

    proto: "onnx.ModelProto"
    precision: str
    gain: float | None = None


def _shape(source: ExportSource) -> tuple[int, int, int]:
    channels, height, width = source.images.shape[1:]
    return channels, height, width


def _whole_graph(
    network: nn.Module, source: ExportSource, target: Target, max_batch: int
) -> "onnx.ModelProto":
    """Return the network with all its exits as one graph, as the target takes it."""
    split = bool(source.thresholds)
    names = [spec.name for spec in source.outputs]
    if split:
        names = [name for each in results_of_exits(len(source.thresholds)) for name in each]
    examples = source.images[:2]
    graph = graph_from_module(
        WholeNetwork(network, split=split),
        examples,
        input_name=IMAGE,
        output_names=names,
        free_batch=max_batch > 1,
    )
    graph, _ = simplified(graph, {IMAGE: examples[:1].numpy()})
    return lowered(graph, target)


def _cut(whole: "onnx.ModelProto", source: ExportSource) -> list[GraphSegment]:
    if source.thresholds:
        results = results_of_exits(len(source.thresholds))
        return cut_graph(whole, results, source.images[:2].numpy())
    image = TensorSpec(IMAGE, "float32", _shape(source))
    return [GraphSegment(proto=whole, takes=(image,), gives=(), results=source.outputs)]


def _feeds(parts: Sequence[GraphSegment], images: Tensor, max_batch: int) -> list[list[Tensors]]:
    """Return what each segment takes for these images, batch after batch."""
    sessions = [onnx_session(part.proto) for part in parts]
    rows = 1 if max_batch == 1 else min(max_batch, len(images))
    batches = [part.numpy() for part in images.split(rows) if len(part) == rows]
    runs = [run_chain(sessions, batch) for batch in batches]
    return [[run[i][0] for run in runs] for i in range(len(parts))]


def _in_int8(
    parts: Sequence[GraphSegment], feeds: Sequence[list[Tensors]], target: Target, keep_int8: bool
) -> list[_Written]:
    """Return every segment in int8; one without a layer for it stays float, where others have."""
    counts = [len(linear_nodes(part.proto, _crossing(part))) for part in parts]
    return [
        _int8(part, feed, target, keep_int8)
        if count or not any(counts)
        else _Written(proto=part.proto, precision="fp32")
        for part, feed, count in zip(parts, feeds, counts, strict=True)
    ]


def _int8(
    part: GraphSegment,
    feeds: Sequence[Mapping[str, Any]],
    target: Target,
    keep_int8: bool,
) -> _Written:
    """Return the int8 form, or the float one where int8 does not make it faster.

    Only ONNX Runtime's speed can be measured on any machine; for a device, int8 is what was asked.
    """
    found = quantised(
        part.proto, feeds, crossing=_crossing(part), float_weights=target.int8_float_weights
    )
    gain = faster_than(found, part.proto, feeds[0]) if target.name == "onnxruntime" else None
    if gain is None or gain > 1 or keep_int8:
        check_lint(found, target)
        return _Written(proto=found, precision="int8", gain=gain)
    return _Written(proto=part.proto, precision="fp32", gain=gain)


def _crossing(part: GraphSegment) -> list[str]:
    return [spec.name for spec in part.gives]


def _macs_of_segments(network: nn.Module, source: ExportSource) -> list[int]:
    if not source.thresholds:
        return [count_macs(network, _shape(source))]
    totals = macs_per_exit(network, _shape(source))
    return [total - before for before, total in pairwise([0, *totals])]


def _saved(
    folder: Path, source: ExportSource, number: int, part: GraphSegment, file: _Written, macs: int
) -> Segment:
    """Write a segment; return what the manifest tells of it."""
    path = folder / f"segment_{number}.onnx"
    path.write_bytes(file.proto.SerializeToString(deterministic=True))
    is_gated = number < len(source.thresholds)
    return Segment(
        file=path.name,
        sha256=sha256_of(path),
        at=source.exit_paths[number] if is_gated else None,
        macs=macs,
        threshold=source.thresholds[number] if is_gated else None,
        inputs=part.takes,
        outputs=(*part.gives, *part.results),
        precision=file.precision,
    )
