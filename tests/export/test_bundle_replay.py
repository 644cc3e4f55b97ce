from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from compress.data.image_data import Preprocessing, Split
from compress.data.pictures import MemorySource
from compress.errors import CompressError, UserInputError
from compress.exits.replay import Source, decide, load_replay, save_replay
from compress.exits.sweep import whole_network
from compress.export.bundle_replay import replay_bundle
from compress.files import sha256_of
from compress.runtime.dispatcher import Dispatcher
from compress.runtime.manifest import Manifest, Segment, TensorSpec, read_manifest, write_manifest

SIZE, TOKENS, WIDTH, CLASSES, IMAGES = 4, 2, 6, 3, 11
PREPARED = Preprocessing(
    image_size=SIZE,
    resize="pillow-bicubic",
    resize_size=SIZE,
    mean=(0.5, 0.4, 0.3),
    std=(0.2, 0.3, 0.4),
)
SOURCE = Source(data="made up", split="calibration", data_sha256="d", checkpoint_sha256="c")
PLACES = ("blocks.2", "blocks.3", None)
MACS = (700, 90, 300)
KINDS = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}


def weights():
    rng = np.random.default_rng(0)
    shapes = {"body0": (3 * SIZE * SIZE, TOKENS * WIDTH)}
    shapes |= {f"body{i}": (TOKENS * WIDTH, TOKENS * WIDTH) for i in (1, 2)}
    shapes |= {f"head{i}": (TOKENS * WIDTH, CLASSES) for i in range(3)}
    shapes |= {f"gate{i}": (CLASSES, 1) for i in range(2)}
    return {name: rng.normal(size=s).astype(np.float32) * 0.3 for name, s in shapes.items()}


