"""onnxsim, kept only where it helps.

Measured with onnxsim 0.8.1 on what torch 2.13 exports: of its default passes one,
`fuse_matmul_add_bias_into_gemm_batched`, turns every Linear layer on tokens (MatMul, Add) into
Reshape, Gemm, Reshape, in float32 graphs; without it nothing gets worse. What is left to gain is
small, since torch folds constants and BatchNormalization itself: additions of zero, above all. So
its result is taken only after it is compared, node by node and number by number.
"""

import logging
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from compress.export.onnx_file import onnx_session
from compress.optional import require

if TYPE_CHECKING:
    import onnx

__all__ = ["simplified"]

HARMFUL = ("fuse_matmul_add_bias_into_gemm_batched",)
# Relative, in the 2-norm of an output: another order of the same sums stays far below.
TOLERANCES = {"float32": 1e-5, "float16": 2e-3}

log = logging.getLogger(__name__)


def simplified(
    proto: "onnx.ModelProto", example_inputs: Mapping[str, Any]
) -> tuple["onnx.ModelProto", bool]:
    """Return the graph as onnxsim simplifies it, and True; or as it is, and False.

    The simplified one is taken where it has no more nodes, as many MatMul and no more Reshape, the
    same inputs and outputs, and the same numbers in ONNX Runtime.

    Args:
        proto: left as it is.
        example_inputs: arrays by the name of the input; real ones say most.

    Raises:
        ToolchainError: onnx, onnxsim or onnxruntime is missing.
    """
    onnxsim = require("onnxsim", "simplifying ONNX graphs")
    require("onnxruntime", "comparing ONNX graphs")
    try:
        result, _ = onnxsim.simplify(proto, skipped_optimizers=list(HARMFUL))
    except Exception as err:  # onnxsim raises whatever its C++ passes and ONNX Runtime raise
        log.info("onnxsim failed (%s); the graph stays as torch wrote it", err)
        return proto, False
    reason = _worse(proto, result) or _differs(proto, result, example_inputs)
    if reason:
        log.info("the result of onnxsim is not taken: %s", reason)
        return proto, False
    return result, True


def _worse(before: "onnx.ModelProto", after: "onnx.ModelProto") -> str | None:
    """Return what got worse in the graph itself; None where nothing did."""
    nodes, counts = _counts(before), _counts(after)
    if counts.total() > nodes.total():
        return f"it has {counts.total()} nodes in place of {nodes.total()}"
    if counts["MatMul"] < nodes["MatMul"] and counts["Reshape"] > nodes["Reshape"]:
        return "it turns Linear layers into Reshape, Gemm, Reshape"
    for kind in ("input", "output"):
        old, new = (_values(getattr(proto.graph, kind)) for proto in (before, after))
        if old != new:
            return f"it changes an {kind} of the graph"
    return None


def _differs(
    before: "onnx.ModelProto", after: "onnx.ModelProto", feed: Mapping[str, Any]
) -> str | None:
    """Return how the numbers differ; None where they do not."""
    half = any(tensor.data_type == 10 for tensor in before.graph.initializer)
    try:
        wanted, found = _run(before, feed, half), _run(after, feed, half)
    except Exception as err:  # ONNX Runtime has a class of its own per status code
        return f"ONNX Runtime cannot compare them ({err})"
    bar = TOLERANCES["float16" if half else "float32"]
    for output, old, new in zip(before.graph.output, wanted, found, strict=True):
        if not _equal(old, new, bar):
            return f"its output {output.name} differs by more than {bar:g} relative"
    return None


def _equal(old: Any, new: Any, bar: float) -> bool:
    if old.shape != new.shape or old.dtype != new.dtype:
        return False
    old, new = (np.asarray(array, np.float64) for array in (old, new))
    usual = np.isfinite(old)
    if not np.array_equal(old[~usual], new[~usual], equal_nan=True):
        return False
    old, new = old[usual], new[usual]
    # NaN in `new` alone fails: no comparison with it is true
    return bool(np.linalg.norm(new - old) <= bar * np.linalg.norm(old))


def _run(proto: "onnx.ModelProto", feed: Mapping[str, Any], half: bool) -> list[Any]:
    return list(onnx_session(proto, threads=1, half=half).run(None, dict(feed)))


def _counts(proto: "onnx.ModelProto") -> Counter[str]:
    return Counter(node.op_type for node in proto.graph.node)


def _values(infos: Any) -> list[tuple[Any, ...]]:
    """Name, element type and dimensions of inputs or outputs."""
    return [
        (
            info.name,
            info.type.tensor_type.elem_type,
            [dim.dim_value or None for dim in info.type.tensor_type.shape.dim],
        )
        for info in infos
    ]
