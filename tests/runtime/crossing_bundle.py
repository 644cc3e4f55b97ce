"""A bundle like a U-Net: of its five crossing tensors four live at once, of four types.

    segment 0  image                    -> hidden_0 (skip), hidden_1 (half precision)
    segment 1  hidden_1                 -> hidden_2 (places, int64), hidden_3 (one bool)
    segment 2  image, hidden_0, hidden_2 -> hidden_4
    segment 3  hidden_0, hidden_3, hidden_4

The gates are columns of the image. `early_exit` tells in numpy what a bundle must give.
"""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from compress.files import sha256_of
from compress.runtime.manifest import Manifest, Segment, TensorSpec, write_manifest

SHAPE, FEATURES, CLASSES, BATCH = (1, 2, 4), 8, 3, 8
THRESHOLDS = (0.5, 0.25, 0.75)
KINDS = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "int64": TensorProto.INT64,
    "bool": TensorProto.BOOL,
}
IMAGE = TensorSpec("image", "float32", SHAPE)
SKIP = TensorSpec("hidden_0", "float32", (FEATURES,))
HALF = TensorSpec("hidden_1", "float16", (FEATURES,))
PLACES = TensorSpec("hidden_2", "int64", (FEATURES,))
MASK = TensorSpec("hidden_3", "bool", ())
JOINED = TensorSpec("hidden_4", "float32", (FEATURES,))
LOGITS = TensorSpec("logits", "float32", (CLASSES,))
GATE = TensorSpec("gate", "float32", ())

PARTS = (
    ((IMAGE,), (SKIP, HALF, LOGITS, GATE)),
    ((HALF,), (PLACES, MASK, LOGITS, GATE)),
    ((IMAGE, SKIP, PLACES), (JOINED, LOGITS, GATE)),
    ((SKIP, MASK, JOINED), (LOGITS,)),
)
NODES = (
    (
        ("Reshape", ["image", "flat"], ["x"]),
        ("Mul", ["x", "two"], ["hidden_0"]),
        ("Add", ["x", "one"], ["raised"]),
        ("Cast", ["raised"], ["hidden_1"], {"to": TensorProto.FLOAT16}),
        ("MatMul", ["x", "weights"], ["logits"]),
        ("Gather", ["x", "column"], ["gate"], {"axis": 1}),
    ),
    (
        ("Cast", ["hidden_1"], ["raised"], {"to": TensorProto.FLOAT}),
        ("Sub", ["raised", "one"], ["x"]),
        ("TopK", ["x", "all"], ["sorted", "hidden_2"]),
        ("Gather", ["x", "last"], ["end"], {"axis": 1}),
        ("Greater", ["end", "zero"], ["hidden_3"]),
        ("MatMul", ["x", "weights"], ["logits"]),
        ("Gather", ["x", "column"], ["gate"], {"axis": 1}),
    ),
    (
        ("Reshape", ["image", "flat"], ["x"]),
        ("GatherElements", ["hidden_0", "hidden_2"], ["sorted"], {"axis": 1}),
        ("Add", ["sorted", "x"], ["hidden_4"]),
        ("MatMul", ["hidden_4", "weights"], ["logits"]),
        ("Gather", ["x", "column"], ["gate"], {"axis": 1}),
    ),
    (
        ("Unsqueeze", ["hidden_3", "last_axis"], ["chosen"]),
        ("Where", ["chosen", "hidden_4", "hidden_0"], ["x"]),
        ("MatMul", ["x", "weights"], ["logits"]),
    ),
)


def weights_of(number):
    return np.random.default_rng(number).normal(size=(FEATURES, CLASSES)).astype(np.float32)


def segment_model(number, batch):
    constants = {
        "weights": weights_of(number),
        "column": np.array(number),
        "last": np.array(FEATURES - 1),
        "last_axis": np.array([-1]),
        "all": np.array([FEATURES]),
        "flat": np.array([-1, FEATURES]),
        **{name: np.array(i, np.float32) for i, name in enumerate(("zero", "one", "two"))},
    }
    nodes = [
        helper.make_node(operator, inputs, outputs, **dict(*rest))
        for operator, inputs, outputs, *rest in NODES[number]
    ]
    read = {name for node in nodes for name in node.input}
    values = [
        [helper.make_tensor_value_info(s.name, KINDS[s.dtype], [batch, *s.shape]) for s in specs]
        for specs in PARTS[number]
    ]
    weights = [numpy_helper.from_array(v, name) for name, v in constants.items() if name in read]
    graph = helper.make_graph(nodes, f"segment {number}", *values, weights)
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8)


def write_bundle(folder, *, batch=BATCH):
    folder.mkdir(parents=True, exist_ok=True)
    segments = []
    for number, (inputs, outputs) in enumerate(PARTS):
        path, is_last = folder / f"segment_{number}.onnx", number == len(THRESHOLDS)
        onnx.save(segment_model(number, 1 if batch == 1 else "batch"), path)
        segments.append(
            Segment(
                file=path.name,
                sha256=sha256_of(path),
                at=None if is_last else f"down.{number}",
                macs=FEATURES * CLASSES,
                threshold=None if is_last else THRESHOLDS[number],
                inputs=inputs,
                outputs=outputs,
            )
        )
    classes = ("a", "b", "c")
    manifest = Manifest("unet", classes, None, (1, batch), "onnxruntime", 17, tuple(segments))
    write_manifest(manifest, folder)
    return manifest


def early_exit(images, thresholds=THRESHOLDS):
    """Image by image, in numpy: logits (N, K) and exits (N,)."""
    logits, exits = [], []
    for image in images:
        x = image.reshape(-1)
        halved = (x + np.float32(1)).astype(np.float16).astype(np.float32) - np.float32(1)
        joined = (2 * x)[np.argsort(-halved, kind="stable")] + x
        seen = [x, halved, joined, joined if halved[-1] > 0 else 2 * x]
        scores = [x[0], halved[1], x[2]]
        number = next((i for i, bar in enumerate(thresholds) if scores[i] >= bar), len(thresholds))
        logits.append(seen[number] @ weights_of(number))
        exits.append(number)
    return np.array(logits), np.array(exits)


def images_with(gates, seed=0):
    """Images whose first features are these gates (N, 3), multiples of 1/64 below 1."""
    gates = np.asarray(gates, dtype=np.float32)
    x = np.random.default_rng(seed).normal(size=(len(gates), FEATURES)).astype(np.float32)
    x[:, : gates.shape[1]] = gates
    return x.reshape(-1, *SHAPE)
