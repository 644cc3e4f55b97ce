import json
from dataclasses import replace

import pytest
import torch

import compress
from compress import opened
from compress.data.image_data import Split
from compress.data.spec import load_data
from compress.evaluate import main
from compress.exits import evaluation
from compress.exits.replay import load_replay
from compress.models.gfnet_dynn import GFNetDynn
from tests.exit_networks import KINDS, RESNET_EXITS
from tests.slimming.test_surgery import tiny_vgg

TINY = {"image_size": 16, "patch_size": 4, "width": 16, "depth": 4, "num_classes": 10}


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model = GFNetDynn(exits=[0, 1, 2], **TINY)
    for head, gate in zip(model.intermediate_heads, model.gates, strict=True):
        head.weight.data.normal_(0, 1)
        gate.linear.weight.data = torch.tensor([[8.0, 0.0, 0.0, 0.0]])
        gate.linear.bias.data.fill_(-4.0)
    return model.eval()


@pytest.fixture
def checkpoint(network, tmp_path):
    return compress.save(network, tmp_path / "dynn.pth")


def run(capsys, *arguments) -> tuple[int, str, str]:
    code = main([*map(str, arguments), "-q"])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_sweep_and_the_deployment_in_the_logs_wording(checkpoint, capsys):
    code, out, _ = run(
        capsys, checkpoint, "--data", "digits", "--sweep", "0.4:0.6:0.1",
        "--exits", "0,2", "--threshold", "0.5",
    )  # fmt: skip
    assert code == 0
    for line in ("****************0.4****************", "EXIT CORRECT RATE:", "* Acc@1 "):
        assert line in out
    assert "Exiting Layer1:[0.0/0]" in out  # an exit that is not deployed
    assert "gate AUROC" in out


def test_json_adds_up(checkpoint, capsys):
    code, out, _ = run(
        capsys, checkpoint, "--data", "digits", "--sweep", "0.4:0.6:0.1",
        "--threshold", "0.5,0.6,0.7", "--json",
    )  # fmt: skip
    found = json.loads(out)
    assert code == 0
    assert found["schema"] == "compress.evaluate/1"
    assert [point["thresholds"] for point in found["sweep"]] == [[t] * 3 for t in (0.4, 0.5, 0.6)]
    deployed = found["deployed"]
    assert deployed["thresholds"] == [0.5, 0.6, 0.7]
    assert sum(deployed["counts"]) == deployed["images"] == 450
    assert deployed["acc1"] == 100 * sum(deployed["correct"]) / 450
    assert len(found["calibration"]) == 4
    assert found["whole_network"]["count"] == 450


@pytest.mark.parametrize("kind", ["resnet-linear", "resnet-conv"])
def test_exits_behind_modules_of_any_network(kind, tmp_path, capsys):
    path = compress.save(KINDS[kind](), tmp_path / "resnet.pth")
    arguments = [
        path, "--data", "digits", "--image-size", "16", "--exits", "layer1.1,layer2.1",
        "--threshold", "0.6", "--sweep", "0.4:0.6:0.1", "-o", tmp_path / "found",
    ]  # fmt: skip
    code, out, err = run(capsys, *arguments)
    assert code == 0, err
    assert "Exiting layer2.1:[" in out
    assert "EXITS: layer1.1, layer2.1, final head" in out
    assert "Layer0" not in out
    assert len(list((tmp_path / "found").glob("*.svg"))) == 2
    found = json.loads(run(capsys, *arguments, "--json")[1])
    assert found["deployed"]["positions"] == ["layer1.1", "layer2.1", "final head"]
    assert [each["position"] for each in found["calibration"]] == [*RESNET_EXITS, "final head"]
    assert min(found["deployed"]["counts"]) > 0
    code, _, err = run(capsys, *arguments[:-2], "--exits", "layer2.1,layer1.1")
    assert code == 3
    assert "--exits is layer2.1,layer1.1; expected some of layer1.1,layer2.0,layer2.1, each" in err


def test_a_block_is_named_by_its_module_as_well(checkpoint, capsys):
    said = [
        run(capsys, checkpoint, "--data", "digits", "--threshold", "0.5", "--exits", exits)[1]
        for exits in ("0,2", "blocks.0,blocks.2")
    ]
    assert said[0] == said[1] != ""


