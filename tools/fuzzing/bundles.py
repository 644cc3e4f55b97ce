"""Bundles: the manifest, the ONNX files behind it, the list of engines, the monitor's lines."""

import hashlib
import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from compress import monitor
from compress.runtime.cuda import DeviceInfo
from compress.runtime.dispatcher import Dispatcher
from compress.runtime.engines import EngineFile, EngineSet, read_engines, write_engines
from compress.runtime.manifest import read_manifest
from tools.fuzzing.kind import Kind
from tools.fuzzing.mutations import HOSTILE, damage_bytes, damage_file, mutate_json_file

__all__ = ["engine_lists", "manifests", "monitor_lines", "onnx_files"]

MANIFEST, LINES, REFERENCE = "manifest.json", "lines.jsonl", "reference.jsonl"


def manifests(bundle: Path) -> Kind:
    """Return the kind of manifests, of the bundle that is its seed."""

    def mutate(rng: random.Random, case: Path) -> None:
        if rng.random() < 0.3:
            _trade_tensors(rng, case / MANIFEST)
        else:
            mutate_json_file(rng, case / MANIFEST)
        if rng.random() < 0.1:
            first, second = rng.sample(_segments(case), 2)
            content = first.read_bytes()
            first.write_bytes(second.read_bytes())
            second.write_bytes(content)

    return Kind(name="manifest", seeds=(bundle,), mutate=mutate, read=_dispatch)


def onnx_files(bundle: Path) -> Kind:
    """Return the kind of ONNX files; the manifest names the sha256 of what they have become."""

    def mutate(rng: random.Random, case: Path) -> None:
        path = rng.choice(_segments(case))
        if rng.random() < 0.3:
            damage_file(rng, path)
        else:
            _mutate_graph(rng, path)
        _name_again(case, path)

    return Kind(name="onnx", seeds=(bundle,), mutate=mutate, read=_dispatch)


def engine_lists(bundle: Path) -> Kind:
    """Return the kind of `engines.json`; the engines themselves are no engines."""
    manifest = read_manifest(bundle)
    engines = []
    for i, segment in enumerate(manifest.segments):
        content = f"engine {i}".encode()
        (bundle / f"segment_{i}.engine").write_bytes(content)
        engines.append(
            EngineFile(
                file=f"segment_{i}.engine",
                sha256=hashlib.sha256(content).hexdigest(),
                onnx_sha256=segment.sha256,
            )
        )
    write_engines(
        EngineSet(
            builder="tensorrt",
            tensorrt_version="10.3.0.30",
            device=DeviceInfo("Orin", "8.7", 16, 61.4, 1300),
            segments=tuple(engines),
        ),
        bundle,
    )

    def mutate(rng: random.Random, case: Path) -> None:
        mutate_json_file(rng, case / "engines.json")

    def read(case: Path) -> None:
        read_engines(case, read_manifest(case, check_files=False))

    return Kind(name="engines", seeds=(bundle,), mutate=mutate, read=read)


def monitor_lines(folder: Path, lines: bytes) -> Kind:
    """Return the kind of lines that the monitor reads.

    Args:
        folder: a bundle; `lines` are written beside its files.
        lines: what the dispatcher printed.
    """
    for name in (LINES, REFERENCE):
        (folder / name).write_bytes(lines)

    def mutate(rng: random.Random, case: Path) -> None:
        path = case / (LINES if rng.random() < 0.7 else REFERENCE)
        if rng.random() < 0.4:
            damage_file(rng, path)
            return
        rows = [json.loads(row) for row in path.read_bytes().splitlines()]
        for _ in range(rng.randint(1, 3)):
            row = rng.choice(rows)
            row[rng.choice(list(row))] = rng.choice(HOSTILE)
        path.write_text("\n".join(map(json.dumps, rows)) + "\n")

    def read(case: Path) -> int:
        return monitor.main([str(case), str(case / LINES), "--reference", str(case / REFERENCE)])

    return Kind(name="monitor", seeds=(folder,), mutate=mutate, read=read)


def _dispatch(case: Path) -> None:
    with Dispatcher(case, threads=1) as dispatcher:
        shape = dispatcher.manifest.image.shape
        dispatcher.run(np.zeros((2, *shape), np.float32))


