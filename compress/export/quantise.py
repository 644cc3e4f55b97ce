"""int8 for the Linear layers of a graph, as explicit Q/DQ pairs with scales from calibration.

Symmetric: real = scale * integer, zero points 0, integers -127 … 127. Activations have one scale a
tensor, from the largest absolute value that calibration meets; weights one scale per output
channel. A pair stands on the inputs of a layer, never on its output, which TensorRT fuses best and
ONNX Runtime runs as one integer product with a float result. Biases stay float: TensorRT refuses
int32 ones behind a DequantizeLinear.

Linear layers are MatMul, Gemm and Conv with a constant weight on the right. Products with a
constant on the left, which is how the global filter is written, stay float: they are a transform,
whose rounding would fall on every frequency alike. So does the last Linear layer before each
result, which costs next to nothing and whose rounding would go straight into logits and gate.
"""

import logging
import tempfile
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compress.errors import CompressError, UnsupportedModelError, UserInputError
from compress.export.onnx_file import onnx_session
from compress.measure.latency import measure_latency
from compress.optional import require

if TYPE_CHECKING:
    import onnx

__all__ = ["faster_than", "linear_nodes", "quantised"]

Feed = Mapping[str, np.ndarray]

SMALLEST_OPSET = 13  # of QuantizeLinear with an axis
LINEAR = ("MatMul", "Gemm", "Conv")
PURPOSE = "quantising to int8"


def quantised(
    proto: "onnx.ModelProto",
    feeds: Sequence[Feed],
    *,
    nodes: Sequence[str] | None = None,
    crossing: Collection[str] = (),
    float_weights: bool = False,
) -> "onnx.ModelProto":
    """Return the graph with its Linear layers in int8; equal arguments give equal bytes.

    Args:
        proto: a float32 graph of opset 13 or later, weights inside; left as it is.
        feeds: calibration inputs by name, float32, at least one; every one a batch.
        nodes: names of the nodes to quantise; None takes those of `linear_nodes`.
        crossing: outputs that a later segment reads; the others are results.
        float_weights: leave weights float32 behind a Q/DQ pair of their own, in place of int8
            behind a DQ. TensorRT 8 takes no others.

    Raises:
        UserInputError: there are no feeds, one holds NaN or infinity, or a node of `nodes` is not
            there or not a Linear layer.
        UnsupportedModelError: the opset is too old, there is no Linear layer, or ONNX Runtime
            cannot run or quantise the graph.
        CompressError: the network overflows on the feeds.
        ToolchainError: onnx or onnxruntime is missing.
    """
    onnx = require("onnx", PURPOSE)
    _check_opset(proto)
    _check_feeds(feeds)
    graph = _named(proto)
    chosen = _chosen(graph, nodes, crossing)
    with tempfile.TemporaryDirectory(prefix="compress-int8-") as folder, _quiet():
        _quantise(graph, feeds, chosen, Path(folder) / "int8.onnx", float_weights=float_weights)
        result = onnx.load(Path(folder) / "int8.onnx")
    _restore_head(result, proto)
    _check_scales(result)
    onnx.checker.check_model(result)
    return result


def linear_nodes(proto: "onnx.ModelProto", crossing: Collection[str] = ()) -> list[str]:
    """Return the names of the nodes that `quantised` takes by default, in the order of the graph.

    A node without a name of its own is called by its type and its place, such as "MatMul_7".

    Args:
        proto: as `quantised` takes it.
        crossing: outputs that a later segment reads; the others are results.
    """
    graph = _named(proto)
    linear = _linear(graph)
    spared = _last_before_results(graph, set(linear), crossing)
    return [name for name in linear if name not in spared]


