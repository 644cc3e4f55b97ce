"""adopt: what only the person who trained a network knew, once and for all in its checkpoint."""

import json
from pathlib import Path

import pytest
import torch

import compress
from compress.adopt import main
from compress.adoption import near_chance
from compress.checkpoint import read_checkpoint
from compress.evaluate import main as evaluate
from compress.measure.accuracy import Accuracy
from compress.models.vgg import VGG
from compress.slim import main as slim

HALF = ["--mean", "0.5", "--std", "0.5"]


def tiny_vgg() -> VGG:
    torch.manual_seed(0)
    model = VGG(widths=[[8, 16], [24]], num_classes=10, hidden=[10], pooled=2, dropout=0.0)
    for layer in model.features:
        if isinstance(layer, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(layer.weight, 0.2, 1.5)
    return model.eval()


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A state_dict as somebody else saves one."""
    state = {f"module.{name}": tensor for name, tensor in tiny_vgg().state_dict().items()}
    torch.save({"state_dict": state, "best_prec1": 91.7}, tmp_path / "theirs.th")
    return tmp_path / "theirs.th"


def adopt(capsys, *arguments) -> tuple[int, str, str]:
    code = main([*map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out, err


def test_no_later_command_needs_what_adopt_was_told(foreign, tmp_path, capsys):
    told = ["--image-size", 16, "--resize", "none", "--classes", ",".join("abcdefghij")]
    code, out, err = adopt(capsys, foreign, *told, "--mean", "0.1,0.2,0.3", "--std", 0.5)
    assert (code, err) == (0, "")
    assert "16x16 taken as it is, RGB / 255, mean 0.1 0.2 0.3, std 0.5 0.5 0.5" in out
    assert f"next:    python -m compress.slim --ratio 0.4 {tmp_path / 'theirs.adopted.pth'}" in out
    meta = read_checkpoint(tmp_path / "theirs.adopted.pth").meta
    assert meta["classes"] == list("abcdefghij")
    assert meta["preprocessing"]["image_size"] == 16
    assert slim([str(tmp_path / "theirs.adopted.pth"), "--ratio", "0.4", "--json", "-q"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["settings"]["image_size"] == 16
    slimmed = read_checkpoint(tmp_path / "theirs.adopted.slim-0.4.pth").meta
    assert slimmed["preprocessing"] == meta["preprocessing"]


def test_accuracy_is_told_before_writing_and_chance_is_named(foreign, tmp_path, capsys, caplog):
    content = torch.load(foreign)
    content["state_dict"]["module.classifier.3.weight"].zero_()  # says the same of every image
    torch.save(content, foreign)
    told = [*HALF, "--image-size", 16, "--data", "digits", "-o", tmp_path / "o.pth"]
    code, out, _ = adopt(capsys, foreign, *told)
    assert code == 0
    assert "validation images of digits" in out
    warnings = [line for line in caplog.messages if line.startswith("warning: ")]
    assert len(warnings) == 1
    assert "near chance for 10 classes" in warnings[0]
    assert read_checkpoint(tmp_path / "o.pth").meta["classes"] == [str(n) for n in range(10)]


def test_the_weights_are_theirs(foreign, tmp_path, capsys):
    adopt(capsys, foreign, *HALF, "--image-size", 16, "-o", tmp_path / "o.pth")
    model, image = compress.load(tmp_path / "o.pth"), torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(model(image), tiny_vgg().eval()(image))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image-size", "16"], "--mean is not given, and"),
        (["--image-size", "16", "--mean", "0.5"], "--std is not given, and"),
        ([*HALF], "takes any; give it by --image-size"),
        ([*HALF, "--image-size", "16", "--crop", "8"], "--crop is 8, but the network takes"),
        (["--mean", "1,2", "--std", "1", "--image-size", "16"], "--mean has 2 numbers"),
        (["--mean", "0.5", "--std", "0", "--image-size", "16"], "with std above 0"),
        (["--mean", "nan", "--std", "1", "--image-size", "16"], "one finite number a channel"),
        ([*HALF, "--image-size", "16", "--resize", "big"], "--resize is 'big'"),
        ([*HALF, "--image-size", "16", "--resize", "8"], "resize size is 8"),
        ([*HALF, "--image-size", "1x16x16"], "asks for 1 channels"),
        ([*HALF, "--image-size", "16", "--classes", "a,b"], "--classes names 2 classes"),
        ([*HALF, "--image-size", "16", "--classes", "a,b,a"], "3 names, 2 different"),
        ([*HALF, "--image-size", "16", "--classes", "a,b\n#,c"], "is no name"),
        ([*HALF, "--image-size", "0"], "--image-size is 0"),
        ([*HALF, "--image-size", "1x2x3x4"], "expected a side such as 32"),
        ([*HALF, "--image-size", "2"], "does not take images"),
    ],
)
def test_bad_input_is_one_sentence_and_no_file(foreign, capsys, arguments, message):
    code, out, err = adopt(capsys, foreign, *arguments)
    assert (code, out) == (3, "")
    assert message in err
    assert err.count("\n") == 1
    assert [path.name for path in foreign.parent.iterdir()] == ["theirs.th"]


def test_what_is_there_is_not_replaced(foreign, tmp_path, capsys):
    (tmp_path / "o.pth").write_text("precious")
    told = [*HALF, "--image-size", 16, "-o", tmp_path / "o.pth"]
    assert adopt(capsys, foreign, *told)[0] == 3
    assert (tmp_path / "o.pth").read_text() == "precious"
    assert adopt(capsys, foreign, *told, "--force")[0] == 0


def test_class_names_from_a_file(foreign, tmp_path, capsys):
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"kind {n}" for n in range(10)) + "\n", encoding="utf-8")
    code, out, _ = adopt(capsys, foreign, *HALF, "--image-size", 16, "--classes", names)
    assert code == 0
    assert "classes: 10, kind 0 kind 1" in out


def test_a_record_can_be_told_anew(foreign, tmp_path, capsys):
    adopt(capsys, foreign, *HALF, "--image-size", 16, "-o", tmp_path / "one.pth")
    again = ["--mean", "0.25", "--std", "0.5", "-o", tmp_path / "two.pth"]
    assert adopt(capsys, tmp_path / "one.pth", *again)[0] == 0
    told = read_checkpoint(tmp_path / "two.pth").meta["preprocessing"]
    assert (told["mean"], told["image_size"]) == ([0.25] * 3, 16)


def test_the_recorded_factory_is_named_to_copy(tmp_path, capsys):
    from compress.models.factory import call_factory

    model = call_factory("tests.networks:BottleneckResNet")
    torch.save(model.state_dict(), tmp_path / "own.pth")
    factory = ["--model", "tests.networks:BottleneckResNet"]
    told = [*factory, *HALF, "--image-size", 16, "-o", tmp_path / "o.pth"]
    code, out, _ = adopt(capsys, tmp_path / "own.pth", *told)
    assert code == 0
    assert "next:    python -m compress.slim --ratio 0.4 --model tests.networks:Bottl" in out
    assert evaluate([str(tmp_path / "o.pth"), "--data", "digits"]) == 3
    assert "give --model tests.networks:BottleneckResNet" in capsys.readouterr().err
    assert evaluate([str(tmp_path / "o.pth"), "--data", "digits", "-q", *factory]) == 0


@pytest.mark.parametrize(
    ("right", "classes", "expected"),
    [(1114, 10, True), (8320, 10, False), (5400, 2, True), (6000, 2, False), (900, 1000, True)],
)
def test_near_chance(right, classes, expected):
    found = Accuracy(count=10_000, correct=right, correct5=right, loss_sum=0.0)
    assert near_chance(found, classes) is expected
