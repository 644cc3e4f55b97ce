"""From the graph that torch's exporter writes to one that a target's parser understands.

Pure rewriting, no numbers change but by rounding: Fourier transforms are written as real matrix
products (`compress.export.fourier`), operators that the target lacks are said in others
(`compress.export.lower_operators`), the opset is the newest that both know
(`compress.export.lower_opset`), and the graph is left tidy (`compress.export.graph_tidy`). Names
come from the graph alone, so equal graphs give equal files.

A LayerNormalization that the target knows stays one node: TensorRT has a fused kernel for it, and
computes its sums in float32 there.
"""

from typing import TYPE_CHECKING

from compress.errors import UnsupportedModelError
from compress.export.fourier import rewrite_transforms_
from compress.export.graph_tidy import constants_to_initializers_, drop_notes_, name_nodes_, tidy_
from compress.export.lower_operators import rewrite_operators_
from compress.export.lower_opset import to_opset_
from compress.export.targets import Target
from compress.optional import require

if TYPE_CHECKING:
    import onnx

__all__ = ["check_graph", "lowered"]


def lowered(proto: "onnx.ModelProto", target: Target) -> "onnx.ModelProto":
    """Return the graph as the target's parser takes it, checked; lowering it again changes nothing.

    Args:
        proto: any graph of the ONNX standard; left as it is.
        target: where it shall run.

    Raises:
        UnsupportedModelError: the graph says something that cannot be said there, or is damaged.
        ToolchainError: onnx is missing.
    """
    onnx = require("onnx", "rewriting ONNX graphs")
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    if result.functions:
        result = onnx.inliner.inline_local_functions(result)
    constants_to_initializers_(result)
    rewrite_transforms_(result)  # which reads where nodes come from, for its errors
    drop_notes_(result)
    name_nodes_(result.graph)
    rewrite_operators_(result, target)
    to_opset_(result, target.opset)
    tidy_(result)
    result.ir_version = min(result.ir_version, target.ir_version)
    check_graph(result, f"it was rewritten for {target.display_name}")
    return result


def check_graph(proto: "onnx.ModelProto", what: str) -> None:
    """Check a graph that was rewritten.

    Args:
        proto: the graph.
        what: was done to it, behind "after".

    Raises:
        UnsupportedModelError: onnx.checker does not take it.
    """
    onnx = require("onnx", "checking ONNX graphs")
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as err:
        reason = next((line for line in str(err).splitlines() if line.strip()), "no reason given")
        raise UnsupportedModelError(
            f"the graph is not valid after {what}: {reason}; expected a graph that onnx.checker "
            "takes, so export the network again"
        ) from err
