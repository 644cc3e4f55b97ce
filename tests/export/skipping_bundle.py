"""A bundle cut from one graph: truth values and whole numbers cross, the image is read again.

Of images (B, 2, 2, 2), the first two features are the gates, as in `triton_bundles`.
"""

import numpy as np
import onnx
from onnx import TensorProto, helper

from compress.export.cut import cut_graph
from compress.files import sha256_of
from compress.runtime.manifest import Manifest, Segment, write_manifest
from tests.export.small_graphs import INT64, node, value

SHAPE, CLASSES = (2, 2, 2), 3
RESULTS = [
    {"logits_0": "logits", "gate_0": "gate"},
    {"logits_1": "logits", "gate_1": "gate"},
    {"logits": "logits"},
]


def whole_graph(batch):
    """x = image in a row; positive = x > 0 and places = round(x) cross two cuts, x and wide one."""
    rng = np.random.default_rng(0)
    weights = {f"w{i}": rng.normal(size=(8, CLASSES)).astype(np.float32) for i in range(3)}
    nodes = [
        node("Reshape", "image row", "x"),
        node("Greater", "x zero", "positive"),
        node("Round", "x", "rounded"),
        node("Cast", "rounded", "places", to=INT64),
        node("Where", "positive x zero", "kept"),
        node("Cast", "places", "steps", to=TensorProto.FLOAT),
        node("Add", "kept steps", "seen"),
        node("MatMul", "seen w0", "logits_0"),
        node("Gather", "x first", "gate_0", axis=1),
        node("Exp", "seen", "wide"),
        node("MatMul", "wide w1", "logits_1"),
        node("Gather", "x second", "gate_1", axis=1),
        node("Where", "positive wide seen", "mixed"),
        node("Reshape", "image row", "again"),
        node("Mul", "mixed again", "scaled"),
        node("Equal", "places two", "is_two"),
        node("Where", "is_two zero scaled", "sum"),
        node("MatMul", "sum w2", "logits"),
    ]
    outputs = [value(n, [batch, CLASSES] if "logits" in n else [batch]) for r in RESULTS for n in r]
    constants = {
        "row": np.array([-1, 8]),
        "zero": np.float32(0),
        "two": np.array(2),
        "first": np.array(0),
        "second": np.array(1),
        **weights,
    }
    initializers = [onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()]
    graph = helper.make_graph(
        nodes, "whole", [value("image", [batch, *SHAPE])], outputs, initializers
    )
    opsets = [helper.make_opsetid("", 17)]
    made = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    onnx.checker.check_model(made, full_check=True)
    return made


def write_skipping_bundle(folder, *, batch=8, thresholds=(0.5, 0.25)):
    """Write it; return the manifest and the whole graph."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = whole_graph("batch" if batch > 1 else 1)
    parts = cut_graph(whole, RESULTS, np.zeros((1, *SHAPE), np.float32))
    segments = []
    for number, (part, bar) in enumerate(zip(parts, [*thresholds, None], strict=True)):
        path = folder / f"segment_{number}.onnx"
        onnx.save(part.proto, path)
        segments.append(
            Segment(
                file=path.name,
                sha256=sha256_of(path),
                at=None if bar is None else f"layer{number}",
                macs=24,
                threshold=bar,
                inputs=part.takes,
                outputs=(*part.gives, *part.results),
            )
        )
    manifest = Manifest(
        "tiny", ("a", "b", "c"), None, (1, batch), "onnxruntime", 17, tuple(segments)
    )
    write_manifest(manifest, folder)
    return manifest, whole


def images_of(gates, seed=0):
    """Images whose first two features are these gates."""
    x = np.random.default_rng(seed).normal(size=(len(gates), 8)).astype(np.float32) * 2
    x[:, :2] = gates
    return x.reshape(-1, *SHAPE)
