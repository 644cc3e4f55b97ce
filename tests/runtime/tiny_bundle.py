"""A bundle of two segments with every operator that a real one has, small enough for each test."""

import hashlib
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from compress.runtime.manifest import Manifest, Segment, TensorSpec, write_manifest

TOKENS, WIDTH, CLASSES = 16, 8, 4
IMAGE = TensorSpec("image", "float32", (3, 16, 16))
LOGITS = TensorSpec("logits", "float32", (CLASSES,))
GATE = TensorSpec("gate", "float32", ())
KINDS = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}


class Graph:
    """Collects the nodes and constants of one small ONNX file."""

    def __init__(self, dtype: str) -> None:
        self.nodes, self.constants = [], []
        self.random = np.random.default_rng(0)
        self.dtype = dtype

    def constant(self, value) -> str:
        self.constants.append(numpy_helper.from_array(value, f"constant_{len(self.constants)}"))
        return self.constants[-1].name

    def integers(self, *values: int) -> str:
        return self.constant(np.array(values))

    def weight(self, *shape: int, dtype=None) -> str:
        return self.constant(self.random.normal(0, 0.3, shape).astype(dtype or self.dtype))

    def add(self, operator: str, *inputs: str, name: str = "", **attributes) -> str:
        names = [name or f"{operator}_{len(self.nodes)}"]
        if operator == "TopK":
            names.append("places")
        node = helper.make_node(operator, inputs, names, f"the_{names[0]}", **attributes)
        self.nodes.append(node)
        return names[0]

    def patches(self) -> str:
        image = self.add("Cast", "image", to=KINDS[self.dtype])
        kernel = self.weight(WIDTH, 3, 4, 4)
        patches = self.add("Conv", image, kernel, kernel_shape=[4, 4], strides=[4, 4])
        flat = self.add("Reshape", patches, self.integers(0, WIDTH, TOKENS))
        return self.add("Transpose", flat, perm=[0, 2, 1])

    def block(self, x: str, name: str = "") -> str:
        normed = self.add("LayerNormalization", x, self.weight(WIDTH), self.weight(WIDTH), axis=-1)
        inner = self.add("Gelu", self.add("MatMul", normed, self.weight(WIDTH, 2 * WIDTH)))
        return self.add(
            "Add", x, self.add("MatMul", inner, self.weight(2 * WIDTH, WIDTH)), name=name
        )

    def head(self, x: str) -> str:
        pooled = self.add("ReduceMean", x, self.integers(1), keepdims=0)
        logits = self.add("MatMul", pooled, self.weight(WIDTH, CLASSES))
        return self.add("Cast", logits, to=TensorProto.FLOAT, name="logits")

    def gate(self, logits: str) -> str:
        top = self.add("TopK", self.add("Softmax", logits, axis=-1), self.integers(2), axis=-1)
        score = self.add("MatMul", top, self.weight(2, 1, dtype="float32"))
        return self.add("Reshape", self.add("Sigmoid", score), self.integers(-1), name="gate")

    def to_bytes(self, inputs, outputs, batch) -> bytes:
        values = [
            [
                helper.make_tensor_value_info(s.name, KINDS[s.dtype], [batch, *s.shape])
                for s in specs
            ]
            for specs in (inputs, outputs)
        ]
        graph = helper.make_graph(self.nodes, "segment", *values, self.constants)
        opset = [helper.make_opsetid("", 20)]
        return helper.make_model(graph, opset_imports=opset, ir_version=10).SerializeToString()


def write_bundle(bundle: Path, dtype: str = "float32", batch=(1, 4), extra: str = "") -> Manifest:
    """Write a bundle of two segments; `extra` is an operator to put between them."""
    bundle.mkdir(parents=True, exist_ok=True)
    hidden = TensorSpec("hidden_0", dtype, (TOKENS, WIDTH))
    first, last = Graph(dtype), Graph(dtype)
    first.gate(first.head(first.block(first.patches(), name="hidden_0")))
    last.head(last.block(last.add(extra, "hidden_0") if extra else "hidden_0"))
    segments = []
    for place, (graph, inputs, outputs) in enumerate(
        [(first, (IMAGE,), (hidden, LOGITS, GATE)), (last, (hidden,), (LOGITS,))]
    ):
        content = graph.to_bytes(inputs, outputs, "N" if batch[0] < batch[1] else batch[0])
        (bundle / f"segment_{place}.onnx").write_bytes(content)
        segments.append(
            Segment(
                file=f"segment_{place}.onnx",
                sha256=hashlib.sha256(content).hexdigest(),
                at=None if graph is last else "block",
                macs=1000,
                threshold=None if graph is last else 0.5,
                inputs=inputs,
                outputs=outputs,
                precision="fp16" if dtype == "float16" else "fp32",
            )
        )
    manifest = Manifest(
        name="tiny",
        classes=tuple("abcd"),
        preprocessing=None,
        batch=batch,
        target="tensorrt10",
        opset=20,
        segments=tuple(segments),
    )
    write_manifest(manifest, bundle)
    return manifest
