"""Where the time of a bundle goes: by segment from the dispatcher, by operator from ONNX Runtime.

The counterpart of `compress.measure.op_profile`, which does the same for torch networks, and in its
form. Segments are timed by the host: a segment waits for its work, head and gate included. What is
besides, the host's loop between the segments, is a line of its own, so that the lines add up.
"""

import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import fsum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.errors import ToolchainError
from compress.measure.op_profile import Operation, OpProfile
from compress.optional import require
from compress.runtime.dispatcher import Dispatcher
from compress.runtime.manifest import Manifest, Segment
from compress.runtime.onnxruntime_session import SLOWER

__all__ = [
    "HOST_LOOP",
    "operator_rows",
    "positions_of",
    "profile_operators",
    "profile_segments",
]

HOST_LOOP = "host loop"
PASSES = 3  # over the images: a segment that few of them reach is still seen a few times
Images = Sequence[NDArray[np.float32]]


def profile_segments(
    dispatcher: Dispatcher, images: Images, *, threads: int, passes: int = PASSES
) -> OpProfile:
    """Run images one at a time, early exits taken, and return what each segment took.

    Args:
        dispatcher: of the bundle.
        images: (C, H, W) float32 each, at least one.
        threads: that the backend was allowed, for the record.
        passes: over all images.
    """
    segments = range(len(dispatcher.manifest.segments))
    hits, leaving, whole_ms = Counter[int](), Counter[int](), 0.0
    totals = [0.0 for _ in segments]
    for image in [image for _ in range(passes) for image in images]:
        start = time.perf_counter()
        found = dispatcher.run(image, times=True)
        whole_ms += 1e3 * (time.perf_counter() - start)
        leaving[int(found.exits[0])] += 1
        for segment, _, ms in found.segment_ms or ():
            hits[segment] += 1
            totals[segment] += ms
    rows = [
        Operation(name=_segment_name(k, dispatcher.manifest), hits=hits[k], total_ms=totals[k])
        for k in segments
    ]
    rest = Operation(
        name=HOST_LOOP, hits=passes * len(images), total_ms=max(0.0, whole_ms - fsum(totals))
    )
    return OpProfile(
        network=dispatcher.manifest.name,
        device=dispatcher.backend.name,
        threads=threads,
        images=passes * len(images),
        operations=(*rows, rest),
        leaving=tuple(leaving[k] for k in segments),
        positions=positions_of(dispatcher.manifest),
    )


def positions_of(manifest: Manifest) -> tuple[int, ...] | None:
    """Return the last block of every segment; None where the network has no blocks."""
    ends = [segment.blocks[1] for segment in manifest.segments]
    if ends[0] < 1 or any(a >= b for a, b in pairwise(ends)):
        return None
    return tuple(end - 1 for end in ends)


def profile_operators(
    bundle: Path, manifest: Manifest, images: Images, *, threads: int
) -> OpProfile:
    """Run images through ONNX Runtime on the CPU with its own profiler, early exits taken.

    Args:
        bundle: its folder.
        manifest: of it, with the thresholds that decide.
        images: (C, H, W) float32 each, at least one.
        threads: inside an operator.

    Returns:
        One line for each kind of operator after ONNX Runtime's own fusions, the longest first. The
        profiler makes them slower than they are; their shares are what to read.

    Raises:
        ToolchainError: ONNX Runtime is missing, cannot read a segment, or writes no profile.
    """
    with TemporaryDirectory(prefix="compress-operators-") as folder:
        sessions = [
            _profiling_session(bundle / segment.file, Path(folder) / segment.stem, threads)
            for segment in manifest.segments
        ]
        for image in images:
            _run_early(sessions, manifest, image[None])
        totals: dict[str, tuple[int, float]] = {}
        for session in sessions:
            for kind, hits, ms in operator_rows(Path(session.end_profiling())):
                seen, spent = totals.get(kind, (0, 0.0))
                totals[kind] = (seen + hits, spent + ms)
    rows = [Operation(name=kind, hits=h, total_ms=ms) for kind, (h, ms) in totals.items()]
    return OpProfile(
        network=manifest.name,
        device="onnxruntime cpu",
        threads=threads,
        images=len(images),
        operations=tuple(sorted(rows, key=lambda row: -row.total_ms)),
    )


def operator_rows(trace: Path) -> Iterator[tuple[str, int, float]]:
    """Yield kind, 1 and milliseconds of every run of an operator in a profile of ONNX Runtime.

    Raises:
        ToolchainError: it is no such file.
    """
    try:
        events: list[dict[str, Any]] = json.loads(trace.read_text(encoding="utf-8"))
        for event in events:
            if event.get("cat") == "Node" and str(event["name"]).endswith("_kernel_time"):
                yield str(event["args"]["op_name"]), 1, float(event["dur"]) / 1e3
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as err:
        raise ToolchainError(
            f"the profile that ONNX Runtime wrote cannot be used ({type(err).__name__}: {err}); "
            "expected its JSON of operators, so leave --profile-operators out or install another "
            "onnxruntime"
        ) from err


def _profiling_session(model: Path, prefix: Path, threads: int) -> Any:
    ort = require("onnxruntime", "profiling operators")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    options.enable_profiling = True
    options.profile_file_prefix = str(prefix)
    try:
        return ort.InferenceSession(
            str(model), options, providers=["CPUExecutionProvider"], disabled_optimizers=SLOWER
        )
    except Exception as err:  # ONNX Runtime has a class of its own per status code
        raise ToolchainError(
            f"ONNX Runtime {ort.__version__} cannot open {model} ({err}); export the bundle for "
            "this version, or install a newer onnxruntime"
        ) from err


def _run_early(sessions: Sequence[Any], manifest: Manifest, batch: NDArray[np.float32]) -> None:
    """One image along the segments, until a gate lets it go."""
    taken: Any = batch
    for session, segment in zip(sessions, manifest.segments, strict=True):
        outputs = _run(session, segment, taken)
        if segment.threshold is None or float(outputs["gate"].ravel()[0]) >= segment.threshold:
            return
        taken = outputs["hidden"]


def _run(session: Any, segment: Segment, taken: Any) -> dict[str, Any]:
    names = [spec.name for spec in segment.outputs]
    values = session.run(names, {segment.inputs[0].name: taken})
    return dict(zip(names, values, strict=True))


def _segment_name(number: int, manifest: Manifest) -> str:
    first, stop = manifest.segments[number].blocks
    if stop <= first:
        return f"segment {number}"
    blocks = f"block {first}" if stop == first + 1 else f"blocks {first}-{stop - 1}"
    return f"segment {number} ({blocks})"
