"""Where the time of a bundle goes: by segment from the dispatcher, by operator from ONNX Runtime.

The counterpart of `compress.measure.op_profile`, which does the same for torch networks, and in its
form. Segments are timed by the host: a segment waits for its work, head and gate included. What is
besides, the host's loop between the segments, is a line of its own, so that the lines add up.
"""

import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from math import fsum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.errors import ToolchainError
from compress.export.bundle_replay import DEPTH
from compress.measure.op_profile import Operation, OpProfile
from compress.optional import require
from compress.runtime.decision import fires
from compress.runtime.dispatcher import Dispatcher
from compress.runtime.exit_spelling import (
    FINAL_HEAD,
    Position,
    check_order,
    last_position,
    spelled,
)
from compress.runtime.manifest import Manifest, Segment
from compress.runtime.onnxruntime_session import turned_off

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


def positions_of(manifest: Manifest) -> tuple[Position, ...] | None:
    """Return where the exits stand, then what the final head is called.

    None where there are no exits, and it is not known how many blocks the network has.
    """
    noted, ends = manifest.notes.get(DEPTH, 0), _ends(manifest)
    try:
        depth = noted if isinstance(noted, int) else 0
        check_order(ends, depth)
    except ValueError:  # the notes of a manifest are checked by nobody before
        depth = 0
    return (*ends, last_position(depth)) if ends or depth else None


def _ends(manifest: Manifest) -> tuple[Position, ...]:
    return tuple(spelled(part.at) for part in manifest.segments if part.at is not None)


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
            _profiling_session(bundle, segment, Path(folder), threads)
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


def _profiling_session(bundle: Path, segment: Segment, folder: Path, threads: int) -> Any:
    model, half = bundle / segment.file, segment.precision == "fp16"
    ort = require("onnxruntime", "profiling operators")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / segment.stem)
    try:
        return ort.InferenceSession(
            str(model),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=turned_off(half),
        )
    except Exception as err:  # ONNX Runtime has a class of its own per status code
        raise ToolchainError(
            f"ONNX Runtime {ort.__version__} cannot open {model} ({err}); export the bundle for "
            "this version, or install a newer onnxruntime"
        ) from err


def _run_early(sessions: Sequence[Any], manifest: Manifest, batch: NDArray[np.float32]) -> None:
    """One image along the segments, until a gate lets it go."""
    known: dict[str, Any] = {manifest.image.name: batch}  # every tensor that was made, by name
    for session, segment in zip(sessions, manifest.segments, strict=True):
        feeds = {spec.file_name: known[spec.name] for spec in segment.inputs}
        values = session.run([spec.file_name for spec in segment.outputs], feeds)
        known |= {s.name: value for s, value in zip(segment.outputs, values, strict=True)}
        if segment.threshold is None or fires(known["gate"].ravel(), segment.threshold)[0]:
            return


def _segment_name(number: int, manifest: Manifest) -> str:
    """Such as "segment 1 (to layer2.4)"; a network in one piece has no name for it."""
    if manifest.exits == 0:
        return f"segment {number}"
    to = (*_ends(manifest), FINAL_HEAD)[number]
    return f"segment {number} (to {f'block {to}' if isinstance(to, int) else to})"