def test_a_replay_file_is_used_again_and_refused_for_another_network(
    checkpoint, network, tmp_path, capsys
):
    arguments = ["--data", "digits", "--threshold", "0.5", "--replay", tmp_path / "t.npz", "--json"]
    first = run(capsys, checkpoint, *arguments)
    second = run(capsys, checkpoint, *arguments)
    assert json.loads(first[1])["deployed"] == json.loads(second[1])["deployed"]
    assert json.loads(first[1])["calibration"] == json.loads(second[1])["calibration"]
    tables = {"test": tmp_path / "t.npz", "calibration": tmp_path / "t.calibration.npz"}
    assert json.loads(first[1])["replay"] == {name: str(path) for name, path in tables.items()}
    assert {name: load_replay(path).source.split for name, path in tables.items()} == {
        name: name for name in tables
    }
    text = run(capsys, checkpoint, *arguments[:-1])[1]
    assert f"table of the test split: {tmp_path / 't.npz'}" in text
    assert f"python -m compress.plan_exits {tmp_path / 't.calibration.npz'}" in text
    other = compress.save(network, tmp_path / "other.pth", meta={"x": 1})
    code, _, err = run(capsys, other, *arguments)
    assert code == 3
    assert "was made from another network" in err


def test_figures(checkpoint, tmp_path, capsys):
    folder = tmp_path / "figures"
    arguments = ["--data", "digits", "--sweep", "0.4:0.6:0.1", "--threshold", "0.5", "-o", folder]
    assert run(capsys, checkpoint, *arguments)[0] == 0
    for name in ("exit_rates.svg", "tradeoff.svg"):
        assert (folder / name).read_text().count("<svg") == 1
    report = json.loads((folder / "report.json").read_text())
    assert report["figures"] == [str(folder / "exit_rates.svg"), str(folder / "tradeoff.svg")]


def test_a_network_without_exits(tmp_path, capsys):
    torch.manual_seed(0)
    model = tiny_vgg()
    model.classifier[3] = torch.nn.Linear(10, 10)
    model.config["num_classes"] = 10
    path = compress.save(model, tmp_path / "vgg.pth")
    code, out, _ = run(capsys, path, "--data", "digits", "--json")
    assert code == 0
    assert json.loads(out)["whole_network"]["count"] == 450
    code, _, err = run(capsys, path, "--data", "digits", "--sweep", "0.1:0.2:0.1")
    assert code == 3
    assert "no early exits" in err


