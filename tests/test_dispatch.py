"""The door, on a real bundle: three segments of ONNX, whose decisions can be told by hand.

With m, the mean of an image normalised to -1 … 1: it leaves at exit 0 where m >= 0.5, at exit 1
where m <= -0.5, else at the final head. The logits are (m, -m, 0.25), ten times that at exit 1.
"""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compress import device_options, dispatch
from compress.files import sha256_of
from compress.runtime.dispatcher import Dispatcher
from compress.runtime.manifest import Manifest, Segment, TensorSpec, write_manifest
from compress.runtime.preprocessing import Preprocessing
from compress.runtime.stream import THREAD_NAMES
from tests.signals import heed_interrupts

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

SIZE = 4
PIXELS = 3 * SIZE * SIZE
IMAGE = TensorSpec("image", "float32", (3, SIZE, SIZE))
HIDDEN = [TensorSpec(f"hidden_{i}", "float32", (PIXELS,)) for i in range(2)]
LOGITS = TensorSpec("logits", "float32", (3,))
GATE = TensorSpec("gate", "float32", ())
CLASSES = ("bright", "dark", "grey")
RECIPE = Preprocessing(
    image_size=SIZE, resize="pillow-bicubic", resize_size=SIZE, mean=(0.5,) * 3, std=(0.5,) * 3
)

MAX_BATCH = 4


def linear(name: str, weight, bias, nodes: list, constants: list, *, source: str = "flat") -> str:
    """Add `source` (B, 48) -> its mean times `weight` + `bias` (B, K); return the output's name."""
    row = np.tile(np.array(weight, np.float32) / PIXELS, (PIXELS, 1))
    constants.append(onnx.numpy_helper.from_array(row, f"{name}_weight"))
    constants.append(onnx.numpy_helper.from_array(np.array(bias, np.float32), f"{name}_bias"))
    inputs = [source, f"{name}_weight", f"{name}_bias"]
    nodes.append(onnx.helper.make_node("Gemm", inputs, [name]))
    return name


def write_segment(
    path: Path, taken: TensorSpec, scale: float, gate, hidden: TensorSpec | None
) -> tuple[TensorSpec, ...]:
    node, nodes, constants = onnx.helper.make_node, [], []
    nodes.append(node("Flatten", [taken.name], ["flat"]))
    linear("logits", [scale, -scale, 0], [0, 0, scale / 4], nodes, constants)
    given = (LOGITS,) if hidden is None else (hidden, LOGITS, GATE)
    if hidden is not None:
        nodes.append(node("Identity", ["flat"], [hidden.name]))
        linear("score", *gate, nodes, constants)
        nodes.append(node("Sigmoid", ["score"], ["chance"]))
        constants.append(onnx.numpy_helper.from_array(np.array([1]), "axis"))
        nodes.append(node("Squeeze", ["chance", "axis"], ["gate"]))
    kind = onnx.TensorProto.FLOAT
    values = [
        [onnx.helper.make_tensor_value_info(s.name, kind, ["batch", *s.shape]) for s in specs]
        for specs in ((taken,), given)
    ]
    graph = onnx.helper.make_graph(nodes, "segment", *values, initializer=constants)
    opset = onnx.helper.make_opsetid("", 17)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8), path)
    return given


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("tiny") / "tiny.bundle"
    root.mkdir()
    segments = []
    parts = [
        (IMAGE, 1.0, ([20], [-10]), HIDDEN[0], "layer1.0"),
        (HIDDEN[0], 10.0, ([-20], [-10]), HIDDEN[1], "layer2.4"),
        (HIDDEN[1], 1.0, None, None, None),
    ]
    for number, (taken, scale, gate, hidden, at) in enumerate(parts):
        path = root / f"segment_{number}.onnx"
        given = write_segment(path, taken, scale, gate, hidden)
        segments.append(
            Segment(
                file=path.name,
                sha256=sha256_of(path),
                at=at,
                macs=1,
                threshold=None if gate is None else 0.5,
                inputs=(taken,),
                outputs=given,
            )
        )
    manifest = Manifest(
        name="tiny",
        classes=CLASSES,
        preprocessing=RECIPE,
        batch=(1, MAX_BATCH),
        target="onnxruntime",
        opset=17,
        segments=tuple(segments),
    )
    write_manifest(manifest, root)
    return root


