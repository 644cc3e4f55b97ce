"""Segments run one after the other in ONNX Runtime, each fed by name with what is there by then."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Tensors", "joined", "run_chain", "run_segment"]

Tensors = dict[str, NDArray[Any]]
TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}
RESULTS = ("logits", "gate")  # every segment has its own, so they are not handed on


def run_chain(
    sessions: Iterable[Any], images: NDArray[np.float32]
) -> list[tuple[Tensors, Tensors]]:
    """Run segments in order; nobody leaves.

    Args:
        sessions: of their files.
        images: (B, C, H, W), as many at a time as they take.

    Returns:
        What each took and what it gave, by name.
    """
    living: Tensors = {"image": images}
    runs = []
    for session in sessions:
        given = run_segment(session, living)
        taken = {each.name: living[each.name] for each in session.get_inputs()}
        runs.append((taken, given))
        living |= {name: value for name, value in given.items() if name not in RESULTS}
    return runs


def run_segment(session: Any, living: Mapping[str, NDArray[Any]]) -> Tensors:
    """Run one segment.

    Args:
        session: of its file.
        living: at least what it takes; numbers of another type are converted.

    Returns:
        All that it gives, by name.
    """
    feed: Tensors = {
        each.name: living[each.name].astype(TYPES[each.type], copy=False)
        for each in session.get_inputs()
    }
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feed), strict=True))


def joined(runs: Sequence[Sequence[Tensors]]) -> list[Tensors]:
    """Return for each segment what it gave in all batches; floats in float32."""
    return [
        {name: _in_float32(np.concatenate([run[i][name] for run in runs])) for name in first}
        for i, first in enumerate(runs[0])
    ]


def _in_float32(values: NDArray[Any]) -> NDArray[Any]:
    return values.astype(np.float32) if values.dtype.kind == "f" else values
