"""From a checkpoint or a table to a plan, an export of it, and thresholds set anew."""

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch

from compress.checkpoint import save
from compress.data.spec import load_data
from compress.errors import UnsupportedModelError, UserInputError
from compress.exits.recalibrate import recalibrated
from compress.exits.replay import save_replay
from compress.export.export_job import ExportJob, export_checkpoint
from compress.export.recalibrate_bundle import recalibrate_bundle
from compress.files import sha256_of
from compress.models.gfnet import GFNet
from compress.models.gfnet_dynn import GFNetDynn
from compress.plan_exits import main
from compress.planning.guarantee import Risk
from compress.planning.job import PlanJob, front_rows, plan_network, replay_of
from compress.planning.plan import Objective, read_plan
from compress.runtime.dispatcher import Dispatcher
from compress.runtime.manifest import read_manifest, write_manifest
from compress.runtime.reference_rates import ReferenceRates
from tests.exit_networks import KINDS, RESNET_EXITS


@pytest.fixture(scope="module")
def digits():
    return load_data("digits", image_size=16)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, digits):
    torch.manual_seed(0)
    model = GFNetDynn(
        image_size=16, patch_size=4, width=16, depth=3, num_classes=10, exits=[0, 1]
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    path = tmp_path_factory.mktemp("plan") / "dynn.pth"
    meta = {
        "data": {"name": "digits"},
        "preprocessing": digits.preprocessing.to_dict(),
        "classes": list(digits.classes),
    }
    save(model, path, meta=meta)
    return path


@pytest.fixture(scope="module")
def tables(checkpoint, digits):
    return replay_of(checkpoint, digits, ("calibration", "test"), progress=False)


def job(checkpoint, digits, **options):
    goal = {} if "risk" in options else {"objective": Objective(kind="max-drop", value=1.0)}
    return PlanJob(source=checkpoint, data=digits, progress=False, **{**goal, **options})


def test_the_plan_does_on_test_data_what_it_says(checkpoint, digits, tables, tmp_path):
    report = plan_network(job(checkpoint, digits, output=tmp_path / "plan.json"))
    plan = read_plan(tmp_path / "plan.json")
    assert plan == report.plan
    test = tables["test"]
    exits = [test.positions.index(block) for block in plan.exits]
    taken = np.full(len(test), test.exits)
    for number, bar in reversed(list(zip(exits, plan.thresholds, strict=True))):
        taken[test.scores[:, number] >= bar] = number
    right = test.logits[np.arange(len(test)), taken].argmax(1) == test.labels
    assert report.test.correct == right.sum()
    assert f"accuracy {100 * right.mean():.2f} %, cost" in report.to_text()


def test_a_table_gives_the_plan_of_its_checkpoint(checkpoint, digits, tables, tmp_path):
    save_replay(tables["calibration"], tmp_path / "calibration.npz")
    of_table = plan_network(job(tmp_path / "calibration.npz", None))
    of_checkpoint = plan_network(job(checkpoint, digits))
    assert of_table.plan == of_checkpoint.plan
    assert of_table.test is None


@pytest.fixture(scope="module", params=["resnet-linear", "resnet-conv"])
def modular(request, tmp_path_factory, digits):
    """A checkpoint whose exits stand behind modules."""
    path = tmp_path_factory.mktemp("modular") / "resnet.pth"
    meta = {"data": {"name": "digits"}, "preprocessing": digits.preprocessing.to_dict()}
    return save(KINDS[request.param](), path, meta=meta)


@pytest.mark.parametrize("goal", ["--max-drop=90", "--budget=0.9", "--risk=0.95"])
def test_exits_behind_modules_are_planned_and_named(modular, tmp_path, capsys, goal):
    plan_file = tmp_path / "plan.json"
    options = ["--data", "digits", goal, "--hand-made", "layer1.1,layer2.1:0.9", "-q"]
    assert main([str(modular), *options, "-o", str(plan_file), "--front"]) == 0
    text = capsys.readouterr().out
    plan = read_plan(plan_file)
    assert plan.depth == 0
    assert set(plan.exits) <= set(RESNET_EXITS)
    assert plan.exits
    for exit_, bar in zip(plan.exits, plan.thresholds, strict=True):
        assert f"{exit_:>11}  {bar:9.4f}" in text
    assert main([str(modular), *options, "-o", str(plan_file), "--force", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["plan"]["exits"] == list(plan.exits)
    assert told["front"]["points"]["hand-made"][0]["exits"] == ["layer1.1", "layer2.1"]
    table = replay_of(modular, "digits", ("calibration",), progress=False)["calibration"]
    before = replace(table, scores=np.sqrt(table.scores))  # as after quantisation, all too high
    found = recalibrated(table, before, 0.7)
    assert found.drift > found.remaining_drift


def test_exits_that_measured_costs_do_not_pay_for_are_told(modular, tmp_path, capsys):
    costs = {
        "format": "compress.costs/1", "unit": "ms", "source": "a board", "exits": [*RESNET_EXITS],
        "segments": [1.0, 1.0, 1.0, 1.0], "checks": [0.5, 0.5, 0.5], "whole": 0.9,
    }  # fmt: skip
    (tmp_path / "costs.json").write_text(json.dumps(costs))
    options = [
        "--data",
        "digits",
        "--max-drop",
        "90",
        "--costs",
        str(tmp_path / "costs.json"),
        "-q",
    ]
    plan_file = tmp_path / "plan.json"
    assert main([str(modular), *options, "-o", str(plan_file)]) == 0
    text = capsys.readouterr().out
    plan = read_plan(plan_file)
    assert plan.exits == ()
    assert set(plan.refused.exits) <= set(RESNET_EXITS)
    assert f"no exits: with those behind {','.join(plan.refused.exits)} an image would cost" in text
    assert "and 0.9 ms without any, so the plan is the whole network" in text
    assert "expected cost 100.0% of the whole network (a board)" in text
    assert main([str(modular), *options, "-o", str(plan_file), "--force", "--json"]) == 0
    refused = json.loads(capsys.readouterr().out)["plan"]["refused"]
    assert refused["exits"] == list(plan.refused.exits)
    assert refused["expected"] >= 0.9


def test_the_front_of_a_report_lays_all_planners_side_by_side(checkpoint, digits):
    report = plan_network(job(checkpoint, digits, hand_made=((1,), 0.5), held_out=False))
    rows = front_rows(report)
    methods = [curve["method"] for curve in rows["front"]]
    assert methods == [
        "search over exits and thresholds",
        "optimal stopping",
        "one threshold for all exits",
        "by hand",
    ]
    by_hand = rows["front"][3]["points"][0]
    better = [
        point
        for point in rows["front"][0]["points"]
        if point["acc1"] >= by_hand["acc1"] and point["cost_share"] <= by_hand["cost_share"] + 1e-12
    ]
    assert better, "the search lies behind the choice by hand"
    assert rows["chosen"]["cost_share"] == report.plan.cost.share


def test_a_bundle_is_exported_from_the_plan_and_decides_by_it(checkpoint, digits, tables, tmp_path):
    plan = plan_network(job(checkpoint, digits, output=tmp_path / "plan.json")).plan
    export_checkpoint(
        ExportJob(
            checkpoint=checkpoint,
            output=tmp_path / "b",
            split_exits=True,
            plan=tmp_path / "plan.json",
            target="onnxruntime",
            max_batch=64,
            progress=False,
        )
    )
    manifest = read_manifest(tmp_path / "b")
    assert [s.at for s in manifest.segments] == [*(f"blocks.{n}" for n in plan.exits), None]
    assert manifest.thresholds == list(plan.thresholds)
    assert manifest.provenance["plan"]["exits"] == list(plan.exits)
    assert manifest.provenance["plan"]["source"]["split"] == "calibration"
    assert manifest.notes["calibration"]["images"] == len(digits.splits["calibration"])
    test = digits.splits["test"]
    with Dispatcher(tmp_path / "b") as dispatcher:
        found = dispatcher.run(digits.normalize(test.images(torch.arange(64))).numpy())
    assert (np.bincount(found.exits, minlength=manifest.exits + 1) > 0).any()
    if manifest.exits == 0:
        return
    before = recalibrate_bundle(tmp_path / "b", checkpoint, digits, progress=False)
    assert before.drift < 1  # in float32 nothing moved
    assert read_manifest(tmp_path / "b").thresholds == list(before.thresholds)


def test_a_bundle_whose_thresholds_moved_can_be_watched(checkpoint, digits, tmp_path):
    """The note that a monitor reads is of the new thresholds, and of what leaves at them."""
    bundle = tmp_path / "b"
    export_checkpoint(
        ExportJob(
            checkpoint=checkpoint,
            output=bundle,
            split_exits=True,
            thresholds=0.5,
            target="onnxruntime",
            max_batch=64,
            data=digits,
            progress=False,
        )
    )
    manifest = read_manifest(bundle)
    segment = bundle / manifest.segments[0].file
    shifted = onnx.load(segment)  # as quantisation may: every gate of the first exit is lower
    for node in shifted.graph.node:
        for place, name in enumerate(node.output):
            node.output[place] = "gate_before" if name == "gate" else name
    shifted.graph.initializer.append(onnx.numpy_helper.from_array(np.float32([0.6]), "less"))
    shifted.graph.node.append(onnx.helper.make_node("Mul", ["gate_before", "less"], ["gate"]))
    onnx.save(shifted, segment)
    first = replace(manifest.segments[0], sha256=sha256_of(segment))
    write_manifest(replace(manifest, segments=(first, *manifest.segments[1:])), bundle)
    moved = recalibrate_bundle(bundle, checkpoint, digits, progress=False)
    assert moved.thresholds[0] < 0.5
    reference = ReferenceRates.from_manifest(read_manifest(bundle))
    split = digits.splits["calibration"]
    with Dispatcher(bundle) as dispatcher:
        images = split.images(torch.arange(len(split)))
        found = dispatcher.run(digits.normalize(images).numpy())
    assert reference.thresholds == moved.thresholds
    assert list(reference.exit_counts) == np.bincount(found.exits, minlength=3).tolist()


def named(table, split):
    return replace(table, source=replace(table.source, split=split))


@pytest.mark.parametrize(
    ("split", "options", "code", "words"),
    [
        ("calibration", [], 0, "images drawn as the calibration images were"),
        ("train", [], 3, "is of the split 'train' of digits"),
        ("test", ["--split-is-fresh"], 3, "is of the split 'test' of digits"),
        ("validation", ["--split-is-fresh"], 3, "give the table of the calibration split"),
        ("shelf 3", [], 3, "give that table, or --split-is-fresh"),
        ("shelf 3", ["--split-is-fresh"], 0, "images drawn as the shelf 3 images were"),
    ],
)
def test_a_guarantee_is_given_from_fresh_images_alone(
    tables, tmp_path, capsys, split, options, code, words
):
    save_replay(named(tables["calibration"], split), tmp_path / "t.npz")
    risk = ["--risk", 0.3, "--method", "fixed-sequence"]
    found, out, err = door(capsys, *risk, *options, tmp_path / "t.npz")
    assert found == code, err
    assert words in out + err
    assert (tmp_path / "t.plan.json").exists() == (code == 0)
    if code == 0:
        plan = read_plan(tmp_path / "t.plan.json")
        assert (plan.source.split, plan.guarantee.risk) == (split, 0.3)


def test_a_plan_names_the_split_that_it_was_made_from(tables, tmp_path, capsys):
    save_replay(tables["test"], tmp_path / "t.npz")
    code, out, _ = door(capsys, tmp_path / "t.npz")
    assert code == 0
    assert " test images: other images than the thresholds" in out


def test_a_plan_of_another_checkpoint_is_refused(checkpoint, digits, tmp_path):
    plan_network(job(checkpoint, digits, output=tmp_path / "plan.json"))
    other = GFNetDynn(image_size=16, patch_size=4, width=16, depth=3, num_classes=10, exits=[0, 1])
    save(other, tmp_path / "other.pth")
    with pytest.raises(UserInputError, match=r"plan was computed from a checkpoint with sha256"):
        export_checkpoint(
            ExportJob(
                checkpoint=tmp_path / "other.pth",
                output=tmp_path / "b",
                split_exits=True,
                plan=tmp_path / "plan.json",
            )
        )


def test_what_cannot_be_planned_is_told(checkpoint, digits, tmp_path):
    with pytest.raises(UserInputError, match="exactly one of"):
        plan_network(PlanJob(source=checkpoint, data=digits))
    risk = Risk(loss="consistency", risk=0.1, confidence=0.9)
    with pytest.raises(UserInputError, match="exactly one of"):
        plan_network(
            PlanJob(
                source=checkpoint,
                data=digits,
                risk=risk,
                objective=Objective(kind="budget", value=0.5),
            )
        )
    with pytest.raises(UserInputError, match=r"nowhere.pth does not exist"):
        plan_network(job(tmp_path / "nowhere.pth", None))
    with pytest.raises(UserInputError, match="give --data SPEC"):
        plan_network(job(checkpoint, None))
    plain = GFNet(image_size=16, patch_size=4, width=8, depth=2, num_classes=10)
    save(plain, tmp_path / "plain.pth")
    with pytest.raises(UnsupportedModelError, match="GFNet without early exits"):
        plan_network(job(tmp_path / "plain.pth", digits))


def door(capsys, *arguments):
    code = main([str(each) for each in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_door_prints_the_plan_and_its_front(checkpoint, tables, capsys, tmp_path):
    save_replay(tables["calibration"], tmp_path / "t.npz")
    code, out, err = door(capsys, "--max-drop", 2, "--front", tmp_path / "t.npz")
    assert code == 0, err
    assert out.startswith("cost of whole  accuracy  exits: thresholds")
    assert f"written: {tmp_path / 't.plan.json'}" in out
    code, _, err = door(capsys, tmp_path / "t.npz")
    assert (code, "exists; give another name" in err) == (3, True)
    code, out, _ = door(capsys, "--budget", 0.9, "--json", "--force", tmp_path / "t.npz")
    report = json.loads(out)
    assert report["plan"]["objective"] == {"kind": "budget", "value": 0.9}
    assert report["plan"]["cost"]["expected"] <= 0.9 * report["plan"]["cost"]["full"] + 1e-6


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        pytest.param(["--risk", "0.0001"], 5, "images", id="too-few-images"),
        pytest.param(["--risk", "2"], 3, "--risk is 2.0", id="risk"),
        pytest.param(["--risk", "1e-300"], 3, "--risk is 1e-300; expected at least", id="tiny"),
        pytest.param(["--budget", "-1"], 3, "budget", id="budget"),
        pytest.param(["--budget", "60"], 3, "--budget is 60.0; expected it above 0", id="percent"),
        pytest.param(["--budget", "nan"], 3, "--budget is nan", id="no-budget"),
        pytest.param(["--seed", "-1"], 3, "--seed is -1", id="seed"),
        pytest.param(["--hand-made", "0,1"], 3, "--hand-made is", id="no-threshold"),
        pytest.param(["--hand-made", "5:0.5"], 3, "expected some of 0,1", id="no-such-exit"),
        pytest.param(["--costs", "none.json"], 3, "none.json", id="costs"),
        pytest.param(["--budget-ms", "4"], 3, "without --costs", id="milliseconds"),
        pytest.param(["--bundle", "b"], 3, "expected --data SPEC", id="bundle"),
    ],
)
def test_wrong_inputs_are_one_sentence(tables, capsys, tmp_path, arguments, code, message):
    save_replay(tables["calibration"], tmp_path / "t.npz")
    found, out, err = door(capsys, *arguments, tmp_path / "t.npz")
    assert found == code, err
    assert message in err
    assert "Traceback" not in err
    assert out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["t.npz"]