LEVELS = [250, 10, 128, 220, 30, 160, 90]  # grey levels, as many images


def expected(level: int) -> dict:
    """The decision by the rule of the module's docstring, in plain numpy."""
    mean = (level / 255 - 0.5) / 0.5
    exit_index = 0 if mean >= 0.5 else 1 if mean <= -0.5 else 2
    logits = np.array([mean, -mean, 0.25]) * (10 if exit_index == 1 else 1)
    share = np.exp(logits) / np.exp(logits).sum()
    best = int(share.argmax())
    return {
        "class": CLASSES[best],
        "class_index": best,
        "confidence": pytest.approx(share[best], abs=1e-5),
        "exit": exit_index,
        "exit_at": ["layer1.0", "layer2.4", None][exit_index],
    }


@pytest.fixture
def folder(tmp_path) -> Path:
    root = tmp_path / "pictures"
    root.mkdir()
    for number, level in enumerate(LEVELS):
        side = SIZE + number  # sizes differ, so that they are resized
        Image.new("RGB", (side, side + 2), (level,) * 3).save(root / f"{number}.png")
    return root


def run(capsys, *arguments) -> tuple[int, list, str]:
    code = dispatch.main([str(each) for each in arguments])
    out, err = capsys.readouterr()
    assert not [t for t in threading.enumerate() if THREAD_NAMES in t.name]
    return code, out.splitlines(), err


def run_json(capsys, *arguments) -> tuple[int, list[dict], dict, str]:
    code, lines, err = run(capsys, *arguments, "--json")
    *found, last = [json.loads(line) for line in lines]
    return code, found, last["summary"], err


def decisions(found: list[dict]) -> list[dict]:
    return [{k: v for k, v in each.items() if k not in ("image", "latency_ms")} for each in found]


@pytest.mark.parametrize("batch", [1, 2, MAX_BATCH])
def test_a_folder_as_lines_of_json(capsys, bundle, folder, batch):
    code, found, summary, err = run_json(capsys, bundle, folder, "--batch", batch)
    assert (code, err) == (0, "")
    assert [each["image"] for each in found] == [str(p) for p in sorted(folder.iterdir())]
    assert decisions(found) == [expected(level) for level in LEVELS]
    assert all(each["latency_ms"] > 0 for each in found)
    assert summary["images"] == 7
    assert summary["errors"] == 0
    assert summary["exit_rates"] == [2 / 7, 2 / 7, 3 / 7]
    assert summary["thresholds"] == [0.5, 0.5]
    assert summary["backend"] == "onnxruntime"
    assert 0 < summary["latency_ms_median"] <= summary["latency_ms_p99"]


@pytest.mark.parametrize("batch", [1, 3])
def test_a_damaged_image_does_not_stop_the_others(capsys, bundle, folder, batch):
    (folder / "3.png").write_bytes((folder / "3.png").read_bytes()[:45])
    (folder / "8.jpg").write_bytes(b"hello")
    code, found, summary, err = run_json(capsys, bundle, folder, "--batch", batch)
    assert code == 3
    assert err.splitlines() == [
        "python -m compress.dispatch: error: 2 of 8 images have errors; see their lines"
    ]
    good = [each for each in found if "error" not in each]
    bad = [each for each in found if "error" in each]
    assert decisions(good) == [expected(LEVELS[i]) for i in (0, 1, 2, 4, 5, 6)]
    assert [each["image"] for each in bad] == [str(folder / "3.png"), str(folder / "8.jpg")]
    assert all(set(each) == {"image", "error"} for each in bad)
    assert found.index(bad[0]) == 3
    assert (summary["images"], summary["errors"]) == (8, 2)


