"""The door that lowers ONNX files, on files of nobody in particular."""

import json

import numpy as np
import onnx
import pytest
from onnx import helper

from compress import lower
from tests.export.small_graphs import graph, kinds, node, run_onnxruntime, value


@pytest.fixture
def model(tmp_path):
    """A file whose network is a transform of fixed length and a sum."""
    made = graph(
        [
            node("Unsqueeze", "x last", "x1"),
            node("DFT", "x1", "z", axis=1, onesided=1),
            node("ReduceL2", "z last", "power", keepdims=0),
            node("LayerNormalization", "power gamma", "y"),
        ],
        [value("x", ["n", 32])],
        [value("y", ["n", 17])],
        last=[-1],
        gamma=np.linspace(1, 2, 17, dtype=np.float32),
    )
    onnx.save(made, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def run(*arguments):
    return lower.main([*map(str, arguments)])


def test_a_file_is_lowered_and_compared(model, tmp_path, capsys):
    output = tmp_path / "out.onnx"
    assert run(model, "-o", output, "--check", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["transforms"], told["target"], told["opset"]) == (1, None, 18)
    assert told["worst_relative_error"] < 1e-6
    found = onnx.load(output)
    assert "DFT" not in kinds(found)
    assert "LayerNormalization" in kinds(found)
    x = np.random.default_rng(0).normal(size=(3, 32)).astype(np.float32)
    power = np.abs(np.fft.rfft(x))
    wanted = (power - power.mean(1, keepdims=True)) / power.std(1, keepdims=True)
    np.testing.assert_allclose(
        run_onnxruntime(found, {"x": x})[0], wanted * np.linspace(1, 2, 17), rtol=1e-4, atol=1e-4
    )


def test_a_target_gets_what_it_takes(model, tmp_path, capsys):
    output = tmp_path / "out.onnx"
    assert run(model, "-o", output, "--target", "jetpack5.1", "--check") == 0
    text = capsys.readouterr().out
    assert "1 transform written as real products" in text
    assert "fits jetpack5.1 (TensorRT 8.5.2)" in text
    found = onnx.load(output)
    assert found.opset_import[0].version == 17
    assert "LayerNormalization" not in kinds(found)


def test_what_is_there_is_not_replaced_unasked(model, tmp_path, capsys):
    output = tmp_path / "out.onnx"
    output.write_text("mine")
    assert run(model, "-o", output) == 3
    assert "--force" in capsys.readouterr().err
    assert output.read_text() == "mine"
    assert run(model, "-o", output, "--force") == 0


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param(b"not a graph at all", "cannot be read as ONNX", id="not-onnx"),
        pytest.param(b"", "is empty", id="empty"),
        pytest.param(None, "does not exist", id="missing"),
        pytest.param(
            helper.make_model(helper.make_graph([], "none", [], [])).SerializeToString(),
            "holds no ONNX graph",
            id="no-nodes",
        ),
    ],
)
def test_bad_files_are_told(content, words, tmp_path, capsys):
    path = tmp_path / "bad.onnx"
    if content is not None:
        path.write_bytes(content)
    assert run(path, "-o", tmp_path / "out.onnx") == 3
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out.onnx").exists()


def test_a_free_length_is_refused_with_the_way_out(tmp_path, capsys):
    made = graph(
        [helper.make_node("DFT", ["x"], ["y"], name="encoder/fft", axis=1)],
        [value("x", ["n", "length", 1])],
        [value("y", ["n", None, 2])],
    )
    onnx.save(made, tmp_path / "free.onnx")
    assert run(tmp_path / "free.onnx", "-o", tmp_path / "out.onnx") == 3
    error = capsys.readouterr().err
    assert "encoder/fft (DFT)" in error
    assert "export with fixed sizes" in error


def test_sizes_for_the_comparison_can_be_given(tmp_path, capsys):
    made = graph(
        [node("STFT", "x hop window", "y", onesided=1)],
        [value("x", ["n", "samples", 1])],
        [value("y", ["n", None, 9, 2])],
        hop=np.int64(8),
        window=np.hanning(16).astype(np.float32),
    )
    onnx.save(made, tmp_path / "stft.onnx")
    arguments = (tmp_path / "stft.onnx", "-o", tmp_path / "out.onnx", "--check")
    assert run(*arguments) == 3
    assert "--shape x=" in capsys.readouterr().err
    assert run(*arguments, "--shape", "y=1x2") == 3
    assert "names y" in capsys.readouterr().err
    assert run(*arguments, "--shape", "x=1x") == 3
    assert "wave=2x16000" in capsys.readouterr().err
    assert not (tmp_path / "out.onnx").exists()
    assert run(*arguments, "--shape", "x=2x100x1") == 0


def test_a_graph_that_computes_something_else_is_not_written(model, tmp_path, capsys, monkeypatch):
    import compress.export.lower_file as job

    plain = job.rewrite_transforms_

    def damaged(proto):
        count = plain(proto)
        matrix = next(t for t in proto.graph.initializer if t.dims[:] == [32, 17])
        matrix.raw_data = bytes(len(matrix.raw_data))
        return count

    monkeypatch.setattr(job, "rewrite_transforms_", damaged)
    assert run(model, "-o", tmp_path / "out.onnx", "--check") == 5
    assert "nothing was written" in capsys.readouterr().err
    assert not (tmp_path / "out.onnx").exists()