def test_a_foreign_checkpoint_needs_the_positions_of_its_heads(network, tmp_path, capsys):
    two = network.with_positions([0, 2])
    torch.save({"model": two.state_dict(), "acc": 97.0, "epoch": 3}, tmp_path / "foreign.pth")
    arguments = [tmp_path / "foreign.pth", "--data", "digits", "--image-size", "16"]
    code, _, err = run(capsys, *arguments)
    assert code == 3
    code, out, err = run(
        capsys, *arguments, "--head-positions", "0,2", "--threshold", "0.5", "--json"
    )
    assert code == 0, err
    assert json.loads(out)["deployed"]["positions"] == [0, 2, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--exits", "3", "--threshold", "0.5"], "--exits is 3; expected some of 0,1,2"),
        (["--exits", "7", "--threshold", "0.5"], "--exits is 7; expected some of 0,1,2"),
        (["--exits", "1,1", "--threshold", "0.5"], "each once"),
        (["--exits", "a", "--threshold", "0.5"], "--exits is a; expected some of 0,1,2"),
        (["--exits", "0,,2", "--threshold", "0.5"], "--exits is '0,,2'; expected blocks or paths"),
        (["--threshold", "1.5"], "a threshold is 1.5"),
        (["--threshold", "nan"], "a threshold is nan"),
        (["--threshold", "0.5,0.6"], "2 thresholds for 3 exits"),
        (["--sweep", "0.9:0.1:0.1"], "--sweep is"),
        (["--split", "dev"], "--split is 'dev'"),
        (["--image-size", "26"], "26x26 is not divisible by the patch size 4"),
        (["--exits", "1,0", "--threshold", "0.5"], "in this order"),
        (["--exits", "1"], "--exits was given, but no threshold"),
        (["--head-positions", "0,1"], "records 0,1,2"),
        (["--batch-size", "0"], "--batch-size is 0"),
        (["--data", "imaginary"], "imaginary"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input(checkpoint, capsys, options, message):
    code, out, err = run(capsys, checkpoint, "--data", "digits", *options)
    assert (code, out) == (3, "")
    assert message in err
    assert "Traceback" not in err


def test_another_number_of_classes(tmp_path, capsys):
    path = compress.save(GFNetDynn(exits=[0], **{**TINY, "num_classes": 7}), tmp_path / "dynn.pth")
    code, _, err = run(capsys, path, "--data", "digits")
    assert code == 3
    assert "7 classes, but the data digits have 10" in err


def test_shapes_that_fit_no_gfnet(network, tmp_path, capsys):
    state = network.state_dict()
    state["blocks.1.mlp.fc1.weight"] = torch.zeros(64, 15)
    torch.save(state, tmp_path / "bad.pth")
    code, _, err = run(capsys, tmp_path / "bad.pth", "--data", "digits")
    assert code == 3
    assert "Traceback" not in err


def test_what_the_replay_file_holds_is_not_run_again(checkpoint, tmp_path, capsys, monkeypatch):
    replay = ["--data", "digits", "--replay", tmp_path / "t.npz", "--json"]
    first = json.loads(run(capsys, checkpoint, *replay, "--threshold", "0.5")[1])
    assert {path.name for path in tmp_path.glob("*.npz")} == {"t.npz", "t.calibration.npz"}
    ran = []
    monkeypatch.setattr(evaluation, "fill_replay", lambda *_, **__: ran.append(1))
    again = json.loads(run(capsys, checkpoint, *replay, "--sweep", "0.5:0.5:1", "--exits", "2")[1])
    assert not ran
    assert again["whole_network"] == first["whole_network"]
    assert again["calibration"] == first["calibration"]


def test_options_are_checked_before_the_data_are_read(checkpoint, capsys, monkeypatch):
    monkeypatch.setattr(opened, "load_data", lambda *_, **__: pytest.fail("read the data"))
    for wrong in (["--exits", "3", "--threshold", "0.5"], ["--threshold", "0.5,0.6"]):
        assert run(capsys, checkpoint, "--data", "digits", *wrong)[0] == 3


@pytest.mark.parametrize("empty", ["calibration", "test"])
def test_an_empty_split(checkpoint, capsys, monkeypatch, empty):
    def without(*arguments, **options):
        data = load_data(*arguments, **options)
        nothing = torch.empty(0, dtype=torch.int64)
        gone = Split(data.splits[empty].source, nothing, nothing)
        return replace(data, splits={**data.splits, empty: gone})

    monkeypatch.setattr(opened, "load_data", without)
    code, out, err = run(capsys, checkpoint, "--data", "digits", "--threshold", "0.5")
    assert (code, out) == (3, "")
    assert f"the {empty} split of digits is empty" in err


def test_another_image_size_is_resampled(checkpoint, capsys):
    code, out, err = run(capsys, checkpoint, "--data", "digits", "--image-size", "24", "--json")
    assert code == 0, err
    assert json.loads(out)["settings"]["image_size"] == 24


def test_images_are_normalised_as_in_training(network, tmp_path, capsys):
    trained = load_data("digits", image_size=16).preprocessing
    metas = {"same": trained, "other": replace(trained, mean=(0.1, 0.2, 0.3))}
    found = {}
    for name, preprocessing in metas.items():
        path = tmp_path / f"{name}.pth"
        compress.save(network, path, meta={"preprocessing": preprocessing.to_dict()})
        found[name] = json.loads(run(capsys, path, "--data", "digits", "--json")[1])
    assert found["same"]["whole_network"] != found["other"]["whole_network"]


def test_an_exit_that_gives_nan_does_not_spoil_the_rest(network, tmp_path, capsys):
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state["intermediate_heads.1.bias"][0] = float("nan")
    torch.save(state, tmp_path / "nan.pth")
    arguments = [tmp_path / "nan.pth", "--data", "digits", "--threshold", "0.5"]
    code, out, err = run(capsys, *arguments, "--json")
    assert code == 0, err
    assert json.loads(out)["deployed"]["counts"][1] == 0
    assert json.loads(out)["calibration"][1]["temperature"] is None
    assert run(capsys, *arguments)[0] == 0


def test_the_same_command_says_the_same(checkpoint, capsys):
    said = [run(capsys, checkpoint, "--data", "digits", "--threshold", "0.5")[1] for _ in range(2)]
    assert said[0] == said[1]
