"""Write a network as one ONNX file, and prove on images that the file computes the same.

A classifier's output is `logits`. What else a network returns has the names of
`compress.export.network_outputs`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compress.errors import AccuracyError, ToolchainError
from compress.export.graph import OPSET, graph_from_module
from compress.export.network_outputs import LOGITS, as_returned, exported_outputs
from compress.export.output_error import output_errors, worst_output
from compress.files import replacing, sha256_of
from compress.optional import require
from compress.runtime.onnxruntime_session import turned_off

__all__ = ["OnnxExport", "Parity", "onnx_from_module", "onnx_session", "session_runner"]

TOLERANCE = 1e-3  # relative, worst image: float32 sums in another order stay far below
INPUT = "image"


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How well an exported file agrees with the torch network.

    Attributes:
        worst_relative_error: over the images and outputs, |file - torch| / |torch| in the 2-norm.
        top1_agreement: share of images with the same class, in [0, 1]; None without logits.
        images: how many were compared.
        output_errors: error of each output, of its worst image; of whole numbers the share that
            differs.
    """

    worst_relative_error: float
    top1_agreement: float | None
    images: int
    output_errors: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class OnnxExport:
    """A written file: where it is, its sha256, its opset, and its agreement with torch."""

    path: Path
    sha256: str
    opset: int
    parity: Parity


def onnx_from_module(
    model: nn.Module, images: Tensor, path: Path, *, tolerance: float = TOLERANCE
) -> OnnxExport:
    """Export a network from image (N, C, H, W), N free, and compare every output with torch.

    Args:
        model: in eval mode, on the CPU.
        images: (N, C, H, W) float32, what the comparison runs on; real ones say most.
        path: the .onnx file, replaced only by a file that passed.
        tolerance: largest relative error of an output of an image.

    Raises:
        UnsupportedModelError: torch cannot export the network, or what it returns.
        AccuracyError: ONNX Runtime computes something else than torch.
        ToolchainError: onnx, onnxscript or onnxruntime is missing.
    """
    with torch.inference_mode():
        names = list(exported_outputs(model(images[:1])))
    graph = graph_from_module(
        _Returning(model).eval(), images, input_name=INPUT, output_names=names
    )
    with replacing(Path(path)) as part:
        part.write_bytes(graph.SerializeToString(deterministic=True))
        parity = _compared(model, onnx_session(part), images)
        if not parity.worst_relative_error <= tolerance:  # NaN fails too
            raise AccuracyError(
                f"{path}: ONNX Runtime differs from torch by {parity.worst_relative_error:.2g} "
                f"relative in its output {worst_output(parity.output_errors)}, on {len(images)} "
                f"images; expected at most {tolerance:g}, so the file was not kept"
            )
    return OnnxExport(path=Path(path), sha256=sha256_of(path), opset=OPSET, parity=parity)


def onnx_session(model: Any, *, threads: int | None = None, half: bool = False) -> Any:
    """Open an ONNX file, or a graph in memory, in ONNX Runtime on the CPU.

    Args:
        model: the path of the file, or an `onnx.ModelProto`.
        threads: inside an operation; None takes as many as torch does, so that the two compare.
        half: it computes in float16.

    Raises:
        ToolchainError: ONNX Runtime is missing or cannot read the file.
    """
    ort = require("onnxruntime", "running ONNX files")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.inter_op_num_threads = 1
    # A spinning pool eats the cores that torch is timed on next to it.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    is_file = isinstance(model, str | Path)
    content = str(model) if is_file else model.SerializeToString()
    try:
        return ort.InferenceSession(
            content,
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=turned_off(half),
        )
    except Exception as err:  # ONNX Runtime has a class of its own per status code
        raise ToolchainError(
            f"ONNX Runtime {ort.__version__} cannot read {model if is_file else 'a graph'} "
            f"({err}); export it again"
        ) from err


def session_runner(session: Any, image: Tensor) -> Callable[[], Any]:
    """Return a function that runs a session on one image to its logits, or all, for timing."""
    feed = {INPUT: image.numpy()}
    names = [output.name for output in session.get_outputs()]
    asked = [LOGITS] if LOGITS in names else names
    return lambda: session.run(asked, feed)


class _Returning(nn.Module):
    """A network that returns its outputs in the form and order in which they are exported."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, ...]:
        return as_returned(self.network(image))


@torch.inference_mode()
def _compared(model: nn.Module, session: Any, images: Tensor) -> Parity:
    wanted = {name: each.numpy() for name, each in exported_outputs(model(images)).items()}
    values = session.run(list(wanted), {INPUT: images.numpy()})
    found = dict(zip(wanted, values, strict=True))
    errors = output_errors(found, wanted)
    agreement = None
    if LOGITS in wanted:
        agreement = float((found[LOGITS].argmax(1) == wanted[LOGITS].argmax(1)).mean())
    return Parity(
        worst_relative_error=float(np.max(list(errors.values()))),  # NaN where one is NaN
        top1_agreement=agreement,
        images=len(images),
        output_errors=errors,
    )