def test_text_for_people(capsys, bundle, folder):
    (folder / "3.png").write_bytes(b"")
    code, lines, _ = run(capsys, bundle, folder, "--times")
    assert code == 3
    assert lines[0].startswith(f"{folder / '0.png'}: bright 0.")
    assert ", exit 0 (layer1.0), " in lines[0]
    assert ", exit 1 (layer2.4), " in lines[1]
    assert lines[3].startswith(f"{folder / '3.png'}: image ")
    assert lines[7] == "7 images, 1 with errors"
    assert lines[8] == "exits 0: 16.7 %, 1: 33.3 %, 2: 50.0 %"
    assert len(lines) == 12


@pytest.mark.parametrize(
    ("thresholds", "exits"),
    [
        ("0", [0] * 7),
        ("1", [2] * 7),
        ("1,0", [1] * 7),
        ("0.5,0.5", [0, 1, 2, 0, 1, 2, 2]),
    ],
)
def test_thresholds_are_set_at_run_time(capsys, bundle, folder, thresholds, exits):
    code, found, summary, _ = run_json(capsys, bundle, folder, "--thresholds", thresholds)
    assert code == 0
    assert [each["exit"] for each in found] == exits
    bars = [float(each) for each in thresholds.split(",")]
    assert summary["thresholds"] == (bars * 2 if len(bars) == 1 else bars)


def test_arrays_need_no_pillow(capsys, bundle, tmp_path, monkeypatch):
    pixels = np.stack([np.full((3, SIZE, SIZE), level, dtype=np.uint8) for level in LEVELS])
    np.save(tmp_path / "a.npy", pixels)
    np.save(tmp_path / "b.npy", RECIPE.normalize_array(pixels[2]))
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    code, found, _, _ = run_json(
        capsys, bundle, tmp_path / "b.npy", tmp_path / "a.npy", "--batch", 4
    )
    assert code == 0
    assert [each["image"] for each in found[:2]] == [
        str(tmp_path / "b.npy"),
        f"{tmp_path / 'a.npy'}[0]",
    ]
    assert decisions(found) == [expected(level) for level in [LEVELS[2], *LEVELS]]
    (tmp_path / "c.png").write_bytes(b"")
    code, lines, err = run(capsys, bundle, tmp_path / "c.png")
    assert (code, lines) == (4, [])
    assert "pip install pillow, or give the images as .npy files" in err


def test_times_of_each_segment(capsys, bundle, folder):
    _, found, summary, _ = run_json(capsys, bundle, folder, "--times")
    assert [len(each["segment_ms"]) for each in found] == [1, 2, 3, 1, 2, 3, 3]
    for each in found:
        assert all(ms > 0 for ms in each["segment_ms"])
        assert sum(each["segment_ms"]) <= each["latency_ms"]
    assert len(summary["segment_ms_median"]) == 3


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        pytest.param(["nowhere.png"], 3, "image nowhere.png does not exist", id="missing"),
        pytest.param(["empty"], 3, "folder empty holds no image", id="empty"),
        pytest.param(["a.png", "--batch", "0"], 3, "--batch is 0; expected at least 1", id="batch"),
        pytest.param(["a.png", "--batch", "5"], 3, "takes at most 4", id="large batch"),
        pytest.param(["a.png", "--threads", "-1"], 3, "--threads is -1", id="threads"),
        pytest.param(["a.png", "--thresholds", "x"], 3, "'x'; expected numbers", id="words"),
        pytest.param(["a.png", "--thresholds", "2"], 3, "0 <= threshold <= 1", id="threshold"),
        pytest.param(["a.png", "--thresholds", "nan"], 3, "threshold is nan", id="NaN"),
        pytest.param(["a.png", "--thresholds", "0,0,0"], 3, "3 thresholds for 2 exits", id="three"),
    ],
)
def test_wrong_input_is_one_sentence(
    capsys, bundle, tmp_path, monkeypatch, arguments, code, message
):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (4, 4)).save("a.png")
    Path("empty").mkdir()
    found, lines, err = run(capsys, bundle, *arguments)
    assert (found, lines) == (code, [])
    assert message in err
    assert len(err.splitlines()) == 1