def faster_than(
    candidate: "onnx.ModelProto",
    reference: "onnx.ModelProto",
    feed: Feed,
    *,
    threads: int | None = None,
    max_seconds: float = 2.0,
) -> float:
    """Return how many times faster one graph is than another in ONNX Runtime on the CPU.

    Both run in turn on the same feed; the ratio is that of their medians, above 1 where the
    candidate is faster.

    Args:
        candidate: such as the int8 form.
        reference: such as the float form.
        feed: inputs by name, of both.
        threads: inside an operation; None takes as many as torch does.
        max_seconds: roughly how long to measure.

    Raises:
        ToolchainError: ONNX Runtime is missing or cannot read a graph.
    """
    graphs = {"candidate": candidate, "reference": reference}
    runs = {
        name: _Run(onnx_session(proto, threads=threads), dict(feed))
        for name, proto in graphs.items()
    }
    latency = measure_latency(runs, max_seconds=max_seconds, progress=False)
    return latency["reference"].median_ms / latency["candidate"].median_ms


class _Run:
    """One call of a session, without arguments."""

    def __init__(self, session: Any, feed: dict[str, np.ndarray]) -> None:
        self.session = session
        self.feed = feed

    def __call__(self) -> Any:
        return self.session.run(None, self.feed)


class _Reader:
    """Feeds, in the form in which ONNX Runtime asks for calibration data."""

    def __init__(self, feeds: Sequence[Feed]) -> None:
        self.feeds = iter(feeds)

    def get_next(self) -> dict[str, np.ndarray] | None:
        feed = next(self.feeds, None)
        return None if feed is None else dict(feed)


def _quantise(
    graph: "onnx.ModelProto",
    feeds: Sequence[Feed],
    nodes: Sequence[str],
    path: Path,
    *,
    float_weights: bool,
) -> None:
    quantization = require("onnxruntime.quantization", PURPOSE)
    int8 = quantization.QuantType.QInt8
    try:
        quantization.quantize_static(
            graph,
            path,
            _Reader(feeds),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=list(LINEAR),
            per_channel=True,
            activation_type=int8,
            weight_type=int8,
            nodes_to_quantize=list(nodes),
            extra_options={
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                "QuantizeBias": False,
                "AddQDQPairToWeight": float_weights,
                "DedicatedQDQPair": True,  # TensorRT expects one reader behind each pair
                "OpTypesToExcludeOutputQuantization": list(LINEAR),
            },
        )
    except Exception as err:  # ONNX Runtime has a class of its own per status code
        raise UnsupportedModelError(
            f"ONNX Runtime cannot quantise the graph ({' '.join(str(err).split())[:300]}); check "
            "that its weights are numbers and that the calibration feeds fit its inputs, or export "
            "with another precision"
        ) from err


def _named(proto: "onnx.ModelProto") -> "onnx.ModelProto":
    """Return a copy whose nodes have names of their own, by which they are then chosen."""
    copy = type(proto)()
    copy.CopyFrom(proto)
    given = Counter(node.name for node in proto.graph.node)
    for place, node in enumerate(copy.graph.node):
        if not node.name or given[node.name] > 1:
            node.name = f"{node.op_type}_{place}"
            while given[node.name]:
                node.name += "_"
    return copy


def _chosen(
    graph: "onnx.ModelProto", nodes: Sequence[str] | None, crossing: Collection[str]
) -> list[str]:
    if nodes is None:
        chosen = linear_nodes(graph, crossing)
        if not chosen:
            raise UnsupportedModelError(
                "the graph has no Linear layer with float32 weights before its last one, so "
                "nothing can run in int8; export it with another precision"
            )
        return chosen
    linear = _linear(graph)
    unknown = [name for name in nodes if name not in linear]
    if unknown or not nodes:
        raise UserInputError(
            f"nodes to quantise are {', '.join(unknown or ['none'])}; expected some of the Linear "
            f"layers {', '.join(linear)}"
        )
    return list(nodes)


def _linear(proto: "onnx.ModelProto") -> list[str]:
    """Return the names of all Linear layers, in the order of the graph."""
    ranks = _float_constants(proto)
    return [node.name for node in proto.graph.node if _is_linear(node, ranks)]


