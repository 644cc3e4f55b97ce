import json
import math
import subprocess
import sys

import pytest
import torch

import compress
from compress.measure.latency import Latency
from compress.models.vgg import VGG
from compress.slim import main
from tests import networks
from tests.golden import BASE_LINES, LOG, golden_vgg16
from tests.slimming.test_surgery import tiny_vgg

QUICK = ["--no-latency", "--input-size", "24", "--round-to", "2", "--min-channels", "2"]


@pytest.fixture(scope="module")
def golden_file(tmp_path_factory):
    return compress.save(golden_vgg16(), tmp_path_factory.mktemp("golden") / "vgg16.pth")


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "tiny.pth"
    torch.save(tiny_vgg().state_dict(), path)
    return path


def run(capsys, *arguments) -> tuple[int, str, str]:
    code = main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def module_lines(widths: list[int], fc_in: int) -> list[str]:
    """What the log prints for every layer that slimming changes."""
    convs = (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40)
    lines = [f"    (0): Linear(in_features={fc_in}, out_features=4096, bias=True)"]
    for index, before, width in zip(convs, [3, *widths[:-1]], widths, strict=True):
        conv = f"Conv2d({before}, {width}, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))"
        norm = f"BatchNorm2d({width}, eps=1e-05, momentum=0.1, affine=True, "
        norm += "track_running_stats=True)"
        lines += [f"    ({index}): {conv}", f"    ({index + 1}): {norm}"]
    return lines


@pytest.mark.parametrize(
    "ratio",
    [pytest.param(0.2, marks=pytest.mark.slow), pytest.param(0.4, marks=pytest.mark.slow), 0.6],
)
def test_the_console_block_of_the_log(golden_file, capsys, ratio):
    code, out, _ = run(capsys, "--ratio", ratio, golden_file, "--dry-run", "--no-latency")
    assert code == 0
    lines = out.splitlines()
    log = LOG[ratio]
    assert tuple(lines[:2]) == BASE_LINES
    assert tuple(lines[2:4]) == log["lines"]
    for printed in module_lines(log["widths"], log["fc_in"]):
        assert printed in lines
    start = lines.index(f"predict pruned ratio: {ratio}")
    assert lines[start + 1] == f"true pruned ratio: {log['true']}"
    assert lines[start + 2] == f"threshold: {log['threshold']}"
    assert lines[start + 3] == "torch.Size([1, 100])"
    table = lines[lines.index("", start) + 2 :][: len(log["widths"])]
    printed = [int(line.split("->")[1].split()[0]) for line in table]
    assert printed == log["widths"]


def test_json_of_one_ratio(checkpoint, capsys):
    code, out, _ = run(capsys, "--ratio", 0.5, checkpoint, "--json", *QUICK)
    report = json.loads(out)
    assert code == 0
    assert report["schema"] == "compress.slim/1"
    assert report["predict_pruned_ratio"] == 0.5
    assert report["true_pruned_ratio"] == pytest.approx(1 - sum(report["widths"]) / 36)
    for moment in ("before", "after"):
        assert {"macs", "flops_log_convention", "params", "latency_ms"} <= set(report[moment])
        assert report[moment]["output_shape"] == [1, 5]
    assert report["after"]["macs"] < report["before"]["macs"]
    assert report["versions"]["torch"] == torch.__version__
    assert report["absorption"]["error_absorbed"] < report["absorption"]["error_plain"]
    assert json.loads(checkpoint.with_name("tiny.slim-0.5.report.json").read_text()) == report
    assert compress.load(report["output"]).config["widths"] == [
        report["widths"][:2],
        report["widths"][2:],
    ]


def test_latency_is_measured_for_both(checkpoint, capsys):
    _, out, _ = run(capsys, "--ratio", 0.5, checkpoint, "--json", *QUICK[1:], "--dry-run", "-q")
    report = json.loads(out)
    for moment in ("before", "after"):
        latency = report[moment]["latency_ms"]
        assert 0 < latency["p10"] <= latency["median"] <= latency["p90"]
    _, out, _ = run(capsys, "--ratio", 0.5, checkpoint, *QUICK[1:], "--dry-run", "-q")
    lines = [line for line in out.splitlines() if line.startswith("one process need ")]
    assert len(lines) == 2
    assert all("s, model compute need: " in line for line in lines)