def test_a_bundle_that_was_altered_is_not_run(capsys, bundle, folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    with open(copy / "segment_1.onnx", "ab") as file:
        file.write(b"\0")
    code, lines, err = run(capsys, copy, folder)
    assert (code, lines) == (3, [])
    assert "segment_1.onnx has sha256" in err
    code, _, err = run(capsys, tmp_path / "nowhere", folder)
    assert code == 3
    assert "is not a folder" in err


class Recorder(io.StringIO):
    """A stream that keeps what was written between flushes."""

    def __init__(self, terminal=False):
        super().__init__()
        self.flushed: list[str] = []
        self.terminal = terminal

    def isatty(self):
        return self.terminal

    def flush(self):
        if self.getvalue():
            self.flushed.append(self.getvalue())
            self.seek(0)
            self.truncate()


def test_every_line_is_flushed(bundle, folder, monkeypatch):
    out = Recorder()
    monkeypatch.setattr(sys, "stdout", out)
    assert dispatch.main([str(bundle), str(folder), "--json"]) == 0
    assert [text.count("\n") for text in out.flushed] == [1] * 8
    assert out.getvalue() == ""


def test_a_line_is_out_before_the_next_image_runs(bundle, folder, monkeypatch):
    out, seen = Recorder(), []

    class Watching(Dispatcher):
        def run(self, images, *, times=False):
            seen.append(len(out.flushed))
            return super().run(images, times=times)

    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(device_options, "Dispatcher", Watching)
    assert dispatch.main([str(bundle), str(folder), "--json"]) == 0
    assert seen == list(range(7))


@pytest.mark.parametrize(
    ("out_terminal", "err_terminal", "options", "shown"),
    [
        (False, True, [], True),
        (False, True, ["-q"], False),
        (True, True, [], False),
        (False, False, [], False),
    ],
)
def test_progress_is_for_a_terminal_that_does_not_show_the_results(
    bundle, folder, monkeypatch, out_terminal, err_terminal, options, shown
):
    out, err = Recorder(out_terminal), Recorder(err_terminal)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    assert dispatch.main([str(bundle), str(folder), *options]) == 0
    told = [line for line in err.flushed if line.startswith("images: ")]
    assert len(told) == (0 if options else 1)  # what is done to pixels
    progress = err.flushed[len(told) :]
    if shown:
        assert progress[0] == "\r1 of 7 images, 0 with errors"
        assert progress[-1] == "\r\x1b[K"
    else:
        assert progress == []


def test_the_number_of_images_in_arrays_is_not_made_up(bundle, tmp_path, monkeypatch):
    np.save(tmp_path / "a.npy", np.zeros((2, 3, SIZE, SIZE), dtype=np.uint8))
    err = Recorder(terminal=True)
    monkeypatch.setattr(sys, "stderr", err)
    assert dispatch.main([str(bundle), str(tmp_path / "a.npy")]) == 0
    assert err.flushed[0] == "\r1 images, 0 with errors"


def start(bundle: Path, images: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "compress.dispatch", str(bundle), str(images), "--json"]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=heed_interrupts,
    )


@pytest.fixture
def many(tmp_path) -> Path:
    """So many images that a run does not end by itself during a test."""
    np.save(tmp_path / "many.npy", np.zeros((500_000, 3, SIZE, SIZE), dtype=np.uint8))
    return tmp_path / "many.npy"


def test_an_interrupt_ends_it_cleanly(bundle, many):
    with start(bundle, many) as process:
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err == "python -m compress.dispatch: interrupted\n"
    assert all(json.loads(line)["exit"] == 1 for line in out.splitlines())


def test_a_reader_that_goes_away_is_no_error(bundle, many):
    with start(bundle, many) as process:
        assert json.loads(process.stdout.readline())["exit"] == 1
        process.stdout.close()
        err = process.stderr.read()
        assert process.wait(timeout=30) == 0
    assert err == ""
