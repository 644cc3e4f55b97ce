"""The door: options reach the library, one JSON object comes out, wrong input is one sentence."""

import json

import pytest
import torch

from compress import benchmark
from compress.checkpoint import save
from compress.models.gfnet_dynn import GFNetDynn
from compress.models.vgg import VGG
from tests.export.triton_bundles import write_bundle

QUICK = ["--seconds", "0.01", "--images", "6", "--no-memory", "--energy", "none", "--threads", "1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Networks for the digits at 16 pixels, one for 24 and one for 7 classes; a bundle of 2x4."""
    root = tmp_path_factory.mktemp("networks")
    torch.manual_seed(0)
    tiny = {"patch_size": 8, "width": 8, "depth": 3}
    for name, size, classes in (("dynn", 16, 10), ("large", 24, 10), ("seven", 16, 7)):
        model = GFNetDynn(image_size=size, num_classes=classes, exits=[0, 1], **tiny)
        save(model, root / f"{name}.pth")
    save(VGG(widths=[[8], [8]], hidden=[16], pooled=1, num_classes=10), root / "vgg.pth")
    write_bundle(root / "odd.bundle")
    return root


def run(capsys, *arguments):
    code = benchmark.main([*map(str, arguments), "--data", "digits", "-q"])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_json_is_one_object(capsys, folder):
    subjects = [folder / "vgg.pth", folder / "dynn.pth", "--image-size", 16, "--threshold", "0.9,1"]
    code, out, _ = run(capsys, *subjects, *QUICK, "--batch", "2,3", "--json")
    told = json.loads(out)
    assert code == 0
    assert told["schema"] == "compress.benchmark/1"
    assert list(told["subjects"]) == ["vgg.pth", "dynn.pth"]
    assert told["subjects"]["dynn.pth"]["thresholds"] == [0.9, 1.0]
    assert told["settings"]["images"] == 6
    assert list(told["latency"]["dynn.pth"]["batches"]) == ["2", "3"]
    assert told["latency"]["vgg.pth"]["threads"] == 1
    assert {row["name"] for row in told["profiles"]["dynn.pth"]["rows"]} >= {"blocks", "gate"}


def test_text_has_the_lines_of_the_logs(capsys, folder):
    arguments = [folder / "dynn.pth", "--threshold", "0.8", "--exits", "1", "--no-profile"]
    code, out, _ = run(capsys, *arguments, *QUICK)
    assert code == 0
    lines = out.splitlines()
    (at,) = [i for i, line in enumerate(lines) if line.startswith("FPS: ")]
    assert lines[at + 1].startswith("elapsed_time_ms: ")
    assert lines[at + 2].startswith("Avg Forward Time per Image: ")
    assert lines[at + 2].endswith(" ms")
    assert "Timer unit" not in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["none.pth"], "none.pth does not exist; expected a checkpoint", id="missing"),
        pytest.param(["dynn.pth"], "no threshold is given", id="no threshold"),
        pytest.param(["dynn.pth", "--threshold", "x"], "'x'; expected numbers", id="words"),
        pytest.param(["dynn.pth", "--threshold", "2"], "0 <= threshold <= 1", id="threshold"),
        pytest.param(["vgg.pth", "--batch", "a"], "--batch is 'a'", id="batch"),
        pytest.param(["vgg.pth", "--image-size", "16", "--batch", "9"], "is 9 with", id="large"),
        pytest.param(
            ["dynn.pth", "large.pth", "--threshold", "1"],
            "dynn.pth takes images of 16x16 and large.pth of 24x24",
            id="sizes",
        ),
        pytest.param(
            ["dynn.pth", "seven.pth", "--threshold", "1"],
            "10 classes and seven.pth 7",
            id="classes",
        ),
        pytest.param(["seven.pth", "--threshold", "1"], "the data digits have 10", id="data"),
        pytest.param(
            ["dynn.pth", "odd.bundle", "--threshold", "1"], "odd.bundle of 2x4", id="bundle"
        ),
        pytest.param(["odd.bundle"], "has 3 classes, but the data digits have 10", id="odd bundle"),
        pytest.param(["."], "manifest", id="a folder that is no bundle"),
        pytest.param(
            ["vgg.pth", "--image-size", "16", "--power-trace", "none.jsonl"],
            "does not exist",
            id="trace",
        ),
        pytest.param(
            ["vgg.pth", "--image-size", "16", "--save-profile", "p.json"],
            "0 networks",
            id="profile",
        ),
    ],
)
def test_wrong_input_is_one_sentence(capsys, folder, monkeypatch, arguments, message):
    monkeypatch.chdir(folder)
    code, out, err = run(capsys, *arguments, *QUICK)
    assert (code, out) == (3, "")
    assert message in err
    assert len(err.splitlines()) == 1


def test_unknown_data(capsys, folder):
    arguments = [str(folder / "vgg.pth"), "--image-size", "16", "--data", "imagenet", "-q"]
    assert benchmark.main(arguments) == 3
    assert "data is 'imagenet'; expected one of digits" in capsys.readouterr().err


def test_help_tells_units_and_examples(capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["-h"])
    out = capsys.readouterr().out
    assert "examples:" in out
    assert "(default: 64)" in out