def test_several_ratios_from_one_load(checkpoint, capsys):
    code, out, _ = run(capsys, "--ratio", 0.2, 0.5, checkpoint, "--json", *QUICK)
    found = json.loads(out)
    assert code == 0
    assert [r["predict_pruned_ratio"] for r in found["results"]] == [0.2, 0.5]
    names = sorted(p.name for p in checkpoint.parent.glob("*.pth"))
    assert names == ["tiny.pth", "tiny.slim-0.2.pth", "tiny.slim-0.5.pth"]


def test_the_written_network_is_the_reported_one(checkpoint, capsys, tmp_path):
    run(capsys, "--ratio", 0.5, checkpoint, "-o", tmp_path / "out" / "small.pth", *QUICK)
    model = compress.load(tmp_path / "out" / "small.pth")
    assert isinstance(model, VGG)
    report = json.loads((tmp_path / "out" / "small.report.json").read_text())
    assert [w for stage in model.config["widths"] for w in stage] == report["widths"]
    assert model(torch.randn(1, 3, 24, 24)).shape == (1, 5)


def test_dry_run_writes_nothing(checkpoint, capsys):
    assert run(capsys, "--ratio", 0.5, checkpoint, "--dry-run", *QUICK)[0] == 0
    assert [p.name for p in checkpoint.parent.iterdir()] == ["tiny.pth"]


@pytest.mark.parametrize("kind", ["macs", "params"])
def test_targets_are_reached_by_the_smallest_ratio(checkpoint, capsys, kind):
    arguments = [checkpoint, "--dry-run", "--json", *QUICK]
    _, out, _ = run(capsys, f"--target-{kind}", 0.6, *arguments)
    report = json.loads(out)
    share = report["after"][kind] / report["before"][kind]
    assert share <= 0.6
    assert report["target"]["reached"] == pytest.approx(share)
    ratio = report["target"]["pruning_ratio"]
    _, out, _ = run(capsys, "--ratio", round(ratio - 0.001, 3), *arguments)
    less = json.loads(out)
    assert less["after"][kind] / less["before"][kind] > 0.6


def test_target_latency_is_what_the_measurement_says(checkpoint, capsys, monkeypatch):
    """On a device whose time goes with the number of parameters, which is no noisy machine."""
    timed = []

    def measured(subjects, **_):
        sizes = {
            k: sum(p.numel() for p in model.parameters()) for k, (model, _) in subjects.items()
        }
        timed.append(sizes["after"] / sizes["before"])
        names = ("median_ms", "p10_ms", "p90_ms", "p99_ms", "mean_ms")
        return {
            k: Latency(**dict.fromkeys(names, size), iterations=1, threads=1)
            for k, size in sizes.items()
        }

    monkeypatch.setattr("compress.slimming.job.measure_latency", measured)
    arguments = ["--dry-run", "--json", "-q", *QUICK]
    code, out, err = run(capsys, "--target-latency", 0.7, checkpoint, *arguments)
    assert code == 0, err
    assert json.loads(out)["target"]["reached"] == max(share for share in timed if share <= 0.7)


def test_no_absorb_leaves_the_biases(checkpoint, capsys, tmp_path):
    for flag, name in ([], "a.pth"), (["--no-absorb"], "b.pth"):
        run(capsys, "--ratio", 0.5, checkpoint, "-o", tmp_path / name, *flag, *QUICK)
    plain = compress.load(tmp_path / "b.pth").classifier[0].bias
    assert plain.equal(compress.load(checkpoint).classifier[0].bias)
    assert not compress.load(tmp_path / "a.pth").classifier[0].bias.equal(plain)


@pytest.mark.parametrize("factory", ["bottleneck_resnet", "inverted_residual_net"])
def test_a_network_of_somebody_else(tmp_path, capsys, factory):
    name = f"tests.networks:{factory}"
    network = networks.trained_like(getattr(networks, factory)())
    torch.save(network.state_dict(), tmp_path / "net.pth")
    arguments = ["--ratio", 0.4, tmp_path / "net.pth", "--model", name, "--json", "--no-latency"]
    code, out, err = run(
        capsys, *arguments, "--round-to", 4, "--min-channels", 4, "--input-size", 32
    )
    assert code == 0, err
    report = json.loads(out)
    assert report["after"]["macs"] < report["before"]["macs"]
    slim = compress.load(tmp_path / "net.slim-0.4.pth", factory=name)
    assert sum(p.numel() for p in slim.parameters()) == report["after"]["params"]
    assert list(slim(torch.randn(1, 3, 32, 32)).shape) == report["after"]["output_shape"]


