import json

import pytest
import torch

import compress
from compress.evaluate import main
from compress.models.early_exit import GFNetDynn
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


def test_a_replay_file_is_used_again_and_refused_for_another_network(
    checkpoint, network, tmp_path, capsys
):
    arguments = ["--data", "digits", "--threshold", "0.5", "--replay", tmp_path / "t.npz", "--json"]
    first = run(capsys, checkpoint, *arguments)
    second = run(capsys, checkpoint, *arguments)
    assert json.loads(first[1])["deployed"] == json.loads(second[1])["deployed"]
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
    from compress.models.early_exit import with_exits

    two = with_exits(network, [0, 2])
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
        (["--exits", "3", "--threshold", "0.5"], "exit position 3 is the last block"),
        (["--exits", "7", "--threshold", "0.5"], "exit position 7 is out of range"),
        (["--exits", "1,1", "--threshold", "0.5"], "repeat themselves"),
        (["--exits", "a", "--threshold", "0.5"], "--exits is 'a'"),
        (["--threshold", "1.5"], "a threshold is 1.5"),
        (["--threshold", "nan"], "a threshold is nan"),
        (["--threshold", "0.5,0.6"], "2 thresholds for 3 exits"),
        (["--sweep", "0.9:0.1:0.1"], "--sweep is"),
        (["--split", "dev"], "--split is 'dev'"),
        (["--image-size", "18"], "does not take images"),
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