def _is_linear(node: "onnx.NodeProto", ranks: Mapping[str, int]) -> bool:
    if node.op_type not in LINEAR or node.domain not in ("", "ai.onnx"):
        return False
    data, weight = node.input[:2]
    if data in ranks or weight not in ranks:
        return False
    if node.op_type == "Gemm":
        # ONNX Runtime's tool forgets beta, and a scale behind a transposed input has no meaning.
        values = {a.name: a.f or a.i for a in node.attribute}
        return values.get("beta", 1.0) == 1.0 and not values.get("transA", 0)
    return node.op_type == "Conv" or ranks[weight] == 2


def _float_constants(proto: "onnx.ModelProto") -> dict[str, int]:
    """Return the number of dimensions of every float32 initializer."""
    return {
        tensor.name: len(tensor.dims)
        for tensor in proto.graph.initializer
        if tensor.data_type == tensor.FLOAT
    }


def _last_before_results(
    proto: "onnx.ModelProto", linear: set[str], crossing: Collection[str]
) -> set[str]:
    """Return the Linear layers from which a result is reached without another one between."""
    maker = {output: node for node in proto.graph.node for output in node.output}
    todo = [output.name for output in proto.graph.output if output.name not in crossing]
    seen: set[str] = set()
    found: set[str] = set()
    while todo:
        tensor = todo.pop()
        if tensor in seen or tensor not in maker:
            continue
        seen.add(tensor)
        node = maker[tensor]
        if node.name in linear:
            found.add(node.name)
        else:
            todo += node.input
    return found


def _check_opset(proto: "onnx.ModelProto") -> None:
    opset = next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), 0)
    if opset < SMALLEST_OPSET:
        raise UnsupportedModelError(
            f"the graph is of opset {opset}; expected at least {SMALLEST_OPSET}, which has scales "
            "per channel, so export it anew"
        )


def _check_feeds(feeds: Sequence[Feed]) -> None:
    if not feeds:
        raise UserInputError("int8 was asked for without calibration data; expected some images")
    for place, feed in enumerate(feeds):
        for name, value in feed.items():
            # The tool passes over NaN, as long as one of the feeds has none.
            if not np.isfinite(value).all():
                raise UserInputError(
                    f"{name} of calibration feed {place} holds NaN or infinity; expected numbers, "
                    "so check the segment that gave it"
                )


def _check_scales(result: "onnx.ModelProto") -> None:
    """A tensor that overflowed while calibrating has such a scale; its layer would give NaN."""
    to_array = require("onnx", PURPOSE).numpy_helper.to_array
    tensors = {tensor.name: tensor for tensor in result.graph.initializer}
    for node in result.graph.node:
        if node.op_type == "DequantizeLinear":
            scale = to_array(tensors[node.input[1]])
            if not (np.isfinite(scale) & (scale > 0)).all():
                raise CompressError(
                    f"calibration gives {node.output[0]} a scale that is not a number above 0; the "
                    "network overflows on the calibration images, so check its weights"
                )


def _restore_head(result: "onnx.ModelProto", proto: "onnx.ModelProto") -> None:
    """Undo what the tool writes about itself, and the shapes that it infers on its way."""
    result.producer_name = proto.producer_name
    result.producer_version = proto.producer_version
    del result.metadata_props[:]
    result.metadata_props.extend(proto.metadata_props)
    del result.graph.value_info[:]
    result.graph.value_info.extend(proto.graph.value_info)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the tool's advice off the user's screen; it goes to the root logger."""
    logger = logging.getLogger()
    silent = logging.NullHandler()
    logger.addHandler(silent)  # without any, logging.warning() would install one that prints
    logger.addFilter(_nothing)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.removeFilter(_nothing)
        logger.removeHandler(silent)


def _nothing(record: logging.LogRecord) -> bool:
    return False