def broken(kind: str, checkpoint, tmp_path) -> list:
    """Arguments whose checkpoint or options are wrong in one way."""
    state = torch.load(checkpoint, weights_only=True)
    path = tmp_path / f"{kind}.pth"
    if kind == "truncated":
        path.write_bytes(checkpoint.read_bytes()[:2000])
    elif kind == "pickle":
        torch.save(tiny_vgg(), path)
    elif kind == "no batchnorm":
        torch.save({k: v for k, v in state.items() if "running" not in k}, path)
    elif kind == "nan":
        state["features.4.weight"][3] = math.nan
        torch.save(state, path)
    elif kind == "nan weights":
        state["classifier.0.weight"][0] = math.nan
        torch.save(state, path)
    elif kind == "untrained":
        torch.save(VGG(widths=[[8]], num_classes=2, hidden=[], pooled=1).state_dict(), path)
    return [path]


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("missing", [], "does not exist"),
        ("truncated", [], "cannot be read"),
        ("pickle", [], "would run code"),
        ("no batchnorm", [], "no BatchNorm"),
        ("nan", [], "features.4: 1 of 12 γ are NaN"),
        ("nan weights", [], "computes NaN"),
        ("untrained", [], "cannot be ranked"),
        ("", ["--ratio", "1.0"], "--ratio is 1.0; expected 0 <= ratio < 1"),
        ("", ["--ratio", "-0.5"], "--ratio is -0.5; expected 0 <= ratio < 1"),
        ("", ["--ratio", "nan"], "--ratio is nan; expected 0 <= ratio < 1"),
        ("", ["--round-to", "16"], "no multiple of 16"),
        ("", ["--round-to", "0"], "--round-to is 0"),
        ("", ["--ignore", "nothing*"], "--ignore 'nothing*' matches no layer"),
        ("", ["--input-size", "2"], "does not take images"),
        ("", ["--input-size", "0"], "--image-size is 0"),
        ("", ["--device", "warp"], "device is 'warp'; expected cpu"),
        ("", ["--model", "no_such_module:build"], "--model no_such_module:build cannot be built"),
        ("", ["--model", "whatever"], "expected package.module:factory"),
        ("", ["--data", "imaginary"], "imaginary"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_bad_input_is_one_sentence_and_no_file(
    checkpoint, tmp_path, capsys, kind, options, message
):
    before = {p.name for p in tmp_path.iterdir()}
    arguments = broken(kind, checkpoint, tmp_path) if kind else [checkpoint]
    before |= {p.name for p in arguments if p.exists()}
    ratio = [] if "--ratio" in options else ["--ratio", "0.5"]
    code, out, err = run(capsys, *arguments, *ratio, *QUICK, *options)
    assert code == 3
    assert out == ""
    assert message in err
    last = err.strip().splitlines()[-1]
    assert last.startswith("python -m compress.slim: error: ")
    assert "Traceback" not in err
    assert {p.name for p in tmp_path.rglob("*")} == before


def test_an_existing_output_is_kept_unless_forced(checkpoint, capsys):
    taken = checkpoint.with_name("tiny.slim-0.5.pth")
    taken.write_text("mine")
    code, _, err = run(capsys, "--ratio", 0.5, checkpoint, *QUICK)
    assert (code, taken.read_text()) == (3, "mine")
    assert "exists" in err
    assert "--force" in err
    assert run(capsys, "--ratio", 0.5, checkpoint, *QUICK, "--force")[0] == 0


def test_the_checkpoint_itself_is_never_the_output(checkpoint, capsys):
    code, _, err = run(capsys, "--ratio", 0.5, checkpoint, "-o", checkpoint, "--force", *QUICK)
    assert code == 3
    assert "is the checkpoint itself" in err


def test_usage_errors_are_argparses(checkpoint):
    for arguments in (
        [str(checkpoint)],
        ["--ratio", "0.2"],
        ["--ratio", "0.2", "--target-macs", ".5"],
    ):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2


def test_a_network_that_was_not_trained_for_slimming_is_warned_of(checkpoint, capsys, caplog):
    run(capsys, "--ratio", 0.5, checkpoint, "--dry-run", *QUICK)
    assert "hardly trained for slimming" in caplog.text


def test_help_needs_no_torch():
    code = "import sys; sys.modules['torch'] = None\nfrom compress.slim import main\nmain(['-h'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "examples:" in done.stdout