def segment_file(path, i, kind):
    """body -> tanh -> hidden; head -> logits; sigmoid -> gate."""
    last, taken = i == len(PLACES) - 1, f"hidden_{i - 1}" if i else "image"
    flat = helper.make_tensor("flat", TensorProto.INT64, [2], [0, -1])
    tokens = helper.make_tensor("tokens", TensorProto.INT64, [3], [-1, TOKENS, WIDTH])
    nodes = [
        helper.make_node("Reshape", [taken, "flat"], ["x"]),
        helper.make_node("Cast", ["x"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["wide", f"body{i}"], ["a"]),
        helper.make_node("Tanh", ["a"], ["h"]),
        helper.make_node("MatMul", ["h", f"head{i}"], ["logits"]),
    ]
    shape = ["n", TOKENS, WIDTH] if i else ["n", 3, SIZE, SIZE]
    element = KINDS[kind] if i else TensorProto.FLOAT
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", CLASSES])]
    if not last:
        nodes += [
            helper.make_node("Reshape", ["h", "tokens"], ["reshaped"]),
            helper.make_node("Cast", ["reshaped"], [f"hidden_{i}"], to=KINDS[kind]),
            helper.make_node("MatMul", ["logits", f"gate{i}"], ["column"]),
            helper.make_node("Squeeze", ["column", "one"], ["raw"]),
            helper.make_node("Sigmoid", ["raw"], ["gate"]),
        ]
        outputs += [
            helper.make_tensor_value_info(f"hidden_{i}", KINDS[kind], ["n", TOKENS, WIDTH]),
            helper.make_tensor_value_info("gate", TensorProto.FLOAT, ["n"]),
        ]
    one = helper.make_tensor("one", TensorProto.INT64, [1], [1])
    inside = [v for k, v in weights().items() if k.endswith(str(i))]
    names = [k for k in weights() if k.endswith(str(i))]
    constants = [numpy_helper.from_array(v, k) for k, v in zip(names, inside, strict=True)]
    graph = helper.make_graph(
        nodes,
        f"segment {i}",
        [helper.make_tensor_value_info(taken, element, shape)],
        outputs,
        [flat, tokens, one, *constants],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def write_bundle(folder, *, kind="float32"):
    folder.mkdir(parents=True, exist_ok=True)
    hidden = [TensorSpec(f"hidden_{i}", kind, (TOKENS, WIDTH)) for i in range(2)]
    logits = TensorSpec("logits", "float32", (CLASSES,))
    parts = []
    for i in range(len(PLACES)):
        path, last = folder / f"segment_{i}.onnx", i == len(PLACES) - 1
        segment_file(path, i, kind)
        image = TensorSpec("image", "float32", (3, SIZE, SIZE))
        gate = TensorSpec("gate", "float32", ())
        parts.append(
            Segment(
                file=path.name,
                sha256=sha256_of(path),
                at=PLACES[i],
                macs=MACS[i],
                threshold=None if last else 0.5,
                inputs=(hidden[i - 1] if i else image,),
                outputs=(logits,) if last else (hidden[i], logits, gate),
            )
        )
    manifest = Manifest(
        name="made by hand",
        classes=("a", "b", "c"),
        preprocessing=PREPARED,
        batch=(1, 4),
        target="onnxruntime",
        opset=17,
        segments=tuple(parts),
        notes={"check_macs": [20, 30], "depth": 7},
    )
    write_manifest(manifest, folder)
    return manifest


def split_of(images=IMAGES, *, size=SIZE, classes=CLASSES):
    rng = np.random.default_rng(1)
    pixels = torch.from_numpy(rng.integers(0, 256, (images, 3, size, size), dtype=np.uint8))
    labels = torch.arange(images) % classes
    return Split(MemorySource(pixels), torch.arange(images), labels)


def expected(split, kind="float32"):
    """Logits and gates in plain numpy, from images as torch normalises them."""
    known = {name: value.astype(np.float64) for name, value in weights().items()}
    x = PREPARED.normalize(split.images(torch.arange(len(split)))).numpy().reshape(len(split), -1)
    logits, gates = [], []
    for i in range(3):
        hidden = np.tanh(x.astype(np.float64) @ known[f"body{i}"])
        logits.append(hidden @ known[f"head{i}"])
        if i < 2:
            gates.append(1 / (1 + np.exp(-logits[-1] @ known[f"gate{i}"]))[:, 0])
        x = hidden.astype(kind)
    return np.stack(logits, axis=1), np.stack(gates, axis=1)


@pytest.mark.parametrize("kind", ["float32", "float16"])
@pytest.mark.parametrize("batch_size", [1, 3, None])
def test_every_exit_on_every_image(tmp_path, kind, batch_size):
    write_bundle(tmp_path / "bundle", kind=kind)
    split = split_of()
    table = replay_bundle(
        tmp_path / "bundle", split, SOURCE, batch_size=batch_size, threads=1, progress=False
    )
    logits, gates = expected(split, kind)
    np.testing.assert_allclose(table.logits, logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(table.scores, gates, rtol=1e-4, atol=1e-5)
    assert table.labels.tolist() == split.labels.tolist()
    assert table.positions == (2, 3)
    assert table.depth == 7
    assert table.macs.tolist() == [700, 790, 1090]
    assert table.check_macs.tolist() == [20, 30]
    assert table.source == SOURCE


def test_the_table_is_one_that_can_be_saved(tmp_path):
    write_bundle(tmp_path / "bundle")
    table = replay_bundle(tmp_path / "bundle", split_of(), SOURCE, progress=False)
    save_replay(table, tmp_path / "table.npz")
    again = load_replay(tmp_path / "table.npz")
    np.testing.assert_array_equal(again.logits, table.logits)
    np.testing.assert_array_equal(again.scores, table.scores)


def test_the_dispatcher_decides_as_the_table_says(tmp_path):
    write_bundle(tmp_path / "bundle")
    split = split_of(60)
    table = replay_bundle(tmp_path / "bundle", split, SOURCE, batch_size=1, progress=False)
    images = split.images(torch.arange(60)).numpy()
    # A threshold that is a score: the least difference would show.
    bars = [float(np.sort(table.scores[:, i])[30]) for i in range(2)]
    taken = decide(table, bars)
    assert len(set(taken.tolist())) == 3
    with Dispatcher(tmp_path / "bundle", "onnxruntime", thresholds=bars) as dispatcher:
        for i, image in enumerate(images):
            found = dispatcher.run(image)
            assert found.exits[0] == taken[i]
            np.testing.assert_array_equal(found.logits[0], table.logits[i, taken[i]])


def test_a_bundle_of_one_segment_tells_its_accuracy(tmp_path):
    manifest = write_bundle(tmp_path / "bundle")
    path = tmp_path / "bundle" / "segment_0.onnx"
    model = onnx.load(path)
    kept = [output for output in model.graph.output if output.name == "logits"]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    onnx.save(model, path)
    whole = replace(
        manifest.segments[2],
        file=path.name,
        sha256=sha256_of(path),
        inputs=manifest.segments[0].inputs,
        macs=5,
    )
    write_manifest(replace(manifest, segments=(whole,), notes={}), tmp_path / "bundle")
    split = split_of()
    table = replay_bundle(tmp_path / "bundle", split, SOURCE, progress=False)
    wanted = expected(split)[0][:, 0]
    np.testing.assert_allclose(table.logits[:, 0], wanted, rtol=1e-4, atol=1e-5)
    assert (table.exits, table.macs.tolist()) == (0, [5])
    right = int((wanted.argmax(1) == split.labels.numpy()).sum())
    assert whole_network(table).correct == right


def test_exits_behind_modules_are_told_by_their_paths(tmp_path):
    manifest = write_bundle(tmp_path / "bundle")
    paths = ("layer1.0", "blocks.3", None)
    segments = [replace(s, at=at) for s, at in zip(manifest.segments, paths, strict=True)]
    notes = {"check_macs": [20, 30]}
    write_manifest(replace(manifest, segments=tuple(segments), notes=notes), tmp_path / "bundle")
    table = replay_bundle(tmp_path / "bundle", split_of(), SOURCE, progress=False)
    assert (table.positions, table.depth) == (("layer1.0", 3), 0)


def changed(folder, **fields):
    write_manifest(replace(read_manifest(folder), **fields), folder)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        pytest.param({"notes": {}}, "gives check_macs as None", id="no check macs"),
        pytest.param({"notes": {"check_macs": [1]}}, r"as \[1\]; expected one", id="too few"),
        pytest.param({"notes": {"check_macs": [1, -2]}}, "whole number", id="negative"),
        pytest.param({"notes": {"check_macs": [1, 2.5]}}, "whole number", id="not whole"),
        pytest.param({"notes": {"check_macs": [1, True]}}, "whole number", id="no number"),
        pytest.param({"notes": {"check_macs": 12}}, "whole number", id="no list"),
        pytest.param({"notes": {"check_macs": [1, 2], "depth": "7"}}, "depth as '7'", id="words"),
        pytest.param({"notes": {"check_macs": [1, 2], "depth": 3}}, "depth as 3;", id="few blocks"),
        pytest.param({"preprocessing": None}, "does not say how its images", id="not prepared"),
    ],
)
def test_manifests_that_do_not_tell_enough(tmp_path, fields, words):
    write_bundle(tmp_path / "bundle")
    changed(tmp_path / "bundle", **fields)
    with pytest.raises(UserInputError, match=words):
        replay_bundle(tmp_path / "bundle", split_of(), SOURCE, progress=False)


@pytest.mark.parametrize(
    ("split", "options", "words"),
    [
        pytest.param(split_of(0), {}, "calibration split of made up is empty", id="no images"),
        pytest.param(split_of(size=6), {}, "are 3x6x6, but made by hand takes 3x4x4", id="size"),
        pytest.param(split_of(classes=5), {}, "labels up to 4", id="classes"),
        pytest.param(split_of(), {"batch_size": 5}, "from 1 to 4 images", id="batch"),
        pytest.param(split_of(), {"batch_size": 0}, "from 1 to 4 images", id="no batch"),
    ],
)
def test_data_that_do_not_fit(tmp_path, split, options, words):
    write_bundle(tmp_path / "bundle")
    with pytest.raises(UserInputError, match=words):
        replay_bundle(tmp_path / "bundle", split, SOURCE, progress=False, **options)


def test_an_altered_segment_is_not_run(tmp_path):
    write_bundle(tmp_path / "bundle")
    with open(tmp_path / "bundle" / "segment_1.onnx", "ab") as file:
        file.write(b"\0")
    with pytest.raises(UserInputError, match="altered"):
        replay_bundle(tmp_path / "bundle", split_of(), SOURCE, progress=False)


def broken_bundle(folder, i, weight):
    """Put NaN into one weight of a segment."""
    write_bundle(folder)
    path = folder / f"segment_{i}.onnx"
    model = onnx.load(path)
    tensor = next(t for t in model.graph.initializer if t.name == weight)
    broken = numpy_helper.to_array(tensor) * np.float32("nan")
    tensor.CopyFrom(numpy_helper.from_array(broken, weight))
    onnx.save(model, path)
    segments = list(read_manifest(folder, check_files=False).segments)
    segments[i] = replace(segments[i], sha256=sha256_of(path))
    write_manifest(
        replace(read_manifest(folder, check_files=False), segments=tuple(segments)), folder
    )


def test_a_final_head_that_gives_no_numbers(tmp_path):
    broken_bundle(tmp_path / "bundle", 2, "head2")
    with pytest.raises(CompressError, match="NaN or infinity for 11 of 11 images"):
        replay_bundle(tmp_path / "bundle", split_of(), SOURCE, progress=False)


def test_a_gate_that_gives_no_numbers_never_fires(tmp_path):
    broken_bundle(tmp_path / "bundle", 0, "gate0")
    table = replay_bundle(tmp_path / "bundle", split_of(), SOURCE, progress=False)
    assert np.isnan(table.scores[:, 0]).all()
    assert 0 not in decide(table, 0.0)
