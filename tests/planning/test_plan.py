import copy
import json
from dataclasses import replace

import pytest

from compress.errors import UserInputError
from compress.exits.replay import Source
from compress.planning.plan import (
    ExitPlan,
    Guarantee,
    Objective,
    PlanAccuracy,
    PlanCost,
    RefusedExits,
    read_plan,
    write_plan,
)

PLAN = ExitPlan(
    exits=(4, 7),
    thresholds=(0.5, 0.8125),
    depth=12,
    objective=Objective(kind="risk", value=0.01),
    planner="search",
    cost=PlanCost(expected=2.0, full=4.0, unit="ms", source="measured on a board"),
    accuracy=PlanAccuracy(
        images=200,
        correct=150,
        full_correct=151,
        interval=(0.68, 0.81),
        confidence=0.95,
        held_out=True,
    ),
    exit_rates=(0.25, 0.25, 0.5),
    guarantee=Guarantee(
        loss="accuracy",
        risk=0.01,
        confidence=0.95,
        method="pareto-testing",
        images=1000,
        violations=4,
        p_value=0.029,
    ),
    source=Source(data="digits", split="calibration", data_sha256="d", checkpoint_sha256="c"),
    seed=3,
)


def test_a_plan_comes_back_as_it_was(tmp_path):
    path = tmp_path / "plan.json"
    write_plan(PLAN, path)
    found = read_plan(path)
    assert found == PLAN
    assert found.checkpoint_sha256 == "c"
    assert found.cost.share == 0.5
    assert found.accuracy.acc1 == 75.0
    assert found.accuracy.drop == pytest.approx(0.5)
    assert json.loads(path.read_text())["format"] == "compress.plan/2"


def test_thresholds_come_back_to_the_last_bit(tmp_path):
    value = PLAN.to_dict()
    value["thresholds"] = [0.1 + 0.2, 1 / 3]
    write_plan(ExitPlan.from_dict(value), tmp_path / "plan.json")
    assert read_plan(tmp_path / "plan.json").thresholds == (0.1 + 0.2, 1 / 3)


def test_a_plan_without_exits_is_the_whole_network():
    value = PLAN.to_dict()
    value.update(exits=[], thresholds=[], exit_rates=[1.0])
    assert ExitPlan.from_dict(value).exits == ()


def test_exits_behind_modules_come_back(tmp_path):
    plan = replace(PLAN, exits=("layer2.4", "layer3.1"), depth=0)
    write_plan(plan, tmp_path / "plan.json")
    assert read_plan(tmp_path / "plan.json") == plan
    with pytest.raises(UserInputError, match="twice"):
        ExitPlan.from_dict({**plan.to_dict(), "exits": ["layer2.4", "layer2.4"]})


def test_a_plan_of_the_format_before_is_read():
    value = PLAN.to_dict()
    del value["refused"]
    assert ExitPlan.from_dict({**value, "format": "compress.plan/1"}) == PLAN


REFUSED = replace(
    PLAN,
    exits=(),
    thresholds=(),
    exit_rates=(1.0,),
    refused=RefusedExits(exits=(4, 7), thresholds=(0.5, 0.75), expected=4.5),
)


def test_a_plan_says_which_exits_were_refused(tmp_path):
    write_plan(REFUSED, tmp_path / "plan.json")
    assert read_plan(tmp_path / "plan.json") == REFUSED


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        pytest.param({"expected": 3.9}, "refused", id="cheaper-than-the-whole"),
        pytest.param({"exits": [], "thresholds": []}, "refused", id="nothing"),
        pytest.param({"exits": [7, 4]}, "blocks", id="out-of-order"),
        pytest.param({"thresholds": [0.5]}, "1 thresholds for 2 exits", id="thresholds"),
        pytest.param({"expected": float("nan")}, "number", id="no-number"),
    ],
)
def test_refused_exits_that_cannot_be(changes, match):
    value = REFUSED.to_dict()
    with pytest.raises(UserInputError, match=match):
        ExitPlan.from_dict({**value, "refused": {**value["refused"], **changes}})


def altered(*keys, to):
    value = copy.deepcopy(PLAN.to_dict())
    inner = value
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = to
    return value


