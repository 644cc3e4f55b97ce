"""Lower an ONNX file of any origin: its Fourier transforms, and what a target lacks."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from compress.errors import AccuracyError, ToolchainError, UnsupportedModelError, UserInputError
from compress.export.fourier import count_transforms, rewrite_transforms_
from compress.export.graph_facts import type_name
from compress.export.graph_tidy import constants_to_initializers_, tidy_
from compress.export.lint import check_lint
from compress.export.lowering import check_graph, lowered
from compress.export.targets import target
from compress.files import check_output, check_readable, replacing
from compress.optional import require

if TYPE_CHECKING:
    import onnx

__all__ = ["LowerJob", "LowerReport", "lower_file", "parse_shapes"]

TOLERANCE = 1e-4  # relative, 2-norm of an output; ONNX Runtime's own DFT is off by 2e-6 to 2e-5
FREE_BATCH = 2


@dataclass(frozen=True, kw_only=True)
class LowerJob:
    """What to lower, and for what.

    Attributes:
        model: the .onnx file to read.
        output: the .onnx file to write.
        target: name of where it shall run, see `compress.export.targets`; None keeps the opset and
            every operator but the transforms.
        check: compare both graphs in ONNX Runtime on random inputs before the file is kept.
        shapes: sizes of inputs by name, for the comparison, where more than the batch is free.
        force: replace a file that is there.
        seed: of the random inputs.
    """

    model: Path
    output: Path
    target: str | None = None
    check: bool = False
    shapes: Mapping[str, tuple[int, ...]] | None = None
    force: bool = False
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class LowerReport:
    """What became of a graph.

    Attributes:
        output: the file that was written.
        target: as asked.
        transforms: how many DFT and STFT nodes were rewritten.
        nodes: of the graph, before and after.
        opset: of the written graph.
        sizes: bytes of the file, before and after.
        worst_relative_error: over the outputs, |after - before| / |before|; None unless compared.
        compared_with: what computed the graph as it was; "" unless compared.
    """

    output: Path
    target: str | None
    transforms: int
    nodes: tuple[int, int]
    opset: int
    sizes: tuple[int, int]
    worst_relative_error: float | None
    compared_with: str

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {"schema": "compress.lower/1", **asdict(self), "output": str(self.output)}

    def to_text(self) -> str:
        """Return the figures for a console."""
        plural = "transform" if self.transforms == 1 else "transforms"
        before, after = (size / 1e6 for size in self.sizes)
        first = (
            f"{self.transforms} {plural} written as real products; {self.nodes[0]} nodes became "
            f"{self.nodes[1]}, {before:.2f} MB became {after:.2f} MB, opset {self.opset}"
        )
        lines = [first]
        if self.target is not None:
            lines.append(f"fits {target(self.target).display_name}, by its table of operators")
        if self.worst_relative_error is not None:
            lines.append(
                f"against {self.compared_with} on random input: worst relative error "
                f"{self.worst_relative_error:.1e}"
            )
        return "\n".join([*lines, f"written: {self.output}"])


def lower_file(job: LowerJob) -> LowerReport:
    """Lower a file; the output is whole and checked, or not there.

    Raises:
        UserInputError: a file or an option cannot be used.
        UnsupportedModelError: a transform has no constant length or axis, or the target lacks an
            operator; the message names the node.
        AccuracyError: the lowered graph computes something else.
        ToolchainError: a package is missing.
    """
    chosen = None if job.target is None else target(job.target)
    check_readable(job.model, "model")
    if job.model.resolve() != job.output.resolve() or not job.force:
        check_output(job.output, force=job.force)
    before = _read(job.model)
    if chosen is None:
        after = _without_transforms(before)
    else:
        after = lowered(before, chosen)
        check_lint(after, chosen)
    content = _serialised(after)
    error, reference = _compared(before, after, job) if job.check else (None, "")
    with replacing(job.output) as part:
        part.write_bytes(content)
    return LowerReport(
        output=job.output,
        target=job.target,
        transforms=_count(before),
        nodes=(len(before.graph.node), len(after.graph.node)),
        opset=max(o.version for o in after.opset_import if o.domain in ("", "ai.onnx")),
        sizes=(before.ByteSize(), len(content)),
        worst_relative_error=error,
        compared_with=reference,
    )


def parse_shapes(texts: list[str] | None) -> dict[str, tuple[int, ...]]:
    """Return the shapes of ["wave=2x16000", …] by name.

    Raises:
        UserInputError: one has another form.
    """
    found = {}
    for text in texts or []:
        name, equals, sizes = text.rpartition("=")
        parts = sizes.split("x")
        if not equals or not name or not all(part.isdecimal() and int(part) for part in parts):
            raise UserInputError(
                f"--shape is {text!r}; expected the name of an input and its sizes, such as "
                "wave=2x16000"
            )
        found[name] = tuple(int(part) for part in parts)
    return found


def _read(path: Path) -> "onnx.ModelProto":
    onnx = require("onnx", "reading ONNX files")
    try:
        proto = onnx.load(path)
    except Exception as err:  # protobuf's DecodeError, OSError of external data, …
        raise UserInputError(
            f"model {path} cannot be read as ONNX ({err}); expected a file that torch.onnx.export "
            "or another exporter wrote"
        ) from err
    if not proto.graph.node or not proto.opset_import:
        raise UserInputError(
            f"model {path} holds no ONNX graph; expected a file that an exporter wrote"
        )
    return proto


def _without_transforms(proto: "onnx.ModelProto") -> "onnx.ModelProto":
    onnx = require("onnx", "rewriting ONNX graphs")
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    if result.functions:
        result = onnx.inliner.inline_local_functions(result)
    constants_to_initializers_(result)
    if rewrite_transforms_(result):
        del result.graph.value_info[:]
        tidy_(result)
    check_graph(result, "its transforms were rewritten")
    return result


def _count(proto: "onnx.ModelProto") -> int:
    return count_transforms(
        [*proto.graph.node, *(node for function in proto.functions for node in function.node)]
    )


def _serialised(proto: "onnx.ModelProto") -> bytes:
    try:
        content: bytes = proto.SerializeToString(deterministic=True)
    except Exception as err:  # protobuf's EncodeError and ValueError, by its implementation
        raise UnsupportedModelError(
            f"the lowered graph cannot be written as one file ({err}); expected less than 2 GiB of "
            "weights, so lower a smaller network"
        ) from err
    return content


def _compared(
    before: "onnx.ModelProto", after: "onnx.ModelProto", job: LowerJob
) -> tuple[float, str]:
    feed = _random_inputs(before, job)
    found = _run(after, feed)
    try:
        wanted, reference = _run(before, feed), "ONNX Runtime"
    except ToolchainError:  # it lacks what was to be lowered, which onnx itself computes
        wanted, reference = _run_reference(before, feed), "onnx's reference implementation"
    worst = 0.0
    for output, old, new in zip(before.graph.output, wanted, found, strict=True):
        error = _relative_error(np.asarray(old), np.asarray(new))
        worst = max(worst, error)
        if not error <= TOLERANCE:
            raise AccuracyError(
                f"output {output.name} of the lowered graph differs from {reference} by "
                f"{error:.2g} relative; expected at most {TOLERANCE:g}, so nothing was written"
            )
    return worst, reference


def _relative_error(old: NDArray[Any], new: NDArray[Any]) -> float:
    if old.shape != new.shape:
        return math.inf
    usual = np.isfinite(old)
    if not np.array_equal(old[~usual], new[~usual], equal_nan=True):
        return math.inf
    old, new = (array[usual].astype(np.float64) for array in (old, new))
    size = float(np.linalg.norm(old))
    return float(np.linalg.norm(new - old)) / (size or 1.0)


def _random_inputs(proto: "onnx.ModelProto", job: LowerJob) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(job.seed)
    stored = {tensor.name for tensor in proto.graph.initializer}
    inputs = [value for value in proto.graph.input if value.name not in stored]
    given = dict(job.shapes or {})
    unknown = set(given) - {value.name for value in inputs}
    if unknown:
        raise UserInputError(
            f"--shape names {', '.join(sorted(unknown))}; the inputs of the graph are "
            f"{', '.join(value.name for value in inputs)}"
        )
    feed = {}
    for value in inputs:
        dtype = np.dtype(type_name(value.type.tensor_type.elem_type))
        shape = given.get(value.name) or _shape(value)
        is_float = np.issubdtype(dtype, np.floating)
        array = rng.normal(size=shape) if is_float else rng.integers(0, 2, shape)
        feed[value.name] = array.astype(dtype)
    return feed


def _shape(value: "onnx.ValueInfoProto") -> tuple[int, ...]:
    dims = value.type.tensor_type.shape.dim
    sizes = [dim.dim_value or (FREE_BATCH if i == 0 else 0) for i, dim in enumerate(dims)]
    if not value.type.tensor_type.HasField("shape") or not all(sizes):
        raise UserInputError(
            f"input {value.name} leaves sizes free besides the first; expected --shape "
            f"{value.name}=SIZES, such as {value.name}={'x'.join(str(n or 64) for n in sizes)}"
        )
    return tuple(sizes)


def _run(proto: "onnx.ModelProto", feed: Mapping[str, NDArray[Any]]) -> list[Any]:
    ort = require("onnxruntime", "comparing ONNX graphs")
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(
            proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        return list(session.run(None, dict(feed)))
    except Exception as err:  # ONNX Runtime has a class of its own per status code
        raise ToolchainError(
            f"ONNX Runtime {ort.__version__} cannot run the graph ({err})"
        ) from err


def _run_reference(proto: "onnx.ModelProto", feed: Mapping[str, NDArray[Any]]) -> list[Any]:
    reference = require("onnx.reference", "comparing ONNX graphs")
    try:
        return list(reference.ReferenceEvaluator(proto).run(None, dict(feed)))
    except Exception as err:  # numpy's errors
        raise ToolchainError(
            f"neither ONNX Runtime nor onnx itself can run the graph as it is ({err}); leave "
            "--check out"
        ) from err
