"""Write a network as one ONNX file, and prove on images that the file computes the same."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compress.errors import AccuracyError, ToolchainError
from compress.export.graph import OPSET, graph_from_module
from compress.files import replacing, sha256_of
from compress.optional import require
from compress.runtime.onnxruntime_session import SLOWER

__all__ = ["OnnxExport", "Parity", "onnx_from_module", "onnx_session", "session_runner"]

TOLERANCE = 1e-3  # relative, worst image: float32 sums in another order stay far below
INPUT, OUTPUT = "image", "logits"


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How well an exported file agrees with the torch network.

    Attributes:
        worst_relative_error: over the images, |file - torch| / |torch| in the 2-norm of the logits.
        top1_agreement: share of images with the same class, in [0, 1].
        images: how many were compared.
    """

    worst_relative_error: float
    top1_agreement: float
    images: int


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
    """Export a network from image (N, C, H, W) to logits, N free, and compare it with torch.

    Args:
        model: in eval mode, on the CPU.
        images: (N, C, H, W) float32, what the comparison runs on; real ones say most.
        path: the .onnx file, replaced only by a file that passed.
        tolerance: largest relative error of the logits of an image.

    Raises:
        UnsupportedModelError: torch cannot export the network.
        AccuracyError: ONNX Runtime computes something else than torch.
        ToolchainError: onnx, onnxscript or onnxruntime is missing.
    """
    graph = graph_from_module(model, images, input_name=INPUT, output_names=[OUTPUT])
    with replacing(Path(path)) as part:
        part.write_bytes(graph.SerializeToString(deterministic=True))
        parity = _compare(model, onnx_session(part), images)
        if not parity.worst_relative_error <= tolerance:  # NaN fails too
            raise AccuracyError(
                f"{path}: ONNX Runtime differs from torch by {parity.worst_relative_error:.2g} "
                f"relative on {len(images)} images; expected at most {tolerance:g}, so the file "
                "was not kept"
            )
    return OnnxExport(path=Path(path), sha256=sha256_of(path), opset=OPSET, parity=parity)


def onnx_session(path: Path, *, threads: int | None = None) -> Any:
    """Open an ONNX file in ONNX Runtime on the CPU.

    Args:
        path: the file.
        threads: inside an operation; None takes as many as torch does, so that the two compare.

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
    try:
        return ort.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=SLOWER
        )
    except Exception as err:  # ONNX Runtime has a class of its own per status code
        raise ToolchainError(
            f"ONNX Runtime {ort.__version__} cannot read {path} ({err}); export it again"
        ) from err


def session_runner(session: Any, image: Tensor) -> Callable[[], Any]:
    """Return a function that runs a session on one image, for timing."""
    feed = {INPUT: image.numpy()}
    return lambda: session.run([OUTPUT], feed)


@torch.inference_mode()
def _compare(model: nn.Module, session: Any, images: Tensor) -> Parity:
    wanted = model(images).numpy()
    found = session.run([OUTPUT], {INPUT: images.numpy()})[0]
    errors = np.linalg.norm(found - wanted, axis=1) / np.linalg.norm(wanted, axis=1)
    return Parity(
        worst_relative_error=float(errors.max()),
        top1_agreement=float((found.argmax(1) == wanted.argmax(1)).mean()),
        images=len(images),
    )
