"""Tiny bundles whose gates are columns of the image, and what early exit makes of them in numpy."""

from dataclasses import replace

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from compress.files import sha256_of
from compress.runtime.manifest import (
    Manifest,
    Segment,
    TensorSpec,
    read_manifest,
    write_manifest,
)

SHAPE, FEATURES, CLASSES, BATCH = (1, 2, 4), 8, 3, 8
THRESHOLDS = (0.5, 0.25)
NO_NUMBER = np.float32(3e38)
FLOATS = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}


def weights_of(number):
    return np.random.default_rng(number).normal(size=(FEATURES, CLASSES)).astype(np.float32)


def segment_model(number, exits, dtype, batch):
    """A segment whose gate is column `number` of what it gets, and whose hidden state adds 1.

    A column of `NO_NUMBER` makes a gate that is NaN, of an image that is finite. Columns before
    `exits` are gates and pass unchanged; logits are read from the others alone, so that a gate that
    is not a number stays a gate's matter.
    """
    first, last = number == 0, number == exits
    taken, given = f"hidden_{number - 1}", f"hidden_{number}"
    is_gate = np.arange(FEATURES) < exits
    constants = {
        "weights": weights_of(number)[~is_gate],
        "step": np.where(is_gate, 0, 1).astype(np.float32),
        "flat": np.array([-1, FEATURES]),
        "column": np.array(number),
        "others": np.flatnonzero(~is_gate),
        "ten": np.array(10, dtype=np.float32),
    }
    node = helper.make_node
    nodes = [
        node("Reshape", ["image", "flat"], ["x"])
        if first
        else node("Cast", [taken], ["x"], to=TensorProto.FLOAT),
        node("Gather", ["x", "others"], ["seen"], axis=1),
        node("MatMul", ["seen", "weights"], ["logits"]),
    ]
    outputs = [("logits", "float32", (CLASSES,))]
    if not last:
        nodes += [
            node("Gather", ["x", "column"], ["column_of_x"], axis=1),
            node("Mul", ["column_of_x", "ten"], ["large"]),  # infinite where it is no number
            node("Sub", ["large", "large"], ["nothing"]),
            node("Add", ["column_of_x", "nothing"], ["gate"]),
            node("Add", ["x", "step"], ["stepped"]),
            node("Cast", ["stepped"], [given], to=FLOATS[dtype]),
        ]
        outputs = [(given, dtype, (FEATURES,)), *outputs, ("gate", "float32", ())]
    inputs = [("image", "float32", SHAPE) if first else (taken, dtype, (FEATURES,))]
    graph = helper.make_graph(
        nodes,
        f"segment {number}",
        *(
            [helper.make_tensor_value_info(n, FLOATS[t], [batch, *s]) for n, t, s in part]
            for part in (inputs, outputs)
        ),
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    specs = [tuple(TensorSpec(*each) for each in part) for part in (inputs, outputs)]
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), specs


def write_bundle(folder, *, batch=BATCH, thresholds=THRESHOLDS, dtype="float32", name="tiny"):
    folder.mkdir(parents=True, exist_ok=True)
    segments, exits = [], len(thresholds)
    for number, threshold in enumerate([*thresholds, None]):
        path = folder / f"segment_{number}.onnx"
        model, (inputs, outputs) = segment_model(number, exits, dtype, 1 if batch == 1 else "batch")
        model.ir_version = 8
        onnx.save(model, path)
        at, macs = None if threshold is None else f"column.{number}", FEATURES * CLASSES
        segments.append(Segment(path.name, sha256_of(path), at, macs, threshold, inputs, outputs))
    manifest = Manifest(name, ("a", "b", "c"), None, (1, batch), "onnxruntime", 17, tuple(segments))
    write_manifest(manifest, folder)
    return manifest


def save_segment(model, folder, number):
    """Put another file in the place of a segment, and its sha256 into the manifest."""
    path = folder / f"segment_{number}.onnx"
    onnx.save(model, path)
    manifest = read_manifest(folder, check_files=False)
    segments = list(manifest.segments)
    segments[number] = replace(segments[number], sha256=sha256_of(path))
    write_manifest(replace(manifest, segments=tuple(segments)), folder)


def early_exit(images, thresholds, dtype="float32"):
    """Image by image, in numpy: logits (N, K) and exits (N, 1)."""
    logits, exits, gates = [], [], len(thresholds)
    for image in images:
        x = image.reshape(-1)
        for number in range(gates + 1):
            if number == gates or thresholds[number] <= x[number] < NO_NUMBER:
                break
            x = x.copy()
            x[gates:] += 1
            with np.errstate(over="ignore"):  # of NO_NUMBER
                x = x.astype(dtype).astype(np.float32)
        logits.append(x[gates:] @ weights_of(number)[gates:])
        exits.append([number])
    return np.array(logits), np.array(exits)


def images_with(gates, seed=0):
    """Images whose first features give these gates (N, E)."""
    gates = np.asarray(gates, dtype=np.float32)
    gates = np.where(np.isnan(gates), NO_NUMBER, gates)
    x = np.random.default_rng(seed).normal(size=(len(gates), FEATURES)).astype(np.float32)
    x[:, : gates.shape[1]] = gates
    return x.reshape(-1, *SHAPE)