def _segments(case: Path) -> list[Path]:
    return sorted(case.glob("*.onnx"))


def _trade_tensors(rng: random.Random, path: Path) -> None:
    """Let segments take and give what is another's: each tensor alone is still a good one."""
    value = json.loads(path.read_text())
    sides = [part[side] for part in value["segments"] for side in ("inputs", "outputs")]
    for _ in range(rng.randint(1, 3)):
        one, other = rng.choice(sides), rng.choice(sides)
        way, place = rng.randrange(5), rng.randrange(len(other) + 1)
        if way == 0 and one:
            other.insert(place, one.pop(rng.randrange(len(one))))
        elif way == 1 and one:
            other.insert(place, dict(rng.choice(one)))
        elif way == 2 and one and other:
            rng.choice(other)[rng.choice(("name", "alias"))] = rng.choice(one)["name"]
        elif way == 3 and one:
            rng.choice(one)["dtype"] = rng.choice(("float16", "int32", "int64", "bool"))
        else:
            rng.shuffle(other)
    path.write_text(json.dumps(value))


def _name_again(case: Path, path: Path) -> None:
    value = json.loads((case / MANIFEST).read_text())
    for segment in value["segments"]:
        if segment["file"] == path.name:
            segment["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (case / MANIFEST).write_text(json.dumps(value))


def _mutate_graph(rng: random.Random, path: Path) -> None:
    model = onnx.load(path, load_external_data=False)
    way = rng.choice(
        (
            _external,
            _external,
            _custom,
            _drop_node,
            _attribute,
            _other_shape,
            _twice,
            _constant,
        )
    )
    way(rng, model)
    path.write_bytes(model.SerializeToString())


def _external(rng: random.Random, model: Any) -> None:
    """Let a weight stand in a file: outside, absolute, a device, far behind the end."""
    tensor = rng.choice(list(model.graph.initializer))
    size = len(tensor.raw_data) or 4
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    place = rng.choice(
        (
            "../outside.bin",
            "/etc/passwd",
            "/dev/zero",
            "manifest.json",
            os.devnull,
            "missing.bin",
            "",
            "segment_0.onnx",
        )
    )
    entries = {
        "location": place,
        "offset": str(rng.choice((0, -1, 2**40))),
        "length": str(rng.choice((size, 2**40, -1))),
    }
    for key, value in entries.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value


def _custom(rng: random.Random, model: Any) -> None:
    node = rng.choice(list(model.graph.node))
    node.domain = rng.choice(("com.evil", "ai.onnx.contrib", "com.microsoft"))
    if rng.random() < 0.5:
        node.op_type = rng.choice(("PyOp", "Inverse", "Loop", "If", "Scan", "NoSuch"))
    model.opset_import.append(helper.make_opsetid(node.domain, 1))


def _drop_node(rng: random.Random, model: Any) -> None:
    del model.graph.node[rng.randrange(len(model.graph.node))]


def _attribute(rng: random.Random, model: Any) -> None:
    with_some = [node for node in model.graph.node if node.attribute]
    attribute = rng.choice(rng.choice(with_some).attribute)
    attribute.i = rng.choice((-1, 0, 7, 2**40))
    for i in range(len(attribute.ints)):
        attribute.ints[i] = rng.choice((0, -1, 2, 2**40))


def _other_shape(rng: random.Random, model: Any) -> None:
    values = [*model.graph.input, *model.graph.output]
    dims = rng.choice(values).type.tensor_type.shape.dim
    if dims:
        dims[rng.randrange(len(dims))].dim_value = rng.choice((0, 1, 2, 2**31, 2**40))


def _twice(rng: random.Random, model: Any) -> None:
    model.graph.node.append(rng.choice(list(model.graph.node)))


def _constant(rng: random.Random, model: Any) -> None:
    """Another content of a constant, which may be a shape."""
    tensor = rng.choice(list(model.graph.initializer))
    if tensor.data_type == TensorProto.INT64 and rng.random() < 0.7:
        values = [rng.choice((-1, 0, 2, 2**20, 2**40)) for _ in range(len(tensor.raw_data) // 8)]
        tensor.raw_data = np.array(values, dtype=np.int64).tobytes()
    else:
        tensor.raw_data = damage_bytes(rng, tensor.raw_data)
