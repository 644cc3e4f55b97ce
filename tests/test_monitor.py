"""The door, on the lines that the dispatcher's own classes write."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from compress import monitor
from compress.errors import UserInputError
from compress.runtime.manifest import Manifest, Segment, TensorSpec, write_manifest
from compress.runtime.reference_rates import CALIBRATION, ReferenceRates, read_reference
from compress.runtime.stream import Prediction, Tally
from tests.signals import heed_interrupts

THRESHOLDS = (0.5, 0.75)
RATES = (0.5, 0.3, 0.2)
IMAGE = TensorSpec("image", "float32", (3, 4, 4))
LOGITS = TensorSpec("logits", "float32", (3,))
GATE = TensorSpec("gate", "float32", ())


PLACES = ("layer1.0", "layer2.4", None)


def manifest_of(notes) -> Manifest:
    carried, segments = IMAGE, []
    for i, bar in enumerate((*THRESHOLDS, None)):
        hidden = TensorSpec(f"hidden_{i}", "float32", (8,))
        segments.append(
            Segment(
                file=f"segment_{i}.onnx",
                sha256="0" * 64,
                at=PLACES[i],
                macs=1,
                threshold=bar,
                inputs=(carried,),
                outputs=(LOGITS,) if bar is None else (hidden, LOGITS, GATE),
            )
        )
        carried = hidden
    return Manifest(
        name="tiny",
        classes=("a", "b", "c"),
        preprocessing=None,
        batch=(1, 1),
        target="onnxruntime",
        opset=17,
        segments=tuple(segments),
        notes=notes,
    )


def images(number, seed=0, rates=RATES, sureness=4.0):
    rng = np.random.default_rng(seed)
    exits = rng.choice(3, size=number, p=rates).tolist()
    return list(zip(exits, rng.beta(sureness, 1, size=number).tolist(), strict=True))


def said(pairs, *, summary=True, thresholds=THRESHOLDS) -> list[str]:
    """What `python -m compress.dispatch --json` prints for these exits and confidences."""
    tally, lines = Tally(manifest_of({}).with_thresholds(thresholds)), []
    for i, (exit_index, confidence) in enumerate(pairs):
        found = Prediction(f"{i}.png", "a", 0, confidence, exit_index, PLACES[exit_index], 1.5)
        tally.add(found)
        lines.append(json.dumps(found.to_dict()))
    if summary:
        lines.append(json.dumps({"summary": {"backend": "onnxruntime", **tally.to_dict()}}))
    return lines


REFERENCE = ReferenceRates.measured(*zip(*images(4000), strict=True), THRESHOLDS)


@pytest.fixture
def bundle(tmp_path) -> Path:
    return write(tmp_path / "tiny.bundle", {CALIBRATION: REFERENCE.to_dict()})


def write(root: Path, notes) -> Path:
    root.mkdir()
    write_manifest(manifest_of(notes), root)
    return root


def run(capsys, monkeypatch, stream, *arguments) -> tuple[int, list[str], list[str]]:
    content = stream if isinstance(stream, bytes) else ("\n".join(stream) + "\n").encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    code = monitor.main([str(each) for each in arguments])
    out, err = capsys.readouterr()
    return code, out.splitlines(), err.splitlines()


def test_a_quiet_stream(capsys, monkeypatch, bundle):
    lines = said(images(2500, seed=1))
    lines.insert(7, json.dumps(Prediction("x.png", error="damaged").to_dict()))
    code, out, err = run(capsys, monkeypatch, lines, bundle)
    assert (code, err) == (0, [])
    assert len(out) == 4
    assert out[0].startswith("1000 images, exits ")
    assert out[1].startswith("2000 images, exits ")
    assert out[2].startswith("2500 images, exits ")
    assert out[2].split("; evidence ")[1].endswith(" of 200")
    assert out[3] == "1 with errors; no drift found"


def test_drift_in_json(capsys, monkeypatch, bundle):
    lines = said([*images(700, seed=2), *images(1300, seed=3, rates=(0.7, 0.2, 0.1))])
    code, out, err = run(
        capsys, monkeypatch, lines, bundle, "--json", "--every", 500, "--window", 100
    )
    assert code == 0
    *states, last = [json.loads(line) for line in out]
    assert [state["images"] for state in states] == [500, 1000, 1500, 2000]
    assert states[0]["alarm"] is None
    assert all(state["window_images"] == 100 for state in states)
    summary = last["summary"]
    assert {"errors": 0, "complete": True}.items() <= summary.items()
    exits = [json.loads(line)["exit"] for line in lines[:-1]]
    assert summary["exit_rates"] == [exits.count(i) / 2000 for i in range(3)]
    assert summary["window_rates"] == [exits[-100:].count(i) / 100 for i in range(3)]
    assert summary["expected_rates"] == REFERENCE.rates
    alarm = summary["alarm"]
    assert 700 < alarm["image"] < 1100
    assert (alarm["confidence"], summary["alarm_at"]) == (None, 200)
    assert len(err) == 1
    assert err[0].startswith(f"ALARM: drift at image {alarm['image']}: too ")


def test_stop_ends_the_watch_with_5(capsys, monkeypatch, bundle):
    lines = [*said(images(3000, seed=4, sureness=2.0), summary=False), "not read any more"]
    code, out, err = run(capsys, monkeypatch, lines, bundle, "--stop")
    assert code == 5
    assert len(err) == 1
    assert "have confidence <= " in err[0]
    assert out[-1] == f"0 with errors; {err[0][len('ALARM: ') :]}"


def test_a_stream_that_was_cut(capsys, monkeypatch, bundle):
    lines = said(images(20), summary=False)
    content = "\n".join(lines).encode()[:-9]
    code, out, err = run(capsys, monkeypatch, content, bundle)
    assert (code, err) == (0, ["the stream ends before the dispatcher's summary"])
    assert out[0].startswith("19 images")
    _, _, err = run(capsys, monkeypatch, content, bundle, "--quiet")
    assert err == []


GOOD = said(images(3), summary=False)


def changed(**fields) -> str:
    return json.dumps({**json.loads(GOOD[0]), "exit": 0, "exit_at": "layer1.0", **fields})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        pytest.param("{", "line 4 of the stream cannot be used: it is not JSON", id="json"),
        pytest.param("\x00", "it is not JSON", id="zero"),
        pytest.param("[" * 100_000, "it is not JSON", id="nested"),
        pytest.param("7", "it holds 7 in place of an object", id="number"),
        pytest.param("{}", "it has no exit and no confidence", id="empty"),
        pytest.param('{"exit": 0}', "it has no confidence", id="no confidence"),
        pytest.param(changed(exit="0"), "'0' in place of a whole number", id="text"),
        pytest.param(changed(exit=True), "True in place of a whole number", id="bool"),
        pytest.param(changed(exit=-1), "-1 in place of a whole number", id="negative"),
        pytest.param(changed(confidence=None), "None in place of a number", id="none"),
        pytest.param(changed(confidence=float("nan")), "nan in place of a number", id="NaN"),
        pytest.param(changed(exit=3), "exit 3, which ends at exit 2 in the bundle", id="exit"),
        pytest.param(
            changed(exit_at="layer3"),
            "exit 0 behind layer3, which is behind layer1.0 in the bundle tiny",
            id="another place",
        ),
        pytest.param(
            changed(exit_at=None),
            "exit 0 at the final head, which is behind layer1.0 in",
            id="no place",
        ),
        pytest.param(changed(exit_at=7), "7 in place of text", id="place"),
        pytest.param(changed(exit_at="a\x1b[2J"), "in place of a name", id="control"),
        pytest.param('{"summary": 1}', "a summary without thresholds", id="summary"),
        pytest.param(said([], thresholds=(0.5, 0.8))[0], "are of 0.5, 0.75", id="thresholds"),
        pytest.param(" " * (1 << 20), "longer than 1048576 bytes", id="long"),
    ],
)
def test_a_line_that_is_not_the_dispatchers(capsys, monkeypatch, bundle, line, message):
    code, out, err = run(capsys, monkeypatch, [*GOOD, line, *GOOD], bundle)
    assert code == 3
    assert len(err) == 1
    assert message in err[0]
    assert out[0].startswith("3 images")  # what was seen before is told


def test_a_stream_without_lines(capsys, monkeypatch, bundle):
    code, out, err = run(capsys, monkeypatch, b"", bundle)
    assert (code, out) == (3, [])
    assert "the stream is empty; expected what python -m compress.dispatch --json" in err[0]
    code, _, err = run(capsys, monkeypatch, b"bird.png: cat 0.9", bundle)
    assert code == 3
    assert "line 1 of the stream cannot be used" in err[0]


@pytest.mark.parametrize("line", ["\x1b[2J", '{"exit": "\x07"}', '"\\u001b[2J"', "\x00", "\x0b[1]"])
def test_a_control_character_in_a_line_does_not_reach_the_terminal(
    capsys, monkeypatch, bundle, line
):
    code, out, err = run(capsys, monkeypatch, [line], bundle)
    assert (code, out) == (3, [])
    (sentence,) = err
    assert "line 1 of the stream cannot be used" in sentence
    assert sentence.isprintable()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--every", "0"], "--every is 0; expected at least 1"),
        (["--window", "0"], "the window is 0 images"),
        (["--window", "9" * 20], "the window is 99999999999999999999 images"),
        (["--false-alarm", "1e-300"], "the false-alarm rate is 1e-300; expected at least 1e-12"),
        (["--false-alarm", "1"], "the false-alarm rate is 1.0"),
        (["--follow"], "--follow was given without STREAM"),
        (["nowhere.jsonl"], "stream nowhere.jsonl cannot be opened"),
        (["."], "stream . cannot be opened"),
        (["--reference", "nowhere.json"], "reference nowhere.json does not exist"),
    ],
)
def test_wrong_options(capsys, monkeypatch, bundle, arguments, message):
    code, out, err = run(capsys, monkeypatch, GOOD, bundle, *arguments)
    assert (code, out) == (3, [])
    assert len(err) == 1
    assert message in err[0]


def test_a_bundle_without_reference_says_what_to_do(capsys, monkeypatch, tmp_path):
    bare = write(tmp_path / "bare.bundle", {})
    code, out, err = run(capsys, monkeypatch, GOOD, bare)
    assert (code, out) == (3, [])
    assert "does not tell the exit rates of its calibration images; export it again" in err[0]
    for name, text in [
        ("lines", "\n".join(said(images(4000)))),
        ("dict", json.dumps(REFERENCE.to_dict())),
        ("plan", json.dumps(plan())),
    ]:
        file = tmp_path / name
        file.write_text(text)
        code, out, err = run(capsys, monkeypatch, said(images(50)), bare, "--reference", file)
        assert (code, err) == (0, [])
        wanted = (0.5, 0.25, 0.25) if name == "plan" else REFERENCE.rates
        assert f"expected {' '.join(f'{100 * each:.1f}' for each in wanted)} %" in out[0]
    assert read_reference(tmp_path / "lines") == REFERENCE == read_reference(tmp_path / "dict")
    assert read_reference(tmp_path / "plan") == ReferenceRates((2000, 1000, 1000), THRESHOLDS)


def plan(**fields) -> dict:
    found = {"format": "compress.plan/1", "accuracy": {"images": 4000}, "exits": [1, 3]}
    return {**found, "exit_rates": [0.5, 0.25, 0.25], "thresholds": list(THRESHOLDS), **fields}


CONFIDENCE = REFERENCE.to_dict()["confidence"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param({"exit_counts": [1, 2, 3]}, "'thresholds' is missing", id="missing"),
        pytest.param({**REFERENCE.to_dict(), "images": 7}, "7 images, but exit counts", id="sum"),
        pytest.param({**REFERENCE.to_dict(), "thresholds": [0.5]}, "1 thresholds for 2", id="bars"),
        pytest.param({**REFERENCE.to_dict(), "exit_counts": [0.5]}, "0.5 in place", id="share"),
        pytest.param(
            {**REFERENCE.to_dict(), "confidence": {**CONFIDENCE, "edges": [0.9, 0.1]}},
            "edges of confidence 0.9, 0.1",
            id="edges",
        ),
        pytest.param(
            {**REFERENCE.to_dict(), "confidence": {**CONFIDENCE, "counts": [[1] * 13] * 3}},
            "do not add up to those of the exits",
            id="counts",
        ),
        pytest.param(
            {**REFERENCE.to_dict(), "confidence": {**CONFIDENCE, "means": [None] * 3}},
            "a mean confidence without images",
            id="means",
        ),
        pytest.param(plan(exit_rates=[0.33, 0.33, 0.34003]), "are no shares of 4000", id="rates"),
        pytest.param(plan(accuracy=3), "does not tell exit rates", id="accuracy"),
        pytest.param(plan(thresholds=[0.5, 0.5]), "has the thresholds 0.5, 0.75, the", id="other"),
        pytest.param(plan(format="compress.plan/2"), "of line 1, it has no exit", id="format"),
        pytest.param("no json", "of line 1, it is not JSON", id="text"),
    ],
)
def test_a_reference_that_cannot_be_used(capsys, monkeypatch, bundle, tmp_path, content, message):
    file = tmp_path / "reference"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    code, out, err = run(capsys, monkeypatch, GOOD, bundle, "--reference", file)
    assert (code, out) == (3, [])
    assert len(err) == 1
    assert message in err[0]


def test_a_reference_that_ends_early(capsys, monkeypatch, bundle, tmp_path):
    file = tmp_path / "lines"
    file.write_text("\n".join(GOOD))
    code, _, err = run(capsys, monkeypatch, GOOD, bundle, "--reference", file)
    assert code == 3
    assert "ends before the dispatcher's summary" in err[0]


def test_a_note_of_other_thresholds_is_refused(capsys, monkeypatch, tmp_path):
    note = {**REFERENCE.to_dict(), "thresholds": [0.5, 0.5]}
    code, _, err = run(capsys, monkeypatch, GOOD, write(tmp_path / "b", {CALIBRATION: note}))
    assert code == 3
    assert "the bundle of tiny has the thresholds 0.5, 0.75" in err[0]
    code, _, err = run(capsys, monkeypatch, GOOD, write(tmp_path / "c", {CALIBRATION: {}}))
    assert code == 3
    assert "cannot be used ('exit_counts' is missing)" in err[0]


def test_a_growing_file_is_followed_to_its_summary(capsys, bundle, tmp_path):
    file = tmp_path / "results.jsonl"
    file.touch()
    text = "\n".join(said(images(30))) + "\n"

    def grow():
        with open(file, "a") as out:
            for start in range(0, len(text), 997):  # breaks lines anywhere
                out.write(text[start : start + 997])
                out.flush()
                time.sleep(0.02)

    writer = threading.Thread(target=grow)
    writer.start()
    code = monitor.main([str(bundle), str(file), "--follow", "--every", "10"])
    writer.join()
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()] == ["10", "20", "30", "30", "0"]


def test_a_followed_file_that_is_started_anew(capsys, bundle, tmp_path, monkeypatch):
    file = tmp_path / "results.jsonl"
    file.write_text("\n".join(GOOD) + "\n")
    # Once it has read all and waits for more; a timer might be earlier on a busy machine.
    monkeypatch.setattr(monitor.time, "sleep", lambda _: file.write_text(GOOD[0] + "\n"))
    code = monitor.main([str(bundle), str(file), "--follow"])
    out, err = capsys.readouterr()
    assert code == 3
    assert "became shorter while it was followed" in err
    assert out.startswith("3 images")


def test_ctrl_c_ends_with_the_summary(bundle, tmp_path):
    file = tmp_path / "results.jsonl"
    file.write_text("\n".join(GOOD) + "\n")
    command = [sys.executable, "-m", "compress.monitor", str(bundle), str(file)]
    process = subprocess.Popen(
        [*command, "--follow", "--every", "3"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(monitor.__file__).parents[1],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=heed_interrupts,
    )
    assert process.stdout.readline().startswith("3 images")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert out.splitlines()[-1] == "0 with errors; no drift found"
    assert err == "python -m compress.monitor: interrupted\n"


def test_measured_values_out_of_range():
    with pytest.raises(UserInputError, match="left at exit 3 with confidence 0"):
        ReferenceRates.measured([3], [0.5], THRESHOLDS)
    with pytest.raises(UserInputError, match="0 images, but exit counts 0, 0, 0"):
        ReferenceRates.measured([], [], THRESHOLDS)