BAD = [
    (("format",), "compress.plan/3", "format"),
    (("exits",), [7, 4], "blocks"),
    (("exits",), [4, 4], "twice"),
    (("exits",), [4, 11], "blocks"),  # behind the last block stands the final head
    (("exits",), [-1, 4], "position"),
    (("exits",), [4.0, 7.0], "position"),
    (("exits",), [True, 7], "position"),
    (("exits",), [4, "layer2.4"], "12 blocks"),
    (("exits",), ["blocks.4", 4], "twice"),
    (("exits",), ["a b", "c"], "position"),
    (("exits",), ["x" * 201, "c"], "position"),
    (("exits",), "47", "list"),
    (("thresholds",), [0.5], "1 thresholds for 2 exits"),
    (("thresholds",), [0.5, 1.5], "threshold"),
    (("thresholds",), [0.5, float("nan")], "number"),
    (("thresholds",), ["0.5", "0.8"], "number"),
    (("thresholds",), 0.5, "list"),
    (("thresholds",), [True, 0.8], "number"),
    (("depth",), -1, "whole number"),
    (("depth",), 10**400, "whole number"),
    (("objective",), "risk", "object"),
    (("objective", "kind"), "speed", "objective"),
    (("objective", "kind"), "budget", "objective budget, guarantee"),
    (("objective", "value"), float("inf"), "number"),
    (("objective", "value"), 0.0, "above 0"),
    (("cost", "expected"), -1.0, "costs"),
    (("cost", "full"), 10**400, "int too large"),
    (("cost", "unit"), "flops", "one of"),
    (("cost", "unit"), ["ms"], "one of"),
    (("cost", "source"), "x" * 5000, "text"),
    (("accuracy", "images"), 0, "whole number"),
    (("accuracy", "correct"), 201, "right"),
    (("accuracy", "full_correct"), 201, "right"),
    (("accuracy", "interval"), [0.8, 0.9], "interval"),
    (("accuracy", "interval"), [0.7], "unpack"),
    (("accuracy", "held_out"), 1, "held_out"),
    (("exit_rates",), [0.5, 0.5], "exit rates"),
    (("exit_rates",), [0.5, 0.5, 0.5], "exit rates"),
    (("exit_rates",), [-0.5, 1.0, 0.5], "share"),
    (("guarantee",), None, "guarantee None"),
    (("guarantee",), [], "object"),
    (("guarantee", "p_value"), 0.06, "refuse"),
    (("guarantee", "violations"), 1001, "refuse"),
    (("guarantee", "loss"), "brier", "one of"),
    (("source", "checkpoint_sha256"), None, "text"),
    (("source",), {}, "missing"),
    (("seed",), 0.5, "whole number"),
    (("refused",), [], "object"),
    (("refused",), {"exits": [4], "thresholds": [0.5], "expected": 5.0}, "refused"),
]


@pytest.mark.parametrize(("keys", "to", "match"), BAD)
def test_a_plan_that_a_stranger_altered_is_refused(keys, to, match, tmp_path):
    value = altered(*keys, to=to)
    with pytest.raises(UserInputError, match=match):
        ExitPlan.from_dict(value)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(value))
    with pytest.raises(UserInputError, match=r"plan\.json cannot be used .*plan_exits"):
        read_plan(path)


@pytest.mark.parametrize("key", sorted(PLAN.to_dict()))
def test_every_field_is_needed(key):
    value = PLAN.to_dict()
    del value[key]
    with pytest.raises(UserInputError, match="missing"):
        ExitPlan.from_dict(value)


@pytest.mark.parametrize(
    "content",
    [b"", b"not json", b"[]", b"null", b"{}", b"\xff\xfe", b"[" * 100_000, b" " * (2 << 20),
     b'{"format": "compress.plan/1", "exits": ' + b"9" * 10_000 + b"}"],
)  # fmt: skip
def test_files_that_are_no_plans(content, tmp_path):
    path = tmp_path / "plan.json"
    path.write_bytes(content)
    with pytest.raises(UserInputError, match=r"plan\.json"):
        read_plan(path)


def test_no_file(tmp_path):
    with pytest.raises(UserInputError, match="does not exist"):
        read_plan(tmp_path / "plan.json")


def test_a_plan_that_no_reader_takes_is_not_written(tmp_path):
    broken = ExitPlan(**{**PLAN.__dict__, "exit_rates": (1.0,)})
    with pytest.raises(UserInputError, match="exit rates"):
        write_plan(broken, tmp_path / "plan.json")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("kind", "value"),
    [("max-drop", -0.1), ("max-drop", 101), ("max-drop", float("nan")), ("budget", 0),
     ("budget-cost", float("inf")), ("risk", 1.0), ("risk", 0.0), ("front", 1.0)],
)  # fmt: skip
def test_objectives_out_of_range(kind, value):
    with pytest.raises(UserInputError, match="expected"):
        Objective(kind=kind, value=value)


def test_no_drop_at_all_can_be_asked_for():
    assert Objective(kind="max-drop", value=0).value == 0
